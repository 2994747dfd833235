"""Check answers to the book's exercises offline: right or not yet, what a mistake looks like, and hints in stages.

No sentence tells the answer. A new exercise is one entry of the table ``EXERCISES`` at the end of this module: two or
more hints, and a judge made by :func:`number`, :func:`choice` or :func:`function`. A judge takes an answer and returns
whether it is right, with one sentence for the reader.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from minilib.evaluate import expected_calibration_error, from_torch, reliability

Verdict = tuple[bool, str]
Judge = Callable[[Any], Verdict]
RIGHT = (True, "Right.")


class Sentence(str):
    """A string that a notebook shows without quotation marks."""

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True)
class Exercise:
    """What the book knows of an exercise: ``hints``, from vague to concrete, and a ``judge`` of answers."""

    hints: tuple[str, ...]
    judge: Judge


def check(exercise_id: str, answer: Any) -> Sentence:
    """One sentence on an answer: "Right." or "Not yet:" and what kind of mistake it looks like.

    The answer is a number, a word or a function, as the exercise asks. ValueError for an exercise that does not exist.

    >>> check("ex-gda-numbers", 128 * 128)
    Not yet: that counts both triangles of a symmetric matrix.

    Used in: the exercises of every chapter
    """
    return Sentence(_find(exercise_id).judge(answer)[1])


def hint(exercise_id: str, level: int = 1) -> Sentence:
    """A hint for an exercise; a higher level says more, none says the answer.

    ValueError for an exercise or a level that does not exist.

    >>> hint("ex-gda-numbers")
    Hint 1 of 2: A covariance is symmetric: which of its entries repeat others?

    Used in: the exercises of every chapter
    """
    hints = _find(exercise_id).hints
    if level not in range(1, len(hints) + 1):
        raise ValueError(f"{exercise_id} has hints 1 to {len(hints)}; not {level}.")
    return Sentence(f"Hint {level} of {len(hints)}: {hints[level - 1]}")


def number(expected: float, *, wrong: Mapping[float, str], rel: float = 1e-6) -> Judge:
    """A judge of a number, right within the relative tolerance ``rel``; ``wrong`` maps known mistakes to sentences.

    >>> number(4, wrong={8: "that is the diameter"})(8)
    (False, 'Not yet: that is the diameter.')
    """

    def judge(answer: Any) -> Verdict:
        value = _as_number(answer)
        if value is None:
            return _not_yet(f"expected a finite number, got {_kind(answer)}")
        if math.isclose(value, expected, rel_tol=rel):
            return RIGHT
        for mistake, sentence in wrong.items():
            if math.isclose(value, mistake, rel_tol=rel):
                return _not_yet(sentence)
        if math.isclose(value, expected, rel_tol=0.02):
            return _not_yet("close but not exact, so check the rounding and the small terms")
        return _not_yet("the number is too large" if value > expected else "the number is too small")

    return judge


def choice(right: str, *, wrong: Mapping[str, str]) -> Judge:
    """A judge of a word out of several; ``wrong`` maps the other words to sentences. Capitals do not matter.

    >>> choice("yes", wrong={"no": "think of N = 1"})("No")
    (False, 'Not yet: think of N = 1.')
    """

    def judge(answer: Any) -> Verdict:
        word = answer.strip().lower() if isinstance(answer, str) else ""
        if word == right:
            return RIGHT
        if word in wrong:
            return _not_yet(wrong[word])
        options = ", ".join(f'"{option}"' for option in sorted({right, *wrong}))
        return _not_yet(f"expected one of {options}, got {answer!r}" if word else f"expected one of {options}")

    return judge


def function(
    reference: Callable[..., Any],
    draw: Callable[[np.random.Generator], tuple[Any, ...]],
    *,
    takes: str,
    mistakes: Mapping[str, Callable[..., Any]],
) -> Judge:
    """A judge of a function, right when it agrees with ``reference`` on five cases that ``draw`` makes.

    ``takes`` names the arguments for the reader; ``mistakes`` maps sentences to functions that make the mistake they
    tell. The answer gets its own copy of each case, so that it may write into it.

    >>> negate = function(lambda x: -x, lambda rng: (rng.normal(),), takes="x", mistakes={"a sign is lost": abs})
    >>> negate(abs)
    (False, 'Not yet: a sign is lost.')
    """

    def judge(answer: Any) -> Verdict:
        if not callable(answer):
            return _not_yet(f"expected a function of ({takes}), got {_kind(answer)}")
        rng = np.random.default_rng(0)
        cases = [draw(rng) for _ in range(5)]
        try:
            results = [answer(*copy.deepcopy(case)) for case in cases]
        except Exception as error:
            return _not_yet(f"the function raised {type(error).__name__}: {_first_line(error)}")
        if any(result is None for result in results):
            return _not_yet("the function returned None; has it a return line?")
        if _agree(results, reference, cases):
            return RIGHT
        for sentence, mistake in mistakes.items():
            if _agree(results, mistake, cases):
                return _not_yet(sentence)
        return _not_yet(_difference(results[0], reference(*cases[0])))

    return judge


def _find(exercise_id: str) -> Exercise:
    if exercise_id not in EXERCISES:
        raise ValueError(f"exercise_id must be one of {', '.join(EXERCISES)}; not {exercise_id!r}.")
    return EXERCISES[exercise_id]


def _not_yet(why: str) -> Verdict:
    return False, f"Not yet: {why}" + ("" if why.endswith(("?", ".")) else ".")


def _kind(answer: Any) -> str:
    return "None" if answer is None else f"an answer of type {type(answer).__name__}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no message"])[0]


def _as_number(answer: Any) -> float | None:
    """A finite float, or None: words, truth values and arrays are no numbers."""
    try:
        word = isinstance(answer, (str, bool, np.bool_)) or np.ndim(answer) != 0
        value = math.nan if word else float(answer)
    except (TypeError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def _as_array(result: Any) -> np.ndarray | None:
    try:
        return np.asarray(from_torch(result), dtype=np.float64)
    except (TypeError, ValueError):
        return None


def _agree(results: list[Any], reference: Callable[..., Any], cases: list[tuple[Any, ...]]) -> bool:
    """Whether the results are the reference's, to the precision of single floats."""
    pairs = [(_as_array(result), np.asarray(reference(*case))) for result, case in zip(results, cases, strict=True)]
    return all(
        got is not None and got.shape == expected.shape and np.allclose(got, expected, rtol=1e-5, atol=1e-6)
        for got, expected in pairs
    )


