"""Predictions in, numbers with intervals out: zero-shot accuracy, image pairs, Wilson, bootstrap, McNemar.

Every function takes NumPy arrays or PyTorch tensors (any device) and returns plain floats or NumPy arrays.

References
----------
Wilson (1927), "Probable inference, the law of succession, and statistical inference", JASA 22.
Efron (1979), "Bootstrap methods: another look at the jackknife", Annals of Statistics 7.
McNemar (1947), "Note on the sampling error of the difference between correlated proportions", Psychometrika 12.
Tong et al. (2024), "Eyes wide shut? Exploring the visual shortcomings of multimodal LLMs" (the pair rule of MMVP-VLM).
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest
from scipy.stats import t as student

Floats = NDArray[np.float64]


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
    truth = _numpy(labels)
    if truth.shape != (len(images),):
        raise ValueError(f"labels must have shape ({len(images)},), one for each image; got {truth.shape}.")
    if not np.issubdtype(truth.dtype, np.integer):
        raise ValueError(f"labels must be integers in range({len(texts)}); got dtype {truth.dtype}.")
    if truth.min() < 0 or truth.max() >= len(texts):
        bad = int(np.flatnonzero((truth < 0) | (truth >= len(texts)))[0])
        raise ValueError(f"labels[{bad}] = {truth[bad]}, but text_features has {len(texts)} classes (0 the first).")
    return float(np.mean((images @ texts.T).argmax(axis=1) == truth))  # (N, K) -> (N,)


def pair_accuracy(image_a: Any, image_b: Any, text_a: Any, text_b: Any) -> NDArray[np.bool_]:
    """Which pairs are solved: each statement must pick its own image of the two.

    Objective: ``t_a . x_a > t_a . x_b`` **and** ``t_b . x_b > t_b . x_a``, strictly: a model that cannot tell the two
    images apart scores nothing. A coin thrown for each statement solves 25 % of the pairs.

    Four arrays (n, D) in, booleans (n,) out; their mean is the pair accuracy. ValueError when shapes differ or a value
    is not finite.

    >>> pair_accuracy([[1.0, 0.0]], [[0.0, 1.0]], [[0.9, 0.1]], [[0.2, 0.8]])
    array([ True])

    Source: Tong et al. (2024), section 2. Taught in: notebooks/04_diva.ipynb
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
    truth = _numpy(labels)
    order = np.random.default_rng(seed).permutation(len(truth))
    rows = [order[truth[order] == k][:shots] for k in np.unique(truth)]
    short = [int(k) for k, found in zip(np.unique(truth), rows, strict=True) if len(found) < shots]
    if short or shots < 1:
        raise ValueError(f"cannot draw {shots} rows of each class; classes with fewer: {short}.")
    return np.concatenate(rows)


def mcnemar(first: Any, second: Any) -> float:
    """Two-sided exact p-value that two models are equally good on the same rows.

    Objective: rows that both solve or both miss say nothing. Of the m others, the number won by the first is
    Binomial(m, 1/2) under the null; the p-value is the probability of a split at least this uneven.

    Two boolean arrays (n,), True where the model was right; 1.0 when no row separates them. ValueError otherwise.

    >>> mcnemar([True] * 5 + [False], [False] * 5 + [False])  # 5 wins to 0: 2 * (1/2)^5
    0.0625

    Source: McNemar (1947). Taught in: notebooks/04_diva.ipynb
    """
    a, b = _numpy(first), _numpy(second)
    if a.shape != b.shape or a.ndim != 1 or a.dtype != bool or b.dtype != bool:
        raise ValueError(f"need two boolean arrays of one length; got {a.dtype} {a.shape} and {b.dtype} {b.shape}.")
    won, lost = int((a & ~b).sum()), int((b & ~a).sum())
    return float(binomtest(won, won + lost, 0.5).pvalue) if won + lost else 1.0


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


def _level(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, such as 0.95; got {level}.")
    return level
