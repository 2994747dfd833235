"""gda: the paper's formula taken literally, scikit-learn's LDA, exact posteriors, and what bad input does."""

import doctest
import warnings

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.covariance import ledoit_wolf_shrinkage, oas
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.utils.estimator_checks import parametrize_with_checks

from minilib import gaussian, gda, loo
from minilib.gda import (
    ALPHA_GRID,
    GDA,
    ZeroShotGDA,
    class_statistics,
    discriminant,
    ks_precision,
    merge_statistics,
    ridge_solve,
)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def clip_like(n: int, d: int, k: int, *, seed: int = 0, spread: float = 0.5) -> tuple[np.ndarray, ...]:
    """Unit-norm features around unit-norm prototypes, labels, texts; every class has rows when n >= k."""
    rng = np.random.default_rng(seed)
    prototypes = unit(rng.normal(size=(k, d)))
    labels = rng.permutation(np.arange(n) % k)
    rows = unit(prototypes[labels] + spread * unit(rng.normal(size=(n, d))))
    return rows, labels, unit(prototypes + 0.8 * unit(rng.normal(size=(k, d))))


def literal(rows: np.ndarray, labels: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The paper's formula as printed: covariance with N - 1, pseudo-inverse, uniform priors, one step a line."""
    n, d = rows.shape
    mu = np.stack([rows[labels == j].mean(axis=0) for j in range(k)])
    centred = np.concatenate([rows[labels == j] - mu[j] for j in range(k)])
    sigma = centred.T @ centred / (n - 1)
    precision = d * np.linalg.pinv((n - 1) * sigma + np.trace(sigma) * np.eye(d))
    w = precision @ mu.T
    b = np.log(1 / k) - np.einsum("kd,de,ke->k", mu, precision, mu) / 2
    return w, b


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(got - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("module", [gda, gaussian, loo])
def test_docstring_examples(module) -> None:
    assert doctest.testmod(module).failed == 0


@parametrize_with_checks([GDA(), GDA(covariance=0.3, priors="empirical")])
def test_scikit_learn_estimator_checks(estimator, check) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)


# The formula ---------------------------------------------------------------------------------------------------------


@pytest.mark.equation("eq-gda-ks")
@pytest.mark.parametrize(("n", "d", "k"), [(400, 32, 10), (160, 24, 3), (50, 40, 5), (30, 64, 5)])
def test_equals_the_formula_of_the_paper(n: int, d: int, k: int) -> None:
    """Rows more and fewer than dimensions: Cholesky, then Woodbury, against a pseudo-inverse."""
    rows, labels, _ = clip_like(n, d, k)
    model = GDA().fit(rows, labels)
    w, b = literal(rows, labels, k)
    assert relative_error(model.coef_, w.T) < 1e-10
    assert relative_error(model.intercept_, b) < 1e-10
    scatter = class_statistics(rows, labels, k).scatter
    assert relative_error(ks_precision(scatter, n) @ model.means_.T, w) < 1e-10


@pytest.mark.equation("eq-gda-ks")
def test_ks_by_hand() -> None:
    """S = diag(3, 1), N = 5, D = 2: ridge tr(S) / (N - 1) = 1, so P = diag(2 / 4, 2 / 2)."""
    assert np.allclose(ks_precision(np.diag([3.0, 1.0]), 5), np.diag([0.5, 1.0]))


@pytest.mark.equation("eq-gda-ks")
def test_ks_needs_scatter() -> None:
    with pytest.raises(ValueError, match=r"tr\(S\) = 0"):
        ks_precision(np.zeros((2, 2)), 5)


@pytest.mark.equation("eq-gda-scatter")
def test_scatter_by_hand() -> None:
    """Class 0 holds (0,0), (2,4): mean (1,2), each row +-(1,2), S = 2 [[1,2],[2,4]]. Class 1 is one row: nothing."""
    stats = class_statistics(np.array([[0.0, 0.0], [2.0, 4.0], [9.0, 9.0]]), np.array([0, 0, 1]), 2)
    assert stats.counts.tolist() == [2, 1]
    assert stats.means.tolist() == [[1, 2], [9, 9]]
    assert stats.scatter.tolist() == [[2, 4], [4, 8]]


@pytest.mark.equation("eq-gda-scatter")
def test_within_and_between_scatter_add_up_to_the_total() -> None:
    rows, labels, _ = clip_like(90, 8, 6)
    stats = class_statistics(rows, labels, 6)
    total, step = rows - rows.mean(axis=0), stats.means - rows.mean(axis=0)
    assert np.allclose(stats.scatter + (step * stats.counts[:, None]).T @ step, total.T @ total)


@pytest.mark.equation("eq-gda-woodbury")
@pytest.mark.parametrize("a", [0.0, 0.01, 2.0])
def test_woodbury_equals_cholesky(a: float) -> None:
    rows, labels, _ = clip_like(20, 48, 4)
    few = class_statistics(rows, labels, 4)
    assert few.kept.shape == (20, 48)  # the centred rows, so the Woodbury path
    full = gda.Statistics(few.counts, few.means, few.scatter)
    right = np.random.default_rng(1).normal(size=(48, 3))
    assert relative_error(ridge_solve(few, a, 0.05, right), ridge_solve(full, a, 0.05, right)) < 1e-11
    assert few.trace == pytest.approx(full.trace)


@pytest.mark.equation("eq-gda-linear")
def test_linear_form_equals_the_squared_distances() -> None:
    """log pi_k - (x - mu)^T P (x - mu) / 2 and x W + b differ by a number that does not depend on k."""
    rng = np.random.default_rng(2)
    factor, means, x = rng.normal(size=(5, 5)), rng.normal(size=(3, 5)), rng.normal(size=(7, 5))
    precision, priors = factor @ factor.T, np.array([0.5, 0.3, 0.2])
    weights, biases = discriminant(means, precision @ means.T, priors)
    step = x[:, None] - means  # (7, 3, 5)
    quadratic = np.log(priors) - np.einsum("nkd,de,nke->nk", step, precision, step) / 2
    difference = quadratic - (x @ weights + biases)
    assert np.allclose(difference, difference[:, :1])


# Bayes' rule ---------------------------------------------------------------------------------------------------------


@pytest.mark.equation("eq-gda-posterior")
@pytest.mark.parametrize("priors", ["uniform", "empirical", (0.7, 0.2, 0.1)])
@pytest.mark.parametrize("covariance", ["ks", 0.2])
def test_probabilities_are_the_exact_posterior_of_its_own_gaussians(covariance, priors) -> None:
    rng = np.random.default_rng(3)
    labels = np.repeat([0, 1, 2], [40, 25, 15])
    rows = rng.normal(size=(80, 4)) @ rng.normal(size=(4, 4)) + rng.normal(size=(3, 4))[labels]
    model = GDA(covariance=covariance, priors=priors).fit(rows, labels)
    s, n, d = class_statistics(rows, labels, 3).scatter, 80, 4
    sigma = (
        np.linalg.inv(ks_precision(s, n))
        if covariance == "ks"
        else 0.8 * s / n + 0.2 * np.trace(s) / (n * d) * np.eye(d)
    )
    x = rng.normal(size=(11, 4))
    joint = np.stack(
        [p * multivariate_normal(m, sigma).pdf(x) for p, m in zip(model.priors_, model.means_, strict=True)], axis=1
    )
    assert np.allclose(model.predict_proba(x), joint / joint.sum(axis=1, keepdims=True), atol=1e-12)
    assert (model.predict(x) == joint.argmax(axis=1)).all()


@pytest.mark.equation("eq-gda-posterior")
def test_learns_the_true_posterior_of_known_gaussians() -> None:
    """200,000 rows of two Gaussians with priors 0.8 and 0.2: within 0.01 of the posterior of the truth."""
    rng = np.random.default_rng(4)
    sigma, means = np.array([[2.0, 0.6], [0.6, 1.0]]), np.array([[0.0, 0.0], [1.5, -1.0]])
    labels = (rng.random(200_000) < 0.2).astype(int)
    rows = means[labels] + rng.multivariate_normal([0, 0], sigma, size=len(labels))
    x = rng.normal(size=(50, 2), scale=2)
    truth = np.stack([p * multivariate_normal(m, sigma).pdf(x) for p, m in zip((0.8, 0.2), means, strict=True)], axis=1)
    got = GDA(covariance=0.0, priors="empirical").fit(rows, labels).predict_proba(x)
    assert np.abs(got - truth / truth.sum(axis=1, keepdims=True)).max() < 0.01


def test_scale_brings_ks_back_to_the_units_of_the_data() -> None:
    """Rows with variance 4 on each axis: P times scale_ must be near I / 4, at any N."""
    rng = np.random.default_rng(5)
    for n in (1_000, 10_000):
        labels = np.arange(n) % 2
        model = GDA().fit(2 * rng.normal(size=(n, 3)) + labels[:, None], labels)
        precision = ks_precision(model.statistics_.scatter, n) * model.scale_
        assert np.allclose(precision, np.eye(3) / 4, atol=0.05)


# scikit-learn's LDA --------------------------------------------------------------------------------------------------


def test_ks_is_scikit_learns_shrinkage_on_balanced_data() -> None:
    """coef = c W and intercept = c (b + log K) - log K with s = D / (N - 1 + D), c = N (N - 1 + D) / (D (N - 1))."""
    n, d, k = 120, 20, 6
    rows, labels, _ = clip_like(n, d, k)
    ours = GDA().fit(rows, labels)
    peer = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=d / (n - 1 + d), priors=np.full(k, 1 / k))
    peer.fit(rows, labels)
    c = n * (n - 1 + d) / (d * (n - 1))
    assert relative_error(c * ours.coef_, peer.coef_) < 1e-10
    assert relative_error(c * (ours.intercept_ + np.log(k)) - np.log(k), peer.intercept_) < 1e-10
    assert ours.scale_ == pytest.approx(c * (n - k) / n)
    assert (ours.predict(rows) == peer.predict(rows)).all()


