"""evaluate: numbers derived by hand, and the defining property of each interval."""

import doctest

import numpy as np
import pytest
import torch
from scipy.stats import binom, norm

from minilib import evaluate
from minilib.evaluate import (
    bootstrap_interval,
    few_shot_rows,
    mcnemar,
    mean_interval,
    pair_accuracy,
    wilson_interval,
    zero_shot_accuracy,
)

EAST, NORTH = [1.0, 0.0], [0.0, 1.0]


def test_docstring_examples() -> None:
    assert doctest.testmod(evaluate).failed == 0


def test_zero_shot_by_hand() -> None:
    """Rows at 10, 50 and 80 degrees; classes at 0 and 90. Nearest: 0, 1, 1. Labels 0, 0, 1: two of three right."""
    angle = np.deg2rad([10, 50, 80])
    rows = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    assert zero_shot_accuracy(rows, np.array([EAST, NORTH]), np.array([0, 0, 1])) == pytest.approx(2 / 3)


def test_zero_shot_takes_tensors_of_any_float() -> None:
    rows = torch.tensor([EAST, NORTH], dtype=torch.bfloat16, requires_grad=True)
    assert zero_shot_accuracy(rows, torch.tensor([EAST, NORTH]), torch.tensor([0, 1])) == 1.0


