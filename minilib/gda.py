"""Gaussian discriminant analysis for CLIP features: labelled features in, a linear classifier out, no training loop.

Vectors are rows. Symbols: N rows, D features, K classes, X (N, D) image features, y labels, T (K, D) text embeddings,
mu_k class means, S (D, D) within-class scatter, P precision (an inverse covariance), W (D, K) weights, b (K,) biases,
pi_k priors, alpha the weight of the classifier beside zero-shot CLIP, s CLIP's logit scale.

References
----------
Wang et al. (2024), "A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation", ICLR.

Taught in: notebooks/02_gda.ipynb
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, validate_data

from minilib.beyond import Unsupervised, fit_unsupervised, synthesize_classes
from minilib.gaussian import (
    Array,
    Covariance,
    Statistics,
    class_statistics,
    discriminant,
    ks_precision,
    log_softmax,
    mean_discount,
    merge_statistics,
    namespace,
    ridge,
    ridge_solve,
    shrinkage,
    solve,
)
from minilib.loo import held_out_logits

__all__ = [
    "ALPHA_GRID", "GDA", "Statistics", "Unsupervised", "ZeroShotGDA", "class_statistics", "discriminant",
    "fit_unsupervised", "ks_precision", "mean_discount", "merge_statistics", "ridge_solve", "shrinkage",
    "synthesize_classes",
]  # fmt: skip
ALPHA_GRID = 10.0 ** np.arange(-4, 3)  # the reference code's grid: 0.0001, 0.001, ..., 100


class GDA(ClassifierMixin, BaseEstimator):
    """Gaussians with one covariance and a mean for each class; the posterior is a linear classifier.

    Objective: ``p(k | x) = softmax_k(x W + b)``, equation ``eq-gda-posterior``: exact for rows drawn from N(mu_k, P^-1)
    with priors pi_k. NumPy in, NumPy out; PyTorch in, PyTorch out, on the same device. Sums and solutions are float64;
    of float32 rows only the products of centred rows are taken in float32.

    Parameters
    ----------
    covariance : "ks" (the paper's, see :func:`ks_precision`); "ledoit-wolf" or "oas", pooled; a shrinkage s in [0, 1]
        for the covariance ``(1 - s) S / N + s tr(S) / (N D) I``; or a callable ``(S, N) -> (D, D)`` covariance.
    priors : "uniform", "empirical" (n_k / N), or an array (K,) that sums to 1.

    Attributes
    ----------
    coef_ (K, D) = W^T, intercept_ (K,) = b, means_ (K, D), priors_ (K,), classes_ (K,), statistics_ (mergeable),
    shrinkage_ : the lambda in use (:func:`shrinkage`; NaN for a callable).
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

    classes_: np.ndarray
    statistics_: Statistics

    def __init__(self, *, covariance: Covariance = "ks", priors: str | Any = "uniform") -> None:
        self.covariance = covariance
        self.priors = priors

    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> GDA:
        """Learn from X (N, D) and y (N,). ValueError for values that are not finite, or a single class.

        ``sample_weight`` (N,) non-negative: a row of weight 2 counts as two rows. ``groups`` (N,): rows with one label
        are views of one image and share the weight of one row, so that N counts images (the paper counts views).
        """
        self.__dict__.pop("statistics_", None)
        self._learn(X, y, None, sample_weight, groups)
        if len(self.classes_) < 2:
            raise ValueError(f"GDA needs at least two classes; got 1 class ({self.classes_[0]!r}).")
        return self._solve()

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None, groups: Any = None) -> GDA:
        """Add rows; the first call names every class. Any order and split of the rows gives the one-pass fit.

        To 1e-10 for float64 rows, for float32 rows to their own precision. All views of an image must come in one call
        when ``groups`` are given.
        """
        if not hasattr(self, "statistics_") and classes is None:
            raise ValueError("the first call to partial_fit must name all classes: partial_fit(X, y, classes=...).")
        return self._learn(X, y, classes, sample_weight, groups)._solve()

    def _learn(self, X: Any, y: Any, classes: Any, sample_weight: Any = None, groups: Any = None) -> GDA:
        first = not hasattr(self, "statistics_")
        X, y = _labelled_rows(self, X, y, reset=first)
        known = np.unique(y if classes is None else _host(classes)) if first else self.classes_
        index = np.searchsorted(known, y).clip(max=len(known) - 1)
        if (known[index] != y).any():
            raise ValueError(f"y holds {y[known[index] != y][0]!r}, which is not among the classes {list(known)}.")
        self.classes_ = known
        weights = row_weights(len(y), sample_weight, groups)
        weights = None if weights is None else _as(weights, X)
        powers = self.covariance == "ledoit-wolf"
        new = class_statistics(X, _as(index, X), len(known), weights, fourth=powers)
        if not new.total > 0:
            raise ValueError("the sample weights sum to zero: nothing to learn from. Give some row a positive weight.")
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
        total = None
        for model in models:
            if model.n_features_in_ != d:
                raise ValueError(f"merge needs models of one width; got {d} and {model.n_features_in_} features.")
            wider = _widened(model.statistics_, np.searchsorted(merged.classes_, model.classes_), len(merged.classes_))
            total = wider if total is None else merge_statistics(total, wider)
        assert total is not None
        merged.statistics_ = total
        return merged._solve()

    def logits(self, X: Any) -> Array:
        """``X W + b``, (N, K). ValueError when a class has no samples."""
        check_is_fitted(self)
        empty = np.isnan(_host(self.intercept_))
        if empty.any():
            raise ValueError(
                f"no samples of class {list(self.classes_[empty])}: add some, or use ZeroShotGDA, "
                "which falls back to the class's text embedding."
            )
        return self._linear(X)

    def _linear(self, X: Any) -> Array:
        X = _as(_rows(self, X), X)  # float64
        return X @ _as(self.coef_.T, X) + _as(self.intercept_, X)

    def decision_function(self, X: Any) -> Array:
        """Logits (N, K), or for two classes the log-odds of the second (N,), as scikit-learn has it."""
        logits = self.logits(X)
        return logits if len(self.classes_) > 2 else logits[:, 1] - logits[:, 0]

    def predict_proba(self, X: Any) -> Array:
        """The posterior, (N, K)."""
        logits = log_softmax(self.logits(X))
        return namespace(logits).exp(logits)

    def predict(self, X: Any) -> Array:
        """The class with the largest posterior, (N,)."""
        best = self.logits(X).argmax(1)
        return _named(self.classes_, best)

    def _solve(self, relative: bool = False) -> GDA:
        """Statistics to weights; NaN as the bias of a class without samples.

        ``relative`` takes P times ``scale_``, the data's own units, times the discount for means of few rows.
        """
        stats, xp = self.statistics_, namespace(self.statistics_.means)
        self.priors_ = _priors(self.priors, stats.counts)
        trace, freedom = variance(stats)
        n, d, targets = stats.total, stats.width, stats.means.T  # (D, K)
        if callable(self.covariance):
            sigma = _as(self.covariance(stats.scatter, n), targets)  # (D, D)
            self.shrinkage_, solved, size = np.nan, solve(sigma, targets), sigma.diagonal().sum()
        else:
            self.shrinkage_ = shrinkage(self.covariance, stats)
            a, r = ridge(self.covariance, trace, n, d, self.shrinkage_)
            solved, size = ridge_solve(stats, a, r, targets), a * stats.trace + r * d
        self.scale_ = float(size * freedom / trace)
        unit = self.scale_ * mean_discount(stats.counts, d) if relative else 1.0
        weights, biases = discriminant(stats.means, unit * solved, self.priors_)
        empty = stats.counts == 0
        self.means_ = xp.where(empty[:, None], np.nan, stats.means)
        self.coef_, self.intercept_ = xp.where(empty[:, None], np.nan, weights.T), xp.where(empty, np.nan, biases)
        return self


