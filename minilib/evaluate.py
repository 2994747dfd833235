"""Predictions in, numbers out: accuracy with its intervals, image pairs, calibration, long tails, other label sets.

Every function takes NumPy arrays or PyTorch tensors (any device) and returns plain floats or NumPy arrays.

References
----------
Wilson (1927), "Probable inference, the law of succession, and statistical inference", JASA 22.
Efron (1979), "Bootstrap methods: another look at the jackknife", Annals of Statistics 7.
Holm (1979), "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6.
McNemar (1947), "Note on the sampling error of the difference between correlated proportions", Psychometrika 12.
Tong et al. (2024), "Eyes wide shut? Exploring the visual shortcomings of multimodal LLMs" (the pair rule of MMVP-VLM).
Guo et al. (2017), "On calibration of modern neural networks", ICML.
Cui et al. (2019), "Class-balanced loss based on effective number of samples", CVPR (the exponential long tail).
Liu et al. (2019), "Large-scale long-tailed recognition in an open world", CVPR (ImageNet-LT: many, medium, few).
Hendrycks et al. (2021), "Natural adversarial examples", CVPR; "The many faces of robustness", ICCV (ImageNet-A, -R).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import softmax
from scipy.stats import binomtest
from scipy.stats import t as student

Floats = NDArray[np.float64]
#: Where :func:`fit_temperature` searches.
TEMPERATURES = (1e-3, 1e3)


def zero_shot_accuracy(image_features: Any, text_features: Any, labels: Any) -> float:
    """Share of images whose nearest text embedding is the one of their own class.

    Objective: ``mean_n [ argmax_k x_n . t_k == y_n ]``. With unit-norm rows the dot product is the cosine.

    Takes images (N, D), texts (K, D) and integer labels (N,) in range(K); on a tie the first class wins. ValueError
    when widths differ, a value is not finite, a label is out of range, or there are no rows.

    >>> zero_shot_accuracy([[1.0, 0.0], [0.6, 0.8]], [[1.0, 0.0], [0.0, 1.0]], [0, 0])
    0.5

    Source: Radford et al. (2021), section 3.1. Taught in: notebooks/01_clip.ipynb
    """
    images, texts = _features(image_features, "image_features"), _features(text_features, "text_features")
    if images.shape[1] != texts.shape[1]:
        raise ValueError(
            f"image_features are {images.shape[1]} wide and text_features {texts.shape[1]}: "
            "both must come from the same model."
        )
    truth = _labels(labels, len(images), len(texts))
    return float(np.mean((images @ texts.T).argmax(axis=1) == truth))  # (N, K) -> (N,)


def pair_accuracy(image_a: Any, image_b: Any, text_a: Any, text_b: Any) -> NDArray[np.bool_]:
    """Which pairs are solved: each statement must pick its own image of the two.

    Objective: ``t_a . x_a > t_a . x_b`` **and** ``t_b . x_b > t_b . x_a``, strictly: a model that cannot tell the two
    images apart scores nothing. A coin thrown for each statement solves 25 % of the pairs.

    Four arrays (n, D) in, booleans (n,) out; their mean is the pair accuracy. ValueError when shapes differ or a value
    is not finite.

    >>> pair_accuracy([[1.0, 0.0]], [[0.0, 1.0]], [[0.9, 0.1]], [[0.2, 0.8]])
    array([ True])

    Source: Tong et al. (2024), section 2. Taught in: notebooks/09_diva.ipynb
    """
    names = ("image_a", "image_b", "text_a", "text_b")
    a, b, says_a, says_b = (_features(v, n) for v, n in zip((image_a, image_b, text_a, text_b), names, strict=True))
    for name, array in zip(names[1:], (b, says_a, says_b), strict=True):
        if array.shape != a.shape:
            raise ValueError(f"{name} has shape {array.shape} but image_a {a.shape}: give one row for each pair.")
    # The difference is taken first, so that two equal images give exactly 0 whatever the text.
    gap = a - b  # (n, D)
    return ((says_a * gap).sum(axis=1) > 0) & ((says_b * gap).sum(axis=1) < 0)


def wilson_interval(successes: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Interval for a probability after ``successes`` in ``total`` independent trials.

    Objective: the set of p whose score test does not reject the observed share h = successes / total,
    ``(h - p)^2 <= z^2 p (1 - p) / total``: a quadratic in p, solved exactly. Unlike ``h +- z * standard error`` it
    stays inside [0, 1] and is not empty at 0 or 1.

    Returns (low, high) as shares. ValueError unless 0 <= successes <= total, total >= 1 and 0 < level < 1.

    >>> low, high = wilson_interval(8, 10)
    >>> round(low, 3), round(high, 3)
    (0.49, 0.943)

    Source: Wilson (1927). Taught in: notebooks/01_clip.ipynb
    """
    if total < 1 or not 0 <= successes <= total:
        raise ValueError(f"need 0 <= successes <= total and total >= 1; got successes={successes}, total={total}.")
    z2 = NormalDist().inv_cdf(0.5 + _level(level) / 2) ** 2
    share = successes / total
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = (z2 * share * (1 - share) / total + (z2 / (2 * total)) ** 2) ** 0.5 / (1 + z2 / total)
    low, high = centre - half, centre + half
    return (0.0 if successes == 0 else max(low, 0.0)), (1.0 if successes == total else min(high, 1.0))


