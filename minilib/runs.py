"""What a curation run is: its settings, its shards and entries, and the folder that it may resume in.

Taught in: notebooks/06_balance.ipynb
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilib import __version__
from minilib.matching import Matcher, pad_entry
from minilib.metadata import load_metadata
from minilib.pools import Columns, DamagedShard, atomic, check_columns, list_shards


@dataclass(frozen=True)
class Settings:
    """What decides the outcome, besides pool and metadata. Exactly one of t, size and tail_share is given."""

    text: str = "text"  # column of captions
    id: str | None = None  # column of ids; without one a row is known by its url and caption
    url: str | None = "url"  # column of urls, where there is one
    language: str | None = None  # column of languages: metadata is then a folder with one list for each
    reference: str = "en"  # language that t is meant for; the others get the t of the same tail share
    t: float | None = None
    size: int | None = None  # rows to keep on average
    tail_share: float | None = None
    seed: int = 0
    normalize: bool = False  # space the marks of entries as those of captions
    keep_duplicates: bool = False  # keep rows with the url and caption of an earlier one
    strict: bool = False  # stop at the first damaged row or shard

    def __post_init__(self) -> None:
        dials = {name: getattr(self, name) for name in ("t", "size", "tail_share")}
        given = [name for name, value in dials.items() if value is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of t, size and tail_share; not {', '.join(given) or 'none'}")
        value, share = dials[given[0]], given == ["tail_share"]
        if not 0 < value < (1 if share else np.inf):
            raise ValueError(f"{given[0]} must be a positive number{' below 1' if share else ''}; not {value}")

    @property
    def columns(self) -> Columns:
        return Columns(self.text, self.id, self.url, self.language)


@dataclass(frozen=True)
class Run:
    """A run: its folder, its settings, its shards, and its entries by language ("" where there is no language)."""

    folder: Path
    settings: Settings
    shards: tuple[Path, ...]
    languages: dict[str, tuple[str, ...]]
    n_threads: int | None = None

    @staticmethod
    def load(folder: str | Path, n_threads: int | None = None) -> Run:
        """The run that `start` wrote into a folder: all that a worker on another machine needs."""
        identity = json.loads((Path(folder) / "run.json").read_text(encoding="utf8"))
        languages = json.loads((Path(folder) / "work" / "metadata.json").read_text(encoding="utf8"))
        shards = tuple(Path(shard["path"]) for shard in identity["pool"])
        settings = Settings(**identity["settings"])
        return Run(Path(folder), settings, shards, {name: tuple(e) for name, e in languages.items()}, n_threads)

    @property
    def n_entries(self) -> int:
        return sum(map(len, self.languages.values()))

    @property
    def bases(self) -> dict[str, int]:
        """The id of each language's first entry."""
        return dict(zip(self.languages, np.cumsum([0, *map(len, self.languages.values())]).tolist(), strict=False))

    @cached_property
    def matchers(self) -> dict[str, Matcher]:
        """A matcher for each language; scripts without spaces get MetaCLIP 2's rule."""
        found = {}
        for language, entries in self.languages.items():
            spaceless = bool(language) and any(pad_entry(entry, spaceless=True) != f" {entry} " for entry in entries)
            options = {"spaceless": spaceless, "normalize": self.settings.normalize, "n_threads": self.n_threads}
            found[language] = Matcher(entries, **options)  # type: ignore[arg-type]
        return found

    def work(self, name: str) -> Path:
        return self.folder / "work" / name

    def note(self, k: int) -> dict[str, Any]:
        """What `count` noted of shard k."""
        path = self.work(f"count-{k:05d}") / "note.json"
        if not path.exists():
            raise FileNotFoundError(f"shard {k}, {self.shards[k]}, is not counted yet: run count for it first")
        return json.loads(path.read_text(encoding="utf8"))

    def pieces(self, k: int) -> list[Path]:
        return [self.work(f"count-{k:05d}") / f"{piece:05d}" for piece in range(self.note(k)["pieces"])]


# --- start -----------------------------------------------------------------------------------------------------------


