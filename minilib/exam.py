"""Examine a CLIP: what its tower sees and what its text can reach, told apart, with intervals and tests.

Pairs and zero-shot ask the text tower to find what the picture shows; a probe asks the features alone. A pattern that a
probe can read and no statement can reach is seen, but not said.

References: Tong et al. 2024 (the pair rule, arXiv:2401.06209); Alain and Bengio 2017 (linear probes, arXiv:1610.01644);
Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 8 (data of several levels); Holm 1979.

Taught in: notebooks/09_diva.ipynb
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from minilib import evaluate, mmvp, world
from minilib.evaluate import Floats, from_torch, holm, mcnemar, mean_interval, wilson_interval
from minilib.features import class_embeddings
from minilib.gda import GDA
from minilib.models import Clip
from minilib.towers import Condition, select_tokens, visual_tokens

CHANCE = 0.25  # two statements, each right by a coin
DRAWS = 2000  # of every bootstrap
STRENGTH = 1.0  # C of the linear probe: scikit-learn's own


def pair_report(won: Any, patterns: Sequence[str], *, seed: int = 0) -> dict[str, Any]:
    """Score of one model on picture pairs, overall and by pattern, ready for JSON.

    Objective: the score is the mean over patterns of the share solved, as MMVP-VLM has it. Its interval is a percentile
    bootstrap of 95 %: pairs are drawn anew within each pattern, so that the patterns keep their sizes. A pattern's own
    interval is Wilson's.

    Args:
        won: (n,) booleans, from :func:`minilib.mmvp.solved`.
        patterns: the pattern of each pair, n strings.
        seed: decides the bootstrap.

    Returns:
        ``pairs`` (the score), ``interval``, ``chance`` (0.25), ``n``, ``won`` (their number), ``solved`` (n characters,
        1 for a pair that was won: :func:`read_solved`), and ``patterns``: name -> ``pairs``, ``interval``, ``n``,
        ``won``. Shares and ends of intervals lie in [0, 1].

    Raises:
        ValueError: values that are not booleans, no pairs, or another number of patterns.

    >>> report = pair_report([True, False, True, True], ["dot", "dot", "count", "count"])
    >>> report["pairs"], report["solved"], report["patterns"]["dot"]["pairs"]
    (0.75, '1011', 0.5)

    Source: Tong et al. 2024, section 2; Efron and Tibshirani 1993. Taught in: notebooks/09_diva.ipynb
    """
    right, strata = _booleans(won, "won", len(patterns)), _strata(patterns)
    table = {}
    for name, rows in strata.items():
        k, n = int(right[rows].sum()), len(rows)
        table[name] = {"pairs": k / n, "interval": list(wilson_interval(k, n)), "n": n, "won": k}
    return {
        "pairs": pattern_mean(right, patterns),
        "interval": _interval(_resampled(right[None].astype(float), strata, seed).mean(1)),
        "chance": CHANCE,
        "n": len(right),
        "won": int(right.sum()),
        "solved": "".join("01"[int(x)] for x in right),
        "patterns": table,
    }


def read_solved(text: str) -> NDArray[np.bool_]:
    """The booleans (n,) that a report's ``solved`` spells. ValueError for other characters.

    >>> read_solved("101")
    array([ True, False,  True])

    Taught in: notebooks/09_diva.ipynb
    """
    if set(text) - {"0", "1"}:
        raise ValueError(f"solved must be made of 0 and 1; not {text[:20]!r}")
    return np.array([c == "1" for c in text], dtype=bool)


def pattern_mean(values: Any, patterns: Sequence[str]) -> float:
    """Mean over patterns of each pattern's mean: every pattern counts alike, however many pairs it has.

    >>> pattern_mean([1, 0, 0, 1], ["dot", "dot", "dot", "count"])  # (1/3 + 1) / 2
    0.6666666666666666

    Taught in: notebooks/09_diva.ipynb
    """
    array = np.asarray(from_torch(values), dtype=float)
    return float(np.mean([array[rows].mean() for rows in _strata(patterns, len(array)).values()]))


def compare(first_won: Any, second_won: Any, patterns: Sequence[str], *, seed: int = 0) -> dict[str, Any]:
    """What the second model gains over the first on the same pairs, and whether that could be luck.

    Objective: ``gain`` is the mean over patterns of the difference of shares; its interval a paired bootstrap of 95 %
    (a pair is drawn with both models' answers) within patterns. ``p`` is McNemar's exact value over all pairs or a
    pattern's; ``p_holm`` is that of a pattern, adjusted for having looked at all of them.

    Two arrays (n,) of booleans and n strings. Returns ``gain``, ``interval``, ``won`` (pairs that only the second
    solves), ``lost`` (only the first), ``p``, and ``patterns``: name -> the same and ``p_holm``. ValueError as in
    :func:`pair_report`.

    >>> report = compare([False] * 6, [True] * 6, ["dot"] * 6)
    >>> report["gain"], report["won"], report["lost"], report["p"]  # 2 / 2^6
    (1.0, 6, 0, 0.03125)

    Source: McNemar 1947; Holm 1979. Taught in: notebooks/09_diva.ipynb
    """
    a, b = (_booleans(v, k, len(patterns)) for v, k in ((first_won, "first_won"), (second_won, "second_won")))
    strata = _strata(patterns)
    draws = _resampled((b.astype(float) - a)[None], strata, seed)  # (DRAWS, P)
    table = {name: _contest(a[rows], b[rows], draws[:, i]) for i, (name, rows) in enumerate(strata.items())}
    for row, p in zip(table.values(), holm([row["p"] for row in table.values()]), strict=True):
        row["p_holm"] = float(p)
    gain = float(np.mean([row["gain"] for row in table.values()]))
    return _contest(a, b, draws.mean(1)) | {"gain": gain, "patterns": table}


def _contest(a: NDArray[np.bool_], b: NDArray[np.bool_], draws: Floats) -> dict[str, Any]:
    won, lost = int((b & ~a).sum()), int((a & ~b).sum())
    return {"gain": (won - lost) / len(a), "interval": _interval(draws), "won": won, "lost": lost, "p": mcnemar(a, b)}


def combine(
    gains_by_seed: Mapping[Any, Any] | Sequence[Any], patterns: Sequence[str], *, seed: int = 0
) -> dict[str, Any]:
    """One gain from several seeds, each with a training of its own, and how sure it is.

    Objective: the mean over seeds of the mean over patterns of a pair's gain, -1, 0 or 1. ``interval`` is a bootstrap
    of 95 % on both levels: seeds are drawn anew, then pairs within each pattern, the same ones for all seeds drawn. So
    a pair that is easy for every seed counts as one finding; where each seed has pairs of its own it is valid too. Of
    few seeds a bootstrap knows too little, so ``student`` gives the t interval over the seeds' means: it speaks of
    other seeds on *these* pairs.

    Args:
        gains_by_seed: S rows (n,), second model's success minus the first's: a mapping from seed, or a sequence.
        patterns: the pattern of each pair, n strings, the same for every seed.
        seed: decides the bootstrap.

    Returns:
        ``gain``, ``interval``, ``student`` (None for a single seed), ``by_seed`` (S gains, in the order given),
        ``seeds`` (S), ``n``, and ``patterns``: name -> ``gain``, ``interval``.

    Raises:
        ValueError: no seeds, rows of another length, or values that are not finite.

    >>> report = combine({0: [1, 0], 1: [1, 1]}, ["dot", "dot"])
    >>> report["gain"], report["by_seed"], report["patterns"]["dot"]["gain"]
    (0.75, [0.5, 1.0], 0.75)

    Source: Efron and Tibshirani 1993, chapter 8; Student 1908. Taught in: notebooks/09_diva.ipynb
    """
    values, strata = _gains(gains_by_seed, len(patterns)), _strata(patterns)  # (S, n)
    by_seed, draws = [pattern_mean(row, patterns) for row in values], _resampled(values, strata, seed)
    table = {
        name: {"gain": float(values[:, rows].mean()), "interval": _interval(draws[:, i])}
        for i, (name, rows) in enumerate(strata.items())
    }
    return {
        "gain": float(np.mean(by_seed)),
        "interval": _interval(draws.mean(1)),
        "student": list(mean_interval(by_seed)) if len(by_seed) > 1 else None,
        "by_seed": by_seed,
        "seeds": len(by_seed),
        "n": len(patterns),
        "patterns": table,
    }


def probe(
    train_features: Any,
    train_attributes: Mapping[str, Any],
    test_features: Any,
    test_attributes: Mapping[str, Any],
    *,
    shots: int = 16,
    draws: int = 5,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """What features hold of each attribute, whether or not a text could say it.

    Objective: test accuracy of two classifiers that see the features alone. ``linear``: logistic regression on
    standardised features with all training rows, with scikit-learn's own squared penalty (C = 1), tuned on no rows.
    ``gda``: :class:`minilib.gda.GDA` from ``shots`` rows of each class, the mean of ``draws`` draws of rows.

    Args:
        train_features, test_features: (n, d) and (m, d).
        train_attributes, test_attributes: name -> integer classes (n,) and (m,); a row whose class is negative does not
            have the attribute and is left out of it.
        shots, draws, seed: rows of each class, how often they are drawn, and what decides them.

    Returns:
        Name -> ``linear``, ``gda``, ``chance`` (test accuracy of always naming the class most frequent in training),
        ``classes`` (their number in training).

    Raises:
        ValueError: attributes that differ in name or length from the other set's or the features'; fewer than two
            classes, or fewer than ``shots`` rows of one, by attribute.

    Source: Alain and Bengio 2017. Taught in: notebooks/09_diva.ipynb
    """
    if set(train_attributes) != set(test_attributes):
        raise ValueError(f"train and test must share their attributes; got {[*train_attributes]}, {[*test_attributes]}")
    report = {}
    for name in train_attributes:
        x, y = _having(train_features, train_attributes[name], name)
        new, truth = _having(test_features, test_attributes[name], name)
        counts = np.bincount(y)
        if (counts > 0).sum() < 2:
            raise ValueError(f"{name} has fewer than two classes among the training rows: a probe needs two")
        linear = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=2000)).fit(x, y)
        report[name] = {
            "linear": float((linear.predict(new) == truth).mean()),
            "gda": float(np.mean([_few_shot(x, y, new, truth, shots, seed + i, name) for i in range(draws)])),
            "chance": float((truth == counts.argmax()).mean()),
            "classes": int((counts > 0).sum()),
        }
    return report


def _few_shot(x: Floats, y: NDArray, new: Floats, truth: NDArray, shots: int, seed: int, name: str) -> float:
    try:
        rows = evaluate.few_shot_rows(y, shots, seed=seed)
    except ValueError as error:
        raise ValueError(f"{name}: {error} Give more training rows, or fewer shots.") from error
    return float((GDA().fit(x[rows], y[rows]).predict(new) == truth).mean())


def examine(
    clip: Clip,
    seed: int,
    *,
    pairs: int = 100,
    test: int = 2000,
    train: int = 2000,
    shots: int = 16,
    size: int = 32,
    readouts: Sequence[str] = mmvp.READOUTS,
) -> dict[str, Any]:
    """The toy world's whole examination of one model, decided by ``seed`` alone, ready for JSON.

    Objective: for each readout (:func:`minilib.mmvp.image_features`) the pairs; zero-shot accuracy on colour and shape,
    80 classes; and the probes, which learn on training scenes and are asked about test scenes. Direction is asked only
    of shapes that have one.

    Args:
        clip: any CLIP that knows the toy world's words.
        seed: pairs come from the world's seed ``3 * seed``, test scenes from ``3 * seed + 1``, and the scenes that the
            probes learn from, from ``3 * seed + 2``. Train on others.
        pairs, test, train, shots: pairs a pattern, scenes, and rows a class of the few-shot probe.
        size: side of the pictures in pixels.
        readouts: which to report.

    Returns:
        ``seed``, ``sizes`` (the five arguments), and ``readouts``: name -> all of :func:`pair_report`, and
        ``zero_shot``, ``zero_shot_interval`` (Wilson), ``zero_shot_chance`` (1 / 80), ``probes`` (:func:`probe`), and
        ``probe_mean`` (``linear``, ``gda``, ``chance``, averaged over attributes).

    Taught in: notebooks/09_diva.ipynb
    """
    asked = world.make_pairs(pairs, seed=3 * seed, size=size)
    new = world.make_scenes(test, seed=3 * seed + 1, size=size, split="test")
    seen = world.make_scenes(train, seed=3 * seed + 2, size=size)
    won, patterns = mmvp.solved(clip, asked, readouts), [pair.pattern for pair in asked]
    x, x_new = (mmvp.image_features(clip, scenes.images, readouts) for scenes in (seen, new))
    bank = class_embeddings(clip, world.CONCEPTS)
    report = {}
    for name in readouts:
        right = evaluate.zero_shot_accuracy(x_new[name], bank, new.concepts)
        probes = probe(x[name], _attributes(seen), x_new[name], _attributes(new), shots=shots, seed=seed)
        report[name] = pair_report(won[name], patterns, seed=seed) | {
            "zero_shot": right,
            "zero_shot_interval": list(wilson_interval(round(right * test), test)),
            "zero_shot_chance": 1 / len(world.CONCEPTS),
            "probes": probes,
            "probe_mean": {k: float(np.mean([p[k] for p in probes.values()])) for k in ("linear", "gda", "chance")},
        }
    sizes = {"pairs": pairs, "test": test, "train": train, "shots": shots, "size": size}
    return {"seed": seed, "sizes": sizes, "readouts": report}


class Drift:
    """Meters to read while a tower is trained: does it see more, can its text still follow, how far has it gone?

    A row holds ``step`` (steps taken), ``loss``, ``pairs`` (mean over patterns), ``distance`` (mean of one minus the
    cosine to the original feature), ``zero_shot`` where there are labels, and what ``extra`` measures. The first row is
    the original model's, its loss None. The object is a callback for :func:`minilib.diva.train`'s ``on_step``: after
    every ``every`` steps it adds a row to ``rows``. Its method ``measure`` is what ``meter`` takes.

    Args:
        original: the model before training.
        pairs: of :func:`minilib.world.make_pairs` or :func:`minilib.mmvp.read_mmvp`.
        images: uint8 (n, 3, h, w) or n paths, for distance and zero-shot.
        labels, names: integer classes (n,) of the images, and the K names of classes; both or neither.
        readout: see :func:`minilib.mmvp.image_features`.
        every: steps between rows.
        extra: name -> function of the model in training that returns a number, such as a check of your own, or
            ``lambda clip: visual_share(clip, condition, images)``.

    Raises:
        ValueError: ``every`` below one, labels without names or names without labels.

    Taught in: notebooks/09_diva.ipynb
    """

    rows: list[dict[str, Any]]

    def __init__(
        self,
        original: Clip,
        pairs: Sequence[mmvp.ImagePair] | Sequence[world.Pair],
        images: NDArray[np.uint8] | Tensor | Sequence[str | Path],
        labels: Any = None,
        names: Sequence[str] | None = None,
        *,
        readout: str = "pooled",
        every: int = 25,
        extra: Mapping[str, Callable[[Clip], float]] | None = None,
    ) -> None:
        if every < 1 or (labels is None) != (names is None):
            raise ValueError(
                f"every must be at least 1, not {every}, and labels and names go together: both or neither"
            )
        self.pairs, self.images, self.labels, self.names = pairs, images, labels, names
        self.readout, self.every, self.extra = readout, every, dict(extra or {})
        self.patterns = [pair.pattern for pair in pairs]
        self.home = self._features(original)
        self.rows = [{"step": 0, "loss": None} | self.measure(original)]

    @classmethod
    def toy(
        cls, original: Clip, seed: int, *, pairs: int = 30, test: int = 500, size: int = 32, **options: Any
    ) -> Drift:
        """Meters on the toy world: ``pairs`` a pattern from its seed ``3 * seed``, ``test`` scenes from the next.

        Choose another seed than that of the final examination: who steers by a meter has looked at it.
        """
        scenes = world.make_scenes(test, seed=3 * seed + 1, size=size, split="test")
        asked = world.make_pairs(pairs, seed=3 * seed, size=size)
        return cls(original, asked, scenes.images, scenes.concepts, world.CONCEPTS, **options)

    def __call__(self, step: int, loss: float, clip: Clip) -> None:
        """After step number ``step``, the first being 0."""
        if (step + 1) % self.every == 0:
            self.rows.append({"step": step + 1, "loss": float(loss)} | self.measure(clip))

    @torch.no_grad()
    def measure(self, clip: Clip) -> dict[str, float]:
        """The meters' numbers for one model, without step and loss."""
        won = mmvp.solved(clip, self.pairs, [self.readout])[self.readout]
        f = self._features(clip)
        row = {"pairs": pattern_mean(won, self.patterns), "distance": float((1 - (f * self.home).sum(1)).mean())}
        if self.names is not None:
            row["zero_shot"] = evaluate.zero_shot_accuracy(f, class_embeddings(clip, self.names), self.labels)
        return row | {name: float(meter(clip)) for name, meter in self.extra.items()}

    def _features(self, clip: Clip) -> Tensor:
        return mmvp.image_features(clip, self.images, [self.readout])[self.readout]


@torch.no_grad()
def visual_share(
    clip: Clip, condition: Condition, images: NDArray[np.uint8] | Tensor | Sequence[str | Path], how: str = "all"
) -> float:
    """Mean over pictures of the visual part's share of a condition's norm; see ``Condition.visual_share``.

    One batch of pictures, uint8 or paths; ``how`` chooses the tokens (:func:`minilib.towers.select_tokens`), a random
    choice being the same at every call. Taught in: notebooks/09_diva.ipynb
    """
    with mmvp.evaluation_mode(clip.model):
        tokens = visual_tokens(clip.model, mmvp.load_pixels(clip, images))
    chosen = select_tokens(tokens, how, generator=torch.Generator().manual_seed(0))
    return float(condition.visual_share(chosen.to(condition.project.weight)).mean())


def _resampled(values: Floats, strata: Mapping[str, NDArray[np.int64]], seed: int) -> Floats:
    """Bootstrap means (DRAWS, P) of values (S, n) by pattern: seeds drawn anew, and pairs, the same for all seeds."""
    rng = np.random.default_rng(seed)
    who = rng.integers(len(values), size=(DRAWS, len(values)))
    columns = []
    for rows in strata.values():
        pairs = rows[rng.integers(len(rows), size=(DRAWS, len(rows)))]
        columns.append(np.mean([values[slot[:, None], pairs].mean(1) for slot in who.T], axis=0))
    return np.stack(columns, axis=1)


def _interval(draws: Floats) -> list[float]:
    return [float(end) for end in np.quantile(draws, [0.025, 0.975])]


def _strata(patterns: Sequence[str], n: int | None = None) -> dict[str, NDArray[np.int64]]:
    """Rows of each pattern, in order of appearance."""
    if not len(patterns) or (n is not None and n != len(patterns)):
        raise ValueError(f"patterns must name one pattern for each pair; got {len(patterns)} for {n or 0} pairs")
    names = np.asarray(patterns)
    return {name: np.flatnonzero(names == name) for name in dict.fromkeys(patterns)}


def _booleans(values: Any, name: str, n: int) -> NDArray[np.bool_]:
    array = np.asarray(from_torch(values))
    if array.dtype != bool or array.shape != (n,) or not n:
        raise ValueError(f"{name} must be booleans, one for each of {n} patterns; got {array.dtype} {array.shape}")
    return array


def _gains(by_seed: Mapping[Any, Any] | Sequence[Any], n: int) -> Floats:
    rows = list(by_seed.values() if isinstance(by_seed, Mapping) else by_seed)
    gains = [np.asarray(from_torch(row), dtype=float) for row in rows]
    if not gains:
        raise ValueError("gains_by_seed must hold at least one seed; got none")
    for i, row in enumerate(gains):
        if row.shape != (n,) or not np.isfinite(row).all():
            raise ValueError(f"seed number {i} must have {n} finite gains, one for each pair; got {row.shape}")
    return np.stack(gains)  # (S, n)


def _having(features: Any, classes: Any, name: str) -> tuple[Floats, NDArray[np.int64]]:
    """The rows that have an attribute, float64, and their classes."""
    x, y = np.asarray(from_torch(features), dtype=float), np.asarray(from_torch(classes))
    if x.ndim != 2 or y.shape != x.shape[:1] or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"{name} must have one integer for each row of features {x.shape}; got {y.dtype} {y.shape}")
    return x[y >= 0], y[y >= 0]


def _attributes(scenes: world.Scenes) -> dict[str, NDArray[np.int64]]:
    directed = np.isin(scenes.attributes["shape"], world.DIRECTED)
    return scenes.attributes | {"direction": np.where(directed, scenes.attributes["direction"], -1)}
