"""Find, download and verify what the real tier needs: weights, diffusion models, image sets, splits.

One manifest, ``data/assets.json``, lists every such thing: where it is, in order of preference, and how to know that it
is whole. What cannot be known beforehand is null there: the first use records the SHA-256, and later uses verify it.

Reference: Chacon and Straub 2014, "Pro Git", section 10.2, for Git's ids of files.

Taught in: notebooks/10_gpu.ipynb
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from minilib import hub
from minilib.download import CHUNK, FAILURES, UNSOUND, bring, unpack

MANIFEST = Path(__file__).parent / "data" / "assets.json"
TOY = "toy"  # the fallback that is no asset: what ships with minilib
TRUE = ("1", "true", "yes", "on")


class Missing(ValueError):
    """An asset is not here, or cannot be had: the message says what to run, or where to get it."""


class Damaged(ValueError):
    """An asset is not what it should be: the message has both hashes and the remedy."""


@dataclass(frozen=True)
class Asset:
    """One thing that can be downloaded, or a set of such things. What is not known is None."""

    name: str
    """What ``fetch`` takes; of backbones ARCHITECTURE/TAG, as in open_clip."""
    kind: str
    """weights, denoiser, images, split or list."""
    title: str
    """What it is, in words."""
    urls: tuple[str, ...] = ()
    """In order of preference: https, http, file, or hf://[datasets/]OWNER/NAME[@REVISION][/PATH] on the hub."""
    revision: str | None = None
    """Of the hub URLs that name none of their own; None is the newest."""
    sha256: str | None = None
    """Of the file that is downloaded, before it is unpacked; so are the other sums and the size."""
    git_blob: str | None = None
    """Git's id of the file's content."""
    size: int | None = None
    """Bytes."""
    licence: str | None = None
    """By its short name; None is unknown, not free."""
    homepage: str | None = None
    """Where the publisher describes it."""
    fallback: str | None = None
    """Another asset that may stand in its place, or "toy"."""
    md5: str | None = None
    """Where the publisher gives no better sum."""
    file: str | None = None
    """Where the file lies below ``home()``, unless that is files/NAME/ and its name in the URL."""
    folder: str | None = None
    """Below ``home()``: where an archive is unpacked, or a set lies that must be got by hand."""
    holds: tuple[str, ...] = ()
    """What the folder holds when it is complete."""
    strip: str = ""
    """Folder inside the archive whose content is taken."""
    inner: str | None = None
    """An archive inside the archive, to be unpacked too; its place below ``strip``."""
    files: tuple[str, ...] = ()
    """Of a folder on the hub, the files that are wanted; a name may have wildcards."""
    parts: tuple[str, ...] = ()
    """Assets that make up this one."""
    note: str | None = None
    """Why there is no URL."""


def home() -> Path:
    """The folder of downloads: ``MINILIB_HOME``, or ``~/.cache/minilib``. Hub files lie in the hub's own cache.

    Taught in: notebooks/10_gpu.ipynb
    """
    return Path(os.environ.get("MINILIB_HOME") or "~/.cache/minilib").expanduser()


