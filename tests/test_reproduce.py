"""minilib reproduce: protocols against the reference's own formulas, selection kept from test rows, rows and plans."""

import argparse
import json
import socket
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
from PIL import Image

import minilib
from minilib import cli_reproduce, datasets, models, published, reproduce, trials, world, zoo
from minilib.published import AVERAGE
from minilib.reproduce import Job
from minilib.trials import Bench

pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(__file__).resolve().parent.parent
GRID = [0.0001, 0.001, 0.01, 0.1, 1.0, 10.0, 100.0]


def split(labels, paths=()) -> SimpleNamespace:
    return SimpleNamespace(labels=np.asarray(labels, dtype=np.int64), paths=list(paths))


class Drawn(Bench):
    """Gaussian features in place of pictures: text k and class mean k share a direction; a crop is a little noise."""

    def __init__(self, k=6, d=12, each=(30, 8, 20), *, seed=0, views=3, val=True, noise=0.5):
        rng = np.random.default_rng(seed)
        self.texts = unit(rng.normal(size=(k, d)))
        means = self.texts + 0.7 * rng.normal(size=(k, d)) / d**0.5
        self.scale, self.views, self._noise = 20.0, views, noise
        names = [name for name in ("train", "val", "test") if val or name != "val"]
        labels = {name: np.arange(k).repeat(n) for name, n in zip(("train", "val", "test"), each, strict=True)}
        self.rows = {n: unit(means[labels[n]] + noise * rng.normal(size=(len(labels[n]), d)) / d**0.5) for n in names}
        splits = {name: split(labels[name], [Path(str(i)) for i in range(len(labels[name]))]) for name in names}
        self.images = SimpleNamespace(name="drawn", classnames=[f"class {i}" for i in range(k)], splits=splits)

    def whole(self, name):
        return self.rows[name].astype(np.float32), self.labels(name)

    def training(self, rows, seed):
        views = max(self.views, 1)
        noise = [
            np.random.default_rng([seed, i, v]).normal(size=self.texts.shape[1]) for i in rows for v in range(views)
        ]
        X = self.rows["train"][rows].repeat(views, axis=0) + (0.05 * np.array(noise) if self.views else 0)
        return unit(X).astype(np.float32), self.labels("train")[rows].repeat(views)

    def _features(self, paths):
        return self.rows["train"][[int(str(path)) for path in paths]].astype(np.float32)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def first_rows(monkeypatch):
    """The draw of shots: rows of each class beginning at the seed, so that a test can draw them too."""
    monkeypatch.setattr(trials.datasets, "few_shot", shots_of)


def shots_of(part, shots, seed):
    return np.concatenate([np.flatnonzero(part.labels == k)[seed : seed + shots] for k in np.unique(part.labels)])


def chosen_alpha(words, gaussian, truth):
    """The reference's loop: an alpha is taken only when it is better than all before it."""
    best, alpha = -1.0, None
    for a in GRID:
        accuracy = ((words + a * gaussian).argmax(1) == truth).mean()
        if accuracy > best:
            best, alpha = accuracy, a
    return alpha


def classifier(X, y, P, k, prior=None):
    """W and b as the paper writes them, for a precision P."""
    mu = np.stack([X[y == i].mean(0) for i in range(k)])
    prior = np.full(k, 1 / k) if prior is None else prior
    return P @ mu.T, np.log(prior) - np.einsum("kd,de,ke->k", mu, P, mu) / 2


def ks(X, y, k):
    """D pinv((N - 1) Sigma + tr(Sigma) I), with the covariance of class-centred rows."""
    centred = X - np.stack([X[y == i].mean(0) for i in range(k)])[y]
    sigma, (n, d) = np.cov(centred.T), X.shape
    return d * np.linalg.pinv((n - 1) * sigma + np.trace(sigma) * np.eye(d))


# --- random crops -----------------------------------------------------------------------------------------------------


def test_crops_lie_within_their_bounds():
    """In a picture whose red is x and green is y, the values of a crop tell its edges: area, shape, place, mirror."""
    x, y = np.meshgrid(np.arange(200), np.arange(200))
    picture = Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))
    areas, ratios, mirrored, lefts = [], [], [], []
    for i in range(300):
        red, green, _ = trials.random_crop(picture, (100, 100), np.random.default_rng(i)).astype(int)
        width, height = np.ptp(red) + 1, np.ptp(green) + 1
        areas.append(width * height / 40_000)
        ratios.append(width / height)
        mirrored.append(red[50, 0] > red[50, -1])
        lefts.append(red.min())
        assert green[0, 50] < green[-1, 50], "pictures are never upside down"
    assert 0.47 < min(areas) < 0.55 and 0.9 < max(areas) <= 1.0
    assert 0.72 < min(ratios) < 0.85 and 1.2 < max(ratios) < 1.39
    assert 110 < sum(mirrored) < 190  # 150 +- 4.6 standard deviations
    assert len(set(lefts)) > 20


def test_a_picture_too_long_for_any_crop_is_taken_whole():
    """At 10 x 1000 pixels half of the area with a ratio of 4/3 at most needs a height of 61 or more."""
    wide = Image.fromarray(np.linspace(0, 255, 1000).astype(np.uint8)[None].repeat(10, 0)).convert("RGB")
    crop = trials.random_crop(wide, (32, 64), np.random.default_rng(0))
    assert crop.shape == (3, 32, 64) and crop.min() < 5 and crop.max() > 250


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Bench:
    """Three concepts as PNG files, through the shipped toy CLIP; three crops a picture."""
    folder, splits = tmp_path_factory.mktemp("toy"), {}
    for name, n, seed in (("train", 24, 1), ("val", 9, 2), ("test", 30, 3)):
        scenes = world.make_scenes(n, seed=seed, concepts=(3, 27, 61))
        paths = [folder / f"{name}-{i}.png" for i in range(n)]
        for path, image in zip(paths, scenes.images, strict=True):
            Image.fromarray(image.transpose(1, 2, 0)).save(path)
        splits[name] = split(np.searchsorted([3, 27, 61], scenes.concepts), paths)
    names = [world.CONCEPTS[k] for k in (3, 27, 61)]
    images = SimpleNamespace(name="toy", classnames=names, templates=("a photo of a {}",), splits=splits)
    return Bench(models.load_clip("toy", device="cpu"), images, views=3)


