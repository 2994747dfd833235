"""Read pictures at random from folders and webdataset shards, for training that needs no captions.

References: Wang et al. 2025 (DIVA, arXiv:2407.20171), for the crop; the webdataset convention, shards that are plain
tar files.

Taught in: notebooks/10_gpu.ipynb
"""

from __future__ import annotations

import glob
import tarfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
WANTED = f"pictures ({', '.join(SUFFIXES)}) or .tar shards of them"


class Place(NamedTuple):
    """Where a picture's bytes lie: a whole file, or a stretch of a shard."""

    name: str
    path: Path
    offset: int = 0
    size: int = -1


class Pictures:
    """Pictures of folders and shards as one array, read when asked for: ``p[rows]`` is uint8 (n, 3, size, size), RGB.

    Opening lists the pictures and decodes none; a shard is never unpacked. ``rows`` are whatever a NumPy array of
    ``len(p)`` pictures takes on its first axis: an integer array, a slice, a number. The same arguments, row and files
    give the same bytes, in any order and on any number of threads.

    Every picture becomes RGB: the first frame of an animated one, turned as its EXIF data say, grey spread over three
    channels, 16 bits rounded to 8, transparency laid on white. A picture that cannot be used is found when it is asked
    for: it is named once in a warning and kept with its reason in ``skipped``, and the next usable picture stands in
    its row, from then on and in every other run.

    Args:
        paths: a folder, searched to the bottom, a shard (``.tar``), a picture, a glob, or several of these. Pictures of
            a folder come in the order of their names, those of a shard in its own; a file named twice counts once.
        size: side of the pictures that come out, in pixels. Smaller ones are enlarged, by bicubic interpolation.
        crop: smallest and largest share of the area of the largest square that a random square crop keeps; its share
            and place are decided by ``(seed, row)`` alone. None takes the square in the middle.
        seed: decides the crops.
        smallest: a picture whose shorter side has fewer pixels is not used.
        threads: pictures decoded at a time.

    Attributes:
        names: the name of each row's picture, ``shard/member`` for those of a shard.
        skipped: (name, reason) of each picture and of each shard's rest that was not used, as far as known.

    Raises:
        FileNotFoundError: a path that is not there, or a glob that fits nothing.
        ValueError: no pictures, with what was looked for; a compressed shard or another file; an argument out of range.
            On reading: no picture is left that can be used.

    Notes:
        Departs from the reference, whose crop keeps 0.9 to 1 of the whole area and so stretches pictures that are not
        square by up to a third: here nothing is stretched. PIL's limit against decompression bombs holds: a larger
        picture is skipped.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     Image.new("L", (40, 20), 255).save(f"{folder}/white.png")
    ...     Pictures(folder, size=16)[[0, 0]].shape
    (2, 3, 16, 16)

    Source: Wang et al. 2025, and its code, for the crop's share. Taught in: notebooks/10_gpu.ipynb
    """

    def __init__(
        self,
        paths: str | Path | Iterable[str | Path],
        *,
        size: int,
        crop: tuple[float, float] | None = (0.9, 1.0),
        seed: int = 0,
        smallest: int = 8,
        threads: int = 4,
    ) -> None:
        _check(size, crop, smallest, threads)
        self.size, self.crop, self.seed, self.smallest, self.threads = size, crop, seed, smallest, threads
        given = [paths] if isinstance(paths, (str, Path)) else list(paths)
        files = dict.fromkeys(file for path in given for file in _files(path))
        self._damaged: list[tuple[str, str]] = []
        self._places = [place for file in files for place in self._listed(file)]
        if not self._places:
            where = ", ".join(map(str, given)) or "no path at all"
            damage = "".join(f"; {name}: {reason}" for name, reason in self._damaged)
            raise ValueError(f"there are no pictures in {where}: looked for {WANTED}{damage}")
        self._rows = np.arange(len(self._places))
        self._reasons: dict[int, str] = {}  # row -> why it cannot be used

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, rows: Any) -> NDArray[np.uint8]:
        chosen = self._rows[rows]
        out = np.empty((chosen.size, 3, self.size, self.size), np.uint8)
        with ThreadPoolExecutor(self.threads) as pool:
            for i, (picture, found) in enumerate(pool.map(self._usable, chosen.flat)):
                self._report(found)
                if picture is None:
                    why = "; ".join(f"{name}: {reason}" for name, reason in self.skipped[:3])
                    raise ValueError(f"none of {len(self)} pictures can be used ({why}): mend them, or give others")
                out[i] = picture
        return out.reshape(*chosen.shape, 3, self.size, self.size)

    @property
    def names(self) -> list[str]:
        return [place.name for place in self._places]

    @property
    def skipped(self) -> list[tuple[str, str]]:
        known = sorted(self._reasons.items())
        return self._damaged + [(self._places[row].name, reason) for row, reason in known]

    def _listed(self, file: Path) -> Iterator[Place]:
        if file.suffix.lower() != ".tar":
            yield Place(str(file), file)
            return
        try:
            yield from _members(file)
        except (tarfile.TarError, OSError) as error:
            reason = f"the shard is damaged ({error}): what comes after is not read"
            self._damaged.append((str(file), reason))
            warnings.warn(f"{file}: {reason}", stacklevel=4)

    def _usable(self, row: int) -> tuple[NDArray[np.uint8] | None, dict[int, str]]:
        """The picture of a row, or of the next one that can be used; and the rows found unusable on the way."""
        found: dict[int, str] = {}
        for other in (int(i) % len(self) for i in range(row, row + len(self))):
            if other in self._reasons:
                continue
            try:
                return self._picture(other), found
            except _Unusable as error:
                found[other] = str(error)
        return None, found

    def _report(self, found: dict[int, str]) -> None:
        for row, reason in found.items():
            if row not in self._reasons:
                self._reasons[row] = reason
                name = self._places[row].name
                warnings.warn(f"{name} is skipped: {reason}; the next usable picture replaces it", stacklevel=3)

    def _picture(self, row: int) -> NDArray[np.uint8]:
        picture = _decode(self._places[row], self.smallest)
        width, height = picture.size
        share, x, y = 1.0, 0.5, 0.5
        if self.crop:
            low, high = self.crop
            u, x, y = np.random.default_rng([self.seed, row]).random(3)
            share = low + (high - low) * u
        side = share**0.5 * min(width, height)
        left, top = x * (width - side), y * (height - side)
        box = (left, top, left + side, top + side)
        small = picture.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box)
        return np.asarray(small).transpose(2, 0, 1)  # (3, size, size)


