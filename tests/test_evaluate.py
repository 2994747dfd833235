"""evaluate: numbers derived by hand, and the defining property of each interval."""

import doctest
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from scipy.stats import binom, norm

from minilib import evaluate, plotting
from minilib.evaluate import (
    TEMPERATURES,
    accuracy_by_frequency,
    bootstrap_interval,
    expected_calibration_error,
    few_shot_rows,
    fit_temperature,
    holm,
    long_tail_rows,
    map_classes,
    mcnemar,
    mean_interval,
    pair_accuracy,
    reliability,
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


def test_holm_by_hand() -> None:
    """0.01, 0.02, 0.03, 0.04: times 4, 3, 2, 1 gives 0.04, 0.06, 0.06, 0.04, and none may fall below the one before."""
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm(torch.tensor([0.5, 0.9])).tolist() == [1.0, 1.0]
    assert holm([0.2]).tolist() == [0.2]


def test_holm_rejects_as_the_steps_down_do() -> None:
    """At any level: take the smallest p first, stop at the first that exceeds level / (tests left)."""
    rng = np.random.default_rng(20)
    for p in rng.random((100, 6)) ** 3:
        for level in (0.01, 0.05, 0.3):
            rejected = set()
            for left, i in zip(range(6, 0, -1), np.argsort(p), strict=True):
                if p[i] > level / left:
                    break
                rejected.add(int(i))
            assert set(np.flatnonzero(holm(p) <= level)) == rejected


def test_holm_errs_once_in_twenty_at_most() -> None:
    """All null, nine tests: some adjusted value below 0.05 in about 4.9 % of families; unadjusted in 37 %."""
    p = np.random.default_rng(21).random((4000, 9))
    wrong = np.mean([holm(row).min() <= 0.05 for row in p])
    assert wrong == pytest.approx(1 - (1 - 0.05 / 9) ** 9, abs=4 * (0.05 * 0.95 / 4000) ** 0.5)
    assert (p.min(axis=1) <= 0.05).mean() > 0.3


@pytest.mark.parametrize("p", [[], [[0.1]], [1.1], [-0.1], [np.nan]])
def test_holm_bad_input(p: list) -> None:
    with pytest.raises(ValueError, match=r"numbers in \[0, 1\]"):
        holm(p)


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
    assert few_shot_rows(labels, 3, seed=1).tolist() == small.tolist()
    assert set(few_shot_rows(labels, 3, seed=2)) != set(small)


def test_few_shot_rows_says_which_class_is_short() -> None:
    with pytest.raises(ValueError, match=r"fewer: \[1\]"):
        few_shot_rows([0, 0, 1], 2, seed=0)


# Long tails and other label sets -------------------------------------------------------------------------------------


def test_long_tail_by_hand() -> None:
    """100 * 100^(-k/4) for k = 0..4: 100, 31.6, 10, 3.16, 1. From most = 20: 20, 6.3, 2, 0.63 and 0.2, both to one."""
    labels = np.repeat(np.arange(5), 120)
    rows = long_tail_rows(labels, 100, seed=0)
    assert np.bincount(labels[rows]).tolist() == [100, 32, 10, 3, 1]
    assert (np.diff(labels[rows]) >= 0).all() and len(set(rows)) == 146
    assert np.bincount(labels[long_tail_rows(labels, 20, seed=0)]).tolist() == [20, 6, 2, 1, 1]
    assert np.bincount(labels[long_tail_rows(labels, 7, ratio=1.0, seed=0)]).tolist() == [7] * 5


def test_long_tail_rows_are_random_seeded_and_nested() -> None:
    labels = torch.tensor(np.random.default_rng(6).integers(3, size=300))
    rows = long_tail_rows(labels, 40, ratio=4, seed=1)
    assert rows.tolist() == long_tail_rows(labels, 40, ratio=4, seed=1).tolist()
    assert set(rows) != set(long_tail_rows(labels, 40, ratio=4, seed=2))
    assert set(rows) < set(long_tail_rows(labels, 60, ratio=4, seed=1))


def test_long_tail_bad_input() -> None:
    with pytest.raises(ValueError, match=r"needs \[4, 2, 1\]; classes with fewer: \[1\]"):
        long_tail_rows([0] * 4 + [1] + [2] * 9, 4, ratio=4, seed=0)
    for most, ratio in ((0, 10), (5, 0.5), (5, np.nan)):
        with pytest.raises(ValueError, match="most and ratio"):
            long_tail_rows([0, 1], most, ratio=ratio, seed=0)


def test_accuracy_by_frequency_by_hand() -> None:
    """Counts 101, 100, 20, 19: many, medium, medium, few. Right: 1 of 2; 2 of 2 and 0 of 1; 1 of 4. All: 4 of 9."""
    labels = np.array([0, 0, 1, 1, 2, 3, 3, 3, 3])
    predicted = torch.tensor([0, 1, 1, 1, 0, 3, 0, 0, 0])
    got = accuracy_by_frequency(predicted, labels, [101, 100, 20, 19])
    assert got == pytest.approx({"many": 1 / 2, "medium": 2 / 3, "few": 1 / 4, "all": 4 / 9})


def test_accuracy_by_frequency_of_an_empty_group_is_nan_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = accuracy_by_frequency([1], [1], [500, 50, 5])  # class 0 and 2 have training rows but no test rows
    assert got["medium"] == got["all"] == 1
    assert np.isnan(got["many"]) and np.isnan(got["few"])


@pytest.mark.parametrize(
    ("predicted", "labels", "counts", "limits", "message"),
    [
        ([0, 1], [0], [9, 9], {}, r"shape \(2,\)"),
        ([0], [2], [9, 9], {}, r"labels\[0\] = 2, but there are 2 classes"),
        ([[0]], [0], [9, 9], {}, "1-d"),
        ([0], [0], [9, 9], {"many": 5, "few": 7}, "few must be at most many"),
    ],
)
def test_accuracy_by_frequency_bad_input(predicted, labels, counts, limits: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        accuracy_by_frequency(predicted, labels, counts, **limits)


def test_one_index_each_is_the_reference_protocols_matrix() -> None:
    logits = np.random.default_rng(7).normal(size=(20, 6))
    columns = [4, 0, 5]
    matrix = np.zeros((6, 3))
    matrix[columns, range(3)] = 1
    assert np.allclose(map_classes(logits, columns), logits @ matrix, atol=0)
    assert (map_classes(torch.tensor(logits), [[4], [0], [5]]) == map_classes(logits, np.array(columns))).all()


def test_a_target_wins_when_any_of_its_source_classes_does() -> None:
    logits = np.random.default_rng(8).normal(size=(500, 5))
    owner = np.array([0, 1, 0, 1, 1])  # each source class belongs to a target, so the winner's owner wins
    got = map_classes(logits, [np.flatnonzero(owner == k) for k in range(2)])
    assert got.shape == (500, 2)
    assert (got.argmax(axis=1) == owner[logits.argmax(axis=1)]).all()


@pytest.mark.parametrize("column", [2, -1, [], [0, 2], 0.0, True])
def test_map_classes_bad_column(column) -> None:
    with pytest.raises(ValueError, match=r"columns\[1\] must be one or more integers in range\(2\)"):
        map_classes([[1.0, 2.0]], [0, column])


def test_map_classes_needs_a_target() -> None:
    with pytest.raises(ValueError, match="at least one target"):
        map_classes([[1.0, 2.0]], [])


# Calibration ---------------------------------------------------------------------------------------------------------


def sure(confidence: list[float]) -> np.ndarray:
    """Rows of two classes that say class 0 with the given confidence."""
    return np.stack([confidence, 1 - np.array(confidence)], axis=1)


def nll(logits: np.ndarray, labels: np.ndarray, t: float = 1.0) -> float:
    return float(-log_softmax(logits / t, axis=1)[np.arange(len(labels)), labels].mean())


def test_reliability_by_hand() -> None:
    """Five bins; 0.55 and 0.60 share (0.4, 0.6], its right end included: one of two right. 1.0 alone: wrong."""
    got = reliability(sure([0.55, 0.60, 1.0]), torch.tensor([0, 1, 1]), bins=5)
    assert got["counts"].tolist() == [0, 0, 2, 0, 1]
    assert np.allclose(got["confidence"], [np.nan, np.nan, 0.575, np.nan, 1.0], equal_nan=True)
    assert np.allclose(got["accuracy"], [np.nan, np.nan, 0.5, np.nan, 0.0], equal_nan=True)


@pytest.mark.equation("eq-gda-ece")
def test_ece_by_hand() -> None:
    """The same rows: 2/3 * |0.5 - 0.575| + 1/3 * |0 - 1| = 0.05 + 1/3."""
    got = expected_calibration_error(sure([0.55, 0.60, 1.0]), np.array([0, 1, 1]), bins=5)
    assert got == pytest.approx(0.05 + 1 / 3)


@pytest.mark.equation("eq-gda-ece")
@pytest.mark.parametrize("bins", [1, 4, 15])
def test_ece_equals_a_loop_over_rows(bins: int) -> None:
    rng = np.random.default_rng(9)
    p, labels = softmax(2 * rng.normal(size=(300, 4)), axis=1), rng.integers(4, size=300)
    gaps: dict[int, float] = {}  # a bin's share times its gap is |sum of (right - confidence)| / N
    for row, label in zip(p, labels, strict=True):
        m = int(np.ceil(row.max() * bins))
        gaps[m] = gaps.get(m, 0.0) + float(row.argmax() == label) - row.max()
    assert expected_calibration_error(p, labels, bins=bins) == pytest.approx(sum(map(abs, gaps.values())) / 300)


@pytest.mark.equation("eq-gda-ece")
def test_ece_vanishes_when_labels_follow_the_probabilities_and_not_when_they_are_sharpened() -> None:
    rng = np.random.default_rng(10)
    logits = rng.normal(size=(50_000, 5))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)  # a draw from softmax(logits)
    assert expected_calibration_error(softmax(logits, axis=1), labels) < 0.01
    assert expected_calibration_error(softmax(3 * logits, axis=1), labels) > 0.1


@pytest.mark.parametrize(
    ("probabilities", "labels", "bins", "message"),
    [
        ([[2.0, 1.0]], [0], 15, "not logits"),
        ([[1.5, -0.5]], [0], 15, "not logits"),
        ([[0.5, 0.5]], [2], 15, r"labels\[0\] = 2"),
        ([[0.5, 0.5]], [0], 0, "bins must be at least 1"),
        ([[np.nan, 0.5]], [0], 15, "probabilities row 0"),
    ],
)
def test_calibration_bad_input(probabilities, labels, bins: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expected_calibration_error(probabilities, labels, bins=bins)


@pytest.mark.equation("eq-gda-temperature")
@pytest.mark.parametrize("scale", [0.05, 1.0, 40.0])
def test_temperature_is_where_the_likelihood_is_flat_and_best(scale: float) -> None:
    """The likelihood's finite difference in log T vanishes at T; no T of a grid, T = 1 included, does better."""
    rng = np.random.default_rng(11)
    labels = rng.integers(6, size=400)
    logits = scale * (rng.normal(size=(400, 6)) + np.eye(6)[labels])
    t = fit_temperature(torch.tensor(logits), torch.tensor(labels))
    assert TEMPERATURES[0] < t < TEMPERATURES[1]
    h = 1e-4
    assert nll(logits, labels, t * np.exp(h)) - nll(logits, labels, t * np.exp(-h)) == pytest.approx(0, abs=1e-9)
    grid = [1.0, *(t * np.geomspace(0.1, 10, 41))]
    assert nll(logits, labels, t) <= min(nll(logits, labels, other) for other in grid) + 1e-12


@pytest.mark.equation("eq-gda-temperature")
@pytest.mark.parametrize("truth", [0.3, 1.0, 4.0])
def test_temperature_is_found_again(truth: float) -> None:
    """100,000 labels drawn from softmax(z / T): Gumbel noise on z / T makes the largest entry such a draw."""
    rng = np.random.default_rng(12)
    logits = truth * 2 * rng.normal(size=(100_000, 4))
    labels = (logits / truth + rng.gumbel(size=logits.shape)).argmax(axis=1)
    assert fit_temperature(logits, labels) == pytest.approx(truth, rel=0.02)


@pytest.mark.equation("eq-gda-temperature")
def test_temperature_undoes_a_scale() -> None:
    """softmax(c z / (c T)) = softmax(z / T)."""
    rng = np.random.default_rng(13)
    logits, labels = rng.normal(size=(200, 3)), rng.integers(3, size=200)
    logits[np.arange(200), labels] += 1
    assert fit_temperature(7 * logits, labels) == pytest.approx(7 * fit_temperature(logits, labels), rel=1e-9)


@pytest.mark.parametrize(
    ("logits", "labels", "end", "message"),
    [
        ([[2.0, 0.0], [0.0, 1e-6]], [0, 1], 0, r"T = 0\.001: are all rows right"),
        ([[1e300, 0.0], [0.0, 1e300]], [0, 1], 0, "are all rows right"),
        ([[2.0, 0.0], [0.0, 2.0]], [1, 0], 1, "T = 1000: are the logits no better than guessing"),
    ],
    ids=["right by a hair", "right by a mile", "always wrong"],
)
def test_temperature_without_a_minimum_is_an_end_of_the_range(logits, labels, end: int, message: str) -> None:
    with pytest.warns(UserWarning, match=message):
        assert fit_temperature(logits, labels) == TEMPERATURES[end]


# Charts --------------------------------------------------------------------------------------------------------------


def test_reliability_chart_draws_the_numbers_it_is_given() -> None:
    """Empty bins are left out, discs stand at (confidence, accuracy), and the gaps add up to the ECE."""
    p, labels = sure([0.55, 0.58, 0.9, 1.0, 0.95]), np.array([0, 1, 0, 0, 1])
    table = reliability(p, labels, bins=5)
    figure, ax = plt.subplots()
    plotting.plot_reliability(ax, **table)
    gaps, discs = ax.collections
    assert np.allclose(discs.get_offsets(), [[56.5, 50], [95, 200 / 3]])
    size = discs.get_sizes()
    assert size[0] < size[1]  # two rows, three rows
    length = np.array([abs(y1 - y0) for (_, y0), (_, y1) in gaps.get_segments()])
    assert length @ [2, 3] / 5 == pytest.approx(100 * expected_calibration_error(p, labels, bins=5))
    assert ax.lines[0].get_xydata().tolist() == [[0, 0], [100, 100]]
    plt.close(figure)


def test_grouped_bars_draw_the_numbers_they_are_given() -> None:
    """Two methods on three groups, then intervals and a guess; an empty group (NaN) is no error."""
    figure, (bare, full) = plt.subplots(1, 2)
    values = {"zero-shot": [0.6, 0.5, 0.4], "GDA": [0.9, np.nan, 0.2]}
    plotting.plot_patterns(bare, ["many", "medium", "few"], values, guess=None, ylabel="accuracy (%)")
    heights = [bar.get_height() for bar in bare.patches]
    assert np.allclose(heights, [60, 50, 40, 90, np.nan, 20], equal_nan=True)
    assert not bare.lines and bare.get_ylabel() == "accuracy (%)"
    plotting.plot_patterns(full, ["a"], {"GDA": [0.5]}, {"GDA": [[0.4, 0.7]]}, guess=0.25)
    (segment,) = full.collections[0].get_segments()
    assert segment[:, 1].tolist() == [40, 70] and full.lines[-1].get_ydata()[0] == 25
    plt.close(figure)