class ZeroShotGDA(ClassifierMixin, BaseEstimator):
    """Zero-shot CLIP and GDA added together (equation ``eq-gda-ensemble``).

    Objective: ``logits = s X T^T + alpha (X W + b)``. The first term is zero-shot CLIP; alpha = 0 leaves it alone.

    Parameters
    ----------
    text_features : T, (K, D) unit-norm text embeddings; labels are integers in range(K).
    gda : the :class:`GDA` to use (default ``GDA()``); it is cloned.
    alpha : "loo" takes the alpha of ``ALPHA_GRID`` with the largest mean log-probability of the training rows, each
        judged by a classifier that has not seen its image (exact, without refitting: ``eq-gda-loo``);
        "validation" the one with the best accuracy on ``fit(X, y, X_val, y_val)``, the first on a tie; or a number.
    logit_scale : s.
    alpha_scale : "relative" multiplies P by ``GDA.scale_`` and by :func:`mean_discount`, so that one alpha serves few
        rows and many; "reference" is the paper's scale, on which the best alpha grows with N.
    text_anchor : every class mean is drawn towards its text embedding, moved to where the images lie, as if the text
        were this many images (``eq-gda-text-anchor``). 0 (the paper) leaves the means alone.

    Attributes
    ----------
    alpha_, gda_ (on the scale asked for), alphas_ and alpha_curve_: the grid, and the mean held-out log-probability
    ("loo") or validation accuracy at each.

    Notes
    -----
    A class without samples takes, for each image, the largest Gaussian logit of the other classes, so that its text
    alone decides between it and the best of them: it is found at least as often as by zero-shot CLIP. (The reference
    code gives NaN for every class. The text embedding as a mean would lie many standard deviations from any image, and
    the class would never be named.) Validation rows choose alpha and nothing else.

    "loo" asks for honest probabilities, not only right answers, so it is careful; the chapter measures what that costs.
    With one image of each class nothing can be left out: "loo" then takes alpha = 1 and warns. Images that are the only
    one of their class are left out of the sum. Lambda of "ledoit-wolf" and "oas" stays that of all rows.

    Source: Wang et al. (2024), section 3; the leave-one-out rule is ours. Taught in: notebooks/03_fewshot.ipynb
    """

    def __init__(
        self,
        text_features: Any,
        *,
        gda: GDA | None = None,
        alpha: float | str = "loo",
        logit_scale: float = 100.0,
        alpha_scale: str = "relative",
        text_anchor: float = 0.0,
    ) -> None:
        self.text_features = text_features
        self.gda = gda
        self.alpha = alpha
        self.logit_scale = logit_scale
        self.alpha_scale = alpha_scale
        self.text_anchor = text_anchor

    def fit(
        self, X: Any, y: Any, X_val: Any = None, y_val: Any = None, *, sample_weight: Any = None, groups: Any = None
    ) -> ZeroShotGDA:
        """Learn from X (N, D) and integer y (N,); X_val and y_val draw the alpha curve and choose alpha if asked.

        ``sample_weight`` and ``groups`` as in :meth:`GDA.fit`; "loo" leaves out whole groups.
        """
        self.texts_ = self._checked_texts(X, np.asarray(_host(y)), X_val, y_val)  # (K, D)
        self.classes_ = np.arange(len(self.texts_))
        self.gda_ = clone(self.gda or GDA())._learn(X, y, self.classes_, sample_weight, groups)
        self._anchor_means()
        self.gda_._solve(relative=self.alpha_scale == "relative")
        if X_val is not None:
            zero_shot, gaussian = self._terms(X_val)
            truth = _as(np.asarray(_host(y_val)), zero_shot)
            hits = [((zero_shot + a * gaussian).argmax(1) == truth) for a in ALPHA_GRID]
            self.alphas_, self.alpha_curve_ = ALPHA_GRID, np.array([float(_host(h).mean()) for h in hits])
        elif isinstance(self.alpha, str):
            self.alphas_, self.alpha_curve_ = ALPHA_GRID, self._held_out_curve(X, y, sample_weight, groups)
        self.alpha_ = self._chosen()
        return self

    def _chosen(self) -> float:
        if not isinstance(self.alpha, str):
            return float(self.alpha)
        if not np.isnan(self.alpha_curve_).all():
            return float(self.alphas_[self.alpha_curve_.argmax()])  # the first of equals
        warnings.warn(
            "alpha='loo' needs two images of at least one class, to leave one out; alpha = 1 is taken. Give two images "
            "a class, or alpha as a number.",
            stacklevel=3,
        )
        return 1.0

    def _held_out_curve(self, X: Any, y: Any, sample_weight: Any, groups: Any) -> np.ndarray:
        """Mean log-probability of the left-out images at each alpha, (7,); NaN when none can be left out."""
        X, y = _as(_rows(self.gda_, X), X), np.asarray(_host(y))
        gaussian, rows = held_out_logits(
            X, y, self.gda_, relative=self.alpha_scale == "relative",
            weights=row_weights(len(X), sample_weight, None), groups=groups,
        )  # fmt: skip
        if not len(rows):
            return np.full(len(ALPHA_GRID), np.nan)
        zero_shot, index = self.logit_scale * X[rows] @ _as(self.texts_.T, X), _as(y[rows], X)
        weights = row_weights(len(X), sample_weight, groups)
        w = _as(np.ones(len(rows)) if weights is None else weights[rows], X)
        curve = []
        for a in ALPHA_GRID:
            told = log_softmax(zero_shot + a * _filled(gaussian))
            curve.append(float((w * told[namespace(told).arange(len(index)), index]).sum() / w.sum()))
        return np.array(curve)

    def _anchor_means(self) -> None:
        """Draw class means towards the texts (equation ``eq-gda-text-anchor``); the scatter stays that of the rows."""
        if not self.text_anchor:
            return
        stats = self.gda_.statistics_
        centre = (stats.counts @ stats.means) / stats.total
        texts = _as(self.texts_, stats.means)
        prototypes = texts - texts.mean(0) + centre
        share = (self.text_anchor / (self.text_anchor + stats.counts))[:, None]
        seen = (stats.counts > 0)[:, None]
        means = namespace(share).where(seen, (1 - share) * stats.means + share * prototypes, stats.means)
        self.gda_.statistics_ = Statistics(stats.counts, means, stats.kept, stats.fourth)

    def decision_function(self, X: Any) -> Array:
        """``s X T^T + alpha (X W + b)``, (N, K) also for two classes."""
        check_is_fitted(self)
        zero_shot, gaussian = self._terms(X)
        return zero_shot + self.alpha_ * gaussian

    def predict_proba(self, X: Any) -> Array:
        """Softmax of the logits, (N, K)."""
        logits = log_softmax(self.decision_function(X))
        return namespace(logits).exp(logits)

    def predict(self, X: Any) -> Array:
        """The class with the largest logit, (N,)."""
        return self.decision_function(X).argmax(1)

    def _terms(self, X: Any) -> tuple[Array, Array]:
        X = _as(_rows(self.gda_, X), X)
        return self.logit_scale * X @ _as(self.texts_.T, X), _filled(self.gda_._linear(X))

    def _checked_texts(self, X: Any, y: np.ndarray, X_val: Any, y_val: Any) -> np.ndarray:
        """The text embeddings (K, D), after every check that :class:`GDA` does not make itself."""
        texts = np.asarray(_host(self.text_features), dtype=np.float64)
        shape, k, alpha, number = np.shape(X), len(texts), self.alpha, not isinstance(self.alpha, str)
        ints = np.issubdtype(y.dtype, np.integer) and y.ndim == 1 and ((y >= 0) & (y < k)).all()
        for ok, message in (
            (texts.ndim == 2 and np.isfinite(texts).all(), f"text_features must be finite, (K, D); got {texts.shape}."),
            (texts.shape[1:] == shape[1:], f"text_features {texts.shape} and X {tuple(shape)} differ in width."),
            (ints, f"y must be integers in range({k}), one for each text; got {np.unique(y)[:9]}."),
            (not number or alpha >= 0, f"alpha must be 0 or more; not {alpha}."),  # type: ignore[operator]
            (number or alpha in ("loo", "validation"), f"alpha must be a number, 'loo' or 'validation'; not {alpha!r}"),
            (
                number or alpha == "loo" or X_val is not None,
                "alpha='validation' needs other rows to choose on: fit(X, y, X_val, y_val).",
            ),
            (alpha != "loo" or X_val is None, "alpha='loo' needs no validation rows: leave X_val out, or choose "
                                              "alpha='validation'."),
            ((X_val is None) == (y_val is None), "X_val and y_val go together: give both or neither."),
            (
                self.alpha_scale in ("relative", "reference"),
                f"alpha_scale: relative or reference; not {self.alpha_scale!r}",
            ),
            (
                alpha != "loo" or not self.text_anchor,
                "alpha='loo' does not know how anchored means change when an image leaves: give alpha as a number or "
                "choose alpha='validation'.",
            ),
            (self.text_anchor >= 0, f"text_anchor counts images and must be 0 or more; not {self.text_anchor}."),
        ):  # fmt: skip
            if not ok:
                raise ValueError(message)
        for name, values in (("X", X), ("text_features", texts)):
            lengths = np.linalg.norm(np.asarray(_host(values), dtype=np.float64), axis=1)
            if np.abs(lengths - 1).max() > 1e-2:
                what = "the zero-shot logits then measure length as well as direction"
                warnings.warn(f"rows of {name} are not of unit length: {what}. Divide by their norm.", stacklevel=3)
        return texts