@cache
def manifest() -> dict[str, Asset]:
    """All assets by name, as ``data/assets.json`` lists them.

    >>> manifest()["ViT-B-32/openai"].licence
    'MIT'

    Taught in: notebooks/10_gpu.ipynb
    """
    rows: list[dict[str, Any]] = json.loads(MANIFEST.read_text(encoding="utf8"))
    tuples: list[dict[str, Any]] = [{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows]
    return {row["name"]: Asset(**row) for row in tuples}


def asset(name: str) -> Asset:
    """The asset of that name. ValueError for another, with the nearest. Taught in: notebooks/10_gpu.ipynb"""
    known = manifest()
    if name not in known:
        from difflib import get_close_matches

        near = get_close_matches(name, known, n=5, cutoff=0.3)
        raise ValueError(f"there is no asset {name!r}; near it: {', '.join(near) or 'none'}; all: minilib fetch --list")
    return known[name]


def find(name: str) -> Path | None:
    """Where an asset lies on this machine, or None. Looks at the disk alone: opens no socket and hashes nothing.

    A file, or a folder that is complete as far as the manifest tells. ValueError for an unknown name.

    Taught in: notebooks/10_gpu.ipynb
    """
    wanted = asset(name)
    if wanted.parts:
        return home() / str(wanted.folder) if all(find(part) for part in wanted.parts) else None
    if wanted.folder:
        folder = home() / wanted.folder
        return folder if all((folder / held).exists() for held in wanted.holds) else None
    if wanted.file and (home() / wanted.file).is_file():
        return home() / wanted.file
    for url in wanted.urls:
        found = _in_hub(wanted, url) if url.startswith("hf://") else _target(wanted, url)
        if found and found.exists():
            return found
    return None


def fetch(name: str, offline: bool | None = None, *, fallback: bool = False, quiet: bool = False) -> Path:
    """An asset's file or folder, from this machine or downloaded, and verified.

    URLs are tried in order. A download that was cut off goes on where it stopped, also in another process, unless the
    file has changed meanwhile. Hub files go to the hub's own cache. Archives are unpacked, and stay beside what they
    held; they may be deleted. The file is hashed when it comes, and again when its size or time of change is another
    than recorded; :func:`verify` always hashes.

    Args:
        name: an asset of :func:`manifest`.
        offline: never open a socket. None: as ``MINILIB_OFFLINE`` or ``HF_HUB_OFFLINE`` says.
        fallback: take the asset's fallback, and the fallback's, when it cannot be had. Where the fallback is "toy",
            this raises all the same: the caller catches ``Missing`` and goes on with the toy tier.
        quiet: no progress bar.

    Raises:
        Missing: it is not here and offline, or no URL gave it, with each URL's reason; or it must be got by hand.
        Damaged: another hash or size than expected. A damaged file is kept, as ``NAME.damaged``.
        ValueError: unknown name; too little room on the disk.

    Taught in: notebooks/10_gpu.ipynb
    """
    wanted = asset(name)
    try:
        return _fetch(wanted, is_offline() if offline is None else offline, quiet)
    except Missing as missing:
        if not fallback or wanted.fallback in (None, TOY):
            raise
        try:
            return fetch(str(wanted.fallback), offline, fallback=True, quiet=quiet)
        except Missing:
            raise missing from None


def verify(name: str) -> dict[str, str]:
    """Hash an asset, and compare: the SHA-256 of each of its parts by name.

    The SHA-256 of a folder is that of the lines ``HASH  PATH`` of its wanted files, by path. An unpacked archive is
    verified as long as it is still there. Raises Missing and Damaged. Taught in: notebooks/10_gpu.ipynb
    """
    wanted = asset(name)
    if wanted.parts:
        return {k: v for part in wanted.parts for k, v in verify(part).items()}
    found = find(name)
    if found is None:
        raise Missing(_how_to_get(wanted))
    held = _archive(wanted) if wanted.folder else found
    return {name: _check(wanted, held, always=True)} if held else {}


def recorded() -> dict[str, dict[str, Any]]:
    """What was recorded of each asset at its first use: SHA-256, size, time, place.

    Raises ValueError where the record cannot be read. Taught in: notebooks/10_gpu.ipynb
    """
    file = _record_file()
    try:
        return json.loads(file.read_text(encoding="utf8")) if file.exists() else {}
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): delete it, and the next use records anew") from error


def is_offline() -> bool:
    """Whether ``MINILIB_OFFLINE`` or ``HF_HUB_OFFLINE`` is 1, true, yes or on. Taught in: notebooks/10_gpu.ipynb"""
    return any(os.environ.get(k, "").lower() in TRUE for k in ("MINILIB_OFFLINE", "HF_HUB_OFFLINE"))


# --- one asset --------------------------------------------------------------------------------------------------------