def test_views_depend_on_seed_row_and_view_alone(toy):
    """Rows in another order, or with others beside them, have the same crops; another seed has others."""
    X, y = toy.training(np.array([4, 1]), seed=7)
    again, _ = toy.training(np.array([1, 9, 4]), seed=7)
    other, _ = toy.training(np.array([4, 1]), seed=8)
    np.testing.assert_allclose(X[:3], again[6:], atol=1e-5)
    np.testing.assert_allclose(X[3:], again[:3], atol=1e-5)
    assert np.abs(X - other).max() > 0.01 and np.abs(X[0] - X[1]).max() > 0.01
    assert y.tolist() == toy.labels("train")[[4, 4, 4, 1, 1, 1]].tolist()


def test_no_views_is_the_test_transform(toy):
    plain = Bench(toy.clip, toy.images, views=0)
    rows = np.array([5, 0])
    np.testing.assert_allclose(plain.training(rows, 3)[0], plain.whole("train")[0][rows], atol=1e-6)


def test_a_damaged_picture_is_named(toy, tmp_path):
    (tmp_path / "torn.png").write_bytes(b"no picture")
    torn = SimpleNamespace(**vars(toy.images) | {"splits": {"train": split([0], [tmp_path / "torn.png"])}})
    with pytest.raises(ValueError, match=r"torn\.png cannot be read as a picture"):
        Bench(toy.clip, torn, views=1).training(np.array([0]), 0)


# --- what alpha is chosen on ------------------------------------------------------------------------------------------


def test_alpha_is_chosen_on_the_validation_split_where_there_is_one():
    bench = Drawn()
    X, y = bench.held_out(np.arange(5), 0)
    np.testing.assert_array_equal(X, bench.whole("val")[0])
    np.testing.assert_array_equal(y, bench.labels("val"))


def test_without_a_validation_split_other_training_rows_serve():
    """ImageNet has none: four rows a class, none of them fitted on, none of them a test row."""
    bench = Drawn(val=False)
    rows = shots_of(bench.images.splits["train"], 16, 1)
    X, y = bench.held_out(rows, seed=1)
    train, _ = bench.whole("train")
    where = [int(np.flatnonzero((train == x).all(1))[0]) for x in X]
    assert np.bincount(y).tolist() == [4] * 6 and len(set(where)) == 24 and not set(where) & set(rows.tolist())
    np.testing.assert_array_equal(bench.labels("train")[where], y)


def test_nothing_left_to_choose_on_is_an_error():
    bench = Drawn(val=False)
    with pytest.raises(ValueError, match="nothing is left to choose alpha on; take fewer shots"):
        bench.held_out(np.arange(len(bench.labels("train"))), 0)


@pytest.mark.parametrize("val", [True, False])
def test_test_rows_choose_nothing(val):
    """Other test labels and pictures leave alpha where it was; other held-out labels do not."""
    bench, alphas = Drawn(val=val, noise=1.5), []
    for change in (None, "test", "held"):
        if change == "test":
            bench.rows["test"] = unit(np.random.default_rng(5).normal(size=bench.rows["test"].shape))
            bench.images.splits["test"].labels = bench.labels("test")[::-1].copy()
        elif change == "held":
            X, y = bench.held_out(shots_of(bench.images.splits["train"], 4, 1), 1)
            bench.held_out = lambda rows, seed, kept=(X, (y + 1) % 6): kept
        alphas.append(trials.few_shot(bench, 4, 1)["alpha"])
    assert alphas[0] == alphas[1] != alphas[2]


# --- the experiments against the reference's formulas -----------------------------------------------------------------


@pytest.mark.parametrize("shots, seed", [(1, 1), (4, 2), (16, 3)])
def test_few_shot_is_the_references(shots, seed):
    bench = Drawn(noise=1.2)
    X, y = bench.training(shots_of(bench.images.splits["train"], shots, seed), seed)
    W, b = classifier(X.astype(float), y, ks(X.astype(float), y, 6), 6)
    told = {name: bench.rows[name] @ W + b for name in ("val", "test")}
    words = {name: bench.scale * bench.rows[name] @ bench.texts.T for name in ("val", "test")}
    alpha = chosen_alpha(words["val"], told["val"], bench.labels("val"))
    found, truth = trials.few_shot(bench, shots, seed), bench.labels("test")
    assert found["alpha"] == alpha
    np.testing.assert_array_equal(found["top1"], (words["test"] + alpha * told["test"]).argmax(1) == truth)
    np.testing.assert_array_equal(found["zero-shot top1"], words["test"].argmax(1) == truth)