def _difference(result: Any, expected: Any) -> str:
    """What sets a result apart from the one expected, its values aside."""
    got, shape = _as_array(result), np.shape(expected)
    if got is None:
        return f"the function should return numbers, and returned {_kind(result)}"
    if got.shape != shape:
        return f"the function should return shape {shape} in a case where it returned {got.shape}"
    if not np.isfinite(got).all():
        return "the function returned values that are not finite"
    return "the function returns the right shape and the wrong values"


# What the functions of the exercises should do, what they are tried on, and their known mistakes ---------------------


def _softmax(logits: np.ndarray, axis: int = 1) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=axis, keepdims=True))
    return weights / weights.sum(axis=axis, keepdims=True)


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
    p = _softmax(2 * rng.normal(size=(300, 3)))
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


def _draw_posterior(rng: np.random.Generator) -> tuple[Any, ...]:
    k = int(rng.integers(3, 6))
    return rng.normal(size=(7, k)), rng.dirichlet(np.full(k, 5.0)), rng.dirichlet(np.full(k, 5.0))


def _shifted(logits: np.ndarray, p_train: np.ndarray, p_test: np.ndarray) -> np.ndarray:
    return _softmax(logits + np.log(p_test) - np.log(p_train))


_PRIOR_SHIFT_MISTAKES: dict[str, Callable[..., Any]] = {
    "the training priors are still in the logits": lambda z, train, test: _softmax(z + np.log(test)),
    "the training priors are out, but the target priors are not in": lambda z, train, test: _softmax(z - np.log(train)),
    "the two priors have changed places": lambda z, train, test: _shifted(z, test, train),
    "that is the posterior before the correction": lambda z, train, test: _softmax(z),
    "a ratio of priors belongs to probabilities, not to logits": lambda z, train, test: _softmax(z * test / train),
    "the corrected rows no longer sum to one": lambda z, train, test: _softmax(z) * test / train,
    "rows of exponentials do not sum to one": lambda z, train, test: np.exp(z) * test / train,
    "those are logits, and probabilities were asked for": lambda z, train, test: z + np.log(test / train),
    "the softmax runs over rows, not classes": lambda z, train, test: _softmax(z + np.log(test / train), axis=0),
}

# The table -----------------------------------------------------------------------------------------------------------

EXERCISES: dict[str, Exercise] = {
    "ex-gda-numbers": Exercise(
        hints=(
            "A covariance is symmetric: which of its entries repeat others?",
            "Count the diagonal, then one of the two triangles beside it.",
        ),
        judge=number(
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
        judge=choice(
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
        judge=number(
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
        judge=function(
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
        judge=function(
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
    "ex-gda-harmonic": Exercise(
        hints=(
            "It is the mean that a small value pulls down most: average the inverses, then invert.",
            "Twice the product over the sum, in per cent with two digits after the point.",
        ),
        judge=number(
            2 * 83.96 * 74.53 / (83.96 + 74.53),
            rel=2e-4,
            wrong={
                (83.96 + 74.53) / 2: "that is the arithmetic mean",
                math.sqrt(83.96 * 74.53): "that is the geometric mean",
                83.96 * 74.53 / (83.96 + 74.53): "a factor of 2 is missing",
                0.02 * 83.96 * 74.53 / (83.96 + 74.53): "that is a share, and per cent were asked for",
            },
        ),
    ),
    "ex-gda-prior-shift": Exercise(
        hints=(
            "Bayes' rule multiplies a density by a prior. Take the old prior out, put the new one in.",
            "In logarithms a factor is a term to add. At the end, make each row sum to one again.",
        ),
        judge=function(_shifted, _draw_posterior, takes="logits, p_train, p_test", mistakes=_PRIOR_SHIFT_MISTAKES),
    ),
}
