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
    "ex-gda-sharing": Exercise(
        hints=(
            "Which terms of the log-density hold P, and which cancelled because P was the same for all classes?",
            "A boundary is where two log-densities agree. Is their difference still linear in x?",
        ),
        judge=Choice(
            "quadrics",
            wrong={
                "planes": "the square in x depends on the class now, so it does not cancel",
                "spheres": "that needs each covariance to be a multiple of the identity as well",
            },
        ),
    ),
    "ex-gda-break": Exercise(
        hints=(
            "The rows of a class around their own mean sum to zero: how many of them are free?",
            "Count the free rows of one class, then add up over the classes.",
        ),
        judge=Number(
            4 * 15,
            wrong={
                64: "the rows of a class around their own mean sum to zero",
                63: "that is around one common mean, and each class has its own",
                128: "so few rows do not span all directions of the features",
            },
        ),
    ),
    "ex-gda-callable": Exercise(
        hints=(
            "On the diagonal no correlation is left. What does a Gaussian without correlations assume of the features?",
            "Features independent given the class: the assumption has given a well-known classifier its name.",
        ),
        judge=Choice(
            "naive bayes",
            wrong={
                "nearest mean": "that one gives all features the same variance, and here they keep their own",
                "logistic regression": "that one has no covariance, and is searched for rather than written down",
            },
        ),
    ),
    "ex-gda-dials": Exercise(
        hints=(
            "Doubling both doubles every logit. What does a factor do to the largest of some numbers?",
            "A temperature divides logits. Which temperature makes doubled logits as sure as the old ones?",
        ),
        judge=Number(
            2,
            wrong={
                4: "a common factor changes neither the largest logit nor what the right temperature makes of them",
                3: "the fitted temperature takes the factor out again, so one of your three stays",
                1: "the temperature is fitted to the new logits, so it changes as well",
                0: "doubled logits are surer, and how sure they are is being measured",
            },
        ),
    ),
    "ex-gda-peek": Exercise(
        hints=(
            "The Gaussian's means were computed from the very rows that are asked about.",
            "At the left end the text decides alone, at the right end the Gaussian. Which of them has seen the rows?",
        ),
        judge=Choice(
            "rises",
            wrong={
                "falls": "the Gaussian has seen these rows, so trusting it more does not cost anything on them",
                "peaks": "that is what happens on rows that were left out, and these were not",
            },
        ),
    ),
    "ex-gda-missing": Exercise(
        hints=(
            "What Gaussian logit does a class without pictures get, and which labelled class has the same one?",
            "Equal terms cancel in a comparison of two classes. Which term is left?",
        ),
        judge=Choice(
            "text",
            wrong={
                "gaussian": "the unlabelled class gets the best labelled class's Gaussian logit, so the two cancel",
                "both": "one of the two terms is the same for both classes in this comparison",
            },
        ),
    ),
    "ex-gda-kappa": Exercise(
        hints=(
            "Write the anchored mean of a class with n rows and let the one row leave.",
            "Put no rows at all into the formula of the anchored mean. Which terms are left?",
        ),
        judge=Choice(
            "text",
            wrong={
                "nothing": "the anchor still gives the class a place when no row is left",
                "row": "the row has been left out, and a judge that keeps it is not fair",
            },
        ),
    ),
}
