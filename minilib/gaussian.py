"""The arithmetic of Gaussian classes: counts, means and scatter that add up, shrunk precisions, linear discriminants.

Every function takes NumPy arrays or PyTorch tensors and answers in kind, on the same device. Sums are float64 always;
of float32 rows only the products of already centred rows are taken in float32, a chunk at a time. Symbols as in
:mod:`minilib.gda`.

References
----------
Chan, Golub and LeVeque (1979), "Updating formulae and a pairwise algorithm for computing sample variances".
Ledoit and Wolf (2004), "A well-conditioned estimator for large-dimensional covariance matrices", J. Multiv. Anal. 88.
Chen, Wiesel, Eldar and Hero (2010), "Shrinkage algorithms for MMSE covariance estimation", IEEE Trans. Signal Proc. 58.
Kubokawa and Srivastava (2008), "Estimation of the precision matrix of a singular Wishart distribution and its
application in high-dimensional data", Journal of Multivariate Analysis 99.

Taught in: notebooks/02_gda.ipynb
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.linalg import cho_factor, cho_solve
from scipy.linalg.blas import dgemm, dsyrk, ssyrk
from scipy.sparse import csr_array

Array = Any  # a NumPy array or a PyTorch tensor
Covariance = str | float | Callable[[Array, float], Array]
CHUNK = 16_384  # rows centred and multiplied at a time, so that memory does not grow with N


@dataclass(frozen=True)
class Statistics:
    """All that GDA needs to know of its rows; two of them add up (see :func:`merge_statistics`)."""

    counts: Array
    """(K,) rows of each class, n_k: their number, or the sum of their weights."""
    means: Array
    """(K, D) class means mu_k; zeros where n_k = 0."""
    kept: Array
    """(D, D) the scatter S; or, where N < D, the smaller thing: centred rows A (N, D) with A^T A = S."""
    fourth: float = math.nan
    """Sum of the rows' fourth powers of length, for "ledoit-wolf"; NaN where not asked for, and after a merge."""

    @property
    def total(self) -> float:
        """N, the number of rows or the sum of their weights."""
        return float(self.counts.sum())

    @property
    def width(self) -> int:
        """D."""
        return int(self.means.shape[1])

    @property
    def thin(self) -> bool:
        """Whether ``kept`` holds rows."""
        return len(self.kept) < self.width

    @property
    def scatter(self) -> Array:
        """S, (D, D)."""
        return self.kept.T @ self.kept if self.thin else self.kept

    @property
    def trace(self) -> float:
        """tr(S)."""
        return float((self.kept**2).sum() if self.thin else self.kept.reshape(-1)[:: self.width + 1].sum())

    @property
    def square(self) -> float:
        """tr(S S)."""
        return float(((self.kept @ self.kept.T if self.thin else self.kept) ** 2).sum())


def namespace(x: Array) -> Any:
    """The module of an array's own kind: ``torch`` for tensors, else ``numpy``."""
    return torch if isinstance(x, torch.Tensor) else np


def class_statistics(
    X: Array, index: Array, n_classes: int, weights: Array | None = None, *, fourth: bool = False
) -> Statistics:
    """Counts, class means and scatter around them (equation ``eq-gda-scatter``).

    Objective: ``n_k = sum of class k's weights w_i``, ``mu_k = sum w_i x_i / n_k`` over the class,
    ``S = sum_i w_i (x_i - mu_{y_i})^T (x_i - mu_{y_i})`` for X (N, D), ``index`` (N,) integers in range(K) and
    ``weights`` (N,), one each where none are given. Means are plain means, not brought back to unit norm. ``fourth``
    adds the fourth powers that "ledoit-wolf" needs.

    >>> stats = class_statistics(np.array([[0.0, 1.0], [2.0, 1.0], [5.0, 5.0]]), np.array([0, 0, 1]), 2)
    >>> stats.means.tolist(), stats.scatter.tolist()
    ([[1.0, 1.0], [5.0, 5.0]], [[2.0, 0.0], [0.0, 0.0]])

    Source: Wang et al. (2024), section 3. Taught in: notebooks/02_gda.ipynb
    """
    xp, (n, d) = namespace(X), X.shape
    ones = xp.ones_like(X[:, :1], dtype=xp.float64)  # (N, 1)
    w = ones if weights is None else weights[:, None]
    parts = [slice(start, start + CHUNK) for start in range(0, n, CHUNK)]
    counts = segment_sum(w, index, n_classes)[:, 0]  # (K,)
    weighted = (lambda rows, p: rows) if weights is None else (lambda rows, p: rows * w[p])
    sums = sum(segment_sum(weighted(_double(X[p]), p), index[p], n_classes) for p in parts)
    means = sums / xp.where(counts > 0, counts, xp.ones_like(counts))[:, None]  # (K, D)

    def centred(p: slice) -> Array:
        rows = _double(X[p]) - means[index[p]]
        return rows if weights is None else rows * w[p] ** 0.5

    def fourth_powers(rows: Array, p: slice) -> float:
        return float((_squares(rows) ** 2 / w[p, 0].clip(min=1e-300)).sum()) if fourth else math.nan

    if n < d:
        rows = centred(slice(None))  # (N, D)
        return Statistics(counts, means, rows, fourth_powers(rows, slice(None)))
    scatter, powers = 0.0, 0.0
    for p in parts:
        rows = centred(p)
        scatter = scatter + _double(gram(rows if X.dtype == xp.float64 else xp.asarray(rows, dtype=xp.float32)))
        powers += fourth_powers(rows, p)
    return Statistics(counts, means, scatter, powers)


