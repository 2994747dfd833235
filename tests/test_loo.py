"""loo: leaving an image out by low-rank updates equals fitting again without it."""

import numpy as np
import pytest
import torch
from test_gda import clip_like, relative_error

from minilib import loo
from minilib.gaussian import log_softmax
from minilib.gda import ALPHA_GRID, GDA, ZeroShotGDA


def case(n: int, d: int, k: int, views: int) -> tuple:
    """Rows, labels, weights and image of each row; views of an image share its label."""
    rows, labels, texts = clip_like(n, d, k, spread=0.8)
    groups = np.arange(n) // views
    labels = np.repeat(np.arange(n // views) % k, views)
    weights = np.random.default_rng(1).uniform(0.5, 2, size=n // views)[groups]
    return rows, labels, texts, weights, groups


@pytest.mark.equation("eq-gda-loo")
@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("priors", ["uniform", "empirical"])
@pytest.mark.parametrize("covariance", ["ks", 0.2])
@pytest.mark.parametrize(("n", "d", "views"), [(60, 12, 1), (60, 12, 3), (24, 40, 1), (24, 40, 3)])
def test_equals_fitting_again_without_the_image(n, d, views, covariance, priors, relative) -> None:
    rows, labels, _, weights, groups = case(n, d, 4, views)

    def fit(keep: np.ndarray) -> GDA:
        model = GDA(covariance=covariance, priors=priors)
        return model._learn(rows[keep], labels[keep], np.arange(4), weights[keep], groups[keep])._solve(relative)

    found, which = loo.held_out_logits(
        rows, labels, fit(np.ones(n, dtype=bool)), relative=relative, weights=weights, groups=groups
    )
    assert sorted(which) == list(range(n))
    for logits, i in zip(found, which, strict=True):
        again = fit(groups != groups[i]).logits(rows[i : i + 1])[0]
        assert relative_error(logits, again) < 1e-10


@pytest.mark.equation("eq-gda-loo")
def test_mean_without_a_row_by_hand() -> None:
    """Class 0 holds -1, 1 and 6, class 1 holds 10 and 14; covariance I. Without 6 the mean of class 0 is 0, so its
    logit at 6 is 0, and that of class 1 is 6 * 12 - 72 = 0; priors of one half add log(1/2)."""
    rows, labels = np.array([[-1.0], [1.0], [6.0], [10.0], [14.0]]), np.array([0, 0, 0, 1, 1])
    model = GDA(covariance=1.0).fit(rows, labels)
    found, which = loo.held_out_logits(rows, labels, model, relative=False)
    # shrinkage 1 in one dimension: covariance S' / N' with S' = 1 + 1 + 4 + 4 over 4 rows
    precision = 4 / 10
    assert found[list(which).index(2)] == pytest.approx(np.log(0.5) + precision * np.array([0.0, 6 * 12 - 72]))


@pytest.mark.equation("eq-gda-loo")
def test_alpha_is_where_the_refitted_likelihood_peaks() -> None:
    rows, labels, texts = clip_like(60, 16, 5, spread=1.2)
    model = ZeroShotGDA(texts, logit_scale=20.0).fit(rows, labels)
    curve = []
    for alpha in ALPHA_GRID:
        told = []
        for i in range(60):
            keep = np.arange(60) != i
            again = ZeroShotGDA(texts, logit_scale=20.0, alpha=alpha).fit(rows[keep], labels[keep])
            told.append(np.log(again.predict_proba(rows[i : i + 1])[0, labels[i]]))
        curve.append(np.mean(told))
    assert np.allclose(model.alpha_curve_, curve, atol=1e-9)
    assert model.alpha_ == ALPHA_GRID[int(np.argmax(curve))]
    assert 0 < np.argmax(curve) < len(curve) - 1  # the peak lies within the grid: there was a choice to make


def test_images_that_stand_alone_are_left_out_of_the_sum() -> None:
    rows, labels, _ = clip_like(40, 8, 4)
    keep = np.flatnonzero((labels != 3) | (np.cumsum(labels == 3) == 1))  # a single row of class 3
    model = GDA().fit(rows[keep], labels[keep])
    found, which = loo.held_out_logits(rows[keep], labels[keep], model, relative=True)
    assert np.isfinite(found).all()
    assert sorted(which) == [i for i, y in enumerate(labels[keep]) if y != 3]


def test_classes_without_samples_stay_unknown() -> None:
    rows, labels, _ = clip_like(40, 8, 4)
    _, _, more = clip_like(6, 8, 6)
    model = ZeroShotGDA(more, logit_scale=20.0).fit(rows, labels)
    found, _ = loo.held_out_logits(rows, labels, model.gda_, relative=True)
    assert np.isnan(found[:, 4:]).all() and np.isfinite(found[:, :4]).all()
    assert np.isfinite(model.alpha_curve_).all()


def test_two_images_of_one_class_and_nothing_else_to_vary() -> None:
    """Class 0 has two images, the others one: without either no scatter is left, so nothing can be judged."""
    rows, _, texts = clip_like(4, 8, 3)
    with pytest.warns(UserWarning, match="alpha = 1 is taken"):
        model = ZeroShotGDA(texts).fit(rows, np.array([0, 0, 1, 2]))
    assert model.alpha_ == 1.0


def test_tensors_give_the_same() -> None:
    rows, labels, _, weights, groups = case(60, 12, 4, 3)
    plain, tensors = GDA().fit(rows, labels), GDA().fit(torch.tensor(rows), torch.tensor(labels))
    a, b = (
        loo.held_out_logits(x, labels, m, relative=True, weights=weights, groups=groups)
        for x, m in ((rows, plain), (torch.tensor(rows), tensors))
    )
    assert isinstance(b[0], torch.Tensor)
    assert np.allclose(a[0], b[0].numpy()) and (a[1] == b[1]).all()


def test_bad_calls() -> None:
    rows, labels, texts = clip_like(20, 8, 2)
    with pytest.raises(ValueError, match="callable covariance"):
        ZeroShotGDA(texts, gda=GDA(covariance=lambda s, n: s / n + np.eye(8))).fit(rows, labels)
    with pytest.raises(ValueError, match=r"image 0 in groups stands under classes \[0, 1\]"):
        ZeroShotGDA(texts).fit(rows, np.arange(20) % 2, groups=np.arange(20) // 2)


def test_log_softmax_needs_no_luck() -> None:
    assert np.allclose(log_softmax(np.array([[1e4, 0.0], [0.0, 0.0]])), [[0, -1e4], [-np.log(2)] * 2])
