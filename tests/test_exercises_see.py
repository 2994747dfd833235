"""Exercises of "Make it see" and of the last chapter: answers found another way, and what students would give."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from minilib.exercises import check


def solved_by_cases(q, a, b, c):
    """Walk through the four ways in which two picks may flip."""
    total = 0.0
    for first, second in itertools.product((False, True), repeat=2):
        chance = (q if first else 1 - q) * (q if second else 1 - q)
        both, one, none = not first and not second, not first and second, first and second
        total += chance * (a * both + b * one + c * none)
    return total


def paired_by_counts(before, after):
    won, lost, n = np.sum(after & ~before), np.sum(before & ~after), len(before)
    gain = (won - lost) / n
    variance = ((won + lost) / n - gain**2) * n / (n - 1)
    return [gain, 1.96 * math.sqrt(variance / n)]


def saved_by_runs(J, C, D, V):
    reference, ours = J * (C + D) + V, C + J * D + V
    return 1 - ours / reference


def wilson(successes, n, z=1.959964):
    p = successes / n
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return [(p + z**2 / (2 * n) + sign * half) / (1 + z**2 / n) for sign in (-1, 1)]


def pairs_needed():
    return next(n for n in range(135, 5000, 5) if wilson(round(0.193 * n), n)[1] < wilson(round(0.259 * n), n)[0])


SEEN = len({i for i in np.random.default_rng(0).integers(10**6, size=10**6)}) / 10**6
HALVES = np.arange(1, 2**10, dtype=np.uint16).view(np.float16)  # every positive subnormal number

RIGHT = {
    "ex-whole-order": ["means"],
    "ex-whole-passes": [SEEN],
    "ex-whole-paired": [paired_by_counts],
    "ex-whole-break": ["head"],
    "ex-whole-project": [16],
    "ex-dif-compose": [0.72],
    "ex-dif-token": ["none"],
    "ex-dif-noise": [25],
    "ex-dif-direction": ["pointwise mutual information"],
    "ex-dif-nats": [-(math.log(1 / 3) / 3 + 2 * math.log(2 / 3) / 3)],
    "ex-diva-draws": [1.414],
    "ex-diva-anchor": ["zero-shot"],
    "ex-diva-guess": [solved_by_cases],
    "ex-diva-deaf": ["none"],
    "ex-diva-teacher": ["captions"],
    "ex-gpu-draws": [saved_by_runs],
    "ex-gpu-adamw": [1.216, 1.22],
    "ex-gpu-lora": ["half"],
    "ex-gpu-pairs": [pairs_needed()],
    "ex-gpu-underflow": [HALVES.min()],
    "ex-gpu-own": [2 + 46 / 60 + 40 / 3600],
}
WRONG = [  # what a student would really give
    ("ex-whole-passes", 1, "others are not drawn at all"),
    ("ex-whole-paired", lambda b, a: [a.mean() - b.mean(), np.std(a.astype(float) - b)], "shape and the wrong values"),
    ("ex-whole-paired", lambda b, a: a.mean() - b.mean(), "should return shape (2,)"),
    ("ex-whole-project", 15, "round up"),
    ("ex-dif-noise", 0.25, "per cent were asked for"),
    ("ex-diva-draws", 2, "the spread is their root"),
    ("ex-diva-guess", lambda q, a, b, c: a * (1 - q) ** 2 + 2 * b * q * (1 - q) + c * q**2, "must flip"),
    ("ex-gpu-underflow", float(np.finfo(np.float16).tiny), "subnormal ones lie below"),
    ("ex-gpu-own", 10_000, "hours were asked for"),
]


@pytest.mark.parametrize(("name", "answer"), [(name, answer) for name, answers in RIGHT.items() for answer in answers])
def test_right_answers_found_another_way(name, answer):
    assert check(name, answer) == "Right."


@pytest.mark.parametrize(("name", "answer", "part"), WRONG, ids=[f"{name}: {part}" for name, _, part in WRONG])
def test_wrong_answers_hear_what_they_look_like(name, answer, part):
    said = check(name, answer)
    assert said.startswith("Not yet: ") and part in said


def test_queries_and_keys_do_nothing_to_one_token():
    """Attention over one key: whatever is asked, the answer is that key's value; over two it is not."""
    torch.manual_seed(0)
    attend = torch.nn.functional.scaled_dot_product_attention
    queries, value = torch.randn(2, 5, 8), torch.randn(1, 1, 8)
    answers = [attend(q[None], torch.randn(1, 1, 8), value) for q in queries]
    word = "none" if torch.allclose(answers[0], answers[1]) else "much"
    assert check("ex-dif-token", word) == "Right."
    two = torch.randn(1, 2, 8)
    assert not torch.allclose(attend(queries[:1], two, two), attend(queries[1:], two, two))


def test_frozen_weights_save_half_of_a_layers_backward_pass():
    """Counted by torch: the product for the input is left, that for the weights is gone."""
    counted = {}
    for frozen in (False, True):
        layer = torch.nn.Linear(32, 32, bias=False).requires_grad_(not frozen)
        x = torch.randn(16, 32, requires_grad=True)
        loss = layer(x).sum()
        with FlopCounterMode(display=False) as counter:
            loss.backward()
        counted[frozen] = counter.get_total_flops()
    saved = 1 - counted[True] / counted[False]
    assert check("ex-gpu-lora", {0.0: "none", 0.5: "half", 1.0: "all"}[saved]) == "Right."


def test_spread_of_a_mean_of_two_draws():
    draws = np.random.default_rng(0).exponential(size=(400_000, 2))
    assert draws[:, 0].std() / draws.mean(axis=1).std() == pytest.approx(2**0.5, rel=0.01)
    assert check("ex-diva-draws", 2**0.5) == "Right."


def test_no_gradient_reaches_what_is_not_listened_to():
    condition = torch.randn(3, 4, requires_grad=True)
    deaf = torch.zeros(4, 4)  # the output of every cross-attention
    (slope,) = torch.autograd.grad((condition @ deaf + 1).square().mean(), condition)
    assert check("ex-diva-deaf", "none" if slope.abs().max() == 0 else "small") == "Right."
