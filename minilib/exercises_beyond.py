"""The exercises of the chapter beyond few shots: hints, right answers and known mistakes.

Used in: notebooks/04_beyond.ipynb
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import softmax

from minilib.judges import Choice, Exercise, Function, Number


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
    "ex-gda-priors": Exercise(
        hints=(
            "How often do the classes turn up where the classifier is *used*?",
            "The training rows are lopsided and the test rows are not. Which prior describes the test?",
        ),
        judge=Choice(
            "uniform",
            wrong={
                "empirical": "that prior holds for data like the training rows, and the test is balanced",
                "neither": "the test holds all numbers equally often, which one of the two says",
            },
        ),
    ),
    "ex-gda-anchor": Exercise(
        hints=(
            "Set the derivative with respect to the mean to zero; P is invertible and drops out.",
            "With all responsibilities zero, only the term with the anchor is left in the bracket.",
        ),
        judge=Choice(
            "anchor",
            wrong={
                "origin": "no term of the objective pulls a mean to zero",
                "mean of all": "the responsibilities of this class are zero, so no picture pulls at it",
            },
        ),
    ),
    "ex-gda-borrowed": Exercise(
        hints=(
            "Ask for each case what is different between two of the new classes.",
            "All neighbours and no copies of the text: what are the classes' means made of?",
        ),
        judge=Choice(
            "c",
            wrong={
                "a": "so many copies make the means the texts, which is zero-shot with another metric",
                "b": "the copies of the text still differ from class to class, if only by a little",
            },
        ),
    ),
    "ex-gda-no-labels": Exercise(
        hints=(
            "If every picture is named with certainty and all classes are equally frequent, what is the mean of q?",
            "The entropy of a uniform distribution over K classes is the logarithm of K.",
        ),
        judge=Number(
            math.log(80),
            rel=1e-3,
            wrong={
                math.log2(80): "that is in bits, and nats were asked for",
                0: "that is the entropy of one picture's answer, not of the mean over pictures",
                math.log(4): "that is a batch with four classes, and here all are present",
            },
        ),
    ),
}