@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 0.9, 1.0])
def test_number_equals_scikit_learn(shrinkage: float) -> None:
    """With empirical priors on unbalanced data too: scikit-learn weights class covariances by the priors."""
    rows, labels, _ = clip_like(100, 8, 5)
    rows, labels = rows[: 60 + 7], np.minimum(labels[: 60 + 7], 3)
    ours = GDA(covariance=shrinkage, priors="empirical").fit(rows, labels)
    peer = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(rows, labels)
    assert relative_error(ours.coef_, peer.coef_) < 1e-10
    assert relative_error(ours.intercept_, peer.intercept_) < 1e-10


def test_callable_covariance() -> None:
    rows, labels, _ = clip_like(60, 8, 4)
    by_hand = GDA(covariance=lambda s, n: 0.7 * s / n + 0.3 * np.trace(s) / (n * 8) * np.eye(8)).fit(rows, labels)
    number = GDA(covariance=0.3).fit(rows, labels)
    assert relative_error(by_hand.coef_, number.coef_) < 1e-12
    assert by_hand.scale_ == pytest.approx(number.scale_)


@pytest.mark.equation("eq-gda-shrinkage")
@pytest.mark.parametrize(
    ("name", "peer"), [("ledoit-wolf", ledoit_wolf_shrinkage), ("oas", lambda x, **o: oas(x, **o)[1])]
)
@pytest.mark.parametrize(("n", "d"), [(200, 12), (30, 60)])
def test_pooled_shrinkage_is_scikit_learns_on_centred_rows(name: str, peer, n: int, d: int) -> None:
    rows, labels, _ = clip_like(n, d, 4)
    rows = rows * np.geomspace(1, 0.1, d)
    model = GDA(covariance=name).fit(rows, labels)
    centred = rows - model.means_[labels]
    assert model.shrinkage_ == pytest.approx(peer(centred, assume_centered=True), rel=1e-9)
    assert 0 < model.shrinkage_ < 1
    assert relative_error(model.coef_, GDA(covariance=model.shrinkage_).fit(rows, labels).coef_) < 1e-12


