"""Read MMVP-VLM, the benchmark of picture pairs, and answer it by named, deterministic readouts of a vision tower.

Two pictures differ in one visual pattern, and each has a statement. A pair is solved when both statements pick their
own picture; see :func:`minilib.evaluate.pair_accuracy`.

References: Tong et al. 2024, "Eyes Wide Shut? Exploring the Visual Shortcomings of Multimodal LLMs" (CVPR,
arXiv:2401.06209); Wang et al. 2025, "Diffusion Feedback Helps CLIP See Better" (ICLR, arXiv:2407.20171).

Taught in: notebooks/09_diva.ipynb
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from open_clip import get_model_preprocess_cfg
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn

from minilib.evaluate import pair_accuracy
from minilib.models import Clip
from minilib.towers import visual_tokens
from minilib.world import Pair

COLUMNS = ("Question ID", "Type", "Statement")
FOLDERS = ("MLLM_VLM Images", "MLLM_VLM_Images", "MMVP_VLM_Images")
SUFFIXES = (".jpg", ".png")
READOUTS = ("pooled", "local", "pooled+local")
PROMPT = "a photo of {}"


@dataclass(frozen=True)
class ImagePair:
    """Two picture files that differ in one visual pattern, and a statement true of each."""

    pattern: str
    path_a: Path
    path_b: Path
    statement_a: str
    statement_b: str


def read_mmvp(folder: str | Path) -> list[ImagePair]:
    """The pairs of a folder in MMVP-VLM's layout, each pattern's together, in order of their ids.

    Objective: questions are grouped by ``Type``, and an odd id is paired with the even one after it; the order of rows
    says nothing. ``folder`` holds ``Questions.csv`` (UTF-8, with or without a byte order mark) with the columns
    ``Question ID``, ``Type`` and ``Statement``, and one of ``FOLDERS`` with the pictures, ``{Type}/{id}.jpg`` or
    ``.png``. The published benchmark has 9 patterns of 15 pairs; any number will do.

    Raises:
        FileNotFoundError: no such folder, no ``Questions.csv``, none of ``FOLDERS``, or pictures that are missing,
            with their number and the first of them.
        ValueError: another encoding or other columns; a row that is no question, by its line; an id that comes twice
            in one type; ids without a partner, so also an odd number of questions.

    Source: Tong et al. 2024, section 2. Taught in: notebooks/09_diva.ipynb
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: give the one that holds Questions.csv")
    groups = _grouped(folder / "Questions.csv")
    images = next((folder / name for name in FOLDERS if (folder / name).is_dir()), None)
    if images is None:
        tried = ", ".join(map(repr, FOLDERS))
        raise FileNotFoundError(f"{folder} has no folder of pictures; looked for {tried}: put it there, so named")
    paths = _found(images, [(kind, number) for kind, statements in groups for number in statements])
    return [
        ImagePair(kind, paths[kind, a], paths[kind, a + 1], statements[a], statements[a + 1])
        for kind, statements in groups
        for a in sorted(statements)
        if a % 2
    ]


def _grouped(file: Path) -> list[tuple[str, dict[int, str]]]:
    """Each type with its statements by id, every odd id with its partner; types in the order of their first ids."""
    groups: dict[str, dict[int, str]] = {}
    for line, kind, number, statement in _questions(file):
        statements = groups.setdefault(kind, {})
        if number in statements:
            raise ValueError(f"{file}, line {line}: id {number} comes twice in type {kind!r}: each needs its own")
        statements[number] = statement
    for kind, statements in groups.items():
        alone = sorted(i for i in statements if (i + 1 if i % 2 else i - 1) not in statements)
        if alone:
            odd = ", an odd number" if len(statements) % 2 else ""
            what = f"{file}: type {kind!r} has {len(statements)} questions{odd}"
            raise ValueError(f"{what}; no partner for {alone[:5]}: an odd id goes with the even one after it")
    return sorted(groups.items(), key=lambda item: (min(item[1]), item[0]))


