"""Read named image sets with their splits, class names and prompts, from folders in the layouts that people have.

The 17 sets of the training-free Gaussian classifier's paper: eleven with the published few-shot splits, four shifts of
ImageNet, two long-tailed lists. Nothing is decoded here: features.extract_features takes the paths.

References: Wang et al. 2024 (arXiv:2402.04087), for sets and prompts; Zhou et al. 2022 (CoOp, arXiv:2109.01134), for
splits and folders; Liu et al. 2019 (arXiv:1904.05160), for the long-tailed lists.

Taught in: notebooks/03_fewshot.ipynb
"""

from __future__ import annotations

import json
import os
import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from minilib.pictures import SUFFIXES

Item = tuple[Path, int, str]  # picture, label, class name
PHOTO = ("a photo of a {}.",)
IMAGENET_PROMPTS = (
    "itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}.", "a {} in a video game.",
    "art of the {}.", "a photo of the small {}.",
)  # fmt: skip


@dataclass(frozen=True)
class SetInfo:
    """What is known of a named image set, apart from its pictures.

    ``folders`` are its possible names below the data root, CoOp's first, then torchvision's; ``pictures`` the folders
    in it that the paths of a split or list may begin from; ``split`` the published split's file.

    Taught in: notebooks/03_fewshot.ipynb
    """

    name: str
    classes: int
    folders: tuple[str, ...]
    pictures: tuple[str, ...] = (".",)
    split: str = ""
    templates: tuple[str, ...] = PHOTO
    kind: str = "split"


SETS = {
    info.name: info
    for info in (
        SetInfo("imagenet", 1000, ("imagenet",), ("images", "."), "", IMAGENET_PROMPTS, "imagenet"),
        SetInfo("caltech101", 100, ("caltech-101", "caltech101"), ("101_ObjectCategories",),
                "split_zhou_Caltech101.json"),
        SetInfo("oxford_pets", 37, ("oxford_pets", "oxford-iiit-pet"), ("images",), "split_zhou_OxfordPets.json",
                ("a photo of a {}, a type of pet.",)),
        SetInfo("stanford_cars", 196, ("stanford_cars",), (".",), "split_zhou_StanfordCars.json"),
        SetInfo("oxford_flowers", 102, ("oxford_flowers", "flowers-102"), ("jpg",), "split_zhou_OxfordFlowers.json",
                ("a photo of a {}, a type of flower.",)),
        SetInfo("food101", 101, ("food-101", "food101"), ("images",), "split_zhou_Food101.json",
                ("a photo of {}, a type of food.",)),
        SetInfo("fgvc", 100, ("fgvc_aircraft", "fgvc-aircraft-2013b"), ("data", "."), "",
                ("a photo of a {}, a type of aircraft.",), "fgvc"),
        SetInfo("sun397", 397, ("sun397", "SUN397"), ("SUN397", "."), "split_zhou_SUN397.json"),
        SetInfo("dtd", 47, ("dtd",), ("images", "dtd/images"), "split_zhou_DescribableTextures.json",
                ("{} texture.",)),
        SetInfo("eurosat", 10, ("eurosat",), ("2750",), "split_zhou_EuroSAT.json",
                ("a centered satellite photo of {}.",)),
        SetInfo("ucf101", 101, ("ucf101",), ("UCF-101-midframes",), "split_zhou_UCF101.json",
                ("a photo of a person doing {}.",)),
        SetInfo("imagenet-v2", 1000, ("imagenetv2", "imagenet-v2"),
                ("imagenetv2-matched-frequency-format-val", "."), "", IMAGENET_PROMPTS, "shift"),
        SetInfo("imagenet-sketch", 1000, ("imagenet-sketch",), ("images", "sketch", "."), "", IMAGENET_PROMPTS,
                "shift"),
        SetInfo("imagenet-a", 200, ("imagenet-adversarial", "imagenet-a"), ("imagenet-a", "."), "", IMAGENET_PROMPTS,
                "shift"),
        SetInfo("imagenet-r", 200, ("imagenet-rendition", "imagenet-r"), ("imagenet-r", "."), "", IMAGENET_PROMPTS,
                "shift"),
        SetInfo("imagenet-lt", 1000, ("imagenet-lt", "imagenet"), ("../imagenet/images", "../imagenet", "."),
                "ImageNet_LT_{}.txt", IMAGENET_PROMPTS, "list"),
        SetInfo("places-lt", 365, ("places-lt",), (".",), "Places_LT_{}.txt", PHOTO, "list"),
    )
}  # fmt: skip