@pytest.mark.equation("eq-gda-shrinkage")
def test_ks_is_a_shrinkage_of_the_covariance() -> None:
    """P of "ks" and of the number D / (N - 1 + D) are multiples of each other, so their weights are too."""
    rows, labels, _ = clip_like(70, 24, 5)
    ks = GDA().fit(rows, labels)
    assert ks.shrinkage_ == 24 / (70 - 1 + 24)
    number = GDA(covariance=ks.shrinkage_).fit(rows, labels)
    assert relative_error(ks.coef_ / np.linalg.norm(ks.coef_), number.coef_ / np.linalg.norm(number.coef_)) < 1e-12


def test_round_scatter_is_shrunk_all_the_way() -> None:
    """Two classes of +-e_i each: S is a multiple of I, at distance 0 from the target."""
    rows = np.concatenate([np.eye(4), -np.eye(4)] * 2)
    model = GDA(covariance="oas").fit(rows + np.repeat([0, 5], 8)[:, None], np.repeat([0, 1], 8))
    assert model.shrinkage_ == 1.0


# Weights and views ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance", ["ks", "oas", "ledoit-wolf", 0.3])
@pytest.mark.parametrize("d", [6, 80])
def test_a_weight_of_three_is_three_rows(covariance, d: int) -> None:
    rows, labels, _ = clip_like(50, d, 3)
    weights = np.random.default_rng(0).integers(0, 4, size=50)
    weights[:3] = 1
    repeated = np.repeat(np.arange(50), weights)
    heavy = GDA(covariance=covariance).fit(rows, labels, sample_weight=weights)
    often = GDA(covariance=covariance).fit(rows[repeated], labels[repeated])
    assert relative_error(heavy.coef_, often.coef_) < 1e-9
    assert relative_error(heavy.intercept_, often.intercept_) < 1e-9


