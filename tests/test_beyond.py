"""beyond: the reference's formula for new classes, and EM whose objective never falls."""

import doctest

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from test_gda import clip_like, relative_error, unit

from minilib import beyond
from minilib.beyond import fit_unsupervised, synthesize_classes


def test_docstring_examples() -> None:
    assert doctest.testmod(beyond).failed == 0


# New classes ---------------------------------------------------------------------------------------------------------


def formula(rows: np.ndarray, texts: np.ndarray, k: int, copies: int) -> tuple[np.ndarray, np.ndarray]:
    """The base-to-new formula as the specification words it, one new class after the other, pseudo-inverse included."""
    d = rows.shape[1]
    means, precisions = [], []
    for w in texts:
        near = rows[np.argsort(-(rows @ w))[:k]]
        means.append(np.concatenate([near, np.repeat(w[None], copies, axis=0)]).mean(axis=0))
        cov = (near - w).T @ (near - w) / (k - 1)
        precisions.append(d * np.linalg.pinv((k - 1) * cov + np.trace(cov) * np.eye(d)))
    mu, p = np.stack(means), np.mean(precisions, axis=0)
    return mu @ p, np.log(1 / len(texts)) - np.einsum("kd,de,ke->k", mu, p, mu) / 2


@pytest.mark.equation("eq-gda-new")
@pytest.mark.parametrize(("n", "d", "k", "copies"), [(300, 32, 64, 16), (40, 48, 40, 3), (200, 16, 10, 0)])
def test_new_classes_equal_the_formula(n: int, d: int, k: int, copies: int) -> None:
    rows, labels, _ = clip_like(n, d, 5)
    _, _, texts = clip_like(6, d, 6, seed=3)
    coef, intercept = synthesize_classes(rows, labels, texts, n_neighbors=k, text_copies=copies)
    w, b = formula(rows, texts, k, copies)
    assert relative_error(coef, w) < 1e-10
    assert relative_error(intercept, b) < 1e-10


@pytest.mark.equation("eq-gda-new")
def test_new_class_by_hand() -> None:
    """One dimension, neighbours 1 and 3 of the text 2, one copy: mu = 2, S_w = 1 + 1, ridge 2 / 1, P = 1 / (2 + 2)."""
    coef, intercept = synthesize_classes([[1.0], [3.0], [-9.0]], [0, 0, 1], [[2.0]], n_neighbors=2, text_copies=1)
    assert coef.item() == pytest.approx(2 / 4)
    assert intercept.item() == pytest.approx(-(2 * 2 / 4) / 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_neighbors": 1}, "from 2 to the 30 rows"),
        ({"n_neighbors": 31}, "not 31 and 16"),
        ({"text_copies": -1}, "text_copies 0 or more"),
        ({"text_new": np.ones((2, 5))}, r"\(N, D\), \(N,\), \(K, D\)"),
        ({"text_new": np.full((2, 8), np.nan)}, "text_new must be"),
        ({"y": np.zeros(29)}, r"y \(29,\)"),
    ],
)
def test_bad_calls_for_new_classes(change: dict, message: str) -> None:
    rows, labels, texts = clip_like(30, 8, 3)
    arguments = {"X": rows, "y": labels, "text_new": texts, "n_neighbors": 5} | change
    with pytest.raises(ValueError, match=message):
        synthesize_classes(**arguments)


# No labels -----------------------------------------------------------------------------------------------------------


def unlabelled(n: int = 240, d: int = 12, k: int = 6, seed: int = 1) -> tuple[np.ndarray, ...]:
    """Features with a gap between pictures and texts, as CLIP has."""
    rows, labels, texts = clip_like(n, d, k, seed=seed, spread=0.9)
    return unit(rows + 0.5), labels, unit(texts - 0.5)


@pytest.mark.equation("eq-gda-em")
@pytest.mark.parametrize("use_text", [True, False])
@pytest.mark.parametrize("anchor", [0.0, 4.0, 50.0])
@pytest.mark.parametrize("d", [12, 300])
def test_objective_never_falls(d: int, anchor: float, use_text: bool) -> None:
    """Rows more and fewer than dimensions; a class that no row belongs to."""
    rows, labels, texts = unlabelled(d=d)
    found = fit_unsupervised(rows[labels > 0], texts, anchor=anchor, use_text=use_text, logit_scale=20, tol=0)
    assert len(found.history) > 5
    assert np.diff(found.history).min() >= -1e-12
    assert np.isfinite(found.posteriors).all() and np.allclose(found.posteriors.sum(axis=1), 1)


