"""The GDA paper's experiments on a CLIP and an image set: pictures in, right and wrong answers out.

Every estimator is that of :mod:`minilib.gda`; here pictures are drawn, and what chooses alpha is kept apart from what
is fitted on and from what is tested on. Symbols as in :mod:`minilib.gda`.

References: Wang et al. 2024, "A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation" (ICLR, arXiv:2402.04087)
and its code.

Taught in: notebooks/03_fewshot.ipynb and notebooks/04_beyond.ipynb
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from minilib import datasets, evaluate
from minilib.features import class_embeddings, extract_features
from minilib.gda import GDA, ZeroShotGDA, fit_unsupervised, synthesize_classes
from minilib.models import Clip
from minilib.published import harmonic

HELD_OUT = 4  # rows of each class kept for alpha where a set has no validation split
UNLABELLED = 20_000  # pictures that EM gets at most
AREA, ASPECT = (0.5, 1.0), (3 / 4, 4 / 3)  # of random crops, as in the reference's code
VIEWS_AT_ONCE = 2048  # crops in memory: 300 MB at 224 pixels
REFERENCE: dict[str, Any] = {"alpha": "validation", "alpha_scale": "reference"}

Scores = dict[str, Any]  # metric -> booleans or differences of the test pictures (n,), or one number in its unit


# --- pictures ---------------------------------------------------------------------------------------------------------


class Bench:
    """A CLIP and an image set: features of splits, of training crops, and of what alpha may be chosen on.

    Test and validation pictures are prepared by the model's own transform. ``views`` crops stand for a training picture
    as rows of their own, as in the reference, so N counts views.

    Taught in: notebooks/03_fewshot.ipynb
    """

    def __init__(self, clip: Clip, images: Any, *, views: int = 10, cache: str | Path | None = None) -> None:
        if views < 0:
            raise ValueError(f"views must be 0 (the picture itself) or more; not {views}")
        self.clip, self.images, self.views, self.cache = clip, images, views, cache
        self.scale = clip.model.logit_scale.exp().item()
        self.texts = class_embeddings(clip, images.classnames, images.templates).double().numpy()  # (K, D)
        self._known: dict[str, NDArray[np.float32]] = {}

    def labels(self, split: str) -> NDArray[np.int64]:
        """(N,) of a split. ValueError, with the splits there are, for another."""
        if split not in self.images.splits:
            there = ", ".join(self.images.splits)
            raise ValueError(f"{self.images.name} has no split {split!r} here, only {there}: complete the data set")
        return np.asarray(self.images.splits[split].labels)

    def whole(self, split: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Features (N, D) and labels of all pictures of a split, in their order."""
        labels = self.labels(split)
        if split not in self._known:
            self._known[split] = self._features(self.images.splits[split].paths)
        return self._known[split], labels

    def training(self, rows: NDArray[np.int64], seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Features and labels of training pictures by their crops: (len(rows) * views, D), a picture's together."""
        train, labels = self.images.splits["train"], self.labels("train")[rows]
        if not self.views:
            return self._features([train.paths[i] for i in rows]), labels
        step, parts = max(1, VIEWS_AT_ONCE // self.views), []
        for part in (rows[i : i + step] for i in range(0, len(rows), step)):
            with ThreadPoolExecutor() as pool:  # PIL decodes and resizes outside Python's lock
                crops = list(pool.map(lambda i: self._crops(train.paths[i], seed, int(i)), part))
            pictures = np.concatenate(crops)  # (len(part) * views, 3, h, w)
            parts.append(extract_features(self.clip, pictures, cache=self.cache, progress=False).numpy())
        return np.concatenate(parts), labels.repeat(self.views)

    def held_out(self, rows: NDArray[np.int64], seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """What alpha is chosen on: the validation split, else some training rows that are not among ``rows``.

        ValueError where nothing is left. The reference takes ImageNet's test rows here; this never does.
        """
        if "val" in self.images.splits:
            return self.whole("val")
        labels = self.labels("train")
        left = np.random.default_rng([seed, 1]).permutation(np.setdiff1d(np.arange(len(labels)), rows))
        kept = [left[labels[left] == k][:HELD_OUT] for k in np.unique(labels[left])]
        if not kept:
            why = "no validation split, and all training rows are fitted on"
            raise ValueError(f"{self.images.name} has {why}: nothing is left to choose alpha on; take fewer shots")
        chosen = np.concatenate(kept)
        return self._features([self.images.splits["train"].paths[i] for i in chosen]), labels[chosen]

    def _features(self, paths: Sequence[Path]) -> NDArray[np.float32]:
        return extract_features(self.clip, list(paths), cache=self.cache, progress=False).numpy()

    def _crops(self, path: Path, seed: int, row: int) -> NDArray[np.uint8]:
        size = self.clip.model.visual.image_size
        side = size if isinstance(size, tuple) else (size, size)
        try:
            with Image.open(path) as file:
                picture = file.convert("RGB")
        except Exception as error:  # PIL raises many kinds for a damaged file
            raise ValueError(f"{path} cannot be read as a picture ({error}): mend the file") from error
        draws = (np.random.default_rng([seed, row, view]) for view in range(self.views))
        return np.stack([random_crop(picture, side, rng) for rng in draws])


def random_crop(picture: Image.Image, size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A random part of a picture, resized by bicubic interpolation and mirrored half of the time: (3, h, w) uint8.

    Objective: area uniform in 50 to 100 % of the picture, logarithm of the aspect ratio uniform between those of 3/4
    and 4/3, place uniform; the whole picture where ten draws do not fit into it.

    >>> picture = Image.fromarray(np.zeros((40, 60, 3), np.uint8))
    >>> random_crop(picture, (32, 32), np.random.default_rng(0)).shape
    (3, 32, 32)

    Source: Wang et al. 2024, code. Taught in: notebooks/03_fewshot.ipynb
    """
    width, height = picture.size
    box = (0, 0, width, height)
    for _ in range(10):
        area, ratio = width * height * rng.uniform(*AREA), np.exp(rng.uniform(*np.log(ASPECT)))
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            box = (left, top, left + w, top + h)
            break
    part = picture.crop(box).resize(size[::-1], Image.Resampling.BICUBIC)
    pixels = np.asarray(part)[:, ::-1] if rng.random() < 0.5 else np.asarray(part)  # (h, w, 3)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


# --- GDA --------------------------------------------------------------------------------------------------------------


def few_shot(bench: Bench, shots: int, seed: int) -> Scores:
    """The paper's few-shot classifier on the test split.

    Source: Wang et al. 2024, section 3. Taught in: notebooks/03_fewshot.ipynb
    """
    model = _fitted(bench, shots, seed)
    X, y = bench.whole("test")
    words = bench.scale * X @ bench.texts.T
    return {"top1": model.predict(X) == y, "zero-shot top1": words.argmax(1) == y, "alpha": model.alpha_}


def _fitted(bench: Bench, shots: int, seed: int) -> ZeroShotGDA:
    rows = datasets.few_shot(bench.images.splits["train"], shots, seed)
    model = ZeroShotGDA(bench.texts, logit_scale=bench.scale, **REFERENCE)
    return model.fit(*bench.training(rows, seed), *bench.held_out(rows, seed))


def base_to_new(bench: Bench, shots: int, seed: int) -> Scores:
    """Base classes with pictures, new ones with words only; each judged among its own.

    ValueError where the views of the base classes are too few for the un-ridged inverse.
    Source: Wang et al. 2024, base-to-new, and its code. Taught in: notebooks/04_beyond.ipynb
    """
    k = -(-len(bench.texts) // 2)  # base classes: the first half, one more of an odd number
    base, new = bench.texts[:k], bench.texts[k:]
    rows = datasets.few_shot(bench.images.splits["train"], shots, seed)
    rows = rows[bench.labels("train")[rows] < k]
    X, y = bench.training(rows, seed)
    X_val, y_val = bench.held_out(rows, seed)
    both = _plain_inverse(base, bench.scale, X.astype(np.float64), y, X_val[y_val < k], y_val[y_val < k])
    coef, intercept = synthesize_classes(X, y, new, n_neighbors=min(64, len(X)))
    X_test, y_test = bench.whole("test")
    here, there, truth = X_test[y_test < k], X_test[y_test >= k], y_test[y_test >= k] - k
    words = bench.scale * there @ new.T
    first = both.predict(here) == y_test[y_test < k]
    second = (words + both.alpha_ * (there @ coef.T + intercept)).argmax(1) == truth
    zero = (here @ base.T).argmax(1) == y_test[y_test < k], words.argmax(1) == truth
    both_ways = {"base": first, "new": second, "H": harmonic(100 * first.mean(), 100 * second.mean())}
    return both_ways | {"zero-shot base": zero[0], "zero-shot new": zero[1], "alpha": both.alpha_}


def _plain_inverse(
    texts: NDArray[Any], scale: float, X: NDArray[Any], y: NDArray[Any], X_val: NDArray[Any], y_val: NDArray[Any]
) -> ZeroShotGDA:
    k, (n, d) = len(texts), X.shape
    remedy = f"{n} rows of {k} classes in {d} dimensions have no plain inverse: raise views or shots"
    if n - k < d:
        raise ValueError(remedy)
    gda = GDA(covariance=lambda scatter, rows: scatter / (rows - k))
    try:
        return ZeroShotGDA(texts, gda=gda, logit_scale=scale, **REFERENCE).fit(X, y, X_val, y_val)
    except np.linalg.LinAlgError as error:
        raise ValueError(remedy) from error


def robustness(source: Bench, targets: Sequence[Bench], shots: int, seed: int) -> dict[str, Scores]:
    """The source's classifier on the test splits of other worlds: target -> scores.

    Source: Wang et al. 2024, out-of-distribution. Taught in: notebooks/04_beyond.ipynb
    """
    model = _fitted(source, shots, seed)
    found: dict[str, Scores] = {}
    for target in targets:
        X, y = target.whole("test")
        columns = class_columns(source.images.classnames, target.images.classnames)
        words = evaluate.map_classes(source.scale * X @ source.texts.T, columns)
        logits = evaluate.map_classes(model.decision_function(X), columns)
        found[target.images.name] = {"top1": logits.argmax(1) == y, "zero-shot top1": words.argmax(1) == y}
    return found


def class_columns(source: Sequence[str], target: Sequence[str]) -> list[list[int]]:
    """For each class of the target its column among the source's, by name: the 0/1 matrix, written as indices.

    The same list is the identity; a name that two source classes share gives both, and the larger logit counts.
    ValueError for a class that the source lacks.

    >>> class_columns(["cat", "dog", "owl"], ["owl", "cat"])
    [[2], [0]]

    Source: Wang et al. 2024, code. Taught in: notebooks/04_beyond.ipynb
    """
    if list(source) == list(target):
        return [[k] for k in range(len(source))]
    where: dict[str, list[int]] = {}
    for k, name in enumerate(source):
        where.setdefault(name, []).append(k)
    if missing := [name for name in target if name not in where]:
        raise ValueError(f"{len(missing)} of the target's {len(target)} classes are unknown to the source, such as "
                         f"{missing[0]!r}: both must use one list of names")  # fmt: skip
    return [where[name] for name in target]


def long_tail(bench: Bench) -> Scores:
    """All rows of a long-tailed training split, by both priors; test accuracy by how frequent a class was.

    Source: Wang et al. 2024, imbalanced learning; Liu et al. 2019. Taught in: notebooks/04_beyond.ipynb
    """
    rows = np.arange(len(bench.labels("train")))
    X, y = bench.training(rows, 0)
    X_val, y_val = bench.held_out(rows, 0)
    X_test, y_test = bench.whole("test")
    counts = np.bincount(bench.labels("train"), minlength=len(bench.texts))
    scores: Scores = {"zero-shot top1": (X_test @ bench.texts.T).argmax(1) == y_test}
    for prior in ("uniform", "empirical"):
        gda = GDA(priors=prior)
        model = ZeroShotGDA(bench.texts, gda=gda, logit_scale=bench.scale, **REFERENCE).fit(X, y, X_val, y_val)
        told = model.predict(X_test)
        groups = evaluate.accuracy_by_frequency(told, y_test, counts)
        scores[f"top1 ({prior} prior)"] = told == y_test
        scores |= {f"{g} ({prior} prior)": 100 * groups[g] for g in ("many", "medium", "few") if groups[g] == groups[g]}
    return scores


def unsupervised(bench: Bench, seed: int) -> Scores:
    """EM on unlabelled training pictures, with the anchor and without, judged on the test split.

    Source: ours, after Wang et al. 2024, unsupervised. Taught in: notebooks/04_beyond.ipynb
    """
    paths = bench.images.splits["train"].paths
    rows = np.sort(np.random.default_rng(seed).permutation(len(paths))[:UNLABELLED])
    X, _ = bench.training(rows, seed)
    X_test, y_test = bench.whole("test")
    zero = (X_test @ bench.texts.T).argmax(1) == y_test
    scores: Scores = {"zero-shot top1": zero}
    for name, anchor in (("anchored", 4.0), ("no anchor", 0.0)):
        told = fit_unsupervised(X, bench.texts, logit_scale=bench.scale, anchor=anchor).predict(X_test)
        scores[f"top1 ({name})"] = told == y_test
        scores[f"gain ({name})"] = (told == y_test).astype(float) - zero
    return scores