def test_identical_views_of_an_image_count_as_the_image() -> None:
    rows, labels, _ = clip_like(40, 8, 4)
    once = GDA(priors="empirical").fit(rows, labels)
    thrice = GDA(priors="empirical").fit(np.tile(rows, (3, 1)), np.tile(labels, 3), groups=np.tile(np.arange(40), 3))
    assert relative_error(thrice.coef_, once.coef_) < 1e-12
    assert thrice.statistics_.total == pytest.approx(40)
    as_rows = GDA(priors="empirical").fit(np.tile(rows, (3, 1)), np.tile(labels, 3))
    assert relative_error(as_rows.coef_, once.coef_) > 0.01  # the paper's way is another ridge


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_weight": np.ones(5)}, "20 finite numbers"),
        ({"sample_weight": -np.ones(20)}, "0 or more"),
        ({"sample_weight": np.zeros(20)}, "sum to zero"),
        ({"groups": np.zeros(3)}, "image of each of the 20 rows"),
    ],
)
def test_bad_weights(options: dict, message: str) -> None:
    rows, labels, _ = clip_like(20, 8, 2)
    with pytest.raises(ValueError, match=message):
        GDA().fit(rows, labels, **options)


@pytest.mark.equation("eq-gda-text-anchor")
def test_text_anchor_draws_means_as_so_many_images() -> None:
    """An anchor of 4 beside 8 images a class: each mean moves a third of the way to its moved text."""
    rows, labels, texts = clip_like(40, 6, 5)
    model = ZeroShotGDA(texts, alpha=1.0, text_anchor=4.0).fit(rows, labels)
    plain = GDA().fit(rows, labels)
    told = texts - texts.mean(axis=0) + rows.mean(axis=0)
    assert np.allclose(model.gda_.means_, 2 / 3 * plain.means_ + 1 / 3 * told)
    assert np.allclose(model.gda_.statistics_.scatter, plain.statistics_.scatter)


# Statistics that add up ----------------------------------------------------------------------------------------------


@pytest.mark.equation("eq-gda-merge")
@pytest.mark.filterwarnings("ignore:no scatter")
@pytest.mark.parametrize("d", [12, 300])
def test_any_split_and_order_equals_one_pass(d: int) -> None:
    """Shards of uneven size, a class absent from one and a single row in another; far from the origin."""
    rows, labels, _ = clip_like(200, d, 4)
    rows = rows + 100.0
    once = GDA().fit(rows, labels)
    order = np.random.default_rng(6).permutation(200)
    shuffled = GDA().fit(rows[order], labels[order])
    shards = np.split(np.argsort(labels, kind="stable"), [1, 60, 61])
    streamed = GDA()
    for shard in shards:
        streamed.partial_fit(rows[shard], labels[shard], classes=range(4))
    merged = GDA.merge([GDA().partial_fit(rows[s], labels[s], classes=np.unique(labels[s])) for s in reversed(shards)])
    for other in (shuffled, streamed, merged):
        assert relative_error(other.coef_ - other.coef_.mean(axis=0), once.coef_ - once.coef_.mean(axis=0)) < 1e-9
        assert np.allclose(other.predict_proba(rows), once.predict_proba(rows), atol=1e-9)


