"""The exercises of the chapter beyond few shots: hints, right answers and known mistakes.

Used in: notebooks/04_beyond.ipynb
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import softmax

from minilib.judges import Exercise, Function, Number


def _draw_posterior(rng: np.random.Generator) -> tuple[Any, ...]:
    k = int(rng.integers(3, 6))
    return rng.normal(size=(7, k)), rng.dirichlet(np.full(k, 5.0)), rng.dirichlet(np.full(k, 5.0))


def _shifted(logits: np.ndarray, p_train: np.ndarray, p_test: np.ndarray) -> np.ndarray:
    return softmax(logits + np.log(p_test) - np.log(p_train), axis=1)


_PRIOR_SHIFT_MISTAKES: dict[str, Callable[..., Any]] = {
    "the training priors are still in the logits": lambda z, train, test: softmax(z + np.log(test), axis=1),
    "the training priors are out, but the target priors are not in": lambda z, train, test: softmax(
        z - np.log(train), axis=1
    ),
    "the two priors have changed places": lambda z, train, test: _shifted(z, test, train),
    "that is the posterior before the correction": lambda z, train, test: softmax(z, axis=1),
    "a ratio of priors belongs to probabilities, not to logits": lambda z, train, test: softmax(
        z * test / train, axis=1
    ),
    "the corrected rows no longer sum to one": lambda z, train, test: softmax(z, axis=1) * test / train,
    "rows of exponentials do not sum to one": lambda z, train, test: np.exp(z) * test / train,
    "those are logits, and probabilities were asked for": lambda z, train, test: z + np.log(test / train),
    "the softmax runs over rows, not classes": lambda z, train, test: softmax(z + np.log(test / train), axis=0),
}

EXERCISES: dict[str, Exercise] = {
    "ex-gda-harmonic": Exercise(
        hints=(
            "It is the mean that a small value pulls down most: average the inverses, then invert.",
            "Twice the product over the sum, in per cent with two digits after the point.",
        ),
        judge=Number(
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
        judge=Function(_shifted, _draw_posterior, takes="logits, p_train, p_test", mistakes=_PRIOR_SHIFT_MISTAKES),
    ),
}