def test_base_to_new_is_the_references():
    """Base: inverse of the mean of the classes' covariances. New: 64 neighbours and 16 texts, KS around each text."""
    bench, k, d = Drawn(k=7, noise=1.2), 4, 12  # seven classes: four are base
    X, y = bench.training(shots_of(bench.images.splits["train"], 16, 2), 2)
    X, y = X[y < k].astype(float), y[y < k]
    plain = np.linalg.pinv(np.mean([np.cov(X[y == i].T) for i in range(k)], axis=0))
    W, b = classifier(X, y, plain, k)
    base, new, val = bench.labels("test") < k, bench.labels("test") >= k, bench.labels("val") < k
    here, there = bench.rows["test"][base], bench.rows["test"][new]
    held = bench.rows["val"][val]
    alpha = chosen_alpha(20 * held @ bench.texts[:k].T, held @ W + b, bench.labels("val")[val])
    means, precision = [], 0
    for w in bench.texts[k:]:
        near = X[np.argsort(-X @ w)[:64]]
        sigma = (near - w).T @ (near - w) / 63
        means.append(np.concatenate([near, np.tile(w, (16, 1))]).mean(0))
        precision = precision + d * np.linalg.pinv(63 * sigma + np.trace(sigma) * np.eye(d)) / 3
    mu = np.array(means)
    gaussian = there @ precision @ mu.T + np.log(1 / 3) - np.einsum("kd,de,ke->k", mu, precision, mu) / 2
    first = (20 * here @ bench.texts[:k].T + alpha * (here @ W + b)).argmax(1) == bench.labels("test")[base]
    second = (20 * there @ bench.texts[k:].T + alpha * gaussian).argmax(1) == bench.labels("test")[new] - k
    found = trials.base_to_new(bench, 16, 2)
    assert found["alpha"] == alpha
    np.testing.assert_array_equal(found["base"], first)
    np.testing.assert_array_equal(found["new"], second)
    assert found["H"] == pytest.approx(200 / (1 / first.mean() + 1 / second.mean()))


def test_too_few_rows_for_a_plain_inverse():
    with pytest.raises(ValueError, match="3 rows of 3 classes in 12 dimensions have no plain inverse: raise views or"):
        trials.base_to_new(Drawn(views=0), 1, 0)


def test_robustness_carries_the_classifier():
    """The source itself is few-shot; a target of two classes is the product with a 0/1 matrix."""
    source, few = Drawn(noise=1.2), Drawn(noise=1.2, seed=0)
    few.images = SimpleNamespace(name="few", classnames=["class 4", "class 1"], splits={})
    keep = np.isin(source.labels("test"), [4, 1])
    few.rows = {"test": source.rows["test"][keep]}
    few.images.splits["test"] = split(np.where(source.labels("test")[keep] == 4, 0, 1))
    found = trials.robustness(source, [source, few], 4, 1)
    np.testing.assert_array_equal(found["drawn"]["top1"], trials.few_shot(source, 4, 1)["top1"])
    X, y = source.training(shots_of(source.images.splits["train"], 4, 1), 1)
    W, b = classifier(X.astype(float), y, ks(X.astype(float), y, 6), 6)
    chosen = np.zeros((6, 2))
    chosen[4, 0] = chosen[1, 1] = 1
    alpha = trials.few_shot(source, 4, 1)["alpha"]
    logits = 20 * few.rows["test"] @ source.texts.T + alpha * (few.rows["test"] @ W + b)
    np.testing.assert_array_equal(found["few"]["top1"], (logits @ chosen).argmax(1) == few.labels("test"))


def test_class_columns():
    assert trials.class_columns(["a", "b", "b"], ["b", "a"]) == [[1, 2], [0]]
    assert trials.class_columns(["a", "b", "b"], ["a", "b", "b"]) == [[0], [1], [2]]
    with pytest.raises(ValueError, match="1 of the target's 2 classes are unknown to the source, such as 'owl'"):
        trials.class_columns(["a"], ["a", "owl"])


def tailed() -> Drawn:
    """120, 30 and 6 training rows: many, medium and few."""
    bench = Drawn(k=3, each=(120, 10, 40), views=0, noise=1.5)
    kept = np.concatenate([np.arange(120), 120 + np.arange(30), 240 + np.arange(6)])
    bench.rows["train"] = bench.rows["train"][kept]
    bench.images.splits["train"] = split(bench.labels("train")[kept], [Path(str(i)) for i in range(156)])
    return bench


@pytest.mark.parametrize("prior, pi", [("uniform", [1 / 3] * 3), ("empirical", [120 / 156, 30 / 156, 6 / 156])])
def test_long_tail_by_both_priors(prior, pi):
    bench = tailed()
    X, y = bench.rows["train"].astype(np.float32).astype(float), bench.labels("train")
    W, b = classifier(X, y, ks(X, y, 3), 3, np.array(pi))
    told = {name: bench.rows[name] @ W + b for name in ("val", "test")}
    words = {name: bench.scale * bench.rows[name] @ bench.texts.T for name in ("val", "test")}
    alpha = chosen_alpha(words["val"], told["val"], bench.labels("val"))
    right = (words["test"] + alpha * told["test"]).argmax(1) == bench.labels("test")
    found = trials.long_tail(bench)
    np.testing.assert_array_equal(found[f"top1 ({prior} prior)"], right)
    for group, rows in (("many", slice(0, 40)), ("medium", slice(40, 80)), ("few", slice(80, 120))):
        assert found[f"{group} ({prior} prior)"] == pytest.approx(100 * right[rows].mean())


def test_unsupervised_reads_no_label():
    """Other training labels give the same scores; the gain is the difference of two accuracies."""
    bench = Drawn(views=0, noise=1.2)
    before = trials.unsupervised(bench, 1)
    bench.images.splits["train"].labels = bench.labels("train")[::-1].copy()
    after = trials.unsupervised(bench, 1)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
    for how in ("anchored", "no anchor"):
        gain = before[f"top1 ({how})"].mean() - before["zero-shot top1"].mean()
        assert before[f"gain ({how})"].mean() == pytest.approx(gain)


def test_unsupervised_stops_at_its_limit(monkeypatch):
    """Above the limit the seed draws the pictures, without replacement."""
    monkeypatch.setattr(trials, "UNLABELLED", 50)
    bench, seen = Drawn(views=0), []
    plain = bench.training
    bench.training = lambda rows, seed: seen.append(rows) or plain(rows, seed)
    for seed in (1, 1, 2):
        trials.unsupervised(bench, seed)
    assert [len(set(rows.tolist())) for rows in seen] == [50] * 3
    assert (seen[0] == seen[1]).all() and (seen[0] != seen[2]).any()