@pytest.mark.equation("eq-gda-merge")
def test_merge_by_hand() -> None:
    """One class: 0 and 2 (mean 1, S = 2), then 6 (S = 0). Together mean 8/3, S = 2 + 2 * 1 / 3 * 5^2 = 56/3."""
    one = class_statistics(np.array([[0.0], [2.0]]), np.array([0, 0]), 1)
    both = merge_statistics(one, class_statistics(np.array([[6.0]]), np.array([0]), 1))
    assert both.counts.tolist() == [3]
    assert both.means.item() == pytest.approx(8 / 3)
    assert both.scatter.item() == pytest.approx(56 / 3)


def test_merge_refuses_different_settings() -> None:
    rows, labels, _ = clip_like(20, 4, 2)
    with pytest.raises(ValueError, match="same covariance"):
        GDA.merge([GDA().fit(rows, labels), GDA(covariance=0.5).fit(rows, labels)])


# The ensemble --------------------------------------------------------------------------------------------------------


@pytest.mark.equation("eq-gda-ensemble")
@pytest.mark.parametrize("scale", ["reference", "relative"])
def test_ensemble_is_the_weighted_sum(scale: str) -> None:
    rows, labels, texts = clip_like(80, 16, 4)
    model = ZeroShotGDA(texts, alpha=0.5, logit_scale=30.0, alpha_scale=scale).fit(rows, labels)
    w, b = literal(rows, labels, 4)
    c = GDA().fit(rows, labels).scale_ * 20 / (20 + 16) if scale == "relative" else 1.0
    expected = 30 * rows @ texts.T + 0.5 * (c * (rows @ w + b + np.log(4)) - np.log(4))
    assert np.allclose(model.decision_function(rows), expected)
    assert np.allclose(model.predict_proba(rows).sum(axis=1), 1)


@pytest.mark.equation("eq-gda-ensemble")
def test_alpha_from_nothing_to_everything() -> None:
    rows, labels, texts = clip_like(80, 16, 4)
    none = ZeroShotGDA(texts, alpha=0).fit(rows, labels)
    assert (none.predict(rows) == (rows @ texts.T).argmax(axis=1)).all()
    alone = ZeroShotGDA(texts, alpha=1e9).fit(rows, labels)
    assert (alone.predict(rows) == GDA().fit(rows, labels).predict(rows)).all()


@pytest.mark.equation("eq-gda-ensemble")
def test_ensemble_is_bayes_rule_with_zero_shot_as_prior() -> None:
    """Posterior proportional to the zero-shot probability times the discounted density, in the data's own units."""
    rows, labels, texts = clip_like(80, 6, 3)
    x, _, _ = clip_like(9, 6, 3, seed=7)
    model = ZeroShotGDA(texts, alpha=1.0, logit_scale=10.0).fit(rows, labels)
    plain = GDA().fit(rows, labels)
    sigma = np.linalg.inv(ks_precision(plain.statistics_.scatter, 80) * plain.scale_)
    density = np.stack([multivariate_normal(m, sigma).pdf(x) for m in plain.means_], axis=1)
    joint = np.exp(10 * x @ texts.T) * density ** gda.mean_discount(plain.statistics_.counts, 6)
    assert np.allclose(model.predict_proba(x), joint / joint.sum(axis=1, keepdims=True))


@pytest.mark.equation("eq-gda-discount")
def test_discount_is_the_best_factor_where_its_assumption_holds() -> None:
    """True means one standard deviation from their centre in all: m / (m + D) is the least-squares factor."""
    rng, d = np.random.default_rng(11), 64
    for m in (1, 8, 64):
        truth = rng.normal(size=(4000, d)) / d**0.5
        seen = truth + rng.normal(size=(4000, d)) / m**0.5
        best = (seen * truth).sum() / (seen**2).sum()
        assert gda.mean_discount(np.full(5, m), d) == pytest.approx(best, abs=0.01)
    assert gda.mean_discount(np.array([4, 0, 8]), 6) == 0.5  # classes without samples do not count


