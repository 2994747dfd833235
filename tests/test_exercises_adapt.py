"""Exercises of the chapters on GDA and few shots: each answer is what the classifiers themselves do."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.naive_bayes import GaussianNB

from minilib.evaluate import expected_calibration_error, fit_temperature
from minilib.exercises import check
from minilib.gda import GDA, ZeroShotGDA


def clouds(n: int, d: int = 6, k: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """n rows of each of k classes around random means, features of unequal spread, rows of unit length."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(k), n)
    rows = rng.normal(size=(k, d))[labels] + rng.normal(size=(k * n, d)) * np.linspace(0.5, 1.5, d)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), labels


def texts(k: int = 3, d: int = 6) -> np.ndarray:
    rows = np.random.default_rng(1).normal(size=(k, d))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_boundary_of_two_covariances_is_a_quadric() -> None:
    """Along a line the difference of two log-densities has a second difference, which for one covariance is zero."""
    line = np.linspace(-1, 1, 5)[:, None] * np.ones(2)
    first, second = np.diag([1.0, 4.0]), np.eye(2)

    def bend(P: np.ndarray, Q: np.ndarray) -> float:
        gap = -((line - 1) @ P * (line - 1)).sum(axis=1) / 2 + (line @ Q * line).sum(axis=1) / 2
        return np.abs(np.diff(gap, n=2)).max()

    assert bend(second, second) < 1e-12 < bend(first, second)
    assert np.ptp(np.diag(first)) > 0  # not a multiple of the identity: no sphere either
    assert check("ex-gda-sharing", "quadrics") == "Right."


def test_rank_of_rows_around_the_means_of_their_classes() -> None:
    X, y = clouds(16, d=128, k=4)
    centred = X - np.stack([X[y == k].mean(axis=0) for k in range(4)])[y]
    assert check("ex-gda-break", np.linalg.matrix_rank(centred.T @ centred)) == "Right."
    assert "each class has its own" in check("ex-gda-break", np.linalg.matrix_rank(X - X.mean(axis=0)))
    assert "sum to zero" in check("ex-gda-break", np.linalg.matrix_rank(X))


def test_the_diagonal_is_naive_bayes() -> None:
    """scikit-learn's naive Bayes, its variances pooled over classes of one size, has the same posterior."""
    X, y = clouds(30)
    peer = GaussianNB(priors=np.full(3, 1 / 3), var_smoothing=0).fit(X, y)
    peer.var_[:] = peer.var_.mean(axis=0)
    ours = GDA(covariance=lambda S, N: np.diag(np.diag(S)) / N).fit(X, y)
    assert np.allclose(ours.predict_proba(X), peer.predict_proba(X))
    assert check("ex-gda-callable", "naive bayes") == "Right."


def test_doubling_both_dials_changes_two_of_four() -> None:
    X, y = clouds(40)
    one, two = (ZeroShotGDA(texts(), logit_scale=5.0 * f, alpha=1.0 * f).fit(X[::2], y[::2]) for f in (1, 2))
    logits = [model.decision_function(X) for model in (one, two)]
    heat = [fit_temperature(z, y) for z in logits]
    measured = [
        [z.argmax(axis=1) for z in logits],
        [expected_calibration_error(softmax(z, axis=1), y) for z in logits],
        heat,
        [expected_calibration_error(softmax(z / t, axis=1), y) for z, t in zip(logits, heat, strict=True)],
    ]
    changed = [not np.allclose(first, second, rtol=1e-3) for first, second in measured]
    assert changed == [False, True, True, False] and check("ex-gda-dials", sum(changed)) == "Right."


def test_on_its_own_rows_the_gaussian_is_trusted_more_and_more() -> None:
    """Few rows in many dimensions, texts that know nothing: accuracy on the rows themselves never falls with alpha."""
    X, y = clouds(4, d=40)
    grid = (0.0, 0.1, 1.0, 10.0, 100.0)
    scores = [
        ZeroShotGDA(texts(d=40), logit_scale=5.0, alpha=a, alpha_scale="reference").fit(X, y).score(X, y) for a in grid
    ]
    assert np.diff(scores).min() >= 0 and scores[-1] > scores[0]
    assert check("ex-gda-peek", "rises") == "Right."


def test_between_a_class_without_pictures_and_the_best_other_the_text_decides() -> None:
    X, y = clouds(20)
    T, seen = texts(), y > 0  # class 0 has no pictures
    logits = ZeroShotGDA(T, logit_scale=5.0, alpha=3.0).fit(X[seen], y[seen]).decision_function(X)
    gaussian = logits - 5.0 * X @ T.T  # (N, 3)
    best = 1 + gaussian[:, 1:].argmax(axis=1)
    rows = np.arange(len(X))
    assert np.allclose(logits[:, 0] - logits[rows, best], 5.0 * (X * (T[0] - T[best])).sum(axis=1))
    assert check("ex-gda-missing", "text") == "Right."


def test_anchored_mean_without_its_only_row_is_the_text() -> None:
    """(n mu + kappa a) / (n + kappa) with n = 1, then without the row: the moved text is left, whatever kappa is."""
    row, anchor = np.array([3.0, -1.0]), np.array([0.5, 2.0])
    for kappa in (0.5, 4.0):
        total, n = row + kappa * anchor, 1 + kappa
        assert np.allclose((total - row) / (n - 1), anchor)
    assert check("ex-gda-kappa", "text") == "Right."


@pytest.mark.parametrize(
    ("name", "answer", "part"),
    [
        ("ex-gda-sharing", "planes", "does not cancel"),
        ("ex-gda-sharing", "spheres", "a multiple of the identity"),
        ("ex-gda-break", 128, "do not span"),
        ("ex-gda-callable", "nearest mean", "the same variance"),
        ("ex-gda-callable", "Logistic regression", "searched for"),
        ("ex-gda-dials", 4, "the largest logit"),
        ("ex-gda-dials", 1, "changes as well"),
        ("ex-gda-peek", "peaks", "left out"),
        ("ex-gda-peek", "falls", "has seen these rows"),
        ("ex-gda-missing", "gaussian", "the two cancel"),
        ("ex-gda-kappa", "nothing", "when no row is left"),
        ("ex-gda-kappa", "row", "is not fair"),
    ],
)
def test_wrong_answers_hear_what_they_look_like(name: str, answer, part: str) -> None:
    assert check(name, answer).startswith("Not yet: ") and part in check(name, answer)