def _questions(file: Path) -> Iterator[tuple[int, str, int, str]]:
    """Line, type, id and statement of each question."""
    if not file.is_file():
        raise FileNotFoundError(f"there is no {file}: the benchmark's folder holds it beside the pictures")
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 (byte {error.start}: {error.reason}): save it as UTF-8") from error
    table = csv.reader(StringIO(text, newline=""))
    header = [name.strip() for name in next(table, [])]
    if missing := [name for name in COLUMNS if name not in header]:
        raise ValueError(f"{file} must have the columns {list(COLUMNS)}; it has {header}, without {missing}")
    where, empty = [header.index(name) for name in COLUMNS], True
    for row in filter(None, table):
        number, kind, statement = (row[i].strip() if len(row) == len(header) else "" for i in where)
        if not (number.isdecimal() and int(number) and kind and statement):
            wanted = "a positive whole number, a type and a statement (in quotes, if it holds a comma)"
            raise ValueError(f"{file}, line {table.line_num}: a question is {wanted}; not {row}")
        empty = False
        yield table.line_num, kind, int(number), statement
    if empty:
        raise ValueError(f"{file} holds no questions below its header: was the download cut short?")


def _found(images: Path, wanted: Sequence[tuple[str, int]]) -> dict[tuple[str, int], Path]:
    paths, missing = {}, []
    for kind, number in wanted:
        stem = images / kind / str(number)
        files = [file for suffix in SUFFIXES if (file := stem.with_name(stem.name + suffix)).is_file()]
        paths[kind, number] = files[0] if files else stem
        missing += [f"{kind}/{number}"] * (not files)
    if missing:
        first = ", ".join(missing[:5]) + ", ..." * (len(missing) > 5)
        what = f"{len(missing)} of {len(wanted)} pictures are missing in {images}: {first}"
        raise FileNotFoundError(f"{what} (each as {' or '.join(SUFFIXES)}): copy them there")
    return paths


def solved(
    clip: Clip, pairs: Sequence[ImagePair] | Sequence[Pair], readouts: Sequence[str] = READOUTS
) -> dict[str, NDArray[np.bool_]]:
    """Which pairs a CLIP solves, by each readout: name -> booleans (n,), in the order of the pairs.

    Objective: with the benchmark's prompt ``"a photo of " + statement``, each statement must pick its own picture of
    the two. ``pairs`` are files (:func:`read_mmvp`) or the toy world's. The score is the mean over patterns of the
    share solved: :func:`minilib.exam.pair_report`. Raises what :func:`image_features` raises, and ValueError for no
    pairs.

    >>> from minilib import models, world
    >>> pairs = world.make_pairs(1, seed=0)
    >>> solved(models.load_clip("toy", device="cpu"), pairs, ["pooled"])["pooled"].shape
    (9,)

    Source: Tong et al. 2024, section 2. Taught in: notebooks/09_diva.ipynb
    """
    if not len(pairs):
        raise ValueError("pairs must hold at least one pair; got none")
    with evaluation_mode(clip.model):
        texts = [clip.encode_texts([PROMPT.format(getattr(p, f"statement_{side}")) for p in pairs]) for side in "ab"]
    a, b = (image_features(clip, _pictures(pairs, side), readouts) for side in "ab")
    return {name: pair_accuracy(a[name], b[name], *texts) for name in readouts}


def _pictures(pairs: Sequence[ImagePair] | Sequence[Pair], side: str) -> NDArray[np.uint8] | list[Path]:
    if all(isinstance(pair, Pair) for pair in pairs):
        return np.stack([getattr(pair, f"image_{side}") for pair in pairs])
    return [getattr(pair, f"path_{side}") for pair in pairs]