# --- intervals and rows -----------------------------------------------------------------------------------------------


def test_several_seeds_have_a_t_interval():
    """Accuracies 50, 60 and 70: mean 60, sd 10, t with 2 degrees 4.302653, half-width 4.302653 * 10 / sqrt(3)."""
    runs = [{"top1": np.arange(10) < n, "alpha": 1.0} for n in (5, 6, 7)]
    top, alpha = reproduce.summary(runs)
    assert top["value"] == pytest.approx(60) and top["sd"] == pytest.approx(10)
    assert top["by_seed"] == pytest.approx([50, 60, 70])
    assert top["interval"] == pytest.approx([60 - 24.8414, 60 + 24.8414], abs=1e-3)
    assert top["interval_kind"] == "t over 3 seeds" and alpha["unit"] == "ratio" and alpha["value"] == 1


def test_one_run_has_an_interval_over_pictures():
    """Wilson for right and wrong; a bootstrap for differences, about 1.96 standard errors; none for other numbers."""
    gain = np.array([1.0] * 300 + [0.0] * 600 + [-1.0] * 100)
    top, change, h = reproduce.summary([{"top1": np.arange(100) < 80, "gain": gain, "many": 30.0}])
    z2 = 1.959964**2
    centre, half = (80 + z2 / 2) / (100 + z2), (z2 * (0.16 / 100 + z2 / 40_000)) ** 0.5 / (1 + z2 / 100)
    assert top["interval"] == pytest.approx([100 * (centre - half), 100 * (centre + half)], abs=1e-3)
    assert top["interval_kind"] == "Wilson, 100 pictures" and top["sd"] is None
    wide = 196 * (0.4 - 0.04) ** 0.5 / 1000**0.5
    assert change["value"] == pytest.approx(20) and change["unit"] == "points"
    assert change["interval"] == pytest.approx([20 - wide, 20 + wide], abs=0.5)
    assert h["interval"] is None and h["interval_kind"] == "none: one run"


def test_both_conventions_of_h():
    """Seeds (80, 40) and (60, 60): the H are 53.33 and 60, mean 56.67; of the means 70 and 50 it is 58.33."""
    half = np.arange(100)
    runs = [{"base": half < b, "new": half < n, "H": 2 * b * n / (b + n)} for b, n in ((80, 40), (60, 60))]
    found = {one["metric"]: one["value"] for one in reproduce.summary(runs)}
    assert found["H"] == pytest.approx(56.6667, abs=1e-3)
    assert found["H of means"] == pytest.approx(58.3333, abs=1e-3)


@pytest.fixture
def served(toy, monkeypatch):
    """Every named set is the toy one, under its own name."""

    def load(name, root):
        return SimpleNamespace(**vars(toy.images) | {"name": name})

    monkeypatch.setattr(reproduce.datasets, "load", load)
    return {"data_root": "here", "device": "cpu", "backbone": "toy", "views": 1, "seeds": (1, 2)}


def test_a_row_stands_beside_the_published(served, monkeypatch):
    """The log gives DTD at 16 shots of RN50; the same from other weights stands beside nothing."""
    log = next(f for f in published.read_published()
               if f.key == ("gda-fewshot", "dtd", "RN50", "4") and f.metric == "top1")  # fmt: skip
    monkeypatch.setattr(reproduce, "load", lambda name, device, pretrained=None: models.load_clip("toy", device="cpu"))
    [row] = reproduce.run(Job("gda-fewshot", "dtd", shots=4, **served | {"backbone": "RN50"}))
    top = next(one for one in row["results"] if one["metric"] == "top1")
    assert (top["reference_log"], top["paper"], top["difference_from"]) == (log.value, None, "reference log")
    assert top["difference"] == pytest.approx(top["value"] - log.value)
    assert "4 pictures a class, seeds 1, 2" in row["protocol"] and "whole validation split" in row["protocol"]
    [other] = reproduce.run(Job("gda-fewshot", "dtd", shots=4, pretrained="my/own.pt", **served | {"backbone": "RN50"}))
    assert other["backbone"] == "RN50 with own.pt"
    assert all(one["reference_log"] is None for one in other["results"])
    assert not any("my/" in str(value) for value in other.values()), "no path of this machine"


@pytest.mark.parametrize("task", ["gda-fewshot", "gda-robustness", "gda-longtail", "gda-unsupervised"])
def test_a_run_is_a_sound_row(served, task, tmp_path):
    """Twice the same job: the same numbers, and rows that the page accepts."""
    job = Job(task, "imagenet-r" if task == "gda-robustness" else "dtd", shots=2, **served)
    first, second = reproduce.run(job), reproduce.run(job)
    assert [row["results"] for row in first] == [row["results"] for row in second]
    for row in first:
        published.write_row(row, tmp_path)
    [back] = published.read_rows(tmp_path)
    assert back["shots"] == (2 if task in ("gda-fewshot", "gda-robustness") else None)
    values = [one["value"] for one in back["results"] if one["unit"] == "%"]
    assert values and all(0 <= value <= 100 for value in values)


def test_models_and_features_are_shared_between_jobs(served, monkeypatch):
    loads = []
    monkeypatch.setattr(reproduce, "load", lambda *a: loads.append(a) or models.load_clip("toy", device="cpu"))
    benches = {}
    for dataset, shots in (("dtd", 1), ("dtd", 2), ("eurosat", 1)):
        reproduce.run(Job("gda-fewshot", dataset, shots=shots, **served), benches)
    assert len(loads) == 1 and len(benches) == 2


