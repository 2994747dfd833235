"""The exercises of the part "Make it see": hints, right answers and known mistakes.

Used in: notebooks/08_diffusion.ipynb, notebooks/09_diva.ipynb, notebooks/10_gpu.ipynb
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minilib.evaluate import wilson_interval
from minilib.judges import Choice, Exercise, Function, Number


def _draw_flips(rng: np.random.Generator) -> tuple[Any, ...]:
    a, b, c = rng.dirichlet([2, 2, 2])
    return rng.uniform(0.05, 0.5), a, b, c


def _flipped(q: float, a: float, b: float, c: float) -> float:
    return a * (1 - q) ** 2 + b * q * (1 - q) + c * q**2


def _draw_costs(rng: np.random.Generator) -> tuple[Any, ...]:
    return int(rng.integers(2, 9)), rng.uniform(100, 900), rng.uniform(1000, 3000), rng.uniform(500, 1500)


def _saved(J: int, C: float, D: float, V: float) -> float:
    return (J - 1) * C / (J * (C + D) + V)


def _pairs_apart() -> int:
    """The fewest pairs, in steps of five, at which the two Wilson intervals do not overlap."""
    n = 135
    while wilson_interval(round(0.193 * n), n)[1] >= wilson_interval(round(0.259 * n), n)[0]:
        n += 5
    return n


EXERCISES: dict[str, Exercise] = {
    "ex-dif-compose": Exercise(
        hints=(
            "What a step keeps of the variance of the picture, the next step keeps a share of.",
            "Shares of shares multiply.",
        ),
        judge=Number(
            0.9 * 0.8,
            wrong={
                0.85: "that is the mean of the two shares",
                math.sqrt(0.9 * 0.8): "that is the factor of the picture, and its square is its share",
                1 - 0.1 * 0.2: "that is one minus the product of the noise shares",
            },
        ),
    ),
    "ex-dif-token": Exercise(
        hints=(
            "Queries and keys meet in a softmax over the tokens. How many tokens are there?",
            "A softmax over one entry has one possible value.",
        ),
        judge=Choice(
            "none",
            wrong={
                "little": "the change is not small, it is a special number: how large is a softmax over one token?",
                "much": "queries and keys only decide how tokens are weighed against each other",
            },
        ),
    ),
    "ex-dif-noise": Exercise(
        hints=(
            "If luck alone decides, each of the two choices is a coin.",
            "A pair is solved when both choices are right.",
        ),
        judge=Number(
            25,
            wrong={
                50: "that is one choice, and a pair needs both to be right",
                0.25: "that is a share, and per cent were asked for",
                75: "that is at least one of two right, and a pair needs both",
            },
        ),
    ),
    "ex-dif-direction": Exercise(
        hints=(
            "Errors stand for negative log-likelihoods. What is subtracted from log p(z | s)?",
            "The logarithm of p(z | s) over p(z) has a name of its own.",
        ),
        judge=Choice(
            "pointwise mutual information",
            wrong={
                "likelihood": "that is what the lower error alone stands for, before it was mended",
                "prior": "a prior of the picture is what has been taken out",
            },
        ),
    ),
    "ex-dif-nats": Exercise(
        hints=(
            "The sign leaves one value alone and two alike. How often is each answer? Take the entropy of that.",
            "One answer has a third, the other two thirds: the entropy of these two, in nats.",
        ),
        judge=Number(
            math.log(3) - 2 / 3 * math.log(2),
            rel=2e-3,
            wrong={
                math.log(3): "that is all there is to know of three values, and the sign leaves two of them alike",
                math.log(2): "the two answers are not equally frequent",
                (math.log(3) - 2 / 3 * math.log(2)) / math.log(2): "that is in bits, and nats were asked for",
            },
        ),
    ),
    "ex-diva-draws": Exercise(
        hints=(
            "The variance of a mean of two independent draws is half of that of one.",
            "The spread is the square root of the variance.",
        ),
        judge=Number(
            math.sqrt(2),
            rel=5e-3,
            wrong={
                2: "that is the ratio of the variances, and the spread is their root",
                math.sqrt(0.5): "the ratio is turned round: one draw over two was asked for",
                4: "variances halve, they are not squared",
            },
        ),
    ),
    "ex-diva-anchor": Exercise(
        hints=(
            "What does the anchor hold on to, and who reads the eye's features afterwards?",
            "Sentences are matched with features that have left their place. Which score asks most sentences at once?",
        ),
        judge=Choice(
            "zero-shot",
            wrong={
                "pairs": "they may fall too, but the two pictures of a pair drift alike, and naming asks 80 sentences",
                "neither": "without an anchor nothing keeps the features where the text tower looks for them",
            },
        ),
    ),
    "ex-diva-guess": Exercise(
        hints=(
            "Both picks must end right: two that were right and are not flipped, or one flipped back, or both.",
            "A pair with one right pick needs that one kept and the other flipped.",
        ),
        judge=Function(
            _flipped,
            _draw_flips,
            takes="q, a, b, c",
            mistakes={
                "pairs with one right pick can be solved by a lucky flip": lambda q, a, b, c: (
                    a * (1 - q) ** 2 + c * q**2
                ),
                "in a pair with one right pick, one certain pick of the two must flip": lambda q, a, b, c: (
                    a * (1 - q) ** 2 + 2 * b * q * (1 - q) + c * q**2
                ),
                "a pair has two picks, and either may flip": lambda q, a, b, c: a * (1 - q) + c * q,
                "a pair with two wrong picks is solved when both flip": lambda q, a, b, c: (
                    a * (1 - q) ** 2 + b * q * (1 - q)
                ),
            },
        ),
    ),
    "ex-diva-deaf": Exercise(
        hints=(
            "The gradient reaches the eye through the derivative of the answer by the condition.",
            "A network that does not listen has the same answer for all conditions. What is its derivative?",
        ),
        judge=Choice(
            "none",
            wrong={
                "small": "it is not merely small: does the answer depend on the condition at all?",
                "random": "a derivative of something constant is not a matter of chance",
            },
        ),
    ),
    "ex-diva-teacher": Exercise(
        hints=(
            "What has the teacher of the arm *images* read, and what was it conditioned on?",
            "It was told the blind eye's feature of each picture, and no sentence. Which source is then ruled out?",
        ),
        judge=Choice(
            "captions",
            wrong={
                "pictures": "it drew pictures from noise, so it had them",
                "features": "the blind eye's features were its condition, so it had them",
            },
        ),
    ),
    "ex-gpu-draws": Exercise(
        hints=(
            "The reference runs CLIP once a draw. How many of its J runs does running it once save?",
            "The share saved is that, over all that the reference does: J times tower and U-Net, and the encoder once.",
        ),
        judge=Function(
            _saved,
            _draw_costs,
            takes="J, C, D, V",
            mistakes={
                "one run of CLIP is still needed": lambda J, C, D, V: J * C / (J * (C + D) + V),
                "the latent encoder is part of the reference's work too": lambda J, C, D, V: (
                    (J - 1) * C / (J * (C + D))
                ),
                "a share of the reference's arithmetic was asked for, not of ours": lambda J, C, D, V: (
                    (J - 1) * C / (C + J * D + V)
                ),
                "that is the limit for many draws": lambda J, C, D, V: C / (C + D),
            },
        ),
    ),
    "ex-gpu-adamw": Exercise(
        hints=(
            "Which numbers does each of the two keep for a weight, beside the weight and its gradient?",
            "One more number a weight, of four bytes, for 304 million weights.",
        ),
        judge=Number(
            4 * 304e6 / 1e9,
            rel=0.01,
            wrong={
                8 * 304e6 / 1e9: "momentum keeps one number as well, so the difference is one, not two",
                0.304: "a number in single precision has four bytes",
                12 * 304e6 / 1e9: "that is all AdamW needs beside the weights, and only the difference was asked for",
            },
        ),
    ),
    "ex-gpu-lora": Exercise(
        hints=(
            "The backward pass of a layer has two products: one for its weights, one for its input.",
            "The weights are frozen, so one product goes. Must the other still be computed to reach earlier blocks?",
        ),
        judge=Choice(
            "half",
            wrong={
                "all": "the gradient must still pass through the blocks to reach the first update",
                "none": "gradients of frozen weights are not computed, and they are one of two products",
            },
        ),
    ),
    "ex-gpu-pairs": Exercise(
        hints=(
            "Raise n until the upper end of the smaller score's interval is below the lower end of the larger one's.",
            "Use the library's Wilson interval, the rounded counts, and steps of five from 135 on.",
        ),
        judge=Number(
            _pairs_apart(),
            rel=0.03,
            wrong={
                135: "that is what the benchmark has, and there the intervals overlap",
                1.96**2 * (0.193 * 0.807 + 0.259 * 0.741) / 0.066**2: (
                    "that is for the interval of the difference; two separate intervals ask for more"
                ),
            },
        ),
    ),
    "ex-gpu-underflow": Exercise(
        hints=(
            "Half precision has 10 bits of fraction, and its smallest exponent is -14. What lies below 2 to the -14?",
            "Subnormal numbers: the smallest has only the last of the ten bits set.",
        ),
        judge=Number(
            2.0**-24,
            rel=1e-3,
            wrong={
                2.0**-14: "that is the smallest normal number, and subnormal ones lie below it",
                2.0**-10: "that is the spacing of numbers at one, not their smallest size",
                2.0**-25: "half of the smallest number is rounded to zero",
            },
        ),
    ),
    "ex-gpu-own": Exercise(
        hints=(
            "Arithmetic in all over arithmetic in a second gives seconds.",
            "5 TFLOP times 200,000, divided by 100 TFLOP a second and by 3,600.",
        ),
        judge=Number(
            200_000 * 5 / 100 / 3600,
            rel=0.01,
            wrong={
                10_000: "that is in seconds, and hours were asked for",
                10_000 / 60: "that is in minutes, and hours were asked for",
                10_000 / 3600 / 24: "that is in days, and hours were asked for",
            },
        ),
    ),
}
