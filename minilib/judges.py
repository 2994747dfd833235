"""Judges of answers to exercises: a number, a word or a function is right, or it looks like a known mistake.

A judge takes an answer and returns whether it is right, with one sentence for the reader that never tells the answer.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minilib.evaluate import from_torch

Verdict = tuple[bool, str]
RIGHT = (True, "Right.")


@dataclass(frozen=True)
class Number:
    """A judge of a number, right within the relative tolerance ``rel``; ``wrong`` maps known mistakes to sentences.

    >>> Number(4, wrong={8: "that is the diameter"})(8)
    (False, 'Not yet: that is the diameter.')
    """

    expected: float = field(repr=False)
    wrong: Mapping[float, str] = field(repr=False)
    rel: float = 1e-6

    @property
    def asks(self) -> str:
        """What kind of answer it takes, in words."""
        return "a number"

    def __call__(self, answer: Any) -> Verdict:
        value = _as_number(answer)
        if value is None:
            return _not_yet(f"expected a finite number, got {_kind(answer)}")
        if math.isclose(value, self.expected, rel_tol=self.rel):
            return RIGHT
        for mistake, sentence in self.wrong.items():
            if math.isclose(value, mistake, rel_tol=self.rel, abs_tol=1e-12):
                return _not_yet(sentence)
        if math.isclose(value, self.expected, rel_tol=0.02):
            return _not_yet("close but not exact, so check the rounding and the small terms")
        return _not_yet("the number is too large" if value > self.expected else "the number is too small")


@dataclass(frozen=True)
class Choice:
    """A judge of a word out of several; ``wrong`` maps the other words to sentences. Capitals do not matter.

    >>> Choice("yes", wrong={"no": "think of N = 1"})("No")
    (False, 'Not yet: think of N = 1.')
    """

    right: str = field(repr=False)
    wrong: Mapping[str, str] = field(repr=False)

    @property
    def asks(self) -> str:
        """What kind of answer it takes, in words."""
        return "one of " + ", ".join(f'"{option}"' for option in sorted({self.right, *self.wrong}))

    def __call__(self, answer: Any) -> Verdict:
        word = answer.strip().lower() if isinstance(answer, str) else ""
        if word == self.right:
            return RIGHT
        if word in self.wrong:
            return _not_yet(self.wrong[word])
        return _not_yet(f"expected {self.asks}, got {answer!r}" if word else f"expected {self.asks}")


@dataclass(frozen=True)
class Function:
    """A judge of a function, right when it agrees with ``reference`` on five cases that ``draw`` makes.

    ``takes`` names the arguments for the reader; ``mistakes`` maps sentences to functions that make the mistake they
    tell. The answer gets its own copy of each case, so that it may write into it.

    >>> negate = Function(lambda x: -x, lambda rng: (rng.normal(),), takes="x", mistakes={"a sign is lost": abs})
    >>> negate(abs)
    (False, 'Not yet: a sign is lost.')
    """

    reference: Callable[..., Any] = field(repr=False)
    draw: Callable[[np.random.Generator], tuple[Any, ...]] = field(repr=False)
    takes: str
    mistakes: Mapping[str, Callable[..., Any]] = field(repr=False)

    @property
    def asks(self) -> str:
        """What kind of answer it takes, in words."""
        return f"a function of ({self.takes})"

    def __call__(self, answer: Any) -> Verdict:
        if not callable(answer):
            return _not_yet(f"expected {self.asks}, got {_kind(answer)}")
        rng = np.random.default_rng(0)
        cases = [self.draw(rng) for _ in range(5)]
        try:
            results = [answer(*copy.deepcopy(case)) for case in cases]
        except Exception as error:
            return _not_yet(f"the function raised {type(error).__name__}: {_first_line(error)}")
        if any(result is None or result is ... for result in results):
            return _not_yet("the function returned None; has it a return line?")
        if _agree(results, self.reference, cases):
            return RIGHT
        for sentence, mistake in self.mistakes.items():
            if _agree(results, mistake, cases):
                return _not_yet(sentence)
        return _not_yet(_difference(results[0], self.reference(*cases[0])))


@dataclass(frozen=True)
class Exercise:
    """What the book knows of an exercise: ``hints``, from vague to concrete, and a ``judge`` of answers."""

    hints: tuple[str, ...]
    judge: Number | Choice | Function


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
