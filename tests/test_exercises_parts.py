"""Exercises of each part: right answers found another way, and answers that a student would really give."""

import itertools
import math

import numpy as np
import pytest
import torch

from minilib.exercises import EXERCISES, check, student_rng


def loss_of_two(r, scale):
    """The contrastive loss of two pairs whose strangers have cosine r, by torch's cross-entropy."""
    logits = scale * torch.tensor([[1.0, r], [r, 1.0]])
    return torch.nn.functional.cross_entropy(logits, torch.arange(2)).item()


def solved_by_cases(q, a, b, c):
    """Walk through the four ways in which two picks may flip."""
    total = 0.0
    for first, second in itertools.product((False, True), repeat=2):
        chance = (q if first else 1 - q) * (q if second else 1 - q)
        both, one, none = not first and not second, not first and second, first and second
        total += chance * (a * both + b * one + c * none)
    return total


def distinct_by_inclusion(w, B):
    """Concepts met in turn: one is new at draw i if the earlier draws missed it."""
    return sum(share * (1 - share) ** i for share in w for i in range(B))


def paired_by_counts(before, after):
    won, lost, n = np.sum(after & ~before), np.sum(before & ~after), len(before)
    gain = (won - lost) / n
    variance = ((won + lost) / n - gain**2) * n / (n - 1)
    return [gain, 1.96 * math.sqrt(variance / n)]


def saved_by_runs(J, C, D, V):
    reference, ours = J * (C + D) + V, C + J * D + V
    return 1 - ours / reference


def kept_by_cases(t, c):
    p = t / c
    return p * p + 2 * p * (1 - p)


def wilson(successes, n, z=1.959964):
    p = successes / n
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return [(p + z**2 / (2 * n) + sign * half) / (1 + z**2 / n) for sign in (-1, 1)]


def pairs_needed():
    return next(n for n in range(135, 5000, 5) if wilson(round(0.193 * n), n)[1] < wilson(round(0.259 * n), n)[0])


SEEN = len({i for i in np.random.default_rng(0).integers(10**6, size=10**6)}) / 10**6
HALVES = np.arange(1, 2**10, dtype=np.uint16).view(np.float16)  # every positive subnormal number
ANGLES = np.random.default_rng(0).uniform(0, 360, 2_000_000)  # of the difference, in the plane of the statements

RIGHT = {
    "ex-clip-scale": [loss_of_two(1.0, 7.0)],
    "ex-clip-prompt": ["Hardly"],
    "ex-clip-below": [1 / 8],
    "ex-clip-collapse": [torch.nn.functional.cross_entropy(torch.ones(8, 8), torch.arange(8))],
    "ex-clip-own": [288, 289],
    "ex-whole-order": ["means"],
    "ex-whole-passes": [SEEN],
    "ex-whole-paired": [paired_by_counts],
    "ex-whole-break": ["head"],
    "ex-whole-project": [16],
    "ex-gda-sharing": ["quadrics"],
    "ex-gda-break": [np.linalg.matrix_rank(np.kron(np.eye(4), np.eye(16) - 1 / 16))],
    "ex-gda-callable": ["Naive Bayes"],
    "ex-gda-dials": [2],
    "ex-gda-peek": ["rises"],
    "ex-gda-missing": ["text"],
    "ex-gda-kappa": ["text"],
    "ex-gda-priors": ["uniform"],
    "ex-gda-anchor": ["anchor"],
    "ex-gda-borrowed": ["c"],
    "ex-gda-no-labels": [-sum(1 / 80 * math.log(1 / 80) for _ in range(80))],
    "ex-meta-case": ["falls"],
    "ex-meta-rare": [4.6566],
    "ex-meta-npmi": [3 / 4],
    "ex-meta-prune": [8],
    "ex-meta-break": [10],
    "ex-meta-own": [18.6096],
    "ex-curate-dead": [3],
    "ex-curate-budget": ["too small"],
    "ex-curate-twice": [kept_by_cases],
    "ex-curate-shout": [0],
    "ex-curate-own": [2.0],
    "ex-feed-epochs": [1.28],
    "ex-feed-paired": ["sometimes"],
    "ex-feed-batch": [distinct_by_inclusion],
    "ex-feed-arm": ["balance"],
    "ex-feed-break": ["pictures"],
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
    ("ex-clip-scale", loss_of_two(0.9, 1000.0), "the limit for r < 1"),
    ("ex-clip-below", np.mean(ANGLES < 90), "at right angles"),
    ("ex-clip-collapse", 0.0, "not sure of its own"),
    ("ex-whole-passes", 1, "others are not drawn at all"),
    ("ex-whole-paired", lambda b, a: [a.mean() - b.mean(), np.std(a.astype(float) - b)], "shape and the wrong values"),
    ("ex-whole-paired", lambda b, a: a.mean() - b.mean(), "should return shape (2,)"),
    ("ex-whole-project", 15, "round up"),
    ("ex-gda-sharing", "planes", "does not cancel"),
    ("ex-gda-break", 63, "each class has its own"),
    ("ex-meta-rare", 4, "before it is rounded"),
    ("ex-meta-npmi", 12, "not yet divided"),
    ("ex-curate-twice", lambda t, c: min(1, 2 * t / c), "shape and the wrong values"),
    ("ex-curate-shout", 20_000, "a capital is another character"),
    ("ex-feed-batch", lambda w, B: len(w), "the right shape and the wrong values"),
    ("ex-feed-batch", lambda w, B: len(w) - distinct_by_inclusion(w, B), "that are missing"),
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


def test_every_exercise_has_an_answer_that_was_found_another_way():
    from test_exercises import RIGHT as first

    assert set(EXERCISES) == set(RIGHT) | set(first)


def test_wedge_of_the_pairs_rule_is_what_random_differences_give():
    """Both statements are right where the difference's cosine is positive with one and negative with the other."""
    a, b = np.cos(np.radians(ANGLES)), np.cos(np.radians(ANGLES - 45))
    assert np.mean((a > 0) & (b < 0)) == pytest.approx(1 / 8, abs=1e-3)


def test_random_numbers_of_a_student_are_their_own_and_stay():
    draw = student_rng("Ada Lovelace", "02_gda").normal(size=3)
    assert np.array_equal(draw, student_rng("  ada lovelace ", "02_gda").normal(size=3))
    others = [student_rng("Ada Lovelace", "04_beyond"), student_rng("Alan Turing", "02_gda")]
    assert all(not np.array_equal(draw, other.normal(size=3)) for other in others)
    for nobody in ("", "  ", None, 7):
        with pytest.raises(ValueError, match="STUDENT must be a name"):
            student_rng(nobody, "02_gda")