@pytest.mark.equation("eq-gda-em")
def test_objective_is_what_the_equation_says() -> None:
    """Its rise over nine steps, against scipy's densities and the priors written out (constants cancel)."""
    rows, _, texts = unlabelled()
    anchor, scale = 4.0, 20.0

    def by_hand(iterations: int) -> tuple[float, float]:
        m = beyond._Mixture(rows, texts, anchor, scale, 1.0, True)
        value = m.expect()
        for _ in range(iterations):
            m.maximise()
            value = m.expect()
        c, mu, proto = m.covariance, m.means + rows.mean(axis=0), m.prototypes + rows.mean(axis=0)
        q = np.exp(scale * rows @ texts.T)
        q /= q.sum(axis=1, keepdims=True)
        likelihood = np.log(sum(q[:, k] * multivariate_normal(mu[k], c).pdf(rows) for k in range(6))).sum()
        means = sum(multivariate_normal(proto[k], c / anchor).logpdf(mu[k]) for k in range(6))
        wishart = -(12 * np.linalg.slogdet(c)[1] + m.psi * np.trace(np.linalg.inv(c))) / 2
        return value, (likelihood + means + wishart) / len(rows)

    (first, slow_first), (last, slow_last) = by_hand(0), by_hand(9)
    assert last > first + 1e-3
    assert last - first == pytest.approx(slow_last - slow_first, rel=1e-9)


@pytest.mark.equation("eq-gda-em")
def test_the_m_step_is_the_maximum() -> None:
    """Any small move of means or covariance away from the M-step lowers the expected complete objective."""
    rows, _, texts = unlabelled()
    m = beyond._Mixture(rows, texts, 4.0, 20.0, 1.0, True)
    m.expect()
    r = m.r.copy()
    m.maximise()

    def expected(mu: np.ndarray, c: np.ndarray) -> float:
        fit = sum(r[:, k] @ multivariate_normal(mu[k], c).logpdf(m.x) for k in range(6))
        prior = sum(multivariate_normal(m.prototypes[k], c / 4.0).logpdf(mu[k]) for k in range(6))
        return fit + prior - (12 * np.linalg.slogdet(c)[1] + m.psi * np.trace(np.linalg.inv(c))) / 2

    best, rng = expected(m.means, m.covariance), np.random.default_rng(0)
    for _ in range(10):
        step, bend = rng.normal(size=m.means.shape), rng.normal(size=m.covariance.shape)
        assert expected(m.means + 1e-3 * step, m.covariance) < best
        assert expected(m.means, m.covariance + 1e-5 * (bend + bend.T)) < best


def test_unsupervised_gains_and_unanchored_collapses_when_classes_are_missing() -> None:
    rows, labels, texts = unlabelled(n=1200, d=24, k=12, seed=4)
    few = labels < 3
    zero_shot = ((rows[few] @ texts.T).argmax(axis=1) == labels[few]).mean()
    right = {}
    for name, options in (("anchored", {"anchor": 16.0}), ("plain", {"anchor": 0.0, "use_text": False})):
        found = fit_unsupervised(rows[few], texts, **options)
        right[name] = (found.posteriors.argmax(axis=1) == labels[few]).mean()
    assert right["anchored"] >= zero_shot - 0.02
    assert right["plain"] < min(zero_shot, right["anchored"]) - 0.05


def test_prediction_of_the_rows_themselves_is_the_posterior() -> None:
    rows, _, texts = unlabelled()
    for use_text in (True, False):
        found = fit_unsupervised(torch.tensor(rows), torch.tensor(texts), use_text=use_text, logit_scale=20)
        assert np.allclose(found.predict_proba(rows), found.posteriors, atol=1e-8)
        assert (found.predict(rows) == found.posteriors.argmax(axis=1)).all()


def test_infinite_anchor_keeps_the_prototypes() -> None:
    rows, _, texts = unlabelled()
    found = fit_unsupervised(rows, texts, anchor=1e9, logit_scale=20)
    told = texts - texts.mean(axis=0)
    shape = found.means - rows.mean(axis=0)
    assert np.allclose(shape / np.linalg.norm(shape), told / np.linalg.norm(told), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"anchor": -1.0}, "not -1.0, 1e-06, 1.0, 100"),
        ({"ridge": 0.0}, "ridge positive"),
        ({"max_iter": 0}, "max_iter 1 or more"),
        ({"X": np.full((5, 12), np.inf)}, "X must be a non-empty array"),
        ({"X": np.ones((1, 12))}, "N from 2 on"),
        ({"text_features": np.ones((3, 4))}, r"\(3, 4\)"),
    ],
)
def test_bad_calls_without_labels(change: dict, message: str) -> None:
    rows, _, texts = unlabelled()
    with pytest.raises(ValueError, match=message):
        fit_unsupervised(**({"X": rows, "text_features": texts} | change))
