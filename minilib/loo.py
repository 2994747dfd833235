"""Leave one image out of a Gaussian classifier without fitting it again: exact, by low-rank updates.

Without an image's rows the scatter S loses a matrix of low rank and the ridge another number; in the eigenbasis of S
both are cheap, so that all images together cost a few matrix products. Symbols as in :mod:`minilib.gda`.

References
----------
Woodbury (1950), "Inverting modified matrices", Statistical Research Group, Princeton.
The closed form for this classifier is ours; the tests refit it image by image.

Taught in: notebooks/03_fewshot.ipynb
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minilib.gaussian import Array, Statistics, log, namespace, ridge

BUDGET = 2_000_000  # numbers in one block of images, so that memory stays near 100 MB


def held_out_logits(
    X: Array, y: np.ndarray, model: Any, *, relative: bool, weights: np.ndarray | None = None, groups: Any = None
) -> tuple[Array, Array]:
    """Gaussian logits of each row by the classifier that never saw the row's image (equation ``eq-gda-loo``).

    Objective: with E the rows that leave, centred and weighted so that ``S' = S - E^T E``, and mu', N', tr(S') what
    remains, ``x W' + b'`` for ``P' = (a' S' + r' I)^-1`` through
    ``(B - a' E^T E)^-1 = B^-1 + a' B^-1 E^T (I - a' E B^-1 E^T)^-1 E B^-1``, ``B = a' S + r' I``.

    Args:
        X, y: the rows (N, D) and class indices (N,) that ``model`` was fitted on; ``weights`` (N,) before division
            among views.
        model: a fitted GDA with classes ``range(K)``, its ``covariance`` anything but a callable.
        relative: logits in the data's own units, as in ``ZeroShotGDA``.
        groups: (N,) image of each row; None when each row is one.

    Returns:
        logits (M, K), NaN for classes without samples, and the rows (M,) that they belong to: images whose class would
        be empty without them are left out, and all of them where nothing would remain to vary.

    Raises:
        ValueError: a callable covariance, or an image under two classes.
    """
    if callable(model.covariance):
        raise ValueError(
            "alpha='loo' does not know how a callable covariance changes when an image leaves: "
            'use covariance="ks", "ledoit-wolf", "oas" or a number, or alpha="validation".'
        )
    images, w = _images(y, groups), np.ones(len(y)) if weights is None else weights
    space = _Space(X, model)
    logits, rows = [], []
    for size in sorted({len(rows) for rows in images}):
        block = np.stack([rows for rows in images if len(rows) == size])  # (G, V) row numbers
        mass = w[block].mean(1)
        lasting = np.asarray(space.host_counts)[y[block[:, 0]]] - mass > 1e-9
        step = max(1, BUDGET // (size * (len(space.host_counts) + X.shape[1])))
        kept = block[lasting & (mass > 0)]
        for start in range(0, len(kept), step):
            part = kept[start : start + step]
            found, fine = space.leave_out(part, y[part[:, 0]], w[part] / size, relative)
            logits.append(found[fine].reshape(-1, found.shape[-1]))
            rows.append(part[fine if isinstance(fine, np.ndarray) else fine.cpu().numpy()].reshape(-1))
    xp = namespace(X)
    if not rows:
        return xp.asarray(np.zeros((0, len(space.host_counts)))), np.zeros(0, dtype=np.int64)
    return xp.concatenate(logits), np.concatenate(rows)


class _Space:
    """The eigenbasis of the scatter, and all that an image's departure changes, G images of V rows at a time."""

    def __init__(self, X: Array, model: Any) -> None:
        stats: Statistics = model.statistics_
        xp = namespace(X)
        self.xp, self.stats, self.model, self.d = xp, stats, model, stats.width
        self.host_counts = [float(c) for c in stats.counts]
        rows, means = xp.asarray(X, dtype=xp.float64), stats.means
        if stats.thin:  # all rows and means lie in the span of N < D vectors: work there
            basis, _ = xp.linalg.qr(xp.concatenate([rows, means[stats.counts > 0]]).T)  # (D, N + K)
            rows, means = rows @ basis, means @ basis
            centred = stats.kept @ basis
            self.values, vectors = xp.linalg.eigh(centred.T @ centred)
        else:
            self.values, vectors = xp.linalg.eigh(stats.scatter)
        self.rows, self.means = rows @ vectors, means @ vectors  # (N, R), (K, R)

    def leave_out(self, part: np.ndarray, label: np.ndarray, w: np.ndarray, relative: bool) -> tuple[Array, Array]:
        """Logits (G, V, K) of the rows ``part`` (G, V), and which of the G classifiers still have scatter."""
        xp, counts = self.xp, self.stats.counts
        x, k, w = self.rows[part], self._like(label), self._like(w)  # (G, V, R), (G,), (G, V)
        gone, n_k = w.sum(1), counts[k]
        own = (w[..., None] * x).sum(1) / gone[:, None]  # (G, R) the image's mean
        step = own - self.means[k]
        left = n_k - gone
        shift = (gone * n_k / left) ** 0.5
        e = xp.concatenate([w[..., None] ** 0.5 * (x - own[:, None]), (shift[:, None] * step)[:, None]], 1)  # V+1 rows
        new_mean = self.means[k] - (gone / left)[:, None] * step  # (G, R)
        trace, n = self.stats.trace - (e * e).sum((1, 2)), self.stats.total - gone  # (G,), (G,)
        fine = trace > 1e-12 * self.stats.trace
        trace = xp.where(fine, trace, xp.ones_like(trace))
        a, r = self._ridge(trace, n)
        logits = self._logits(x, e, new_mean, k, a, r)
        if relative:
            logits = logits * self._unit(trace, n, a, r)[:, None, None]
        return logits + log(self._priors(k, gone, n))[:, None], fine

    def _logits(self, x: Array, e: Array, new_mean: Array, k: Array, a: Array, r: Array) -> Array:
        """``x P' mu'^T - mu' P' mu'^T / 2``, (G, V, K), by Woodbury in the eigenbasis."""
        xp, means = self.xp, self.means
        inverse = 1 / (a[:, None] * self.values + r[:, None])  # (G, R)
        f = e * inverse[:, None]  # (G, V+1, R)
        eye = xp.asarray(np.eye(e.shape[1])) if xp is np else xp.eye(e.shape[1], dtype=e.dtype, device=e.device)
        core = xp.linalg.inv(eye - a[:, None, None] * (e @ f.swapaxes(1, 2))) * a[:, None, None]  # (G, V+1, V+1)
        across = x @ f.swapaxes(1, 2) @ core  # (G, V, V+1)
        u, own_u = f @ means.T, (f @ new_mean[..., None])[..., 0]  # (G, V+1, K), (G, V+1)
        cross = (x * inverse[:, None]) @ means.T + across @ u  # (G, V, K)
        quad = inverse @ (means * means).T + (u * (core @ u)).sum(1)  # (G, K)
        own_cross = ((x * inverse[:, None]) @ new_mean[..., None] + across @ own_u[..., None])[..., 0]  # (G, V)
        own_quad = (inverse * new_mean**2).sum(1) + (own_u * (core @ own_u[..., None])[..., 0]).sum(1)  # (G,)
        out = cross - quad[:, None] / 2
        out[xp.arange(len(k)), :, k] = own_cross - own_quad[:, None] / 2
        return xp.where(self.stats.counts == 0, np.nan, out)

    def _ridge(self, trace: Array, n: Array) -> tuple[Array, Array]:
        a, r = ridge(self.model.covariance, 1.0, 2.0, self.d, self.model.shrinkage_)
        if self.model.covariance == "ks":
            return 0 * n + a, trace / ((n - 1).clip(min=1) * self.d)
        return 2 * a / n, 2 * r * trace / n  # a and r are 1 / N times something

    def _unit(self, trace: Array, n: Array, a: Array, r: Array) -> Array:
        """``scale_`` times the discount of each smaller fit, (G,)."""
        classes = int((self.stats.counts > 0).sum())
        per_class = n / classes
        return (a * trace + r * self.d) * (n - classes).clip(min=1) / trace * per_class / (per_class + self.d)

    def _priors(self, k: Array, gone: Array, n: Array) -> Array:
        priors = self.model.priors_ + 0 * gone[:, None]  # (G, K)
        if isinstance(self.model.priors, str) and self.model.priors == "empirical":
            priors = self.stats.counts + 0 * gone[:, None]
            priors[self.xp.arange(len(k)), k] -= gone
            priors = priors / n[:, None]
        return priors

    def _like(self, values: np.ndarray) -> Array:
        return values if self.xp is np else self.xp.as_tensor(values, device=self.rows.device)


def _images(y: np.ndarray, groups: Any) -> list[np.ndarray]:
    """Row numbers of each image."""
    if groups is None:
        return list(np.arange(len(y))[:, None])
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    order = np.argsort(group, kind="stable")
    images = np.split(order, np.cumsum(np.bincount(group))[:-1])
    for name, rows in zip(names, images, strict=True):
        if (y[rows] != y[rows[0]]).any():
            raise ValueError(f"image {name} in groups stands under classes {sorted(set(y[rows].tolist()))}: one each.")
    return images