def merge_statistics(first: Statistics, second: Statistics) -> Statistics:
    """Statistics of both sets of rows together, without the rows (equation ``eq-gda-merge``).

    Objective: ``S = S_1 + S_2 + sum_k n_1k n_2k / n_k (mu_1k - mu_2k)^T (mu_1k - mu_2k)``, the pairwise update of
    Chan et al. It carries the same facts as (n_k, sum x, sum x^T x) but never subtracts two large numbers.

    Taught in: notebooks/02_gda.ipynb
    """
    counts = first.counts + second.counts
    share = second.counts / counts.clip(min=1e-300)  # (K,)
    step = second.means - first.means  # (K, D)
    between = (step * (first.counts * share)[:, None]).T @ step  # (D, D)
    return Statistics(counts, first.means + share[:, None] * step, first.scatter + second.scatter + between)


def ks_precision(scatter: Array, n_rows: float) -> Array:
    """The paper's precision matrix, the empirical-Bayes ridge of Kubokawa and Srivastava (equation ``eq-gda-ks``).

    Objective: ``P = D (S + tr(S) / (N - 1) I)^-1``, (D, D). The paper writes ``D pinv((N - 1) Sigma + tr(Sigma) I)``
    with Sigma = S / (N - 1): the same. While tr(S) > 0 the matrix is positive definite, so Cholesky replaces the
    pseudo-inverse. ValueError when S = 0 or N < 2. :class:`minilib.gda.GDA` solves with it and never forms P.

    >>> ks_precision(np.diag([3.0, 1.0]), n_rows=5)  # ridge 4 / 4 = 1, so 2 / (3 + 1) and 2 / (1 + 1)
    array([[0.5, 0. ],
           [0. , 1. ]])

    Source: Wang et al. (2024), section 3. Taught in: notebooks/02_gda.ipynb
    """
    d, trace = len(scatter), float(scatter.diagonal().sum())
    if n_rows < 2 or not trace > 0:
        raise ValueError(f"KS needs at least 2 rows and some scatter; got N = {n_rows}, tr(S) = {trace}.")
    return d * solve(plus_ridge(scatter, trace / (n_rows - 1)), plus_ridge(0 * scatter, 1.0))


def shrinkage(covariance: str | float, stats: Statistics) -> float:
    """How far the pooled covariance S / N is pulled towards tr(S) / (N D) I, in [0, 1] (``eq-gda-shrinkage``).

    Objective, the share lambda of the round matrix: for "ks" ``D / (N - 1 + D)``, which makes the shrunk covariance a
    multiple of the paper's; for "ledoit-wolf" and "oas" the value that minimises the expected squared distance to the
    true covariance, estimated as Ledoit and Wolf (2004) and Chen et al. (2010) do; a number stands for itself.
    Both are *pooled*: one lambda from all centred rows (scikit-learn's LDA with ``shrinkage="auto"`` takes one for each
    class). ValueError for another name, or "ledoit-wolf" on merged statistics, which have lost the fourth powers.

    Source: see the module. Taught in: notebooks/02_gda.ipynb
    """
    n, d = stats.total, stats.width
    if isinstance(covariance, (int, float)) and 0 <= covariance <= 1:
        return float(covariance)
    if covariance == "ks":
        return d / (max(n - 1, 1) + d)
    if covariance not in ("ledoit-wolf", "oas"):
        names = '"ks", "ledoit-wolf", "oas"'
        raise ValueError(f"covariance must be {names}, a shrinkage in [0, 1] or a callable; not {covariance!r}.")
    mean, size = stats.trace / (n * d), stats.square / n**2  # mean eigenvalue; squared Frobenius norm of S / N
    distance = size - d * mean**2  # of S / N from the round matrix
    if distance <= 0:
        return 1.0
    if covariance == "oas":
        return min((size + (d * mean) ** 2) / ((n + 1) * distance), 1.0)
    if math.isnan(stats.fourth):
        raise ValueError('"ledoit-wolf" needs all rows in one fit; after partial_fit or merge use "oas" or "ks".')
    return min((stats.fourth / n - size) / n / distance, 1.0)


def ridge(covariance: str | float, trace: float, n: float, d: int, share: float) -> tuple[float, float]:
    """(a, r) of the covariance ``a S + r I``: the paper's for "ks", else ``(1 - share) S / N + share tr(S) / (N D) I``.

    ``share`` is the number that :func:`shrinkage` gives; "ks" has no use for it (see the chapter for why).
    """
    if covariance == "ks":
        return 1 / d, trace / (max(n - 1, 1) * d)
    return (1 - share) / n, share * trace / (n * d)