def test_validation_takes_the_first_best_of_the_grid_and_the_test_rows_stay_out() -> None:
    rows, labels, texts = clip_like(200, 16, 8, spread=1.2)
    fit, val = slice(0, 100), slice(100, 200)
    model = ZeroShotGDA(texts, alpha="validation", alpha_scale="reference")
    model.fit(rows[fit], labels[fit], rows[val], labels[val])
    curve = [
        (
            ZeroShotGDA(texts, alpha=a, alpha_scale="reference").fit(rows[fit], labels[fit]).predict(rows[val])
            == labels[val]
        ).mean()
        for a in ALPHA_GRID
    ]
    assert model.alpha_curve_.tolist() == curve
    best, chosen = -1.0, None
    for a, accuracy in zip(ALPHA_GRID, curve, strict=True):  # the reference code's loop: strictly better only
        if accuracy > best:
            best, chosen = accuracy, a
    assert model.alpha_ == chosen
    assert len(set(curve)) < len(curve)  # there was a tie to break


@pytest.mark.parametrize("alpha", [0.0, 1.0, 30.0, 1e6])
@pytest.mark.parametrize("priors", ["uniform", "empirical"])
def test_class_without_samples_is_found_at_least_as_often_as_by_zero_shot(alpha: float, priors: str) -> None:
    rows, labels, texts = clip_like(400, 24, 8, spread=1.5)
    test_rows, test_labels, _ = clip_like(400, 24, 8, spread=1.5, seed=0)
    seen = labels < 6
    model = ZeroShotGDA(texts, gda=GDA(priors=priors), alpha=alpha).fit(rows[seen], labels[seen])
    assert np.isfinite(model.decision_function(test_rows)).all()
    zero_shot, both = (test_rows @ texts.T).argmax(axis=1), model.predict(test_rows)
    unseen = zero_shot >= 6
    assert unseen.sum() > 20
    assert (both[unseen] == zero_shot[unseen]).all()  # whatever zero-shot calls unseen stays so, at every alpha
    full = ZeroShotGDA(texts[:6], gda=GDA(priors=priors), alpha=alpha).fit(rows[seen], labels[seen])
    known = both < 6
    assert (both[known] == full.predict(test_rows)[known]).all()  # and among the others nothing changes
    assert (test_labels == labels).all()


def test_class_without_samples_and_without_text_is_a_clear_error() -> None:
    rows, labels, _ = clip_like(40, 8, 4)
    model = GDA().partial_fit(rows, labels, classes=range(6))
    with pytest.raises(ValueError, match=r"no samples of class \[.*4.*5.*\].*ZeroShotGDA"):
        model.predict(rows)


def test_one_image_a_class_is_nearest_mean_and_says_so() -> None:
    prototypes = unit(np.random.default_rng(9).normal(size=(6, 20)))
    with pytest.warns(UserWarning, match="no scatter within the classes"):
        model = GDA().fit(prototypes, np.arange(6))
    x = unit(np.random.default_rng(10).normal(size=(200, 20)))
    assert (model.predict(x) == (x @ prototypes.T).argmax(axis=1)).all()
    with pytest.warns(UserWarning, match="no scatter"):  # the same image thrice is still one image
        GDA().fit(np.repeat(prototypes, 3, axis=0), np.repeat(np.arange(6), 3))
    with pytest.warns(UserWarning, match="no scatter"):
        both = ZeroShotGDA(prototypes).fit(prototypes, np.arange(6))
    assert np.isfinite(both.decision_function(x)).all()


# Tensors and long streams ---------------------------------------------------------------------------------------------