@torch.no_grad()
def image_features(
    clip: Clip,
    images: NDArray[np.uint8] | Tensor | Sequence[str | Path],
    readouts: Sequence[str] = READOUTS,
    *,
    batch_size: int = 128,
) -> dict[str, Tensor]:
    """Unit-norm float32 features of pictures by each readout: name -> (n, d), on the CPU.

    Objective: ``pooled`` is the model's own image feature; ``local`` the mean of its projected local tokens, which
    :func:`minilib.towers.visual_tokens` describes; ``pooled+local`` the sum of these two unit vectors, brought back to
    unit length, which mixes what the published figures after training mix. All local tokens are used, so nothing is
    drawn: the same model and pictures give the same features. Compare models by one readout, the same before and after.

    Args:
        images: uint8 (n, 3, h, w), prepared by ``clip.preprocess``; or n paths, prepared by open_clip's own transform
            for this model, as :func:`minilib.features.extract_features` does.
        readouts: names from ``READOUTS``. ``pooled`` alone works for every tower of open_clip.
        batch_size: pictures at a time.

    Raises:
        ValueError: an unknown readout, no pictures, another type or shape, a file that is no picture (by name).
        TypeError: a tower without local tokens, such as a ResNet, for the other readouts.

    Notes:
        The model is in evaluation mode meanwhile, and afterwards in the mode it was in.

    >>> from minilib import models
    >>> images = np.zeros((2, 3, 32, 32), np.uint8)
    >>> {name: tuple(f.shape) for name, f in image_features(models.load_clip("toy", device="cpu"), images).items()}
    {'pooled': (2, 128), 'local': (2, 128), 'pooled+local': (2, 128)}

    Source: Wang et al. 2025, section 4, and its code. Taught in: notebooks/09_diva.ipynb
    """
    unknown = [name for name in readouts if name not in READOUTS]
    if unknown or not readouts or isinstance(readouts, str):
        raise ValueError(f"readouts must be a list of names from {READOUTS}; not {readouts!r}")
    if isinstance(images, (str, Path)) or not len(images):
        raise ValueError(f"images must be uint8 pictures or paths, at least one; not {images!r}")
    with evaluation_mode(clip.model):
        starts = range(0, len(images), batch_size)
        parts = [_read(clip, load_pixels(clip, images[i : i + batch_size]), readouts) for i in starts]
    return {name: torch.cat([part[name] for part in parts]) for name in readouts}


def _read(clip: Clip, pixels: Tensor, readouts: Sequence[str]) -> dict[str, Tensor]:
    if set(readouts) == {"pooled"}:  # needs no tokens, so any tower will do
        return {"pooled": F.normalize(clip.model.encode_image(pixels).float(), dim=1).cpu()}
    tokens = visual_tokens(clip.model, pixels)
    pooled, local = (F.normalize(x.float(), dim=1) for x in (tokens.pooled, tokens.local.float().mean(1)))  # (B, D)
    both = F.normalize(pooled + local, dim=1)
    return {name: f.cpu() for name, f in zip(READOUTS, (pooled, local, both), strict=True)}


def load_pixels(clip: Clip, images: NDArray[np.uint8] | Tensor | Sequence[str | Path]) -> Tensor:
    """What the vision tower takes, (n, 3, s, s) in its precision and on its device, from uint8 pictures or files.

    Raises ValueError for another type or shape, or a file that is no picture. Taught in: notebooks/09_diva.ipynb
    """
    if isinstance(images, (np.ndarray, Tensor)):
        x = clip.preprocess(images)
    else:
        transform = image_transform_v2(PreprocessCfg(**get_model_preprocess_cfg(clip.model)), is_train=False)
        x = torch.stack([_opened(path, transform) for path in images]).to(clip.device)
    return x.to(next(clip.model.visual.parameters()).dtype)


def _opened(path: str | Path, transform: Any) -> Tensor:
    try:
        with Image.open(path) as picture:
            return transform(picture)
    except Exception as error:  # PIL raises many kinds for a damaged file
        raise ValueError(f"{path} cannot be read as a picture ({error}): mend the file") from error


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; then every layer has its own mode again, even after an error.

    Taught in: notebooks/09_diva.ipynb
    """
    before = {layer: layer.training for layer in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for layer, training in before.items():
            layer.training = training