def ridge_solve(statistics: Statistics, a: float, r: float, right: Array) -> Array:
    """``(a S + r I)^-1 right`` for (D, M) ``right``: Cholesky, or Woodbury when N < D (equation ``eq-gda-woodbury``).

    With centred rows A, S = A^T A and B = sqrt(a) A, only an N x N system is solved:
    ``(r I + B^T B)^-1 = (I - B^T (r I + B B^T)^-1 B) / r``. ValueError when the matrix is singular.

    Taught in: notebooks/02_gda.ipynb
    """
    kept = statistics.kept
    try:
        if statistics.thin and r > 0:
            b = a**0.5 * kept  # (N, D)
            return (right - product(b.T, solve(plus_ridge(gram(b.T), r), product(b, right)))) / r
        return solve(plus_ridge(a * statistics.scatter, r), right)
    except (np.linalg.LinAlgError, torch.linalg.LinAlgError):
        raise ValueError(
            f"the covariance of {statistics.total:g} rows in {statistics.width} dimensions is singular: "
            'use covariance="ks" or a shrinkage above 0.'
        ) from None


def discriminant(means: Array, precision_means: Array, priors: Array) -> tuple[Array, Array]:
    """Weights and biases of the linear classifier that Bayes' rule gives (equation ``eq-gda-linear``).

    Objective: ``W = P mu^T`` (D, K), ``b_k = log pi_k - mu_k P mu_k^T / 2`` (K,). ``precision_means`` is P mu^T.

    >>> discriminant(np.array([[2.0], [0.0]]), np.array([[4.0, 0.0]]), np.array([1.0, 1.0]))  # P = 2
    (array([[4., 0.]]), array([-4.,  0.]))

    Source: Wang et al. (2024), section 3. Taught in: notebooks/02_gda.ipynb
    """
    return precision_means, log(priors) - (means * precision_means.T).sum(1) / 2


def mean_discount(counts: Array, n_features: int) -> float:
    """How far to trust class means of few rows, in [0, 1) (equation ``eq-gda-discount``).

    Objective: ``m / (m + D)`` with m rows a class on average. A mean of m rows is off by D / m within-class variances,
    summed over the features; against means that truly lie about one standard deviation from their centre this is the
    share of signal. Not in the paper: a rule of thumb of ours, measured in the chapter.

    >>> mean_discount(np.array([16.0, 16.0]), 128), mean_discount(np.array([128.0, 128.0]), 128)
    (0.1111111111111111, 0.5)

    Taught in: notebooks/03_fewshot.ipynb
    """
    per_class = float(counts[counts > 0].mean())
    return per_class / (per_class + n_features)


def segment_sum(values: Array, index: Array, n: int) -> Array:
    """Sum of the rows of each of n classes: (N, D), (N,) -> (n, D)."""
    if isinstance(values, torch.Tensor):
        return values.new_zeros(n, values.shape[1]).index_add_(0, index, values)
    return csr_array((np.ones(len(index)), (index, np.arange(len(index)))), shape=(n, len(index))) @ values


def gram(rows: Array) -> Array:
    """``rows^T rows`` for (N, D) rows, (D, D): half the products by a symmetric rank-k update in NumPy's case.

    SciPy's, which also factorises: two libraries with threads of their own would wait for each other.
    """
    if isinstance(rows, torch.Tensor):
        return rows.T @ rows
    update = ssyrk if rows.dtype == np.float32 else dsyrk
    half = update(1.0, rows.T) if rows.flags.c_contiguous else update(1.0, rows, trans=1)  # upper triangle, no copy
    return np.triu(half) + np.triu(half, 1).T


def product(a: Array, b: Array) -> Array:
    """``a @ b`` for float64 matrices, by the same library as :func:`gram` and for the same reason."""
    if isinstance(a, torch.Tensor):
        return a @ b
    return dgemm(1.0, a, b) if a.flags.f_contiguous else dgemm(1.0, a.T, b, trans_a=True)


def solve(matrix: Array, right: Array) -> Array:
    """``matrix^-1 right`` for a positive definite matrix, by Cholesky; the library's LinAlgError when it is not."""
    if isinstance(matrix, torch.Tensor):
        return torch.cholesky_solve(right, torch.linalg.cholesky(matrix))
    return cho_solve(cho_factor(matrix, check_finite=False), right, check_finite=False)


def plus_ridge(matrix: Array, r: float) -> Array:
    """``matrix + r I``."""
    out = matrix + 0.0  # a copy
    out.reshape(-1)[:: len(out) + 1] += r
    return out


def log(x: Array) -> Array:
    """Logarithm in which 0 is minus infinity without a warning."""
    with np.errstate(divide="ignore"):
        return namespace(x).log(x)


def log_softmax(logits: Array) -> Array:
    """``logits - log sum exp logits`` along the last axis."""
    xp = namespace(logits)
    shifted = logits - xp.amax(logits, -1)[..., None]
    return shifted - xp.log(xp.exp(shifted).sum(-1))[..., None]


def _double(x: Array) -> Array:
    xp = namespace(x)
    return xp.asarray(x, dtype=xp.float64)


def _squares(rows: Array) -> Array:
    return (rows * rows).sum(1)