def row_weights(n: int, sample_weight: Any, groups: Any) -> np.ndarray | None:
    """Weights (n,) that rows count with: their own, divided among the views of an image; None when all count one.

    >>> row_weights(3, None, ["a", "a", "b"]).tolist()
    [0.5, 0.5, 1.0]

    Taught in: notebooks/03_fewshot.ipynb
    """
    if sample_weight is None and groups is None:
        return None
    weights = np.ones(n) if sample_weight is None else np.asarray(_host(sample_weight), dtype=np.float64)
    if weights.shape != (n,) or not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError(f"sample_weight must be {n} finite numbers, 0 or more; got shape {weights.shape}.")
    if groups is None:
        return weights
    names = np.asarray(_host(groups))
    if names.shape != (n,):
        raise ValueError(f"groups must name the image of each of the {n} rows; got shape {names.shape}.")
    _, group, views = np.unique(names, return_inverse=True, return_counts=True)
    return weights / views[group]


def variance(stats: Statistics) -> tuple[float, float]:
    """tr(S) and its degrees of freedom N - K; where S = 0, those of the class means around their own mean."""
    n, trace = stats.total, stats.trace
    size = float(stats.counts @ (stats.means**2).sum(1))
    if trace > 1e-24 * size:  # else no more than rounding: every class is one point
        return trace, max(n - int((stats.counts > 0).sum()), 1)
    warnings.warn(
        "no scatter within the classes (one image each?): the covariance is taken from the class means, so this is "
        "the nearest-mean rule. Two images a class, or two views of one, would do.",
        stacklevel=4,
    )
    centre = stats.counts @ stats.means / n
    return float(stats.counts @ ((stats.means - centre) ** 2).sum(1)) or 1.0, max(n - 1, 1)