def _fetch(wanted: Asset, offline: bool, quiet: bool) -> Path:
    if wanted.parts:
        return _fetch_parts(wanted, offline, quiet)
    found = find(wanted.name)
    if found and wanted.folder:
        return found  # what was in the archive may change, as labels and splits are added
    if found is None:
        if offline or not wanted.urls:
            raise Missing(_how_to_get(wanted))
        return _download(wanted, quiet)
    _check(wanted, found)
    return found


def _fetch_parts(wanted: Asset, offline: bool, quiet: bool) -> Path:
    """All that can be had, and then an error that names all the rest."""
    missing = []
    for part in wanted.parts:
        try:
            _fetch(asset(part), offline, quiet)
        except Missing as error:
            missing.append(str(error))
    if missing:
        raise Missing("; ".join(missing))
    return home() / str(wanted.folder)


def _how_to_get(wanted: Asset) -> str:
    what = f"{wanted.name} ({wanted.title}) is not on this machine"
    instead = f"; its fallback is {wanted.fallback}" if wanted.fallback else ""
    if wanted.urls or wanted.parts:
        size = f" ({wanted.size / 1e9:,.2f} GB)" if wanted.size else ""
        return f"{what}: run `minilib fetch {wanted.name}` where there is a network{size}{instead}"
    where = home() / str(wanted.folder or wanted.file)
    held = f", so that it holds {', '.join(wanted.holds)}" if wanted.holds else ""
    return f"{what}, and {wanted.note}: get it from {wanted.homepage}, and put it at {where}{held}{instead}"


def _download(wanted: Asset, quiet: bool) -> Path:
    """From the first URL that gives it, whole. One process at a time."""
    reasons: list[str] = []
    damage: Damaged | None = None
    with _locked(home() / "locks" / f"{wanted.name.replace('/', '--')}.lock"):
        for url in wanted.urls:
            try:
                return _from(url, wanted, quiet)
            except Damaged as error:
                damage = error
            except FAILURES as error:
                reasons.append(f"{url}: {str(error) or type(error).__name__}")
    if damage:
        raise damage
    instead = f"; its fallback is {wanted.fallback}" if wanted.fallback else ""
    page = f", or see {wanted.homepage}" if wanted.homepage else ""
    raise Missing(f"{wanted.name} cannot be had: {'; '.join(reasons)}: run the same again later{page}{instead}")


def _from(url: str, wanted: Asset, quiet: bool) -> Path:
    found = find(wanted.name)  # another process may have brought it while this one waited
    if found is None and url.startswith("hf://"):
        found = hub.download(hub.place(url, wanted.revision), wanted.files, size=wanted.size, quiet=quiet)
    elif found is None:
        found = _target(wanted, url)
        if not found.exists():
            bring(url, found, size=wanted.size, quiet=quiet)
    if found.is_dir() and wanted.folder:
        return found
    _check(wanted, found)
    return _unpacked(found, wanted) if wanted.folder else found


def _in_hub(wanted: Asset, url: str) -> Path | None:
    return hub.cached(hub.place(url, wanted.revision), wanted.files)


def _unpacked(archive: Path, wanted: Asset) -> Path:
    folder = home() / str(wanted.folder)
    try:
        unpack(archive, folder, strip=wanted.strip, inner=wanted.inner, holds=wanted.holds)
    except UNSOUND as error:
        kept = _keep_damaged(archive)
        _record(wanted.name, None)
        again = f"run `minilib fetch {wanted.name}` again"
        raise Damaged(f"{wanted.name} cannot be unpacked ({error}): it is kept as {kept}; {again}") from error
    return folder


def _target(wanted: Asset, url: str) -> Path:
    """Where the file of a web URL lies."""
    if wanted.file:
        return home() / wanted.file
    name = Path(urllib.parse.unquote(urllib.parse.urlparse(url).path)).name or "file"
    return home() / "files" / wanted.name / name


def _archive(wanted: Asset) -> Path | None:
    """The archive that was unpacked, if it is still there."""
    files = (_target(wanted, url) for url in wanted.urls)
    return next((file for file in files if file.is_file()), None)