@pytest.mark.parametrize(
    "job, message",
    [
        (Job("gda"), "task must be one of gda-fewshot"),
        (Job("gda-fewshot", seeds=()), "task must be"),
        (Job("gda-fewshot", "dtd", "toy", 1), "needs the folder that holds the data: --data-root"),
        (Job("gda-fewshot", "dtd", shots=1, data_root="x"), "needs --dataset and --backbone"),
        (Job("diva-mmvp"), "needs the folder"),
        (Job("curate-stats"), "needs a pool and a list of entries"),
    ],
)
def test_what_is_missing_is_named(job, message):
    with pytest.raises(ValueError, match=message):
        reproduce.run(job)


def test_shots_are_named(served):
    with pytest.raises(ValueError, match="needs pictures a class, such as --shots 16; not None"):
        reproduce.run(Job("gda-fewshot", "dtd", **served))


def test_the_commit_is_gits():
    asked = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    if asked.returncode:
        pytest.skip("this is no clone")
    assert reproduce.commit().removesuffix(" + changes") == asked.stdout.strip()


def test_outside_a_clone_there_is_no_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(reproduce, "__file__", str(tmp_path / "minilib" / "reproduce.py"))
    assert reproduce.clone() is None and reproduce.commit() is None
    assert reproduce.provenance("cpu")["versions"]["minilib"] == minilib.__version__


# --- pairs ------------------------------------------------------------------------------------------------------------

TYPES = {"Camera Perspective": "viewpoint", "Color": "colour", "Orientation": "orientation", "Presence": "presence",
         "Quantity": "count", "Spatial": "position", "State": "state", "Structural Character": "structure",
         "Text": "text"}  # fmt: skip


@pytest.fixture
def mmvp_folder(tmp_path) -> Path:
    """Nine types of one pair each, pictures and statements of the toy world."""
    pairs, lines = world.make_pairs(1, seed=0), ["Question ID,Type,Statement"]
    for i, (kind, pair) in enumerate(zip(TYPES, pairs, strict=True)):
        (tmp_path / "MMVP_VLM_Images" / kind).mkdir(parents=True)
        for k, side in enumerate("ab"):
            lines.append(f'{2 * i + 1 + k},{kind},"{getattr(pair, f"statement_{side}")}"')
            image = getattr(pair, f"image_{side}").transpose(1, 2, 0)
            Image.fromarray(image).save(tmp_path / "MMVP_VLM_Images" / kind / f"{2 * i + 1 + k}.png")
    (tmp_path / "Questions.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_pairs_before_and_after(mmvp_folder):
    """The toy after the blind toy, from its own file: scores are those of each alone, the gain is their difference."""
    weights = str(models.WEIGHTS / "clip-toy")
    job = Job("diva-mmvp", backbone="toy-blind", data_root=str(mmvp_folder), device="cpu", pretrained=weights)
    [row] = reproduce.run(job)
    found = {one["metric"]: one["value"] for one in row["results"]}
    pairs = reproduce.mmvp.read_mmvp(mmvp_folder)
    for when, name in (("before", "toy-blind"), ("after", "toy")):
        solved = reproduce.mmvp.solved(models.load_clip(name, device="cpu"), pairs)
        assert found[when] == pytest.approx(100 * solved["pooled"].mean())
        assert found[f"{when} (local)"] == pytest.approx(100 * solved["local"].mean())
        patterns = {TYPES[pair.pattern]: 100 * won for pair, won in zip(pairs, solved["pooled"], strict=True)}
        assert {k: found[f"{when}, {k}"] for k in patterns} == patterns
    assert found["gain"] == pytest.approx(found["after"] - found["before"])
    assert row["settings"]["pretrained"] == "clip-toy" and row["backbone"] == "toy-blind"


def test_pairs_of_one_model_twice_gain_nothing(mmvp_folder):
    weights = str(models.WEIGHTS / "clip-toy")
    given = {"data_root": str(mmvp_folder), "device": "cpu", "pretrained": weights}
    [row] = reproduce.run(Job("diva-mmvp", backbone="toy", before=weights, **given))
    gain = next(one for one in row["results"] if one["metric"] == "gain")
    assert gain["value"] == 0 and gain["interval"] == [0, 0] and "McNemar p = 1" in gain["interval_kind"]
    [alone] = reproduce.run(Job("diva-mmvp", backbone="toy", **given | {"pretrained": None}))
    assert not [one for one in alone["results"] if one["metric"].startswith(("after", "gain"))]


def test_the_benchmarks_types_are_the_papers_nine():
    assert {kind: reproduce._pattern(kind) for kind in TYPES} == TYPES
    published_names = {f.metric.removeprefix("before, ") for f in published.read_published() if "before, " in f.metric}
    assert set(TYPES.values()) == published_names
    assert reproduce._pattern("Positional and Relational Context") == "position"
    assert reproduce._pattern("Smell") == "smell"


# --- curation ---------------------------------------------------------------------------------------------------------


def test_counts_of_a_pool_by_hand(tmp_path):
    """Four texts and three entries: cat is in three, red in two, owl in none; one text has no match. At t = 2 the head
    is cat alone: p is 2/3 for cat and 1 for red, so the three texts are kept with chance 1, 2/3 and 1."""
    pytest.importorskip("numba", reason="the extra curate has it")
    texts = ["a red cat", "cat", "a cat , red", "dog"]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "entries.txt").write_text("cat\nred\nowl\n")
    given = {"pool": (str(tmp_path / "pool.jsonl"),), "metadata": str(tmp_path / "entries.txt")}
    [row] = reproduce.run(Job("curate-stats", t=2, seeds=(0,), **given))
    found = {one["metric"]: one["value"] for one in row["results"]}
    kept = 1 + 2 / 3 + 1
    assert found == pytest.approx({
        "entries": 3, "texts": 4, "texts with a match": 3, "texts kept": kept, "t": 2, "matches": 5, "head entries": 1,
        "matches in head entries": 3, "matches a text": 5 / 4, "share in head entries": 60,
    })  # fmt: skip
    share = next(one for one in row["results"] if one["metric"] == "share in head entries")
    texts_row = next(one for one in row["results"] if one["metric"] == "texts")
    assert share["paper"] == 94.4 and share["difference"] == pytest.approx(60 - 94.4)
    assert texts_row["paper"] == 1.6e9 and texts_row["difference"] is None