def bootstrap_interval(
    values: ArrayLike | Any, *, seed: int | np.random.Generator, level: float = 0.95, draws: int = 2000
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of ``values``.

    Objective: draw n rows with replacement ``draws`` times and return the (1 - level) / 2 quantile of the means and its
    mirror image. For a **paired** comparison give the difference of two models' scores on the same rows.

    Values (n,), numbers or booleans; ``seed`` may be a NumPy generator to go on drawing from. Returns (low, high) in
    the units of the values. With a handful of values (five seeds, say) the interval is too narrow: it never leaves the
    observed range. ValueError when values are empty, not one-dimensional or not finite, or draws < 1.

    >>> bootstrap_interval([3.0, 3.0, 3.0], seed=0)
    (3.0, 3.0)

    Source: Efron (1979). Taught in: notebooks/02_gda.ipynb
    """
    data = _numpy(values).astype(np.float64)
    if data.ndim != 1 or not len(data) or not np.isfinite(data).all():
        raise ValueError(f"values must be a non-empty one-dimensional array of finite numbers; got shape {data.shape}.")
    if draws < 1:
        raise ValueError(f"draws must be at least 1; got {draws}.")
    rng = np.random.default_rng(seed)
    step = max(1, 2_000_000 // len(data))  # rows of draws at a time, so that memory stays near 16 MB
    means = [
        data[rng.integers(len(data), size=(min(step, draws - start), len(data)))].mean(axis=1)
        for start in range(0, draws, step)
    ]
    tail = (1 - _level(level)) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def mean_interval(values: ArrayLike | Any, level: float = 0.95) -> tuple[float, float]:
    """Student interval of the mean of a few independent numbers, such as one accuracy for each seed.

    Objective: ``mean +- t_{n-1} sd / sqrt(n)``, for (n,) values with n >= 2. Returns (low, high) in their units;
    ValueError for fewer than two values, or values that are not finite.

    >>> low, high = mean_interval([1.0, 2.0, 3.0])  # sd 1, t_2 = 4.303, half-width 2.484
    >>> round(low, 3), round(high, 3)
    (-0.484, 4.484)

    Source: Student (1908), "The probable error of a mean", Biometrika 6. Taught in: notebooks/02_gda.ipynb
    """
    data = _numpy(values).astype(np.float64)
    if data.ndim != 1 or len(data) < 2 or not np.isfinite(data).all():
        raise ValueError(f"values must be two or more finite numbers in one dimension; got shape {data.shape}.")
    half = student.ppf(0.5 + _level(level) / 2, len(data) - 1) * data.std(ddof=1) / len(data) ** 0.5
    return float(data.mean() - half), float(data.mean() + half)


def few_shot_rows(labels: Any, shots: int, *, seed: int) -> NDArray[np.int64]:
    """Indices of ``shots`` random rows of each class, sorted by class: (shots * K,).

    Objective: the same seed with more shots keeps the rows it had, so that a curve over shots follows one growing set.
    A class with fewer rows than asked for is a ValueError.

    >>> few_shot_rows([0, 1, 0, 1, 1], 1, seed=0).tolist()
    [2, 4]

    Taught in: notebooks/02_gda.ipynb
    """
    wanted = np.full(len(np.unique(_numpy(labels))), shots)
    rows, short = _draw(labels, wanted, seed)
    if short or shots < 1:
        raise ValueError(f"cannot draw {shots} rows of each class; classes with fewer: {short}.")
    return rows


def long_tail_rows(labels: Any, most: int, *, ratio: float = 100.0, seed: int) -> NDArray[np.int64]:
    """Indices of random rows whose class sizes fall exponentially, sorted by class.

    Objective: class k = 0, ..., K - 1, in the order of the labels, gets ``most * ratio^(-k / (K - 1))`` rows, rounded,
    at least one: ``most`` in the first class, ``most / ratio`` in the last. This is the profile of CIFAR-LT, whose code
    rounds down; ImageNet-LT draws its sizes from a Pareto distribution instead. The same seed with a larger ``most``
    keeps the rows it had.

    ValueError when a class has fewer rows than its share, most < 1 or ratio < 1.

    >>> rows = long_tail_rows([0] * 9 + [1] * 9 + [2] * 9, 8, ratio=16, seed=0)
    >>> (rows // 9).tolist()  # 8, then 8 / 4, then 8 / 16, which is raised to one
    [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2]

    Source: Cui et al. (2019). Taught in: notebooks/04_beyond.ipynb
    """
    if most < 1 or not ratio >= 1:
        raise ValueError(f"most and ratio must be at least 1; got most={most}, ratio={ratio}.")
    k = np.arange(len(np.unique(_numpy(labels))))
    wanted = np.maximum(np.rint(most * ratio ** (-k / max(len(k) - 1, 1))).astype(int), 1)  # (K,)
    rows, short = _draw(labels, wanted, seed)
    if short:
        raise ValueError(f"a tail from {most} rows needs {wanted.tolist()}; classes with fewer: {short}.")
    return rows


def accuracy_by_frequency(
    predicted: Any, labels: Any, train_counts: Any, *, many: int = 100, few: int = 20
) -> dict[str, float]:
    """Accuracy on the classes with many, medium and few training rows, and on all of them.

    Objective: ``mean [ predicted_n == y_n ]`` over the test rows n of a group: "many" holds the classes with more than
    ``many`` training rows, "few" those with fewer than ``few``, "medium" the others. On a test set with equally many
    rows of each class, as ImageNet-LT has, this is the mean of the class accuracies.

    Takes classes (N,) in range(K) twice and counts (K,). A group without test rows is NaN. ValueError when shapes
    differ, a label has no count, or few > many + 1, where a class could be in two groups.

    >>> accuracy_by_frequency([0, 0, 1, 0], [0, 0, 1, 2], [500, 50, 5])
    {'many': 1.0, 'medium': 1.0, 'few': 0.0, 'all': 0.75}

    Source: Liu et al. (2019). Taught in: notebooks/04_beyond.ipynb
    """
    counts, answers = _numpy(train_counts), _numpy(predicted)
    if answers.ndim != 1 or counts.ndim != 1:
        raise ValueError(f"predicted and train_counts must be 1-d; got shapes {answers.shape} and {counts.shape}.")
    truth = _labels(labels, len(answers), len(counts))
    if few > many + 1:
        raise ValueError(f"few must be at most many + 1, so that no class is in both; got few={few}, many={many}.")
    size, right = counts[truth], answers == truth  # (N,)
    groups = {"many": size > many, "medium": (size <= many) & (size >= few), "few": size < few}
    groups["all"] = np.ones_like(right)
    return {name: float(right[group].mean()) if group.any() else np.nan for name, group in groups.items()}


def map_classes(logits: Any, columns: Sequence[int | Sequence[int]]) -> Floats:
    """Logits over few target classes from logits over many source classes, such as ImageNet's for ImageNet-R.

    Objective: ``z'_nk = max over j in columns[k] of z_nj``, so that a target class wins when any of its source classes
    does. With one index for each target this selects columns, ``logits[:, columns]``: the same as multiplying by the
    0/1 matrix (K, K') of the reference protocol. (The *probability* of several classes together would be a sum, not a
    maximum.)

    Logits (N, K) and, for each of K' targets, one index in range(K) or several; returns (N, K'). ValueError when a
    target has no index, or one that is not an integer in range(K).

    >>> map_classes([[5.0, 1.0, 2.0, 3.0]], [0, [1, 3]]).tolist()
    [[5.0, 3.0]]

    Source: Hendrycks et al. (2021). Taught in: notebooks/04_beyond.ipynb
    """
    source = _features(logits, "logits")
    groups = [np.atleast_1d(_numpy(column)) for column in columns]
    if not groups:
        raise ValueError("columns must name at least one target class; got none.")
    width = source.shape[1]
    for k, group in enumerate(groups):
        whole = group.size > 0 and np.issubdtype(group.dtype, np.integer)
        if not whole or group.min() < 0 or group.max() >= width:
            raise ValueError(f"columns[{k}] must be one or more integers in range({width}); got {columns[k]}.")
    return np.stack([source[:, group].max(axis=1) for group in groups], axis=1)  # (N, K')


def reliability(probabilities: Any, labels: Any, *, bins: int = 15) -> dict[str, NDArray[Any]]:
    """How often the top class is right, by how sure the model was of it.

    Objective: rows fall into ``bins`` bins ((m - 1) / M, m / M] by their largest probability. Of each bin: ``counts``,
    mean ``confidence`` and ``accuracy``, three arrays (bins,), NaN where a bin is empty. They are what
    :func:`minilib.plotting.plot_reliability` takes.

    Probabilities (N, K) whose rows sum to 1 within 0.01, labels (N,) in range(K); ValueError otherwise or for bins < 1.

    >>> table = reliability([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]], [0, 1, 1], bins=2)
    >>> table["counts"].tolist(), table["accuracy"].round(3).tolist()
    ([0, 3], [nan, 0.667])

    Source: Guo et al. (2017), section 2. Taught in: notebooks/03_fewshot.ipynb
    """
    p = _features(probabilities, "probabilities")
    truth = _labels(labels, *p.shape)
    if p.min() < 0 or np.abs(p.sum(axis=1) - 1).max() > 0.01:
        raise ValueError("probabilities must be 0 or more and sum to 1 in each row: give softmax(logits), not logits.")
    if bins < 1:
        raise ValueError(f"bins must be at least 1; got {bins}.")
    which = np.searchsorted(np.arange(1, bins) / bins, p.max(axis=1))  # (N,), the bin of each row
    counts = np.bincount(which, minlength=bins)
    size = np.where(counts > 0, counts, np.nan)  # an empty bin has no mean
    sure, right = (np.bincount(which, v, bins) / size for v in (p.max(axis=1), p.argmax(axis=1) == truth))
    return {"confidence": sure, "accuracy": right, "counts": counts}


def expected_calibration_error(probabilities: Any, labels: Any, *, bins: int = 15) -> float:
    """Mean gap between how sure a model is and how often it is right (equation ``eq-gda-ece``).

    Objective: ``ECE = sum_m n_m / N |accuracy_m - confidence_m|`` over the bins of :func:`reliability`, a share; 0
    for a calibrated model with endless rows. It depends on ``bins``, and with few rows a bin it is biased upwards.

    >>> round(expected_calibration_error([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]], [0, 1, 1], bins=1), 4)  # |2 / 3 - 0.8|
    0.1333

    Source: Guo et al. (2017), section 2. Taught in: notebooks/03_fewshot.ipynb
    """
    table = reliability(probabilities, labels, bins=bins)
    gap = np.abs(table["accuracy"] - table["confidence"])  # (bins,)
    return float(np.nansum(table["counts"] * gap) / table["counts"].sum())


def fit_temperature(logits: Any, labels: Any) -> float:
    """The temperature by which logits are best divided before the softmax (equation ``eq-gda-temperature``).

    Objective: ``T = argmin_T -mean_n log softmax(z_n / T)_{y_n}``, convex in the inverse temperature 1 / T. With the
    gaps ``g_nj = z_nj - z_{n y_n}`` its derivative in 1 / T is ``mean_n sum_j softmax(z_n / T)_j g_nj``; Brent's method
    finds where that is 0. One number for all rows and classes, so no prediction changes. Fit it on rows that are
    neither training nor test rows.

    Logits (N, K), labels (N,) in range(K). T is sought in :data:`TEMPERATURES`. Where the likelihood still rises at an
    end of that range (every row right: T falls; no better than guessing: T grows), that end is returned with a warning.

    >>> round(fit_temperature([[2.0, 0.0]] * 4, [0, 0, 0, 1]), 4)  # sigmoid(2 / T) = 3 / 4, so T = 2 / log 3
    1.8205

    Source: Guo et al. (2017), section 4.2. Taught in: notebooks/03_fewshot.ipynb
    """
    z = _features(logits, "logits")
    truth = _labels(labels, *z.shape)
    gaps = z - z[np.arange(len(z)), truth][:, None]  # (N, K), 0 at the true class

    def slope(log_t: float) -> float:
        return float((softmax(gaps / np.exp(log_t), axis=1) * gaps).sum(axis=1).mean())

    low, high = np.log(TEMPERATURES)
    if slope(low) > 0 > slope(high):
        return float(np.exp(brentq(slope, low, high, xtol=1e-12)))
    end, why = (0, "are all rows right?") if slope(low) <= 0 else (1, "are the logits no better than guessing?")
    warnings.warn(f"the likelihood still rises at T = {TEMPERATURES[end]:g}: {why} Taking that T.", stacklevel=2)
    return TEMPERATURES[end]


def mcnemar(first: Any, second: Any) -> float:
    """Two-sided exact p-value that two models are equally good on the same rows.

    Objective: rows that both solve or both miss say nothing. Of the m others, the number won by the first is
    Binomial(m, 1/2) under the null; the p-value is the probability of a split at least this uneven.

    Two boolean arrays (n,), True where the model was right; 1.0 when no row separates them. ValueError otherwise.

    >>> mcnemar([True] * 5 + [False], [False] * 5 + [False])  # 5 wins to 0: 2 * (1/2)^5
    0.0625

    Source: McNemar (1947). Taught in: notebooks/09_diva.ipynb
    """
    a, b = _numpy(first), _numpy(second)
    if a.shape != b.shape or a.ndim != 1 or a.dtype != bool or b.dtype != bool:
        raise ValueError(f"need two boolean arrays of one length; got {a.dtype} {a.shape} and {b.dtype} {b.shape}.")
    won, lost = int((a & ~b).sum()), int((b & ~a).sum())
    return float(binomtest(won, won + lost, 0.5).pvalue) if won + lost else 1.0


def holm(p_values: Any) -> Floats:
    """Adjusted p-values of several tests: reject those at most 0.05, and any false rejection has chance 0.05 at most.

    Objective: with the m values sorted, ``adjusted_(i) = max over j <= i of min(1, (m - j + 1) p_(j))``. No assumption
    on how the tests depend on each other; never less powerful than Bonferroni's ``m p``.

    Takes (m,) numbers in [0, 1] and returns (m,) in their order. ValueError when there are none, or for any other.

    >>> holm([0.25, 0.0625, 0.125]).tolist()  # 3 / 16, then 2 / 8, then 1 / 4
    [0.25, 0.1875, 0.25]

    Source: Holm (1979). Taught in: notebooks/09_diva.ipynb
    """
    p = _numpy(p_values).astype(np.float64)
    if p.ndim != 1 or not len(p) or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p_values must be one or more numbers in [0, 1], in one dimension; got {p_values!r}.")
    order, adjusted = p.argsort(), np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(np.minimum(np.arange(len(p), 0, -1) * p[order], 1.0))
    return adjusted


def from_torch(values: Any) -> Any:
    """A tensor of any device and precision as a NumPy array (floats as float64); anything else as it came."""
    if not hasattr(values, "detach"):
        return values
    values = values.detach().cpu()
    return (values.double() if values.is_floating_point() else values).numpy()  # NumPy has no bfloat16


def _numpy(values: Any) -> NDArray[Any]:
    return np.asarray(from_torch(values))


def _features(values: Any, name: str) -> Floats:
    """A finite, non-empty (n, D) float64 array, or an error that names the argument."""
    array = _numpy(values).astype(np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{name} must be a non-empty array of shape (rows, features); got {array.shape}.")
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        raise ValueError(f"{name} row {row} has a value that is not finite: drop the row or mend what made it.")
    return array


def _labels(labels: Any, rows: int, classes: int) -> NDArray[Any]:
    """Integer labels (rows,) in range(classes), or an error that names the first that is not."""
    truth = _numpy(labels)
    if truth.shape != (rows,):
        raise ValueError(f"labels must have shape ({rows},), one for each row; got {truth.shape}.")
    if not np.issubdtype(truth.dtype, np.integer):
        raise ValueError(f"labels must be integers in range({classes}); got dtype {truth.dtype}.")
    for bad in np.flatnonzero((truth < 0) | (truth >= classes))[:1]:
        raise ValueError(f"labels[{bad}] = {truth[bad]}, but there are {classes} classes (0 the first).")
    return truth


def _draw(labels: Any, wanted: NDArray[Any], seed: int) -> tuple[NDArray[np.int64], list[int]]:
    """``wanted`` (K,) random rows of each class, sorted by class, and the classes that have fewer."""
    truth = _numpy(labels)
    classes, order = np.unique(truth), np.random.default_rng(seed).permutation(len(truth))
    rows = [order[truth[order] == k][:n] for k, n in zip(classes, wanted, strict=True)]
    short = [int(k) for k, found, n in zip(classes, rows, wanted, strict=True) if len(found) < n]
    return np.concatenate(rows), short


def _level(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, such as 0.95; got {level}.")
    return level