class NoHost(torch.overrides.TorchFunctionMode):
    """Refuses to bring anything to the host that is larger than the labels' classes."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name in ("numpy", "cpu", "__array__", "tolist") and args[0].numel() > 64 and args[0].is_floating_point():
            raise AssertionError(f"{tuple(args[0].shape)} numbers left the device by {name}")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("d", [12, 300])
def test_tensors_stay_on_their_device(d: int) -> None:
    rows, labels, texts = clip_like(200, d, 4)
    x, y, t = torch.tensor(rows), torch.tensor(labels), torch.tensor(texts)
    with NoHost():
        with pytest.raises(AssertionError, match="left the device"):
            x.numpy()  # the guard works
        model = GDA(covariance="oas").fit(x, y)
        model.partial_fit(x, y)
        merged = GDA.merge([model, model])
        found = merged.predict_proba(x), merged.predict(x)
    plain = GDA(covariance="oas").fit(np.tile(rows, (4, 1)), np.tile(labels, 4))
    assert relative_error(merged.coef_.numpy(), plain.coef_) < 1e-9
    assert np.allclose(found[0].numpy(), plain.predict_proba(rows), atol=1e-9)
    assert (found[1].numpy() == plain.predict(rows)).all()
    both = ZeroShotGDA(t).fit(x, y), ZeroShotGDA(texts).fit(rows, labels)
    assert both[0].alpha_ == both[1].alpha_
    assert np.allclose(both[0].predict_proba(x).numpy(), both[1].predict_proba(rows), atol=1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_what_the_cpu_gives() -> None:
    rows, labels, texts = clip_like(400, 64, 5)
    x, y = torch.tensor(rows, device="cuda"), torch.tensor(labels, device="cuda")
    model = ZeroShotGDA(torch.tensor(texts, device="cuda")).fit(x, y)
    assert model.predict_proba(x).is_cuda and model.gda_.coef_.is_cuda
    assert np.allclose(
        model.predict_proba(x).cpu().numpy(), ZeroShotGDA(texts).fit(rows, labels).predict_proba(rows), atol=1e-8
    )


def test_chunks_do_not_change_the_statistics(monkeypatch) -> None:
    rows, labels, _ = clip_like(500, 16, 4)
    whole = GDA().fit(rows, labels).coef_
    monkeypatch.setattr(gaussian, "CHUNK", 64)
    assert relative_error(GDA().fit(rows, labels).coef_, whole) < 1e-12


def test_ledoit_wolf_says_that_it_cannot_stream() -> None:
    rows, labels, _ = clip_like(60, 8, 3)
    model = GDA(covariance="ledoit-wolf").partial_fit(rows, labels, classes=range(3))
    with pytest.raises(ValueError, match=r'needs all rows in one fit.*"oas"'):
        model.partial_fit(rows, labels)


# What comes in -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["float16", "float32", "bfloat16 tensor", "read-only", "strided", "tensor"])
def test_kinds_of_arrays(kind: str) -> None:
    rows, labels, texts = clip_like(60, 16, 4)
    read_only = rows.copy()
    read_only.setflags(write=False)
    x = {
        "float16": rows.astype(np.float16),
        "float32": rows.astype(np.float32),
        "bfloat16 tensor": torch.tensor(rows, dtype=torch.bfloat16),
        "read-only": read_only,
        "strided": np.repeat(rows, 2, axis=1)[:, ::2],
        "tensor": torch.tensor(rows, requires_grad=True),
    }[kind]
    y = torch.tensor(labels) if "tensor" in kind else labels
    model = GDA().fit(x, y)
    assert str(model.coef_.dtype).endswith("float64")
    assert (
        isinstance(model.coef_, torch.Tensor) == isinstance(model.predict_proba(x), torch.Tensor) == ("tensor" in kind)
    )
    assert relative_error(np.asarray(model.coef_), GDA().fit(rows, labels).coef_) < (0.05 if "16" in kind else 1e-5)
    both = ZeroShotGDA(torch.tensor(texts) if "tensor" in kind else texts).fit(x, y)
    assert both.predict_proba(x).shape == (60, 4)


def formula32(rows: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """The paper's formula in torch float32, as its authors run it: (D, K) weights."""
    x, y = torch.from_numpy(rows), torch.from_numpy(labels)
    mu = torch.stack([x[y == j].mean(0) for j in range(k)])
    sigma = torch.cat([x[y == j] - mu[j] for j in range(k)]).T.cov()
    n, d = x.shape
    return (d * torch.linalg.pinv((n - 1) * sigma + sigma.trace() * torch.eye(d)) @ mu.T).numpy()


@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize(("n", "d", "k"), [(4000, 64, 40), (60, 200, 5), (400, 32, 4)])
def test_float32_features_err_no_more_than_the_formula_in_float32(n: int, d: int, k: int, offset: float) -> None:
    rows, labels, _ = clip_like(n, d, k)
    rows = (rows + offset).astype(np.float32)
    truth = literal(rows.astype(np.float64), labels, k)[0]
    ours = relative_error(GDA().fit(rows, labels).coef_.T, truth)
    assert ours <= relative_error(formula32(rows, labels, k), truth)
    assert ours < 3e-6