def load_languages(metadata: str | Path, by_language: bool) -> dict[str, tuple[str, ...]]:
    """Entries by language from a folder of ``<language>.json`` or ``.txt``; ``{"": entries}`` from one file."""
    path = Path(metadata)
    if path.is_dir() != by_language:
        wanted = "a folder with a list for each language" if by_language else "one file: name the column in --language"
        raise ValueError(f"metadata must be {wanted}; not {path}")
    files = sorted(f for f in path.iterdir() if f.suffix in (".json", ".txt")) if by_language else [path]
    lists = {file.stem if by_language else "": tuple(load_metadata(file)) for file in files}
    if not lists or not all(lists.values()):
        raise ValueError(f"metadata {path} is empty, so nothing could match: give at least one entry")
    return lists


def start(
    pool: Iterable[str | Path],
    metadata: str | Path,
    out: str | Path,
    settings: Settings,
    *,
    n_threads: int | None = None,
) -> Run:
    """Check the inputs and open the folder of a run, new or begun; nothing is written where a check fails.

    Raises ``ValueError`` for a pool, metadata or folder that cannot be used, and for a folder that holds another run:
    the message names the difference. Taught in: notebooks/06_balance.ipynb
    """
    run, identity = plan(pool, metadata, out, settings, n_threads=n_threads)
    run.folder.mkdir(parents=True, exist_ok=True)
    if not (run.folder / "run.json").exists():
        write_json(run.folder / "run.json", identity)
    if not (run.folder / "manifest.json").exists():
        for folder in ("work", "kept"):
            (run.folder / folder).mkdir(exist_ok=True)
        write_json(run.work("metadata.json"), run.languages, indent=None)  # indents are slow
    return run


def plan(
    pool: Iterable[str | Path],
    metadata: str | Path,
    out: str | Path,
    settings: Settings,
    *,
    n_threads: int | None = None,
) -> tuple[Run, dict[str, Any]]:
    """The checks of `start`, which write nothing: the run, and what makes it differ from others."""
    shards, folder = list_shards(pool), Path(out).absolute()
    languages = load_languages(metadata, settings.language is not None)
    if settings.language is not None and settings.reference not in languages:
        raise ValueError(
            f"reference language {settings.reference!r} has no list in {metadata}: add it, or name another"
        )
    if inside := [shard for shard in shards if folder in shard.parents]:
        raise ValueError(f"{folder} holds the shard {inside[0]} of the pool: write to a folder outside the pool")
    digest = hashlib.sha256(json.dumps(languages).encode()).hexdigest()
    listing = [{"path": str(shard), "bytes": shard.stat().st_size} for shard in shards]
    identity = {"minilib": __version__, "settings": asdict(settings), "metadata": digest, "pool": listing}
    _check_folder(folder, identity)
    check_first_shard(shards, settings.columns)
    return Run(folder, settings, tuple(shards), languages, n_threads), identity


def check_first_shard(shards: Sequence[Path], columns: Columns) -> None:
    """Refuse missing columns before any work is done, on the first shard that can be read."""
    for shard in shards:
        try:
            if check_columns(shard, columns):
                return
        except DamagedShard:
            continue  # `count` quarantines it


def _check_folder(folder: Path, identity: dict[str, Any]) -> None:
    remedy = "name another folder, or empty this one"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a folder")
    if not (folder / "run.json").exists():
        if folder.exists() and (found := sorted(f.name for f in folder.iterdir() if f.name != "run.json.part")):
            raise ValueError(f"{folder} is not empty and holds no run of minilib ({found[0]} is there): {remedy}")
        return
    known = json.loads((folder / "run.json").read_text(encoding="utf8"))
    flat = [{**{k: v for k, v in side.items() if k != "settings"}, **side["settings"]} for side in (known, identity)]
    for name, now in flat[1].items():
        if (then := flat[0].get(name)) != now:
            what = f"{then!r} there, {now!r} now" if name != "pool" else "other shards, or shards of other sizes"
            raise ValueError(f"{folder} holds another run ({name}: {what}): go on with the same settings, or {remedy}")


# --- files -----------------------------------------------------------------------------------------------------------


def write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    """Write JSON, whole or not at all."""
    with atomic(path) as file:
        file.write(json.dumps(value, indent=indent, ensure_ascii=False).encode())


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write a ``.npy`` file, whole or not at all; unlike `numpy.save` it says why when a disk is full."""
    with atomic(path) as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(np.ascontiguousarray(array).data)


def fingerprint(path: Path) -> str:
    """Tell whether a file is the one it was: SHA-256 of its size, its first and its last 64 KiB."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(1 << 16)
        file.seek(max(0, size - (1 << 16)))
        return hashlib.sha256(str(size).encode() + head + file.read()).hexdigest()