# --- verification -----------------------------------------------------------------------------------------------------


def _check(wanted: Asset, path: Path, *, always: bool = False) -> str:
    """The SHA-256, or Damaged; hashes only if size or time differ from the record."""
    told, (size, when) = recorded().get(wanted.name, {}), _stamp(wanted, path)
    if not always and (told.get("size"), told.get("mtime_ns"), told.get("path")) == (size, when, str(path)):
        return told["sha256"]
    sums = _hashed(wanted, path, size)
    expected = {"size": wanted.size, "sha256": wanted.sha256, "git_blob": wanted.git_blob, "md5": wanted.md5}
    is_known = any(expected[k] for k in ("sha256", "git_blob", "md5"))
    if not is_known and "sha256" in told:
        expected["sha256"] = told["sha256"]
    for kind, value in expected.items():
        if value is not None and sums[kind] != value:
            raise Damaged(_set_aside(wanted, path, kind, str(sums[kind]), str(value), is_known))
    _record(wanted.name, {"sha256": sums["sha256"], "size": size, "mtime_ns": when, "path": str(path)})
    return str(sums["sha256"])


def _stamp(wanted: Asset, path: Path) -> tuple[int, int]:
    """Bytes, and the latest change in nanoseconds."""
    stats = [file.stat() for file in (hub.members(path, wanted.files) if path.is_dir() else [path])]
    return sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)


def _hashed(wanted: Asset, path: Path, size: int) -> dict[str, str | int]:
    if path.is_dir():
        held = hub.members(path, wanted.files)
        lines = [f"{_sums(f, 0)['sha256']}  {f.relative_to(path).as_posix()}\n" for f in held]
        return {"size": size, "sha256": hashlib.sha256("".join(lines).encode()).hexdigest()}
    return _sums(path, size) | {"size": size}


def _sums(path: Path, size: int) -> dict[str, str | int]:
    """SHA-256, MD5 and Git's id (the SHA-1 of a header and the content) in one pass."""
    sha256, md5, blob = hashlib.sha256(), hashlib.md5(usedforsecurity=False), hashlib.sha1(usedforsecurity=False)
    blob.update(f"blob {size}\0".encode())
    with open(path, "rb") as file:
        while block := file.read(CHUNK):
            for digest in (sha256, md5, blob):
                digest.update(block)
    return {"sha256": sha256.hexdigest(), "md5": md5.hexdigest(), "git_blob": blob.hexdigest()}


def _set_aside(wanted: Asset, path: Path, kind: str, found: str, expected: str, is_known: bool) -> str:
    """Rename a damaged file; the message."""
    source = "the manifest" if is_known or kind == "size" else f"the record of its first use, {_record_file()},"
    what = f"{wanted.name} is damaged: its {kind} is {found}, {source} says {expected}"
    renew = "" if is_known else "; if its publisher changed it on purpose, take its entry out of that record first"
    if path.is_dir():
        return f"{what}; remove the folder {path} and run `minilib fetch {wanted.name}` again{renew}"
    return f"{what}; it is kept as {_keep_damaged(path)}; run `minilib fetch {wanted.name}` again{renew}"


def _keep_damaged(path: Path) -> Path:
    real = path.resolve()  # a link into the hub's cache would lead there again
    kept = real.with_name(real.name + ".damaged")
    os.replace(real, kept)
    if path.is_symlink():
        path.unlink()
    return kept


def _record_file() -> Path:
    return home() / "recorded.json"


def _record(name: str, entry: dict[str, Any] | None) -> None:
    """One entry more, or less; the file changes whole or not at all, and two processes lose nothing of each other's."""
    file = _record_file()
    with _locked(file.with_name(file.name + ".lock")):
        table = {k: v for k, v in recorded().items() if k != name}
        if entry:
            table[name] = entry | {"date": datetime.date.today().isoformat()}
        part = file.with_name(f"{file.name}.{os.getpid()}")
        part.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf8")
        os.replace(part, file)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(file)):
        yield
