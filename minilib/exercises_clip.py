"""The exercises of the first chapter and of the last: hints, right answers and known mistakes.

Used in: notebooks/01_clip.ipynb, notebooks/11_capstone.ipynb
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minilib.judges import Choice, Exercise, Function, Number


def _draw_paired(rng: np.random.Generator) -> tuple[Any, ...]:
    before = rng.random(60) < 0.4
    return before, np.where(rng.random(60) < 0.3, rng.random(60) < 0.7, before)


def _paired(before: np.ndarray, after: np.ndarray, ddof: int = 1) -> np.ndarray:
    difference = np.subtract(after, before, dtype=float)
    return np.array([difference.mean(), 1.96 * difference.std(ddof=ddof) / math.sqrt(len(difference))])


def _unpaired(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    spread = np.var(after, ddof=1) + np.var(before, ddof=1)
    return np.array([np.mean(after) - np.mean(before), 1.96 * math.sqrt(spread / len(before))])


EXERCISES: dict[str, Exercise] = {
    "ex-clip-scale": Exercise(
        hints=(
            "Write one of the four terms as -log of a softmax over two entries, and divide by the larger one.",
            "With r = 1 the two entries of the softmax are equal, whatever s is.",
        ),
        judge=Number(
            math.log(2),
            rel=1e-3,
            wrong={
                0: "that is the limit for r < 1; equal captions leave nothing for boldness to enlarge",
                1: "that is in bits, and the loss is in nats",
                2 * math.log(2): "that adds the two directions, and the loss is their mean",
            },
        ),
    ),
    "ex-clip-prompt": Exercise(
        hints=(
            "What kind of sentences did the text tower read, and what in them told the pictures apart?",
            "Run all three templates, and compare the largest accuracy with the smallest.",
        ),
        judge=Choice(
            "hardly",
            wrong={
                "some": "the accuracies are closer together than that; did you compare all three?",
                "much": "so much would be lost by a tower that reads the frame and not the name",
            },
        ),
    ),
    "ex-clip-below": Exercise(
        hints=(
            "Both are right when the difference lies between two hyperplanes. Draw the plane of the two statements.",
            "The wedge has the angle between the statements; what share of the full circle is it?",
        ),
        judge=Number(
            45 / 360,
            rel=1e-3,
            wrong={
                0.25: "that is the wedge of statements at right angles",
                0.5: "that is how often one statement alone is right",
                135 / 360: "that is the wedge in which the first is right and the second wrong",
            },
        ),
    ),
    "ex-clip-collapse": Exercise(
        hints=(
            "When each text chooses among the pictures, all eight logits of its row are equal.",
            "A softmax over eight equal logits gives each the same probability; take minus its logarithm.",
        ),
        judge=Number(
            math.log(8),
            rel=1e-3,
            wrong={
                3: "that is in bits, and the loss is in nats",
                0: "a text that cannot tell eight pictures apart is not sure of its own",
                2 * math.log(8): "only one of the two directions was asked for",
                math.log(7): "the text's own picture is among those it chooses from",
            },
        ),
    ),
    "ex-clip-own": Exercise(
        hints=(
            "The standard error of a share p over n pairs is the square root of p (1 - p) / n.",
            "Set 1.96 standard errors equal to five points, with the share of a guess, and solve for n.",
        ),
        judge=Number(
            1.96**2 * 0.25 * 0.75 / 0.05**2,
            rel=0.01,
            wrong={
                1.96**2 * 0.5 * 0.5 / 0.05**2: "that is for a share of one half, and a guess solves fewer pairs",
                1.96**2 * 0.25 * 0.75 / 0.025**2: "five points to each side were asked for, not five in all",
                0.25 * 0.75 / 0.05**2: "that is one standard error, which covers two cases of three only",
            },
        ),
    ),
    "ex-whole-order": Exercise(
        hints=(
            "Which of the things that were computed before DIVA were computed from the eye's features?",
            "Captions chose the pool, and the text tower never moved. What did the labelled pictures give?",
        ),
        judge=Choice(
            "means",
            wrong={
                "texts": "the text tower is frozen in every step, so its embeddings stay as they are",
                "pool": "captions and counts chose the pool, and no tower took part",
            },
        ),
    ),
    "ex-whole-passes": Exercise(
        hints=(
            "A given pair is missed by one draw with probability 1 - 1 / N. And by N draws?",
            "For large N, (1 - 1 / N) to the power N tends to a number that you know.",
        ),
        judge=Number(
            1 - math.exp(-1),
            rel=2e-3,
            wrong={
                1: "some pairs are drawn twice, so others are not drawn at all",
                math.exp(-1): "that is the share that is never drawn",
                0.5: "each pair is missed with a probability that is smaller than a coin's",
            },
        ),
    ),
    "ex-whole-paired": Exercise(
        hints=(
            "Subtract first: one difference for each case, which is -1, 0 or 1.",
            "The half width is 1.96 times their standard deviation (divide by n - 1) over the square root of n.",
        ),
        judge=Function(
            _paired,
            _draw_paired,
            takes="before, after",
            mistakes={
                "the same cases were answered twice, so their differences have a smaller spread": _unpaired,
                "the standard deviation of a sample divides by n - 1": lambda b, a: _paired(b, a, ddof=0),
                "that is one standard error, and the half width is 1.96 of them": lambda b, a: (
                    _paired(b, a) / np.array([1, 1.96])
                ),
                "the gain is after less before, and the sign is turned": lambda b, a: _paired(a, b),
            },
        ),
    ),
    "ex-whole-break": Exercise(
        hints=(
            "Spam names one of three concepts beside a picture of another. Which classes get these pictures?",
            "The lures are the most frequent concepts. Compare the share of wrong pictures there and in the tail.",
        ),
        judge=Choice(
            "head",
            wrong={
                "tail": "no spam in this pool names a rare concept, so its captions are true",
                "all": "a caption is wrong only where it advertises; which concepts do advertisements name?",
            },
        ),
    ),
    "ex-whole-project": Exercise(
        hints=(
            "A paired mean over n seeds has the standard error s over the square root of n.",
            "Ask for 1.96 standard errors to be at most the gain, solve for n and round up.",
        ),
        judge=Number(
            math.ceil((1.96 * 2 / 1) ** 2),
            wrong={
                8: "the spread falls with the root of the number of seeds",
                math.floor((1.96 * 2) ** 2): "with one seed fewer the interval still holds zero: round up",
                4: "that makes one standard error as large as the gain, and 1.96 of them must be",
            },
        ),
    ),
}
