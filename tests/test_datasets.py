"""Named image sets: every published layout gives its splits as written; every gap is named with its remedy."""

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minilib import datasets, features, gda, models

CLASSES = ["ant", "bee", "cow"]
WNIDS = ["n00000001", "n00000002", "n00000003"]
FEW_SHOT = [name for name, info in datasets.SETS.items() if info.kind == "split"]
SHIFTS = ["imagenet-v2", "imagenet-sketch", "imagenet-a", "imagenet-r"]


@pytest.fixture(autouse=True)
def three_classes(monkeypatch):
    """Every set in small: three classes each, and all else as published."""
    small = {name: replace(info, classes=3) for name, info in datasets.SETS.items()}
    monkeypatch.setattr(datasets, "SETS", small)


def picture(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade, 255 - shade, 128)).save(path)


def write_few_shot(root: Path, name: str, layout: int = 0) -> dict[str, list]:
    """A set of three classes with a split of 4, 1 and 2 pictures a class; what the split says."""
    info = datasets.SETS[name]
    home = root / info.folders[min(layout, len(info.folders) - 1)]
    base = home / info.pictures[min(layout, len(info.pictures) - 1)]
    split = {}
    for part, n in (("train", 4), ("val", 1), ("test", 2)):
        split[part] = [[f"{c}/{part}_{i}.jpg", k, c] for k, c in enumerate(CLASSES) for i in range(n)]
        for path, k, _ in split[part]:
            picture(base / path, 80 * k)
    (home / info.split).write_text(json.dumps(split))
    return split


def write_imagenet(root: Path, classnames: bool = True) -> None:
    for part, n in (("train", 3), ("val", 2)):
        for wnid in WNIDS:
            for i in range(n):
                picture(root / "imagenet" / "images" / part / wnid / f"{i}.JPEG")
    if classnames:
        lines = "".join(f"{w} {c}\n" for w, c in zip(WNIDS, CLASSES, strict=True))
        (root / "imagenet" / "classnames.txt").write_text(lines)


def told(found: datasets.ImageSet, part: str) -> list[tuple[str, str]]:
    split = found.splits[part]
    return [(path.name, found.classnames[k]) for path, k in zip(split.paths, split.labels, strict=True)]


def test_seventeen_sets_of_the_paper():
    """Eleven with few-shot splits (nine by file, ImageNet and aircraft by folders), four shifts, two long tails."""
    kinds = Counter(info.kind for info in datasets.SETS.values())
    assert kinds == {"split": 9, "imagenet": 1, "fgvc": 1, "shift": 4, "list": 2}
    assert all(template.count("{}") == 1 for info in datasets.SETS.values() for template in info.templates)
    assert len(datasets.SETS["imagenet"].templates) == 7


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("name", FEW_SHOT)
def test_few_shot_sets_in_both_layouts(tmp_path, name, layout):
    split = write_few_shot(tmp_path, name, layout)
    found = datasets.load(name, tmp_path)
    assert found.classnames == CLASSES and list(found.splits) == ["train", "val", "test"]
    for part, rows in split.items():
        assert told(found, part) == [(Path(p).name, c) for p, _, c in rows]
        assert all(path.is_file() for path in found.splits[part].paths)
        assert found.splits[part].labels.dtype == np.int64
    own = tmp_path / datasets.SETS[name].folders[min(layout, len(datasets.SETS[name].folders) - 1)]
    assert datasets.load(name, own).splits["test"].paths == found.splits["test"].paths


@pytest.mark.parametrize("base", ["data", "."])
def test_aircraft(tmp_path, base):
    """Variants in their file's own order, which is not the alphabet's; names with spaces."""
    names = ["Boeing 707-320", "A330-300", "ATR-72"]
    home = tmp_path / "fgvc_aircraft" / base
    home.mkdir(parents=True)
    (home / "variants.txt").write_text("\n".join(names) + "\n")
    for part in ("train", "val", "test"):
        lines = []
        for i, name in enumerate(names):
            picture(home / "images" / f"{part}{i}.jpg")
            lines.append(f"{part}{i} {name}\n")
        (home / f"images_variant_{part}.txt").write_text("".join(lines))
    found = datasets.load("fgvc", tmp_path)
    assert found.classnames == names
    assert told(found, "val") == [("val0.jpg", names[0]), ("val1.jpg", names[1]), ("val2.jpg", names[2])]
    (home / "images_variant_val.txt").write_text("val0 Concorde\n")
    with pytest.raises(ValueError, match="'val0 Concorde' names no variant"):
        datasets.load("fgvc", tmp_path)