def test_words_as_labels_and_the_shape_of_two_classes() -> None:
    rows, labels, _ = clip_like(40, 8, 2)
    model = GDA().fit(rows, np.array(["cat", "dog"])[labels])
    assert model.classes_.tolist() == ["cat", "dog"]
    assert model.coef_.shape == (2, 8)
    assert model.decision_function(rows).shape == (40,)
    assert ((model.decision_function(rows) > 0) == (model.predict(rows) == "dog")).all()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, y: (np.where(np.arange(8) == 3, np.nan, x), y), "NaN"),
        (lambda x, y: (np.where(np.arange(8) == 3, np.inf, x), y), "infinity"),
        (lambda x, y: (x, y[:-1]), "inconsistent numbers"),
        (lambda x, y: (x, np.zeros_like(y)), "1 class"),
        (lambda x, y: (x[:1], y[:1]), "1 class"),
        (lambda x, y: (x[0], y), "2D array"),
        (lambda x, y: (x, y + 0.5), "[Uu]nknown label type"),
    ],
)
def test_bad_rows(spoil, message: str) -> None:
    rows, labels, _ = clip_like(20, 8, 2)
    with pytest.raises(ValueError, match=message):
        GDA().fit(*spoil(rows, labels))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"covariance": "kubokawa"}, "covariance must be"),
        ({"covariance": 1.5}, "covariance must be"),
        ({"priors": "flat"}, "priors must be"),
        ({"priors": [0.5, 0.6]}, "sum to 1"),
        ({"priors": [0.5, 0.25, 0.25]}, "2 numbers"),
    ],
)
def test_bad_parameters(parameters: dict, message: str) -> None:
    rows, labels, _ = clip_like(20, 8, 2)
    with pytest.raises(ValueError, match=message):
        GDA(**parameters).fit(rows, labels)


def test_singular_covariance_names_the_remedy() -> None:
    rows, labels, _ = clip_like(6, 20, 2)
    with pytest.raises(ValueError, match='covariance="ks" or a shrinkage above 0'):
        GDA(covariance=0.0).fit(rows, labels)


def test_partial_fit_bad_calls() -> None:
    rows, labels, _ = clip_like(20, 8, 2)
    with pytest.raises(ValueError, match="must name all classes"):
        GDA().partial_fit(rows, labels)
    with pytest.raises(ValueError, match="not among the classes"):
        GDA().partial_fit(rows, labels + 5, classes=[0, 1])
    with pytest.raises(ValueError, match="8 features"):
        GDA().fit(rows, labels).predict(rows[:, :5])


@pytest.mark.parametrize(
    ("parameters", "change", "message"),
    [
        ({"alpha": "best"}, {}, "alpha must be a number, .loo. or .validation.; not 'best'"),
        ({"alpha": "validation"}, {}, "needs other rows"),
        ({"alpha": "loo"}, {"X_val": np.eye(2, 8), "y_val": [0, 1]}, "needs no validation rows"),
        ({"alpha": 1.0}, {"X_val": np.eye(2, 8)}, "go together"),
        ({"text_anchor": -1.0, "alpha": 1.0}, {}, "text_anchor counts images"),
        ({"text_anchor": 2.0}, {}, "does not know how anchored means change"),
        ({"alpha": -1.0}, {}, "0 or more"),
        ({"alpha_scale": "free"}, {}, "alpha_scale"),
        ({}, {"y": np.arange(20)}, r"range\(2\)"),
        ({}, {"y": np.full(20, -1)}, r"range\(2\)"),
        ({}, {"y": np.zeros(20)}, "integers"),
        ({}, {"X": np.ones((20, 5)) / 5**0.5}, "differ in width"),
        ({}, {"text_features": np.full((2, 8), np.nan)}, "finite"),
    ],
)
def test_ensemble_bad_input(parameters: dict, change: dict, message: str) -> None:
    rows, labels, texts = clip_like(20, 8, 2)
    model = ZeroShotGDA(change.get("text_features", texts), **parameters)
    with pytest.raises(ValueError, match=message):
        model.fit(change.get("X", rows), change.get("y", labels), change.get("X_val"), change.get("y_val"))


def test_lengths_are_checked_where_they_matter() -> None:
    rows, labels, texts = clip_like(20, 8, 2)
    with pytest.warns(UserWarning, match="rows of X are not of unit length"):
        ZeroShotGDA(texts).fit(3 * rows, labels)
    with pytest.warns(UserWarning, match="rows of text_features"):
        ZeroShotGDA(3 * texts).fit(rows, labels)