@pytest.mark.parametrize(
    ("labels", "texts", "message"),
    [
        ([0, 2], [EAST, NORTH], r"labels\[1\] = 2"),
        ([0, -1], [EAST, NORTH], r"labels\[1\] = -1"),
        ([0], [EAST, NORTH], r"shape \(2,\)"),
        ([0.0, 1.0], [EAST, NORTH], "integers"),
        ([0, 1], [[1.0, 0.0, 0.0]], "2 wide"),
        ([0, 1], [[np.nan, 0.0]], "text_features row 0"),
    ],
)
def test_zero_shot_bad_input(labels: list, texts: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        zero_shot_accuracy([EAST, NORTH], texts, np.array(labels))


def test_pairs_by_hand() -> None:
    """x_a points east and x_b north in every pair; a statement at angle v picks x_a when v < 45 degrees.

    (30, 60): both right. (30, 40): b's statement picks a. (50, 60): a's picks b. (60, 30): both wrong.
    (45, 60): a's statement cannot choose, and a tie is not a choice.
    """
    says_a, says_b = np.deg2rad([30, 30, 50, 60]), np.deg2rad([60, 40, 60, 30])

    def at(v: np.ndarray) -> np.ndarray:
        return np.stack([np.cos(v), np.sin(v)], axis=1)

    got = pair_accuracy(np.tile(EAST, (4, 1)), np.tile(NORTH, (4, 1)), at(says_a), at(says_b))
    assert got.tolist() == [True, False, False, False]
    assert not pair_accuracy([EAST], [NORTH], [[1.0, 1.0]], [[0.5, 0.9]])[0]


def test_pairs_same_image_twice_is_never_solved() -> None:
    rng = np.random.default_rng(0)
    image, texts = rng.normal(size=(200, 16)), rng.normal(size=(2, 200, 16))
    assert not pair_accuracy(image, image, *texts).any()


def test_pairs_chance_is_a_quarter() -> None:
    rng = np.random.default_rng(1)
    solved = pair_accuracy(*rng.normal(size=(4, 20_000, 8)))
    low, high = wilson_interval(int(solved.sum()), len(solved), level=0.999)
    assert low < 0.25 < high


def test_pairs_bad_shape_names_the_argument() -> None:
    with pytest.raises(ValueError, match="text_b has shape"):
        pair_accuracy([EAST], [NORTH], [EAST], [EAST, NORTH])


def test_wilson_by_hand() -> None:
    """8 of 10 at z = 1.96: centre = (0.8 + 3.8416/20) / (1 + 3.8416/10) = 0.99208 / 1.38416 = 0.716738;
    half = sqrt(3.8416*0.16/10 + (3.8416/20)^2) / 1.38416 = sqrt(0.0614656 + 0.0368947) / 1.38416 = 0.226580.
    """
    low, high = wilson_interval(8, 10)
    assert (low, high) == pytest.approx((0.716738 - 0.226580, 0.716738 + 0.226580), abs=2e-5)


@pytest.mark.parametrize(("k", "n"), [(0, 7), (3, 7), (7, 7), (450, 1000)])
def test_wilson_ends_solve_the_score_equation(k: int, n: int) -> None:
    z = norm.ppf(0.95)
    for p in wilson_interval(k, n, level=0.90):
        assert (k / n - p) ** 2 == pytest.approx(z**2 * p * (1 - p) / n, abs=1e-12)


def test_wilson_covers_about_as_often_as_it_says() -> None:
    n, p = 50, 0.3
    inside = [low <= p <= high for low, high in (wilson_interval(k, n) for k in range(n + 1))]
    assert binom.pmf(np.arange(n + 1), n, p) @ np.array(inside) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("arguments", [(3, 2), (-1, 2), (0, 0), (1, 2, 1.0), (1, 2, 95)])
def test_wilson_bad_input(arguments: tuple) -> None:
    with pytest.raises(ValueError, match=r"need 0 <=|level"):
        wilson_interval(*arguments)


def test_bootstrap_matches_the_normal_interval_on_many_rows() -> None:
    values = np.random.default_rng(2).normal(5, 2, size=3000)
    error = values.std() / 3000**0.5
    expected = values.mean() + norm.ppf([0.025, 0.975]) * error
    assert bootstrap_interval(values, seed=0) == pytest.approx(tuple(expected), abs=0.1 * error + 0.005)


def test_bootstrap_is_seeded_and_paired() -> None:
    rng = np.random.default_rng(3)
    hard = rng.random(500)  # the two models share what makes a row hard
    first, second = hard < 0.60, hard < 0.55
    assert bootstrap_interval(first, seed=1) == bootstrap_interval(torch.tensor(first), seed=1)
    assert bootstrap_interval(first, seed=1) != bootstrap_interval(first, seed=2)
    paired = bootstrap_interval(first.astype(float) - second, seed=1)
    alone = [bootstrap_interval(v, seed=1) for v in (first, second)]
    assert paired[0] > 0 and alone[0][0] < alone[1][1]  # pairing shows the gain that two intervals hide


@pytest.mark.parametrize("values", [[], [[1.0]], [np.nan]])
def test_bootstrap_bad_input(values: list) -> None:
    with pytest.raises(ValueError, match="one-dimensional"):
        bootstrap_interval(values, seed=0)


def test_mcnemar_by_hand() -> None:
    """8 wins, 2 losses: 2 * (1 + 10 + 45) / 2^10 = 112 / 1024. Ties do not count."""
    first = np.array([True] * 8 + [False] * 2 + [True] * 40)
    second = np.array([False] * 8 + [True] * 2 + [True] * 40)
    assert mcnemar(first, second) == mcnemar(second, first) == pytest.approx(112 / 1024)
    assert mcnemar(first, first) == 1.0


def test_mcnemar_wants_booleans() -> None:
    with pytest.raises(ValueError, match="boolean"):
        mcnemar(np.array([1, 0]), np.array([True, False]))


def test_mean_interval_covers_what_a_bootstrap_of_five_seeds_misses() -> None:
    """5 normal values, 2,000 times: Student covers the mean 95 % of the time; the bootstrap falls well short."""
    draws = np.random.default_rng(4).normal(size=(2000, 5))
    student = [low < 0 < high for low, high in map(mean_interval, draws)]
    bootstrap = [low < 0 < high for low, high in (bootstrap_interval(v, seed=0, draws=200) for v in draws[:500])]
    assert np.mean(student) == pytest.approx(0.95, abs=0.015)
    assert np.mean(bootstrap) < 0.90


def test_mean_interval_needs_two() -> None:
    with pytest.raises(ValueError, match="two or more"):
        mean_interval([0.5])


def test_few_shot_rows_are_nested_balanced_and_seeded() -> None:
    labels = np.random.default_rng(5).integers(4, size=200)
    small, large = few_shot_rows(labels, 3, seed=1), few_shot_rows(torch.tensor(labels), 9, seed=1)
    assert np.bincount(labels[small]).tolist() == [3] * 4
    assert np.bincount(labels[large]).tolist() == [9] * 4
    assert set(small) < set(large)
    assert len(set(large)) == 36
    assert set(few_shot_rows(labels, 3, seed=2)) != set(small)


def test_few_shot_rows_says_which_class_is_short() -> None:
    with pytest.raises(ValueError, match=r"fewer: \[1\]"):
        few_shot_rows([0, 0, 1], 2, seed=0)