def test_imagenet_tests_on_the_official_validation_set(tmp_path):
    write_imagenet(tmp_path)
    found = datasets.load("imagenet", tmp_path)
    assert found.classnames == CLASSES and {p: len(s.paths) for p, s in found.splits.items()} == {"train": 9, "test": 6}
    assert {path.parts[-3] for path in found.splits["test"].paths} == {"val"}


def test_imagenet_without_names_takes_open_clips_in_the_order_of_ids(tmp_path, monkeypatch):
    import open_clip

    monkeypatch.setattr(open_clip, "IMAGENET_CLASSNAMES", ["first", "second", "third"])
    write_imagenet(tmp_path, classnames=False)
    assert datasets.load("imagenet", tmp_path).classnames == ["first", "second", "third"]


@pytest.mark.parametrize("name", SHIFTS)
def test_shifts_name_their_classes_as_imagenet_does(tmp_path, name):
    write_imagenet(tmp_path)
    info = datasets.SETS[name]
    folders = ["0", "1", "2"] if name == "imagenet-v2" else WNIDS
    for i, folder in enumerate(folders):
        picture(tmp_path / info.folders[0] / info.pictures[0] / folder / f"{i}.jpg")
    found = datasets.load(name, tmp_path)
    assert list(found.splits) == ["test"]
    assert told(found, "test") == [("0.jpg", "ant"), ("1.jpg", "bee"), ("2.jpg", "cow")]


def test_numbered_folders_are_sorted_as_numbers(tmp_path, monkeypatch):
    """'10' comes after '9', not after '1'."""
    names = {f"n{i:08d}": f"class {i}" for i in range(11)}
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "imagenet" / "classnames.txt").write_text("".join(f"{w} {c}\n" for w, c in names.items()))
    for i in range(11):
        picture(tmp_path / "imagenetv2" / str(i) / f"{i}.jpg")
    monkeypatch.setitem(datasets.SETS, "imagenet-v2", replace(datasets.SETS["imagenet-v2"], classes=11))
    found = datasets.load("imagenet-v2", tmp_path)
    assert told(found, "test") == [(f"{i}.jpg", f"class {i}") for i in range(11)]


def test_a_shift_with_fewer_classes_than_imagenet(tmp_path, monkeypatch):
    write_imagenet(tmp_path)
    for wnid in (WNIDS[2], WNIDS[0]):
        picture(tmp_path / "imagenet-rendition" / "imagenet-r" / wnid / "a.jpg")
    monkeypatch.setitem(datasets.SETS, "imagenet-r", replace(datasets.SETS["imagenet-r"], classes=2))
    assert datasets.load("imagenet-r", tmp_path).classnames == ["ant", "cow"]


@pytest.mark.parametrize("name, file", [("imagenet-lt", "ImageNet_LT"), ("places-lt", "Places_LT")])
def test_long_tailed_lists(tmp_path, name, file):
    """Labels from the list; the class's name from ImageNet's, or from the folder of its training pictures."""
    write_imagenet(tmp_path)
    folders = WNIDS if name == "imagenet-lt" else ["air_field", "alley", "bar"]
    base = tmp_path / ("imagenet/images" if name == "imagenet-lt" else "places-lt")
    home = tmp_path / name
    home.mkdir(exist_ok=True)
    for part, counts in (("train", (4, 2, 1)), ("val", (1, 1, 1)), ("test", (1, 1, 1))):
        lines = []
        for k, n in enumerate(counts):
            for i in range(n):
                picture(base / part / folders[k] / f"lt{i}.jpg")
                lines.append(f"{part}/{folders[k]}/lt{i}.jpg {k}\n")
        (home / f"{file}_{part}.txt").write_text("".join(lines))
    found = datasets.load(name, tmp_path)
    assert found.classnames == (CLASSES if name == "imagenet-lt" else ["air field", "alley", "bar"])
    assert np.bincount(found.splits["train"].labels).tolist() == [4, 2, 1]
    (home / f"{file}_val.txt").write_text("val/x/lt0.jpg one\n")
    with pytest.raises(ValueError, match="line 1: expected a path and a number"):
        datasets.load(name, tmp_path)


def test_any_folder_of_class_folders(tmp_path):
    for part in ("train", "test"):
        for k, name in enumerate(("grey_wolf", "owl")):
            picture(tmp_path / part / name / f"{part}.png", 90 * k)
    (tmp_path / "train" / "owl" / "notes.txt").write_text("no picture")
    found = datasets.folder(tmp_path)
    assert found.classnames == ["grey wolf", "owl"] and list(found.splits) == ["train", "test"]
    assert told(found, "test") == [("test.png", "grey wolf"), ("test.png", "owl")]
    assert list(datasets.folder(tmp_path / "train").splits) == ["train"]
    (tmp_path / "test" / "yak").mkdir()
    with pytest.raises(ValueError, match="does not: yak"):
        datasets.folder(tmp_path)