class Split(NamedTuple):
    """Pictures and the number of each one's class: n paths, int64 (n,)."""

    paths: list[Path]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class ImageSet:
    """Names of K classes, prompts with one ``{}`` each, and splits by name.

    Taught in: notebooks/03_fewshot.ipynb
    """

    name: str
    classnames: list[str]
    templates: tuple[str, ...]
    splits: dict[str, Split]


def load(name: str, root: str | Path) -> ImageSet:
    """One of the sets of ``SETS`` from its folder below ``root``; ``root`` may be that folder itself.

    Objective: splits, labels and class names exactly as published: for the few-shot sets those of CoOp's
    ``split_zhou_*.json`` (train, val, test); for ImageNet train and test, the test being the official validation set,
    as all these papers have it; for its shifts a test alone, with the class names of ImageNet. Class names are CoOp's
    ``classnames.txt`` where the ImageNet folder has one, open_clip's otherwise.

    Raises:
        ValueError: an unknown name; a folder, split file or picture that is missing, with what was looked for and how
            to get it; a split that cannot be read, leaves the folder, or has another number of classes.

    Source: Zhou et al. 2022. Taught in: notebooks/03_fewshot.ipynb
    """
    if name not in SETS:
        raise ValueError(f"name must be one of {', '.join(SETS)}; not {name!r}")
    info = SETS[name]
    home = _home(info, Path(root))
    splits = READERS[info.kind](info, home)
    names: dict[int, str] = {}
    for split, items in splits.items():
        if not items:
            raise ValueError(f"{name} has no pictures to {split} in {home}: {_remedy(info)}")
        for _, label, classname in items:
            if names.setdefault(label, classname) != classname:
                raise ValueError(f"{name}: class {label} is called {names[label]!r} and {classname!r}: {_remedy(info)}")
    if sorted(names) != list(range(info.classes)):
        gaps = sorted(set(range(info.classes)) ^ set(names))[:5]
        raise ValueError(f"{name} must have classes 0 to {info.classes - 1}; {len(names)} were found in {home}, and "
                         f"{gaps} differ: the folder is not complete, or another set's; {_remedy(info)}")  # fmt: skip
    return ImageSet(name, [names[i] for i in range(info.classes)], info.templates, _as_splits(splits))


def folder(root: str | Path, templates: Sequence[str] = PHOTO) -> ImageSet:
    """Any folder of class folders, or of ``train``, ``val`` and ``test`` with class folders each.

    Classes are numbered in the order of their folders' names, underscores in these read as spaces. Without sub-folders
    for splits there is one split, ``train``. ValueError when there are no pictures, a class has none, or a split
    knows a class that ``train`` does not.

    Taught in: notebooks/03_fewshot.ipynb
    """
    root = Path(root)
    parts = [part for part in ("train", "val", "test") if (root / part).is_dir()]
    places = {part: root / part for part in parts} if "train" in parts else {"train": root}
    classes = _folders(places["train"])
    number = {name: i for i, name in enumerate(classes)}
    splits: dict[str, list[Item]] = {}
    for part, place in places.items():
        if unknown := sorted(set(_folders(place)) - set(number)):
            raise ValueError(f"{place} holds classes that {places['train']} does not: {', '.join(unknown[:5])}")
        found = {name: _pictures(place / name) for name in _folders(place)}
        if empty := [name for name, paths in found.items() if not paths]:
            raise ValueError(f"{place}: no pictures ({', '.join(SUFFIXES)}) in {', '.join(empty[:5])}")
        splits[part] = [(path, number[name], name) for name, paths in found.items() for path in paths]
    names = [name.replace("_", " ") for name in classes]
    return ImageSet(root.name, names, tuple(templates), _as_splits(splits))


def few_shot(split: Split, shots: int, seed: int) -> NDArray[np.int64]:
    """Rows of ``shots`` pictures of each class, without replacement; the same for the same seed, on any machine.

    Python's own generator, seeded with ``seed``, samples from each class's rows, classes in the order in which they
    first appear: CoOp's procedure. A class with fewer pictures gives all it has, and a warning says so. ValueError for
    less than one shot.

    >>> few_shot(Split([Path("a")] * 4, np.array([1, 0, 1, 0])), 1, seed=1).shape
    (2,)

    Source: Zhou et al. 2022. Taught in: notebooks/03_fewshot.ipynb
    """
    if shots < 1:
        raise ValueError(f"shots must be at least 1; not {shots}")
    rng = random.Random(seed)
    rows: dict[int, list[int]] = {}
    for row, label in enumerate(split.labels.tolist()):
        rows.setdefault(label, []).append(row)
    if short := [label for label, own in rows.items() if len(own) < shots]:
        warnings.warn(f"{len(short)} classes, such as {short[0]}, have fewer than {shots} pictures: all are taken",
                      stacklevel=2)  # fmt: skip
    return np.array([i for own in rows.values() for i in rng.sample(own, min(shots, len(own)))], np.int64)