def _labelled_rows(model: Any, X: Any, y: Any, reset: bool) -> tuple[Array, np.ndarray]:
    """X as :func:`_rows` has it, and y on the host."""
    y = _host(y)
    if not isinstance(X, torch.Tensor) or y is None:
        X, y = validate_data(model, _host(X), y, dtype=[np.float64, np.float32], reset=reset)
    else:
        X = _rows(model, X, reset)
        check_consistent_length(X, y)
    check_classification_targets(y)
    return X, y


def _rows(model: Any, X: Any, reset: bool = False) -> Array:
    """Finite float64 or float32 rows of the array's own kind and device, after scikit-learn's checks."""
    if not isinstance(X, torch.Tensor) or X.ndim != 2 or not len(X):
        return validate_data(model, _host(X), dtype=[np.float64, np.float32], reset=reset)
    if reset:
        model.n_features_in_ = X.shape[1]
    if X.shape[1] != model.n_features_in_:
        raise ValueError(f"X has {X.shape[1]} features, but {type(model).__name__} expects {model.n_features_in_}.")
    if not bool(torch.isfinite(X).all()):
        raise ValueError("Input X contains NaN or infinity: drop those rows or mend what made them.")
    return X.detach() if X.dtype in (torch.float32, torch.float64) else X.detach().float()