@pytest.mark.parametrize("shots", [1, 3])
def test_shots_are_drawn_class_by_class_as_coop_does(shots):
    """The same generator and the same order give the same rows; another seed gives others."""
    labels = np.array([2, 0, 1] * 10)
    split = datasets.Split([Path(str(i)) for i in range(30)], labels)
    rows = datasets.few_shot(split, shots, seed=7)
    rng, expected = random.Random(7), []
    for label in (2, 0, 1):
        expected += rng.sample([i for i in range(30) if labels[i] == label], shots)
    assert rows.tolist() == expected and np.bincount(labels[rows]).tolist() == [shots] * 3
    assert datasets.few_shot(split, 3, seed=8).tolist() != datasets.few_shot(split, 3, seed=7).tolist()


def test_too_few_pictures_are_all_taken_with_a_warning():
    split = datasets.Split([Path("a")] * 4, np.array([0, 0, 0, 1]))
    with pytest.warns(UserWarning, match="1 classes, such as 1, have fewer than 2"):
        assert sorted(datasets.few_shot(split, 2, 0).tolist())[-1] == 3
    with pytest.raises(ValueError, match="at least 1; not 0"):
        datasets.few_shot(split, 0, 0)


def broken(root: Path, how: str) -> None:
    home = root / "dtd"
    split = write_few_shot(root, "dtd")
    if how == "no split":
        (home / datasets.SETS["dtd"].split).unlink()
    elif how == "no json":
        (home / datasets.SETS["dtd"].split).write_text("{")
    elif how == "no picture":
        (home / "images" / "bee" / "train_1.jpg").unlink()
        (home / "images" / "bee" / "test_1.jpg").unlink()
    else:
        changed = {
            "no test": {**split, "test": []},
            "no key": {"train": split["train"]},
            "outside": {**split, "val": [["../../secret.jpg", 0, "ant"]]},
            "gap": {part: [row for row in rows if row[1] != 1] for part, rows in split.items()},
            "two names": {**split, "val": [["ant/val_0.jpg", 0, "emmet"]]},
        }
        (home / datasets.SETS["dtd"].split).write_text(json.dumps(changed[how]))


@pytest.mark.parametrize(
    "how, said",
    [
        ("no split", "lacks split_zhou_DescribableTextures.json"),
        ("no json", "is no split of"),
        ("no key", "is no split of"),
        ("no test", "has no pictures to test"),
        ("no picture", "2 of 21 pictures are missing, such as .*train_1.jpg"),
        ("outside", "names '../../secret.jpg', outside of its folder"),
        ("gap", r"must have classes 0 to 2; 2 were found.*\[1\] differ"),
        ("two names", "class 0 is called 'ant' and 'emmet'"),
    ],
)
def test_what_is_wrong_is_named_with_the_remedy(tmp_path, how, said):
    broken(tmp_path, how)
    with pytest.raises(ValueError, match=f"(?s){said}.*minilib fetch dtd"):
        datasets.load("dtd", tmp_path)


def test_missing_folders_and_unknown_names(tmp_path):
    with pytest.raises(ValueError, match=r"one of imagenet, caltech101.*not 'mnist'"):
        datasets.load("mnist", tmp_path)
    with pytest.raises(ValueError, match="no folder called caltech-101, caltech101; `minilib fetch caltech101`"):
        datasets.load("caltech101", tmp_path)
    with pytest.raises(ValueError, match="there is no folder"):
        datasets.load("dtd", tmp_path / "nowhere")
    (tmp_path / "imagenet").mkdir()
    with pytest.raises(ValueError, match="must hold train/ and val/"):
        datasets.load("imagenet", tmp_path)


def test_from_a_folder_to_a_classifier(tmp_path):
    """Three classes that differ in colour alone: toy CLIP's features and the Gaussian classifier tell them apart."""
    write_few_shot(tmp_path, "eurosat")
    found, clip = datasets.load("eurosat", tmp_path), models.load_clip("toy", device="cpu")
    X = {part: features.extract_features(clip, split.paths, progress=False).numpy()
         for part, split in found.splits.items()}  # fmt: skip
    rows = datasets.few_shot(found.splits["train"], 2, seed=1)
    model = gda.GDA().fit(X["train"][rows], found.splits["train"].labels[rows])
    assert model.score(X["test"], found.splits["test"].labels) == 1.0
