"""The exercises of the chapters on GDA and few shots: hints, right answers and known mistakes.

Used in: notebooks/02_gda.ipynb, notebooks/03_fewshot.ipynb
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import softmax

from minilib.evaluate import expected_calibration_error, reliability
from minilib.judges import Choice, Exercise, Function, Number

# What the functions of the exercises should do, what they are tried on, and their known mistakes ---------------------


def _draw_means(rng: np.random.Generator) -> tuple[Any, ...]:
    k = int(rng.integers(2, 5))
    return rng.normal(size=(k, 5)), rng.permutation(np.arange(3, 3 + k)), rng.normal(size=5), int(rng.integers(k))


def _replaced(means: np.ndarray, k: int, mean: np.ndarray) -> np.ndarray:
    return np.where(np.arange(len(means))[:, None] == k, mean, means)  # (K, D)


def _left_out(means: np.ndarray, counts: np.ndarray, row: np.ndarray, k: int) -> np.ndarray:
    return _replaced(means, k, (counts[k] * means[k] - row) / (counts[k] - 1))


def _divided_by_n(means: np.ndarray, counts: np.ndarray, row: np.ndarray, k: int) -> np.ndarray:
    return _replaced(means, k, (counts[k] * means[k] - row) / counts[k])


def _left_out_of_mean(means: np.ndarray, counts: np.ndarray, row: np.ndarray, k: int) -> np.ndarray:
    return _replaced(means, k, (means[k] - row) / (counts[k] - 1))


def _left_out_of_all(means: np.ndarray, counts: np.ndarray, row: np.ndarray, k: int) -> np.ndarray:
    return (counts[:, None] * means - row) / (counts[:, None] - 1)


def _draw_bets(rng: np.random.Generator) -> tuple[Any, ...]:
    """Rows right 7 times in 10 whatever their confidence, so that bins have gaps of both signs."""
    p = softmax(2 * rng.normal(size=(300, 3)), axis=1)
    miss = rng.random(300) > 0.7
    return p, (p.argmax(axis=1) + miss) % 3, int(rng.integers(8, 16))


def _bin_gaps(probabilities: np.ndarray, labels: np.ndarray, bins: int) -> np.ndarray:
    table = reliability(probabilities, labels, bins=bins)
    return np.nan_to_num(table["accuracy"] - table["confidence"])  # (bins,), 0 where empty


def _ece(probabilities: np.ndarray, labels: np.ndarray, bins: int) -> float:
    return expected_calibration_error(probabilities, labels, bins=bins)


def _ece_unweighted(probabilities: np.ndarray, labels: np.ndarray, bins: int) -> float:
    gaps = np.abs(_bin_gaps(probabilities, labels, bins))
    return float(gaps.sum() / np.count_nonzero(reliability(probabilities, labels, bins=bins)["counts"]))


def _ece_of_all_bins(probabilities: np.ndarray, labels: np.ndarray, bins: int) -> float:
    return float(np.abs(_bin_gaps(probabilities, labels, bins)).mean())


def _ece_signed(probabilities: np.ndarray, labels: np.ndarray, bins: int) -> float:
    right = probabilities.argmax(axis=1) == labels
    return abs(float(right.mean() - probabilities.max(axis=1).mean()))


# The table -----------------------------------------------------------------------------------------------------------

EXERCISES: dict[str, Exercise] = {
    "ex-gda-numbers": Exercise(
        hints=(
            "A covariance is symmetric: which of its entries repeat others?",
            "Count the diagonal, then one of the two triangles beside it.",
        ),
        judge=Number(
            128 * 129 / 2,
            wrong={
                128 * 128: "that counts both triangles of a symmetric matrix",
                128 * 127 / 2: "that is one triangle, and the diagonal is forgotten",
                128: "that is the diagonal alone, as if features were independent",
            },
        ),
    ),
    "ex-gda-boundary": Exercise(
        hints=(
            "Where in the linear classifier does the prior stand: in W, in b, or in both?",
            "Write the boundary between two classes as x w = c. Which of w and c holds the priors?",
        ),
        judge=Choice(
            "move",
            wrong={
                "turn": "the direction of the boundary comes from P and the two means, and no prior is in it",
                "both": "one of the two is true; look for the prior in the direction P (mu_j - mu_k)",
            },
        ),
    ),
    "ex-gda-shrinkage": Exercise(
        hints=(
            "Only N and D matter. Bring the KS bracket into the form (1 - lambda) S / N + lambda (mean eigenvalue) I.",
            "The ridge is D / (N - 1) mean eigenvalues of S, beside one S. What share of the two together is it?",
        ),
        judge=Number(
            1024 / (160 - 1 + 1024),
            rel=5e-4,
            wrong={
                159 / (159 + 1024): "that is the weight left to S / N, not the shrinkage",
                1024 / 159: "that is the ridge in mean eigenvalues of S, not yet its share",
                1024 / (160 + 1024): "KS divides the trace by N - 1, not by N",
                160 / (160 - 1 + 1024): "the share of rows is not the share of the ridge; N and D have changed places",
            },
        ),
    ),
    "ex-gda-loo": Exercise(
        hints=(
            "A mean times its count is a sum. What happens to the sum when a row leaves?",
            "Only the class of the row changes, and it has one row fewer to divide by. Return all K means.",
        ),
        judge=Function(
            _left_out,
            _draw_means,
            takes="means, counts, row, label",
            mistakes={
                "the sum is right, but n - 1 rows are left": _divided_by_n,
                "the row leaves one class, and the means of the others stay": _left_out_of_all,
                "that is one mean, and all K were asked for": lambda m, n, x, k: _left_out(m, n, x, k)[k],
                "take the row from the sum, not from the mean": _left_out_of_mean,
                "the means are those before the row was left out": lambda m, n, x, k: m,
            },
        ),
    ),
    "ex-gda-ece": Exercise(
        hints=(
            "Sort the rows into bins by their largest probability. What does a bin say, and how often is it right?",
            "A bin's gap has no sign and counts by the share of rows in the bin. Mind empty bins.",
        ),
        judge=Function(
            _ece,
            _draw_bets,
            takes="probabilities, labels, bins",
            mistakes={
                "the bins are unweighted, though some hold many more rows than others": _ece_unweighted,
                "the bins are unweighted, and empty ones count too": _ece_of_all_bins,
                "gaps of opposite sign cancel before their size is taken": _ece_signed,
                "that is in per cent, and a share was asked for": lambda p, y, bins: 100 * _ece(p, y, bins),
            },
        ),
    ),
}