def _read_split(info: SetInfo, home: Path) -> dict[str, list[Item]]:
    file = _file(info, home, info.split)
    try:
        told = json.loads(file.read_text(encoding="utf8"))
        rows = {part: [(str(p), int(i), str(c)) for p, i, c in told[part]] for part in ("train", "val", "test")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no split of [path, label, class] lists for train, val and test ({error!r}): "
                         f"{_remedy(info)}") from error  # fmt: skip
    return _placed(info, home, rows)


def _read_list(info: SetInfo, home: Path) -> dict[str, list[Item]]:
    """Lines "path label"; a class is called after the folder of its training pictures."""
    rows: dict[str, list[tuple[str, int, str]]] = {}
    names: dict[int, str] = {}
    known = _imagenet_names(home.parent) if info.name == "imagenet-lt" else {}
    for part in ("train", "val", "test"):
        file = _file(info, home, info.split.format(part))
        rows[part] = []
        for number, line in enumerate(file.read_text(encoding="utf8").splitlines(), 1):
            path, _, label = line.rpartition(" ")
            if not path or not label.isdigit():
                raise ValueError(f"{file}, line {number}: expected a path and a number; found {line!r}")
            own = PurePosixPath(path).parent.name
            name = names.setdefault(int(label), known.get(own, own.replace("_", " ")))
            rows[part].append((path, int(label), name))
    return _placed(info, home, rows)


def _read_fgvc(info: SetInfo, home: Path) -> dict[str, list[Item]]:
    variants = _file(info, home, "variants.txt").read_text(encoding="utf8").splitlines()
    number = {name.strip(): i for i, name in enumerate(variants) if name.strip()}
    rows: dict[str, list[tuple[str, int, str]]] = {}
    for part in ("train", "val", "test"):
        file = _file(info, home, f"images_variant_{part}.txt")
        pairs = [line.split(" ", 1) for line in file.read_text(encoding="utf8").splitlines() if line.strip()]
        if odd := [pair for pair in pairs if len(pair) < 2 or pair[1].strip() not in number]:
            raise ValueError(f"{file}: {' '.join(odd[0])!r} names no variant of variants.txt: {_remedy(info)}")
        rows[part] = [(f"images/{pair[0]}.jpg", number[pair[1].strip()], pair[1].strip()) for pair in pairs]
    return _placed(info, home, rows)


def _read_imagenet(info: SetInfo, home: Path) -> dict[str, list[Item]]:
    place = next((home / p for p in info.pictures if (home / p / "train").is_dir()), None)
    if place is None or not (place / "val").is_dir():
        raise ValueError(
            f"{home} must hold train/ and val/ with a folder a class, or these in images/: {_remedy(info)}"
        )
    names = _imagenet_names(home.parent, _folders(place / "train"), home)
    number = {wnid: i for i, wnid in enumerate(sorted(names))}
    return {
        split: [(path, number[w], names[w]) for w in _folders(place / part) for path in _pictures(place / part / w)]
        for split, part in (("train", "train"), ("test", "val"))
    }


def _read_shift(info: SetInfo, home: Path) -> dict[str, list[Item]]:
    """Folders named by WordNet id or by ImageNet's number; the classes that are there, in ImageNet's order."""
    place = next(home / p for p in info.pictures if (home / p).is_dir())  # the last of them is home itself
    own = _folders(place)
    if all(name.isdigit() for name in own):
        names = {str(i): name for i, name in enumerate(_in_order(_imagenet_names(home.parent, [])))}
        own.sort(key=int)
    else:
        names = _imagenet_names(home.parent, own)
    if unknown := [name for name in own if name not in names]:
        raise ValueError(f"{place}: {unknown[0]!r} is no class of ImageNet, of which {len(names)} are known from "
                         f"classnames.txt or the training folders in {home.parent / 'imagenet'}")  # fmt: skip
    return {"test": [(path, i, names[w]) for i, w in enumerate(own) for path in _pictures(place / w)]}


READERS = {
    "split": _read_split,
    "list": _read_list,
    "fgvc": _read_fgvc,
    "imagenet": _read_imagenet,
    "shift": _read_shift,
}


