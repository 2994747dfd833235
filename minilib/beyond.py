"""Beyond few-shot: classes without pictures, and pictures without labels, by the same Gaussians.

Symbols as in :mod:`minilib.gda`. The reference code has the first; of the second its authors published no code, so the
prior, the ridge and the iterations are of our own design.

References
----------
Wang et al. (2024), "A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation", ICLR.
Dempster, Laird and Rubin (1977), "Maximum likelihood from incomplete data via the EM algorithm", JRSS B 39.

Taught in: notebooks/04_beyond.ipynb
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve, cholesky, solve_triangular
from scipy.special import logsumexp, softmax

from minilib.evaluate import from_torch
from minilib.gaussian import discriminant, ks_precision, log, log_softmax


def synthesize_classes(
    X: Any, y: Any, text_new: Any, *, n_neighbors: int = 64, text_copies: int = 16
) -> tuple[np.ndarray, np.ndarray]:
    """A linear classifier for classes of which there are only words (equation ``eq-gda-new``).

    Objective: around each new text w, take the ``n_neighbors`` nearest rows of the *base* classes by cosine,
    ``mu = (their sum + copies * w) / (n_neighbors + copies)``, and their scatter around w,
    ``S_w = sum (x - w)^T (x - w)``. With the paper's ridge for that many rows, ``P = mean over the new classes of
    ks_precision(S_w, n_neighbors)``, ``W = P mu^T`` and ``b_k = log(1 / K_new) - mu_k P mu_k^T / 2``.

    Args:
        X: unit-norm base features (N, D); ``y`` (N,) their labels, of which the reference makes no use either: they are
            checked for length only.
        text_new: unit-norm text embeddings (K_new, D).
        n_neighbors: rows around each text, 2 to N.
        text_copies: how many rows the text itself counts as.

    Returns:
        coef (K_new, D) and intercept (K_new,), float64, on the paper's scale.

    Raises:
        ValueError: widths or lengths that differ, values that are not finite, more neighbours than rows.

    Source: Wang et al. (2024), base-to-new, and its code. Taught in: notebooks/04_beyond.ipynb
    """
    rows, texts, labels = _array(X, "X"), _array(text_new, "text_new"), np.asarray(from_torch(y))
    if texts.shape[1] != rows.shape[1] or labels.shape != (len(rows),):
        raise ValueError(f"X {rows.shape}, y {labels.shape} and text_new {texts.shape} must be (N, D), (N,), (K, D).")
    if not 2 <= n_neighbors <= len(rows) or text_copies < 0:
        raise ValueError(
            f"n_neighbors must be from 2 to the {len(rows)} rows, text_copies 0 or more; "
            f"not {n_neighbors} and {text_copies}."
        )
    near = np.argpartition(-(texts @ rows.T), n_neighbors - 1, axis=1)[:, :n_neighbors]  # (K, n)
    means = (rows[near].sum(axis=1) + text_copies * texts) / (n_neighbors + text_copies)  # (K, D)
    precision = np.zeros((rows.shape[1],) * 2)
    for text, own in zip(texts, near, strict=True):
        step = rows[own] - text  # (n, D)
        precision += ks_precision(step.T @ step, n_neighbors) / len(texts)
    weights, biases = discriminant(means, precision @ means.T, np.full(len(texts), 1 / len(texts)))
    return weights.T, biases


@dataclass(frozen=True)
class Unsupervised:
    """What :func:`fit_unsupervised` found: a classifier, and how it got there."""

    posteriors: np.ndarray
    """(N, K) probability of each class for each row."""
    coef: np.ndarray
    """(K, D); the logits of new rows are ``s x T^T + x coef^T + intercept``, see :meth:`predict_proba`."""
    intercept: np.ndarray
    """(K,)."""
    means: np.ndarray
    """(K, D)."""
    history: np.ndarray
    """The objective before each step and after the last, in nats a row; it never falls."""
    converged: bool
    text_features: np.ndarray
    logit_scale: float

    def logits(self, X: Any) -> np.ndarray:
        """Zero-shot and Gaussian logits together, (N, K)."""
        rows = _array(X, "X")
        return self.logit_scale * rows @ self.text_features.T + rows @ self.coef.T + self.intercept

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class, (N,)."""
        return self.logits(X).argmax(axis=1)

    def predict_proba(self, X: Any) -> np.ndarray:
        """(N, K)."""
        return softmax(self.logits(X), axis=1)