class _Unusable(Exception):
    """A picture that cannot be used, and why."""


def _decode(place: Place, smallest: int) -> Image.Image:
    """A picture as RGB, whatever it was; raises ``_Unusable`` with the reason."""
    try:
        data = _read(place)
        with Image.open(BytesIO(data)) as picture:
            _check_extent(*picture.size, smallest)
            return _rgb(ImageOps.exif_transpose(picture))
    except _Unusable:
        raise
    except UnidentifiedImageError as error:
        raise _Unusable("no format that PIL reads") from error
    except Exception as error:  # PIL raises many kinds for a damaged file
        raise _Unusable(f"cannot be decoded ({str(error) or type(error).__name__})") from error


def _read(place: Place) -> bytes:
    with open(place.path, "rb") as file:
        file.seek(place.offset)
        data = file.read(place.size)
    if len(data) < place.size:
        raise _Unusable(f"the shard ends after {len(data)} of its {place.size} bytes")
    return data


def _check_extent(width: int, height: int, smallest: int) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit and width * height > limit:
        raise _Unusable(f"{width} x {height} pixels are more than PIL's limit of {limit:,}")
    if min(width, height) < smallest:
        raise _Unusable(f"{width} x {height} pixels: the shorter side must have at least {smallest}")


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "F":
        raise _Unusable("its pixels are floating-point numbers of unknown range")
    if picture.mode.startswith("I"):
        picture = _eight_bits(picture)
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return picture.convert("RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 bits, 0 to 65,535, to 8: PIL's own conversion cuts off at 255."""
    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > 65_535:
        raise _Unusable("its pixels are whole numbers beyond 16 bits, of unknown range")
    return Image.fromarray(np.round(values / 257).astype(np.uint8))


def _files(path: str | Path) -> Sequence[Path]:
    """Pictures and shards of one path."""
    here = Path(path)
    if here.is_dir():
        return sorted(f for f in here.rglob("*") if f.is_file() and _is_wanted(f.name, (*SUFFIXES, ".tar")))
    if here.is_file():
        if here.suffix.lower() in (*SUFFIXES, ".tar"):
            return [here]
        packed = ": unpack it to a .tar, whose pictures can be read at random" if ".tar" in here.suffixes else ""
        raise ValueError(f"{here} is not {'a plain shard' if packed else 'a picture'}; expected {WANTED}{packed}")
    found = sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(str(path)) else []
    if not found:
        raise FileNotFoundError(f"there is no {path}: give folders, globs, {WANTED}")
    return [file for name in found for file in _files(name)]


def _is_wanted(name: str, suffixes: tuple[str, ...]) -> bool:
    return name.lower().endswith(suffixes) and not name.startswith(".")


def _members(shard: Path) -> Iterator[Place]:
    """The pictures of a tar as far as it is whole; then raises TarError for the rest."""
    with open(shard, "rb") as raw, tarfile.open(fileobj=raw, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # tarfile would remember all of them
            if member.isreg() and not member.issparse() and _is_wanted(Path(member.name).name, SUFFIXES):
                yield Place(f"{shard}/{member.name}", shard, member.offset_data, member.size)
        raw.seek(tar.offset)
        if raw.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"no end mark at byte {tar.offset:,}")


def _check(size: int, crop: tuple[float, float] | None, smallest: int, threads: int) -> None:
    for name, value in (("size", size), ("smallest", smallest), ("threads", threads)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number, at least 1; not {value!r}")
    if crop is not None and not (len(crop) == 2 and 0 < crop[0] <= crop[1] <= 1):
        raise ValueError(f"crop must be None or two shares of the area, 0 < low <= high <= 1; not {crop!r}")