def _imagenet_names(root: Path, wnids: Sequence[str] = (), home: Path | None = None) -> dict[str, str]:
    """WordNet id -> class name: CoOp's file, else open_clip's names for the thousand ids in order."""
    home = home or root / "imagenet"
    file = home / "classnames.txt"
    if file.exists():
        pairs = [line.strip().split(" ", 1) for line in file.read_text(encoding="utf8").splitlines() if line.strip()]
        if odd := [pair for pair in pairs if len(pair) < 2]:
            raise ValueError(f"{file}: expected a WordNet id and a name in each line; found {odd[0][0]!r}")
        return {wnid: name for wnid, name in pairs}
    import open_clip  # heavy, and needed for its names alone

    train = next((home / p for p in ("images/train", "train") if (home / p).is_dir()), None)
    ids = sorted(wnids) if len(wnids) == SETS["imagenet"].classes else _folders(train) if train else []
    names = list(open_clip.IMAGENET_CLASSNAMES)
    if len(ids) == len(names):
        return dict(zip(ids, names, strict=True))
    if not wnids and not ids:
        return {f"{i:04d}": name for i, name in enumerate(names)}
    raise ValueError(f"which WordNet id has which name is known from {file}, or from a complete folder of training "
                     f"pictures; {len(ids)} of {len(names)} are there: minilib fetch imagenet/classnames")  # fmt: skip


def _in_order(names: dict[str, str]) -> list[str]:
    return [names[key] for key in sorted(names)]


def _home(info: SetInfo, root: Path) -> Path:
    """The set's own folder."""
    if not root.is_dir():
        raise ValueError(f"there is no folder {root}: give the folder that holds the image sets, or {info.name}'s own")
    for place in (root / name for name in info.folders):
        if place.is_dir():
            return place
    if root.name in info.folders or (info.split and (root / info.split.format("train")).exists()):
        return root
    looked = ", ".join(info.folders)
    raise ValueError(f"{info.name} was not found: {root} holds no folder called {looked}; {_remedy(info)}")


def _file(info: SetInfo, home: Path, name: str) -> Path:
    places = [home / name, *(home / place / name for place in info.pictures), home.parent / name]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise ValueError(f"{info.name} lacks {name} in {home}: {_remedy(info)}")
    return found


def _placed(info: SetInfo, home: Path, rows: dict[str, list[tuple[str, int, str]]]) -> dict[str, list[Item]]:
    """Each row's picture on disk; the missing ones are counted and the first named."""
    every = [row for part in rows.values() for row in part]
    if bad := [p for p, _, _ in every if PurePosixPath(p).is_absolute() or ".." in PurePosixPath(p).parts]:
        raise ValueError(f"{info.name}: the split names {bad[0]!r}, outside of its folder: {_remedy(info)}")
    bases = [home / p for p in info.pictures if (home / p).is_dir()] or [home]
    base = next((b for b in bases if every and (b / every[0][0]).exists()), bases[0])
    there: dict[Path, set[str]] = {}

    def exists(path: Path) -> bool:
        if path.parent not in there:
            there[path.parent] = set(_names(path.parent)) if path.parent.is_dir() else set()
        return path.name in there[path.parent]

    placed = {part: [(base / p, label, name) for p, label, name in own] for part, own in rows.items()}
    if lost := [path for own in placed.values() for path, _, _ in own if not exists(path)]:
        raise ValueError(f"{info.name}: {len(lost):,} of {len(every):,} pictures are missing, such as {lost[0]}: "
                         f"{_remedy(info)}")  # fmt: skip
    return placed


def _remedy(info: SetInfo) -> str:
    wanted = f"{info.folders[0]}/" + (f" with {info.split.format('train')}" if info.split else "")
    return f"`minilib fetch {info.name}` brings what can be had, or says where it is; the layout is {wanted}"


def _names(place: Path) -> list[str]:
    with os.scandir(place) as entries:
        return sorted(entry.name for entry in entries)


def _folders(place: Path) -> list[str]:
    if not place.is_dir():
        raise ValueError(f"there is no folder {place}: expected one with a folder for each class")
    with os.scandir(place) as entries:
        found = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    if not found:
        raise ValueError(f"{place} holds no folders: expected one for each class")
    return found


def _pictures(place: Path) -> list[Path]:
    return [place / name for name in _names(place) if name.lower().endswith(SUFFIXES) and not name.startswith(".")]


def _as_splits(splits: dict[str, list[Item]]) -> dict[str, Split]:
    return {
        part: Split([path for path, _, _ in own], np.array([label for _, label, _ in own], np.int64))
        for part, own in splits.items()
    }