def _host(values: Any) -> Any:
    """A tensor as a NumPy array (bfloat16 as float32); anything else as it came."""
    if not isinstance(values, torch.Tensor):
        return values
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def _as(values: Any, like: Array) -> Array:
    """``values`` as the kind of array that ``like`` is, on its device; floats as float64."""
    if isinstance(like, torch.Tensor):
        out = torch.as_tensor(values, device=like.device)
        return out.double() if out.is_floating_point() else out
    return np.asarray(_host(values))


def _named(classes: np.ndarray, index: Array) -> Array:
    """Labels of class indices: a tensor for tensors, unless the labels are words."""
    if isinstance(index, torch.Tensor) and classes.dtype.kind in "biuf":
        return torch.as_tensor(classes, device=index.device)[index]
    return classes[_host(index)]


def _filled(gaussian: Array) -> Array:
    """NaN, of classes without samples, replaced by the row's largest: only the text can tell them from the others."""
    xp = namespace(gaussian)
    known = xp.where(xp.isnan(gaussian), -np.inf, gaussian)
    return xp.where(xp.isnan(gaussian), xp.amax(known, 1)[:, None], gaussian)


def _widened(stats: Statistics, where: np.ndarray, k: int) -> Statistics:
    """The same statistics among k classes, ``where`` being the places of the old ones."""
    counts = namespace(stats.counts).zeros_like(stats.counts[:1]).repeat(k)
    means = counts[:, None] * stats.means[:1]
    counts[where], means[where] = stats.counts, stats.means
    return Statistics(counts, means, stats.kept, stats.fourth)


def _priors(priors: Any, counts: Array) -> Array:
    k = len(counts)
    if isinstance(priors, str) and priors in ("uniform", "empirical"):
        return counts * 0 + 1 / k if priors == "uniform" else counts / counts.sum()
    values = np.asarray(_host(priors) if not isinstance(priors, str) else np.nan, dtype=np.float64)
    if values.shape != (k,) or (values < 0).any() or not abs(values.sum() - 1) < 1e-6:
        raise ValueError(f'priors must be "uniform", "empirical" or {k} numbers that sum to 1; not {priors!r}.')
    return _as(values, counts)