# --- the command ------------------------------------------------------------------------------------------------------


def command(*words: str) -> None:
    parser = argparse.ArgumentParser()
    cli_reproduce.add_commands(parser)
    args = parser.parse_args(list(words))
    args.run(args)


def test_one_command_many_rows(served, tmp_path, capsys):
    """Two sets at two numbers of shots: four rows in the JSON, four files in the ledger, all of one content."""
    out, folder = tmp_path / "out.json", tmp_path / "rows"
    command("gda-fewshot", "--dataset", "dtd,eurosat", "--shots", "1,2", "--seeds", "1,2", "--views", "1", "--backbone",
            "toy", "--data-root", "here", "--device", "cpu", "--out", str(out), "--ledger", str(folder))  # fmt: skip
    rows, kept = json.loads(out.read_text())["rows"], published.read_rows(folder)
    assert {published.key_of(row)[1:] for row in rows} == {
        (name, "toy", shots) for name in ("dtd", "eurosat") for shots in ("1", "2")
    }
    assert sorted(rows, key=published.key_of) == sorted(kept, key=published.key_of)
    printed = capsys.readouterr().out
    table = [line for line in printed.splitlines() if line.startswith(("dtd ", "eurosat "))]
    assert len(table) == 4 * len(rows[0]["results"]) and "protocol: " in printed
    assert {line.index("toy") for line in table} == {printed.index("backbone") - printed.index("set   ")}


def test_all_means_the_papers_sets(served, monkeypatch):
    seen = []
    monkeypatch.setattr(reproduce, "run", lambda job, benches: seen.append(job) or [])
    command("gda-fewshot", "--dataset", "all", "--data-root", "x")
    command("gda-longtail", "--dataset", "all", "--data-root", "x")
    command("gda-robustness", "--data-root", "x")
    few, tails, shifts = seen[:55], seen[55:57], seen[57:]
    assert {(job.dataset, job.shots) for job in few} == {(n, s) for n in published.ELEVEN for s in (1, 2, 4, 8, 16)}
    assert {(job.views, job.seeds, job.backbone) for job in few} == {(10, (1, 2, 3), "RN50")}
    assert [(job.dataset, job.views) for job in tails] == [("imagenet-lt", 0), ("places-lt", 0)]
    assert [(job.dataset, job.backbone, job.shots) for job in shifts] == [("all", "ViT-B/16", 16)]


def test_robustness_runs_five_worlds(served):
    rows = reproduce.run(Job("gda-robustness", "all", shots=2, **served))
    assert [row["dataset"] for row in rows] == [
        "imagenet",
        "imagenet-v2",
        "imagenet-sketch",
        "imagenet-a",
        "imagenet-r",
    ]


@pytest.mark.parametrize(
    "words, message",
    [
        (["gda-fewshot", "--dataset", "dtd", "--shots", "one"], "shots must be whole numbers from 1 on"),
        (["gda-fewshot", "--dataset", "dtd", "--shots", "0"], "shots must be whole numbers from 1 on"),
        (["gda-fewshot", "--dataset", "dtd,dtd"], "dataset must be named once each"),
        (["gda-fewshot", "--dataset", "dtd", "--seeds", ""], "seeds must be whole numbers from 0 on"),
        (
            ["gda-fewshot", "--dataset", "dtd", "--out", "no/such/file.json"],
            "out must be a file in a folder that exists",
        ),
        (
            ["gda-fewshot", "--dataset", "dtd", "--data-root", "x", "--views", "-1", "--backbone", "toy"],
            "views must be 0",
        ),
    ],
)
def test_bad_flags_are_named(served, words, message):
    with pytest.raises(ValueError, match=message):
        command(*words)


def test_a_ledger_without_a_name_needs_a_clone(monkeypatch):
    monkeypatch.setattr(reproduce, "clone", lambda: None)
    with pytest.raises(ValueError, match="--ledger FOLDER"):
        command("gda-fewshot", "--dataset", "dtd", "--ledger")
    monkeypatch.setattr(reproduce, "clone", lambda: Path("clone"))
    assert cli_reproduce._ledger("") == Path("clone/book/reproductions") and cli_reproduce._ledger(None) is None


@pytest.fixture
def cut_off(monkeypatch):
    """No socket can be opened."""

    def refuse(*args, **options):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def files(folder: Path) -> dict[Path, float]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_plan_counts_passes_and_writes_nothing(served, cut_off, tmp_path, monkeypatch, capsys):
    """Three classes, 10 views, 3 seeds: 1 and 2 shots are 90 and 180 crops; 30 test and 9 validation pictures once.
    The toy tower's FLOPs times 309 passes at 1 TFLOP/s and four bytes for each of 128 features."""
    monkeypatch.setenv("MINILIB_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    command("gda-fewshot", "--dataset", "dtd", "--shots", "1,2", "--backbone", "toy", "--data-root", "here", "--device",
            "cpu", "--out", str(tmp_path / "out.json"), "--ledger", str(tmp_path / "rows"), "--cache",
            str(tmp_path / "cache"), "--dry-run", "--tflops", "1")  # fmt: skip
    printed = capsys.readouterr().out
    assert "gda-fewshot, dtd, toy, 1 shots: 129 forward passes" in printed
    assert "gda-fewshot, dtd, toy, 2 shots: 180 forward passes" in printed
    assert "dtd/images: size not known, under --data-root" in printed
    assert "1 TFLOP/s on cpu" in printed and "an estimate" in printed and "nothing was downloaded or written" in printed
    assert not files(tmp_path)


