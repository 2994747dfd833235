"""Gaussian discriminant analysis for CLIP features: labelled features in, a linear classifier out, no training loop.

Vectors are rows. Symbols: N rows, D features, K classes, X (N, D) image features, y labels, T (K, D) text embeddings,
mu_k class means, S (D, D) within-class scatter, P precision (an inverse covariance), W (D, K) weights, b (K,) biases,
pi_k priors, alpha the weight of the classifier beside zero-shot CLIP, s CLIP's logit scale.

References
----------
Wang et al. (2024), "A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation", ICLR.
Kubokawa and Srivastava (2008), "Estimation of the precision matrix of a singular Wishart distribution and its
application in high-dimensional data", Journal of Multivariate Analysis 99.
Chan, Golub and LeVeque (1979), "Updating formulae and a pairwise algorithm for computing sample variances".
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import csr_array
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from minilib.evaluate import from_torch

Floats = NDArray[np.float64]
ALPHA_GRID = 10.0 ** np.arange(-4, 3)  # the reference code's grid: 0.0001, 0.001, ..., 100


@dataclass(frozen=True)
class Statistics:
    """All that GDA needs to know of its rows; two of them add up (see :func:`merge_statistics`)."""

    counts: Floats  # (K,) rows of each class, n_k
    means: Floats  # (K, D) class means mu_k; zeros where n_k = 0
    kept: (
        Floats  # (D, D) the scatter S; or the centred rows A (N, D) with A^T A = S where N < D, the smaller of the two
    )

    @property
    def scatter(self) -> Floats:
        """S, (D, D)."""
        return self.kept if len(self.kept) == self.kept.shape[1] else self.kept.T @ self.kept

    @property
    def trace(self) -> float:
        """tr(S)."""
        return float(np.trace(self.kept) if len(self.kept) == self.kept.shape[1] else (self.kept**2).sum())


def class_statistics(X: Floats, index: NDArray[np.int64], n_classes: int) -> Statistics:
    """Counts, class means and scatter around them (equation ``eq-gda-scatter``).

    Objective: ``mu_k = mean of class k's rows``, ``S = sum_i (x_i - mu_{y_i})^T (x_i - mu_{y_i})`` for X (N, D) and
    ``index`` (N,), integers in range(K). Means are plain means, not brought back to unit norm.

    >>> stats = class_statistics(np.array([[0.0, 1.0], [2.0, 1.0], [5.0, 5.0]]), np.array([0, 0, 1]), 2)
    >>> stats.means.tolist(), stats.scatter.tolist()
    ([[1.0, 1.0], [5.0, 5.0]], [[2.0, 0.0], [0.0, 0.0]])

    Source: Wang et al. (2024), section 3. Taught in: notebooks/02_gda.ipynb
    """
    n = len(X)
    one_hot = csr_array((np.ones(n), (index, np.arange(n))), shape=(n_classes, n))
    counts = np.bincount(index, minlength=n_classes).astype(np.float64)
    means = (one_hot @ X) / np.maximum(counts, 1)[:, None]  # (K, D)
    rows = X - means[index]  # (N, D)
    return Statistics(counts, means, rows if n < X.shape[1] else rows.T @ rows)


def merge_statistics(first: Statistics, second: Statistics) -> Statistics:
    """Statistics of both sets of rows together, without the rows (equation ``eq-gda-merge``).

    Objective: ``S = S_1 + S_2 + sum_k n_1k n_2k / n_k (mu_1k - mu_2k)^T (mu_1k - mu_2k)``, the pairwise update of
    Chan et al. It carries the same facts as (n_k, sum x, sum x^T x) but never subtracts two large numbers.

    Taught in: notebooks/02_gda.ipynb
    """
    counts = first.counts + second.counts
    share = second.counts / np.maximum(counts, 1)  # (K,)
    step = second.means - first.means  # (K, D)
    between = (step * (first.counts * share)[:, None]).T @ step  # (D, D)
    return Statistics(counts, first.means + share[:, None] * step, first.scatter + second.scatter + between)


def ks_precision(scatter: Floats, n_rows: int) -> Floats:
    """The paper's precision matrix, the empirical-Bayes ridge of Kubokawa and Srivastava (equation ``eq-gda-ks``).

    Objective: ``P = D (S + tr(S) / (N - 1) I)^-1``, (D, D). The paper writes ``D pinv((N - 1) Sigma + tr(Sigma) I)``
    with Sigma = S / (N - 1): the same. While tr(S) > 0 the matrix is positive definite, so Cholesky replaces the
    pseudo-inverse. ValueError when S = 0 or N < 2. :class:`GDA` solves with this matrix and never forms P.

    >>> ks_precision(np.diag([3.0, 1.0]), n_rows=5)  # ridge 4 / 4 = 1, so 2 / (3 + 1) and 2 / (1 + 1)
    array([[0.5, 0. ],
           [0. , 1. ]])

    Source: Wang et al. (2024), section 3. Taught in: notebooks/02_gda.ipynb
    """
    d, trace = len(scatter), float(np.trace(scatter))
    if n_rows < 2 or not trace > 0:
        raise ValueError(f"KS needs at least 2 rows and some scatter; got N = {n_rows}, tr(S) = {trace}.")
    return d * cho_solve(cho_factor(scatter + trace / (n_rows - 1) * np.eye(d)), np.eye(d))


def ridge_solve(statistics: Statistics, a: float, r: float, right: Floats) -> Floats:
    """``(a S + r I)^-1 right`` for (D, M) ``right``: Cholesky, or Woodbury when N < D (equation ``eq-gda-woodbury``).

    With centred rows A, S = A^T A and B = sqrt(a) A, only an N x N system is solved:
    ``(r I + B^T B)^-1 = (I - B^T (r I + B B^T)^-1 B) / r``. ValueError when the matrix is singular.

    Taught in: notebooks/02_gda.ipynb
    """
    d, kept = statistics.means.shape[1], statistics.kept
    try:
        if len(kept) < d and r > 0:
            b = a**0.5 * kept  # (N, D)
            inner = cho_factor(b @ b.T + r * np.eye(len(b)))  # (N, N)
            return (right - b.T @ cho_solve(inner, b @ right)) / r
        return cho_solve(cho_factor(a * statistics.scatter + r * np.eye(d)), right)
    except np.linalg.LinAlgError:
        raise ValueError(
            f"the covariance of {int(statistics.counts.sum())} rows in {d} dimensions is singular: "
            'use covariance="ks" or a shrinkage above 0.'
        ) from None


def discriminant(means: Floats, precision_means: Floats, priors: Floats) -> tuple[Floats, Floats]:
    """Weights and biases of the linear classifier that Bayes' rule gives (equation ``eq-gda-linear``).

    Objective: ``W = P mu^T`` (D, K), ``b_k = log pi_k - mu_k P mu_k^T / 2`` (K,). ``precision_means`` is P mu^T.

    >>> discriminant(np.array([[2.0], [0.0]]), np.array([[4.0, 0.0]]), np.array([1.0, 1.0]))  # P = 2
    (array([[4., 0.]]), array([-4.,  0.]))

    Source: Wang et al. (2024), section 3. Taught in: notebooks/02_gda.ipynb
    """
    with np.errstate(divide="ignore"):  # a prior of 0 is a bias of minus infinity: never predicted
        return precision_means, np.log(priors) - (means * precision_means.T).sum(axis=1) / 2


def mean_discount(counts: Floats, n_features: int) -> float:
    """How far to trust class means of few rows, in [0, 1) (equation ``eq-gda-discount``).

    Objective: ``m / (m + D)`` with m rows a class on average. A mean of m rows is off by D / m within-class variances,
    summed over the features; against means that truly lie about one standard deviation from their centre this is the
    share of signal. Not in the paper: a rule of thumb of ours, measured in the chapter.

    >>> mean_discount(np.array([16.0, 16.0]), 128), mean_discount(np.array([128.0, 128.0]), 128)
    (0.1111111111111111, 0.5)

    Taught in: notebooks/02_gda.ipynb
    """
    per_class = float(counts[counts > 0].mean())
    return per_class / (per_class + n_features)


class GDA(ClassifierMixin, BaseEstimator):
    """Gaussians with one covariance and a mean for each class; the posterior is a linear classifier.

    Objective: ``p(k | x) = softmax_k(x W + b)``, equation ``eq-gda-posterior``: exact for rows drawn from N(mu_k, P^-1)
    with priors pi_k. All statistics are float64. NumPy or PyTorch in, NumPy out.

    Parameters
    ----------
    covariance : "ks" (the paper's, see :func:`ks_precision`); a shrinkage s in [0, 1] for the covariance
        ``(1 - s) S / N + s tr(S) / (N D) I``; or a callable ``(S, N) -> (D, D)`` covariance.
    priors : "uniform", "empirical" (n_k / N), or an array (K,) that sums to 1.

    Attributes
    ----------
    coef_ (K, D) = W^T, intercept_ (K,) = b, means_ (K, D), priors_ (K,), classes_ (K,), statistics_ (mergeable),
    scale_ : tr(P^-1) over the unbiased within-class variance tr(S) / (N - K). KS makes P shrink like 1 / N; P times
        ``scale_`` is the precision in the data's own units.

    Notes
    -----
    Without scatter (one image a class, once) S = 0 and the paper's pseudo-inverse returns a silent zero. Here the ridge
    comes from the scatter of the class means instead, which is the nearest-mean rule, and a warning says so.
    On balanced data "ks" predicts what ``LinearDiscriminantAnalysis(solver="lsqr", shrinkage=D / (N - 1 + D))`` does.

    Examples
    --------
    >>> X, y = [[0.0, 0.0], [0.0, 2.0], [4.0, 0.0], [4.0, 2.0]], ["left", "left", "right", "right"]
    >>> GDA().fit(X, y).predict([[1.0, 5.0], [3.5, -1.0]]).tolist()
    ['left', 'right']

    Source: Wang et al. (2024), section 3. Taught in: notebooks/02_gda.ipynb
    """

    classes_: NDArray[Any]
    statistics_: Statistics

    def __init__(
        self, *, covariance: str | float | Callable[[Floats, int], Floats] = "ks", priors: str | Any = "uniform"
    ) -> None:
        self.covariance = covariance
        self.priors = priors

    def fit(self, X: Any, y: Any) -> GDA:
        """Learn from X (N, D) and y (N,). ValueError for values that are not finite, or a single class."""
        self.__dict__.pop("statistics_", None)
        self._learn(X, y, classes=None)
        if len(self.classes_) < 2:
            raise ValueError(f"GDA needs at least two classes; got 1 class ({self.classes_[0]!r}).")
        return self._solve()

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> GDA:
        """Add rows; the first call names every class. Any order and split of the rows gives the one-pass fit."""
        if not hasattr(self, "statistics_") and classes is None:
            raise ValueError("the first call to partial_fit must name all classes: partial_fit(X, y, classes=...).")
        return self._learn(X, y, classes)._solve()

    def _learn(self, X: Any, y: Any, classes: Any) -> GDA:
        first = not hasattr(self, "statistics_")
        X, y = validate_data(self, from_torch(X), from_torch(y), dtype=np.float64, reset=first)
        check_classification_targets(y)
        known = np.unique(y if classes is None else from_torch(classes)) if first else self.classes_
        index = np.searchsorted(known, y).clip(max=len(known) - 1)
        if (known[index] != y).any():
            raise ValueError(f"y holds {y[known[index] != y][0]!r}, which is not among the classes {list(known)}.")
        self.classes_ = known
        new = class_statistics(X, index, len(known))
        self.statistics_ = new if first else merge_statistics(self.statistics_, new)
        return self

    @staticmethod
    def merge(models: Sequence[GDA]) -> GDA:
        """One model from models fitted on shards, equal to one fit on all rows; classes are joined."""
        if not models or any(m.get_params() != models[0].get_params() for m in models):
            raise ValueError("merge needs one or more models with the same covariance and priors.")
        merged: GDA = clone(models[0])
        merged.classes_ = np.unique(np.concatenate([m.classes_ for m in models]))
        merged.n_features_in_ = d = models[0].n_features_in_
        k = len(merged.classes_)
        merged.statistics_ = Statistics(np.zeros(k), np.zeros((k, d)), np.zeros((d, d)))
        for model in models:
            stats, where = model.statistics_, np.searchsorted(merged.classes_, model.classes_)
            counts, means = np.zeros(k), np.zeros((k, d))
            counts[where], means[where] = stats.counts, stats.means
            merged.statistics_ = merge_statistics(merged.statistics_, Statistics(counts, means, stats.kept))
        return merged._solve()

    def logits(self, X: Any) -> Floats:
        """``X W + b``, (N, K). ValueError when a class has no samples."""
        check_is_fitted(self)
        if np.isnan(self.intercept_).any():
            raise ValueError(
                f"no samples of class {list(self.classes_[np.isnan(self.intercept_)])}: add some, or use ZeroShotGDA, "
                "which falls back to the class's text embedding."
            )
        return self._linear(X)

    def _linear(self, X: Any) -> Floats:
        X = validate_data(self, from_torch(X), dtype=np.float64, reset=False)
        return X @ self.coef_.T + self.intercept_

    def decision_function(self, X: Any) -> Floats:
        """Logits (N, K), or for two classes the log-odds of the second (N,), as scikit-learn has it."""
        logits = self.logits(X)
        return logits if len(self.classes_) > 2 else logits[:, 1] - logits[:, 0]

    def predict_proba(self, X: Any) -> Floats:
        """The posterior, (N, K)."""
        return softmax(self.logits(X), axis=1)

    def predict(self, X: Any) -> NDArray[Any]:
        """The class with the largest posterior, (N,)."""
        best = self.logits(X).argmax(axis=1)
        return self.classes_[best]

    def _solve(self, relative: bool = False) -> GDA:
        """Statistics to weights; NaN as the bias of a class without samples.

        ``relative`` takes P times ``scale_``, the data's own units, times the discount for means of few rows.
        """
        stats, empty = self.statistics_, self.statistics_.counts == 0
        self.means_ = np.where(empty[:, None], np.nan, stats.means)
        self.priors_ = _priors(self.priors, stats.counts)
        targets, (trace, freedom) = np.nan_to_num(self.means_).T, _variance(stats)  # (D, K)
        n, d = int(stats.counts.sum()), stats.means.shape[1]
        if callable(self.covariance):
            sigma = np.asarray(self.covariance(stats.scatter, n))  # (D, D)
            solved, size = cho_solve(cho_factor(sigma), targets), np.trace(sigma)
        else:
            a, r = _ridge(self.covariance, trace, n, d)
            solved, size = ridge_solve(stats, a, r, targets), a * stats.trace + r * d
        self.scale_ = float(size * freedom / trace)
        unit = self.scale_ * mean_discount(stats.counts, d) if relative else 1.0
        weights, self.intercept_ = discriminant(self.means_, unit * solved, self.priors_)
        self.coef_ = weights.T
        return self


class ZeroShotGDA(ClassifierMixin, BaseEstimator):
    """Zero-shot CLIP and GDA added together (equation ``eq-gda-ensemble``).

    Objective: ``logits = s X T^T + alpha (X W + b)``. The first term is zero-shot CLIP; alpha = 0 leaves it alone.

    Parameters
    ----------
    text_features : T, (K, D) unit-norm text embeddings; labels are integers in range(K).
    gda : the :class:`GDA` to use (default ``GDA()``); it is cloned.
    alpha : a number, or "validation" to take the best of ``ALPHA_GRID`` on ``fit(X, y, X_val, y_val)``, the first one
        on a tie. The default 1.0 needs no labels beside the training rows, and is a rule of thumb.
    alpha_scale : "relative" multiplies P by ``GDA.scale_`` and by :func:`mean_discount`, so that one alpha serves few
        rows and many; "reference" is the paper's scale, on which the best alpha grows with N.

    Attributes
    ----------
    alpha_, gda_ (on the scale asked for), and with validation rows alphas_ and alpha_curve_, their accuracy at each.

    Notes
    -----
    A class without samples takes, for each image, the largest Gaussian logit of the other classes, so that its text
    alone decides between it and the best of them: it is found at least as often as by zero-shot CLIP. (The reference
    code gives NaN for every class. The text embedding as a mean would lie many standard deviations from any image, and
    the class would never be named.) Validation rows choose alpha and nothing else.

    Source: Wang et al. (2024), section 3. Taught in: notebooks/02_gda.ipynb
    """

    def __init__(
        self,
        text_features: Any,
        *,
        gda: GDA | None = None,
        alpha: float | str = 1.0,
        logit_scale: float = 100.0,
        alpha_scale: str = "relative",
    ) -> None:
        self.text_features = text_features
        self.gda = gda
        self.alpha = alpha
        self.logit_scale = logit_scale
        self.alpha_scale = alpha_scale

    def fit(self, X: Any, y: Any, X_val: Any = None, y_val: Any = None) -> ZeroShotGDA:
        """Learn from X (N, D) and integer y (N,); X_val and y_val draw the alpha curve and, if asked, choose alpha."""
        labels = np.asarray(from_torch(y))
        self.texts_ = self._checked_texts(X, labels, X_val)  # (K, D)
        self.classes_ = np.arange(len(self.texts_))
        self.gda_ = clone(self.gda or GDA())._learn(X, labels, self.classes_)
        self.gda_._solve(relative=self.alpha_scale == "relative")
        if X_val is not None:
            zero_shot, gaussian = self._terms(X_val)
            truth = np.asarray(from_torch(y_val))[:, None]  # (M, 1): an error if y_val is missing
            found = np.stack([(zero_shot + a * gaussian).argmax(axis=1) for a in ALPHA_GRID], axis=1)  # (M, 7)
            self.alphas_, self.alpha_curve_ = ALPHA_GRID, (found == truth).mean(axis=0)
        best = self.alphas_[self.alpha_curve_.argmax()] if self.alpha == "validation" else self.alpha  # first of equals
        self.alpha_ = float(best)
        return self

    def decision_function(self, X: Any) -> Floats:
        """``s X T^T + alpha (X W + b)``, (N, K) also for two classes."""
        check_is_fitted(self)
        zero_shot, gaussian = self._terms(X)
        return zero_shot + self.alpha_ * gaussian

    def predict_proba(self, X: Any) -> Floats:
        """Softmax of the logits, (N, K)."""
        return softmax(self.decision_function(X), axis=1)

    def predict(self, X: Any) -> NDArray[np.int64]:
        """The class with the largest logit, (N,)."""
        return self.decision_function(X).argmax(axis=1)

    def _terms(self, X: Any) -> tuple[Floats, Floats]:
        gaussian = self.gda_._linear(X)  # (N, K), NaN for classes without samples; it checks X
        best = np.nanmax(gaussian, axis=1, keepdims=True)
        gaussian = np.where(np.isnan(gaussian), best, gaussian)  # only the text can tell such a class from the others
        return self.logit_scale * np.asarray(from_torch(X), dtype=np.float64) @ self.texts_.T, gaussian

    def _checked_texts(self, X: Any, y: NDArray[Any], X_val: Any) -> Floats:
        """The text embeddings (K, D), after every check that :class:`GDA` does not make itself."""
        texts, rows = (np.asarray(from_torch(v), dtype=np.float64) for v in (self.text_features, X))
        k, alpha, number = len(texts), self.alpha, not isinstance(self.alpha, str)
        ints = np.issubdtype(y.dtype, np.integer) and y.ndim == 1 and ((y >= 0) & (y < k)).all()
        for ok, message in (
            (texts.ndim == 2 and np.isfinite(texts).all(), f"text_features must be finite, (K, D); got {texts.shape}."),
            (texts.shape[1:] == rows.shape[1:], f"text_features {texts.shape} and X {rows.shape} differ in width."),
            (ints, f"y must be integers in range({k}), one for each text; got {np.unique(y)[:9]}."),
            (not number or alpha >= 0, f"alpha must be 0 or more; not {alpha}."),  # type: ignore[operator]
            (
                number or alpha == "validation",
                f'alpha must be a number or "validation"; not {alpha!r} in this version.',
            ),
            (number or X_val is not None, "alpha='validation' needs other rows to choose on: fit(X, y, X_val, y_val)."),
            (
                self.alpha_scale in ("relative", "reference"),
                f"alpha_scale: relative or reference; not {self.alpha_scale!r}",
            ),
        ):
            if not ok:
                raise ValueError(message)
        for name, values in (("X", rows), ("text_features", texts)):
            if np.abs(np.linalg.norm(values, axis=1) - 1).max() > 1e-2:
                what = "the zero-shot logits then measure length as well as direction"
                warnings.warn(f"rows of {name} are not of unit length: {what}. Divide by their norm.", stacklevel=3)
        return texts


def _ridge(covariance: Any, trace: float, n: int, d: int) -> tuple[float, float]:
    """(a, r) of the covariance a S + r I that the ``covariance`` argument of GDA stands for."""
    if covariance == "ks":
        return 1 / d, trace / (max(n - 1, 1) * d)
    if isinstance(covariance, (int, float)) and 0 <= covariance <= 1:
        return (1 - covariance) / n, covariance * trace / (n * d)
    raise ValueError(f'covariance must be "ks", a shrinkage in [0, 1] or a callable; not {covariance!r}.')


def _priors(priors: Any, counts: Floats) -> Floats:
    if isinstance(priors, str) and priors in ("uniform", "empirical"):
        return np.full(len(counts), 1 / len(counts)) if priors == "uniform" else counts / counts.sum()
    values = np.asarray(priors if not isinstance(priors, str) else np.nan, dtype=np.float64)
    if values.shape != counts.shape or (values < 0).any() or not abs(values.sum() - 1) < 1e-6:
        raise ValueError(
            f'priors must be "uniform", "empirical" or {len(counts)} numbers that sum to 1; not {priors!r}.'
        )
    return values


def _variance(stats: Statistics) -> tuple[float, int]:
    """tr(S) and its degrees of freedom N - K; where S = 0, those of the class means around their own mean."""
    n, trace = int(stats.counts.sum()), stats.trace
    size = float(stats.counts @ (stats.means**2).sum(axis=1))
    if trace > 1e-24 * size:  # else no more than rounding: every class is one point
        return trace, max(n - int((stats.counts > 0).sum()), 1)
    warnings.warn(
        "no scatter within the classes (one image each?): the covariance is taken from the class means, so this is "
        "the nearest-mean rule. Two images a class, or two views of one, would do.",
        stacklevel=4,
    )
    centre = stats.counts @ stats.means / n
    return float(stats.counts @ ((stats.means - centre) ** 2).sum(axis=1)) or 1.0, max(n - 1, 1)
