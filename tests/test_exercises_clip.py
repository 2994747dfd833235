"""Exercises of the first chapter: each answer found by playing the game, and answers that a student would give."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minilib.exercises import check


def test_equal_captions_cost_the_same_at_every_scale() -> None:
    """Two pairs, all four cosines 1: each bet is on two equal logits."""
    for scale in (0.5, 5.0, 500.0):
        logits, mine = torch.full((2, 2), scale), torch.arange(2)
        loss = (F.cross_entropy(logits, mine) + F.cross_entropy(logits.T, mine)) / 2
        assert check("ex-clip-scale", loss) == "Right."


def test_an_eye_with_one_answer_leaves_the_texts_to_guess() -> None:
    """Eight texts, each choosing among eight equal pictures; the loss is the same for bold and for timid bets."""
    texts = F.normalize(torch.randn(8, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    picture = F.normalize(torch.ones(1, 5), dim=1)
    for scale in (1.0, 10.0, 100.0):
        loss = F.cross_entropy(scale * texts @ picture.expand(8, 5).T, torch.arange(8))
        assert check("ex-clip-collapse", loss) == "Right."


def test_both_statements_are_right_in_a_wedge() -> None:
    """Differences in many dimensions, one in each degree of the plane that the two statements span."""
    angle = np.radians(np.arange(360) + 0.5)
    first, second = np.cos(angle) > 0, np.cos(angle - np.radians(45)) < 0
    assert check("ex-clip-below", np.mean(first & second)) == "Right."
    assert "the second wrong" in check("ex-clip-below", np.mean(first & ~second))
    assert "one statement alone" in check("ex-clip-below", np.mean(first))


def test_pairs_needed_are_the_first_whose_interval_is_narrow_enough() -> None:
    """Count up until 1.96 standard errors of a guess are at most five points."""
    n = next(n for n in range(1, 10_000) if 1.96 * math.sqrt(0.25 * 0.75 / n) <= 0.05)
    assert check("ex-clip-own", n) == "Right."
    assert "one standard error" in check("ex-clip-own", 75)


@pytest.mark.parametrize(
    ("name", "answer", "part"),
    [
        ("ex-clip-scale", 1.0, "in bits"),
        ("ex-clip-scale", 1.3863, "their mean"),
        ("ex-clip-prompt", "some", "compare all three"),
        ("ex-clip-prompt", "much", "not the name"),
        ("ex-clip-collapse", math.log2(8), "in bits"),
        ("ex-clip-collapse", 2 * math.log(8), "one of the two directions"),
        ("ex-clip-own", 384.16, "a share of one half"),
        ("ex-clip-own", 1152.48, "to each side"),
    ],
)
def test_wrong_answers_hear_what_they_look_like(name: str, answer, part: str) -> None:
    assert check(name, answer).startswith("Not yet: ") and part in check(name, answer)