def test_a_plan_names_what_is_missing(cut_off, tmp_path, monkeypatch, capsys):
    """RN50 in float32 is 4 bytes a parameter; without the data nothing is counted, and it says so."""
    monkeypatch.setenv("MINILIB_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    command(
        "gda-fewshot", "--dataset", "dtd", "--shots", "16", "--data-root", str(tmp_path), "--device", "cpu", "--dry-run"
    )
    printed = capsys.readouterr().out
    assert f"RN50/openai: about {4 * 102_007_137:,} bytes, to download" in printed
    assert "dtd/split: size not known, to download" in printed and "dtd is not there" in printed
    assert "leave out 1 of 1 settings" in printed
    assert "pictures not there, so not counted" in printed and f"memory: {4 * 102_007_137 / 1e9:.2f} GB" in printed
    assert not files(tmp_path)


def test_a_plan_for_pairs(mmvp_folder, cut_off, monkeypatch, tmp_path, capsys):
    """Nine pairs are 18 pictures, 36 passes for two models; the released weights have a size in the manifest."""
    monkeypatch.setenv("MINILIB_HOME", str(tmp_path / "home"))
    command("diva-mmvp", "--data-root", str(mmvp_folder), "--pretrained", "diva", "--device", "cpu", "--dry-run")
    printed = capsys.readouterr().out
    assert "36 forward passes" in printed and "diva/ViT-L-14: 1,710,613,445 bytes, to download" in printed


def test_a_plan_for_a_pool(cut_off, tmp_path, monkeypatch, capsys):
    """6,000 texts twice at 100,000 a second are 0.12 seconds; nothing is matched, so no list of entries is read."""
    pytest.importorskip("pyarrow", reason="the extra curate has it")
    (tmp_path / "pool.jsonl").write_text('{"text": "a cat"}\n' * 6000)
    before = files(tmp_path)
    command("curate-stats", "--pool", str(tmp_path / "pool.jsonl"), "--device", "cpu", "--dry-run")
    assert "pool: 1 shards, 0.00 GB, about 6,000 texts" in capsys.readouterr().out and files(tmp_path) == before


# --- from folders to rows ---------------------------------------------------------------------------------------------


def paint(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.transpose(1, 2, 0)).save(path)


def scenes(concepts, each: int, seed: int) -> list[tuple[int, np.ndarray]]:
    """(place in concepts, picture), as many of each."""
    made = [world.make_scenes(each, seed=seed + k, concepts=[concept]).images for k, concept in enumerate(concepts)]
    return [(k, image) for k, images in enumerate(made) for image in images]


@pytest.fixture
def eurosat(tmp_path, monkeypatch) -> Path:
    """EuroSAT as CoOp has it, its ten classes filled with toy concepts: 8, 2 and 4 pictures of each."""
    monkeypatch.undo()  # the draw of shots is the library's own here
    concepts, rows = list(range(0, 80, 8)), {}
    for part, each, seed in (("train", 8, 100), ("val", 2, 200), ("test", 4, 300)):
        rows[part] = []
        for i, (k, image) in enumerate(scenes(concepts, each, seed)):
            name = world.CONCEPTS[concepts[k]]
            rows[part].append([f"{name}/{part}_{i}.jpg", k, name])
            paint(tmp_path / "eurosat" / "2750" / name / f"{part}_{i}.jpg", image)
    (tmp_path / "eurosat" / "split_zhou_EuroSAT.json").write_text(json.dumps(rows))
    return tmp_path


@pytest.mark.parametrize(
    "task, more, metrics",
    [
        ("gda-fewshot", ["--shots", "4", "--views", "2"], {"top1", "zero-shot top1", "alpha"}),
        ("gda-base-to-new", ["--shots", "8", "--views", "4"],
         {"base", "new", "H", "H of means", "zero-shot base", "zero-shot new", "alpha"}),
        ("gda-unsupervised", ["--views", "0"],
         {"zero-shot top1", "top1 (anchored)", "top1 (no anchor)", "gain (anchored)", "gain (no anchor)"}),
    ],
)  # fmt: skip
def test_from_a_real_layout_to_the_page(eurosat, tmp_path, task, more, metrics):
    """Files in CoOp's layout, the shipped toy CLIP, the command: a row that the page shows beside the published."""
    command(task, "--dataset", "eurosat", "--backbone", "toy", "--seeds", "1,2", *more, "--data-root", str(eurosat),
            "--device", "cpu", "--cache", str(tmp_path / "cache"), "--ledger", str(tmp_path / "rows"))  # fmt: skip
    [row] = published.read_rows(tmp_path / "rows")
    assert {one["metric"] for one in row["results"]} == metrics
    main = next(one for one in row["results"] if one["metric"] in ("top1", "base", "top1 (anchored)"))
    assert main["value"] > 30, "ten classes: guessing is right in 10 of 100"
    page = published.page(published.read_published(), [row])
    assert len(lines_with(page, "eurosat", "toy")) == len(metrics)


def lines_with(page: str, *cells: str) -> list[str]:
    return [line for line in page.splitlines() if line.startswith("| " + " | ".join(cells) + " |")]


def test_a_cache_changes_no_number(eurosat, tmp_path):
    given = {"data_root": str(eurosat), "device": "cpu", "seeds": (1,), "views": 2, "shots": 2, "backbone": "toy"}
    found = [reproduce.run(Job("gda-fewshot", "eurosat", cache=cache, **given))[0]["results"]
             for cache in (None, str(tmp_path / "cache"), str(tmp_path / "cache"))]  # fmt: skip
    assert found[0] == found[1] == found[2] and list((tmp_path / "cache").iterdir())