def fit_unsupervised(
    X: Any,
    text_features: Any,
    *,
    anchor: float = 4.0,
    logit_scale: float = 100.0,
    ridge: float = 1.0,
    use_text: bool = True,
    max_iter: int = 100,
    tol: float = 1e-6,
) -> Unsupervised:
    """Fit the classifier to pictures without labels, by EM from the zero-shot posteriors (equation ``eq-gda-em``).

    Objective, maximised over means, covariance C and, without texts as priors, class weights:
    ``sum_i log sum_k q_ik N(x_i; mu_k, C) + sum_k log N(mu_k; a_k, C / anchor) + log IW(C)``. The q_ik are what
    zero-shot CLIP says of the row, ``softmax_k(s x_i t_k)``; a_k is class k's prototype, the text moved and stretched
    to where the pictures lie, ``c (t_k - mean(t)) + mean(x)``, c the least-squares fit to the zero-shot class means; IW
    is an inverse Wishart prior with D pseudo-rows of covariance ``ridge * v I``, v the mean variance of the rows around
    their zero-shot class means. Every step raises the objective or leaves it.

    Args:
        X: unit-norm features (N, D); text_features: (K, D), unit norm.
        anchor: how many pictures each prototype is worth. 0 lets the means go where they will.
        logit_scale: s.
        ridge: strength of the covariance's prior.
        use_text: keep the q_ik as each row's own prior. False makes it the plain mixture: q_ik only start it, and class
            weights are learnt. With ``anchor=0`` that is the version that collapses when classes are missing.
        max_iter, tol: stop after so many steps, or when a step gains less than tol nats a row.

    Raises:
        ValueError: bad shapes, values that are not finite, negative settings, or fewer than two rows.

    Source: ours, after Wang et al. (2024), unsupervised. Taught in: notebooks/04_beyond.ipynb
    """
    rows, texts = _array(X, "X"), _array(text_features, "text_features")
    if texts.shape[1] != rows.shape[1] or len(rows) < 2:
        raise ValueError(
            f"X must be (N, D) with N from 2 on and text_features (K, D); not {rows.shape}, {texts.shape}."
        )
    if anchor < 0 or not ridge > 0 or max_iter < 1 or tol < 0:
        raise ValueError(
            "anchor and tol must be 0 or more, ridge positive, max_iter 1 or more; "
            f"not {anchor}, {tol}, {ridge}, {max_iter}."
        )
    mixture = _Mixture(rows, texts, anchor, logit_scale, ridge, use_text)
    history, converged = [mixture.expect()], False
    while not converged and len(history) <= max_iter:
        mixture.maximise()
        history.append(mixture.expect())
        converged = history[-1] - history[-2] < tol
    return mixture.result(np.array(history), converged)


class _Mixture:
    """State of EM on centred rows: responsibilities r (N, K), means (K, D), covariance (D, D), log weights q."""

    def __init__(self, x: np.ndarray, t: np.ndarray, anchor: float, scale: float, ridge: float, use_text: bool) -> None:
        self.texts, self.scale, self.anchor, self.use_text = t, scale, anchor, use_text
        self.log_q = log_softmax(scale * x @ t.T)  # (N, K)
        self.r, self.centre = np.exp(self.log_q), x.mean(axis=0)
        self.x, told = x - self.centre, t - t.mean(axis=0)
        seen = self.r.T @ self.x  # (K, D) sums of the rows that zero-shot CLIP gives to each class
        self.prototypes = told * (seen * told).sum() / (self.r.sum(axis=0) @ (told**2).sum(axis=1))
        self.psi = 0.0
        self.psi = ridge * self.maximise() / len(x)  # D pseudo-rows of covariance ridge * v, v = tr(S) / (N D)
        self.maximise()

    def maximise(self) -> float:
        """M step: means, covariance and class weights that fit the responsibilities best; returns tr(S)."""
        (n, d), mass, sums = self.x.shape, self.r.sum(axis=0), self.r.T @ self.x  # (K,), (K, D)
        total = mass + self.anchor
        means = (sums + self.anchor * self.prototypes) / np.maximum(total, 1e-300)[:, None]
        self.means = np.where(total[:, None] > 1e-9, means, self.prototypes)
        cross, away = sums.T @ self.means, self.means - self.prototypes
        scatter = self.x.T @ self.x - cross - cross.T + (self.means.T * mass) @ self.means  # (D, D)
        rows = n + len(mass) * (self.anchor > 0) + d
        self.covariance = (scatter + self.anchor * away.T @ away + self.psi * np.eye(d)) / rows
        if not self.use_text:
            self.log_q = log(mass / n)[None]  # (1, K)
        return float(np.trace(scatter))

    def expect(self) -> float:
        """E step: responsibilities under the present parameters; returns the objective in nats a row."""
        n, d = self.x.shape
        root = cholesky(self.covariance, lower=True)
        x, m, a = (solve_triangular(root, v.T, lower=True).T for v in (self.x, self.means, self.prototypes))
        log_det = 2 * np.log(np.diag(root)).sum()
        squares = (x**2).sum(axis=1)[:, None] - 2 * x @ m.T + (m**2).sum(axis=1)  # (N, K)
        joint = self.log_q - (squares + log_det + d * math.log(2 * math.pi)) / 2
        evidence = logsumexp(joint, axis=1)
        self.r = np.exp(joint - evidence[:, None])
        inverse = cho_solve((root, True), np.eye(d))
        prior = -(d * log_det + self.psi * np.trace(inverse)) / 2  # inverse Wishart, up to a constant
        if self.anchor:
            prior -= (len(m) * log_det + self.anchor * ((m - a) ** 2).sum()) / 2
        return float((evidence.sum() + prior) / n)

    def result(self, history: np.ndarray, converged: bool) -> Unsupervised:
        """The classifier in the rows' own coordinates."""
        means = self.means + self.centre
        solved = cho_solve(cho_factor(self.covariance), means.T)  # (D, K)
        priors = np.ones(len(means)) if self.use_text else np.exp(self.log_q[0])
        weights, biases = discriminant(means, solved, priors)
        return Unsupervised(
            self.r, weights.T, biases, means, history, converged, self.texts, self.scale if self.use_text else 0.0
        )


def _array(values: Any, name: str) -> np.ndarray:
    """A finite (n, D) float64 array, or an error that names the argument."""
    array = np.asarray(from_torch(values), dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape or not np.isfinite(array).all():
        raise ValueError(f"{name} must be a non-empty array (rows, features) of finite numbers; got {array.shape}.")
    return array