def test_plan_and_run_agree_on_pictures(eurosat, monkeypatch, capsys):
    """4 shots of 10 classes, 2 views, 2 seeds are 160 crops; 20 validation and 40 test pictures."""
    passed = []
    plain = trials.extract_features
    monkeypatch.setattr(trials, "extract_features", lambda c, x, **o: passed.append(len(x)) or plain(c, x, **o))
    words = ["gda-fewshot", "--dataset", "eurosat", "--backbone", "toy", "--seeds", "1,2", "--shots", "4", "--views",
             "2", "--data-root", str(eurosat), "--device", "cpu"]  # fmt: skip
    command(*words, "--dry-run")
    assert not passed and "220 forward passes" in capsys.readouterr().out
    command(*words)
    assert sum(passed) == 220


WNIDS = ("n01", "n02", "n03", "n04")


@pytest.fixture
def imagenet(tmp_path, monkeypatch) -> Path:
    """ImageNet with four classes, its shifts (A with two of them, in folders of their own) and a long-tailed list."""
    monkeypatch.undo()
    for name, classes in (("imagenet", 4), ("imagenet-v2", 4), ("imagenet-sketch", 4), ("imagenet-a", 2),
                          ("imagenet-r", 2), ("imagenet-lt", 4)):  # fmt: skip
        monkeypatch.setitem(datasets.SETS, name, replace(datasets.SETS[name], classes=classes))
    concepts, places = (3, 27, 61, 44), {
        "imagenet/images/train": (30, 1), "imagenet/images/val": (6, 20),
        "imagenetv2/imagenetv2-matched-frequency-format-val": (3, 30), "imagenet-sketch/images": (3, 40),
        "imagenet-adversarial/imagenet-a": (3, 50), "imagenet-rendition/imagenet-r": (3, 60),
    }  # fmt: skip
    for place, (each, seed) in places.items():
        for i, (k, image) in enumerate(scenes(concepts, each, seed)):
            if place.endswith(("-a", "-r")) and k in (0, 2):
                continue
            folder = str(k) if "v2" in place else WNIDS[k]
            paint(tmp_path / place / folder / f"{i}.jpg", image)
    names = [f"{wnid} {world.CONCEPTS[k]}" for wnid, k in zip(WNIDS, concepts, strict=True)]
    (tmp_path / "imagenet" / "classnames.txt").write_text("\n".join(names) + "\n")
    (tmp_path / "imagenet-lt").mkdir()
    for part, source, sizes in (
        ("train", "train", (28, 14, 7, 3)),
        ("val", "val", (2,) * 4),
        ("test", "val", (6,) * 4),
    ):
        lines = []
        for k, wnid in enumerate(WNIDS):
            files = sorted((tmp_path / "imagenet" / "images" / source / wnid).iterdir())[-sizes[k] :]
            lines += [f"{source}/{wnid}/{file.name} {k}" for file in files]
        (tmp_path / "imagenet-lt" / f"ImageNet_LT_{part}.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_robustness_from_a_real_layout(imagenet, tmp_path, capsys):
    """Five worlds, five rows; the protocol says that alpha had rows of its own."""
    command("gda-robustness", "--backbone", "toy", "--shots", "4", "--seeds", "1,2", "--views", "2", "--data-root",
            str(imagenet), "--device", "cpu", "--ledger", str(tmp_path / "rows"))  # fmt: skip
    rows = {row["dataset"]: row for row in published.read_rows(tmp_path / "rows")}
    assert set(rows) == set(reproduce.SHIFTS)
    assert all("training pictures a class that are not fitted on" in row["protocol"] for row in rows.values())
    for name in rows:
        top, zero = rows[name]["results"][:2]
        assert (top["metric"], zero["metric"]) == ("top1", "zero-shot top1") and top["value"] > 50


def test_a_long_tail_from_a_real_layout(imagenet, tmp_path):
    """28, 14, 7 and 3 pictures: one medium class, three with few, none with many."""
    command("gda-longtail", "--dataset", "imagenet-lt", "--backbone", "toy", "--data-root", str(imagenet), "--device",
            "cpu", "--ledger", str(tmp_path / "rows"))  # fmt: skip
    [row] = published.read_rows(tmp_path / "rows")
    found = {one["metric"]: one for one in row["results"]}
    groups = {f"{group} ({prior} prior)" for group in ("top1", "medium", "few") for prior in ("uniform", "empirical")}
    assert set(found) == groups | {"zero-shot top1"}
    top = found["top1 (uniform prior)"]
    assert top["paper"] == 62.34 and top["difference"] is None, "the paper's backbone is not recorded"
    assert top["interval_kind"] == "Wilson, 24 pictures"
    parts = [found[f"{group} (uniform prior)"]["value"] for group in ("medium", "few")]
    assert top["value"] == pytest.approx((parts[0] + 3 * parts[1]) / 4)


def test_zero_shot_of_a_curated_clip(imagenet):
    given = {"data_root": str(imagenet), "device": "cpu", "backbone": "toy", "seeds": (0,)}
    [row] = reproduce.run(Job("curate-stats", "imagenet", **given))
    [one] = row["results"]
    clip, images = models.load_clip("toy", device="cpu"), datasets.load("imagenet", imagenet)
    texts = trials.class_embeddings(clip, images.classnames, images.templates)
    X = trials.extract_features(clip, images.splits["test"].paths, progress=False)
    wanted = ((X @ texts.T).argmax(1).numpy() == images.splits["test"].labels).mean()
    assert one["metric"] == "zero-shot top1" and one["value"] == pytest.approx(100 * wanted)


def test_published_names_are_the_librarys():
    """Sets and backbones of the table can be asked for under the same names."""
    figures = published.read_published()
    own = {"", "mmvp-vlm", "web pool", "metadata", "average", AVERAGE}
    assert {f.dataset for f in figures} - own <= set(datasets.SETS)
    assert {f.backbone for f in figures if f.backbone} - {"ViT-B-16-quickgelu/metaclip_400m"} <= set(zoo.BACKBONES)
    assert "metaclip_400m" in open_clip.list_pretrained_tags_by_model("ViT-B-16-quickgelu")
