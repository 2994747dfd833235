"""Bring a file over the web, going on where an earlier attempt stopped, and unpack archives without trusting them.

References: RFC 9110 (HTTP: ranges in section 14, validators in 8.8); PEP 706 (filters of ``tarfile``).

Taught in: notebooks/10_gpu.ipynb
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any

from tqdm import tqdm

from minilib import __version__

CHUNK = 1 << 20
TIMEOUT = 30.0  # seconds without an answer, or without a byte
ATTEMPTS = 4  # connections for one file, as long as each brings something
MARGIN = 200_000_000  # bytes of the disk that are left free
FAILURES = (OSError, HTTPException)
UNSOUND = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError)


class _CutOff(Exception):
    """The connection broke while the file was being read."""


def bring(url: str, target: Path, *, size: int | None = None, quiet: bool = False) -> None:
    """Download a file, and move it to its place in one step when it is complete.

    What has come so far is kept in ``target.part``, and beside it what the server said of the file. The next attempt,
    here or in another process, asks for the rest. It begins anew where the server gives whole files only, or where the
    file's ETag or time of change is another than before.

    Args:
        url: http, https or file.
        target: where the file shall lie; its folder is made.
        size: bytes that it must have, where known.
        quiet: no progress bar. There is none either where stderr is not a terminal.

    Raises:
        OSError, http.client.HTTPException: no connection, an error of the server, a web page in place of the file,
            another size, or a connection that broke several times; what has come is kept.
        ValueError: too little room on the disk.

    Taught in: notebooks/10_gpu.ipynb
    """
    part = target.with_name(target.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(ATTEMPTS):
        before = _length(part)
        if _receive(url, part, size, quiet):
            os.replace(part, target)
            _tag_file(part).unlink(missing_ok=True)
            return
        if _length(part) <= before:
            break
        time.sleep(0.1 * 2**attempt)
    raise OSError(f"the connection was cut off; {_length(part):,} bytes are kept in {part}")


def check_room(needed: int, folder: Path) -> None:
    """ValueError unless the folder's disk has room for so many bytes, and some more.

    >>> check_room(0, Path.cwd())

    Taught in: notebooks/10_gpu.ipynb
    """
    free = shutil.disk_usage(folder).free
    if needed + MARGIN > free:
        room = f"{needed / 1e9:,.2f} GB are needed, and {MARGIN / 1e9:,.2f} to spare; {free / 1e9:,.2f} GB are free"
        raise ValueError(f"{room} at {folder}: make room, or set MINILIB_HOME (for the hub, HF_HOME)")


def unpack(
    archive: Path, target: Path, *, strip: str = "", inner: str | None = None, holds: Sequence[str] = ()
) -> None:
    """Unpack a tar (also compressed) or zip into a folder, all of it or nothing.

    It is unpacked beside the folder first, then moved in, entry by entry. Entries that are there already stay.

    Args:
        archive: the file; its kind is read from its content.
        target: the folder, which is made.
        strip: the folder inside the archive whose content is taken.
        inner: an archive inside that one, unpacked there too.
        holds: names that must be there.

    Raises:
        One of ``UNSOUND``: the archive is damaged, lacks a name of ``holds``, or has an entry that leads out of the
            folder; nothing is unpacked then.
        ValueError: too little room on the disk.

    Taught in: notebooks/10_gpu.ipynb
    """
    target.mkdir(parents=True, exist_ok=True)
    check_room(archive.stat().st_size, target)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as work:
        _extract(archive, Path(work))
        source = Path(work) / strip
        if inner and (source / inner).is_file():
            _extract(source / inner, source)
        if missing := [name for name in holds if not (source / name).exists()]:
            raise tarfile.TarError(f"the archive holds no {', '.join(missing)} in {strip or 'its first level'}")
        for entry in sorted(source.iterdir()):
            if not (target / entry.name).exists():
                os.replace(entry, target / entry.name)


def _extract(archive: Path, folder: Path) -> None:
    if not zipfile.is_zipfile(archive):
        with tarfile.open(archive) as tar:
            return tar.extractall(folder, filter="data")
    with zipfile.ZipFile(archive) as bag:
        for name in bag.namelist():
            parts = name.replace("\\", "/").split("/")
            if ".." in parts or not parts[0] or ":" in parts[0]:
                raise zipfile.BadZipFile(f"its entry {name!r} leads out of the folder: nothing was unpacked")
        bag.extractall(folder)


def _receive(url: str, part: Path, size: int | None, quiet: bool) -> bool:
    """One connection: whether the file is complete after it."""
    tag = _read_tag(part)
    have = _length(part) if tag.get("url") == url else 0
    try:
        answer = urllib.request.urlopen(_request(url, have, tag), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        if error.headers.get("Content-Range", "").endswith(f"/{have}") and _same(tag, error.headers):
            return True  # the server says that this is all
        answer = None
    if answer is not None:
        with answer:
            start = _begin(answer, part, have, tag, url)
            if start is not None:
                return _write(answer, part, start, size, quiet)
    part.unlink()  # what was begun is not the beginning of the file that is there now
    return _receive(url, part, size, quiet)


def _request(url: str, have: int, tag: dict[str, str]) -> urllib.request.Request:
    headers = {"User-Agent": f"minilib/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        validator = tag.get("etag") or tag.get("modified")
        if validator and not validator.startswith("W/"):
            headers["If-Range"] = validator
    return urllib.request.Request(url, headers=headers)


def _begin(answer: Any, part: Path, have: int, tag: dict[str, str], url: str) -> int | None:
    """Where the answer's bytes belong in the part; None if they continue another file."""
    headers = answer.headers
    if headers.get_content_type() == "text/html":
        raise OSError("the answer is a web page, not the file")
    if getattr(answer, "status", None) == 206:
        start = headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
        return have if start == str(have) and _same(tag, headers) else None
    now = {"url": url, "etag": headers.get("ETag"), "modified": headers.get("Last-Modified")}
    part.write_bytes(b"")
    _tag_file(part).write_text(json.dumps({k: v for k, v in now.items() if v}), encoding="utf8")
    return 0


def _write(answer: Any, part: Path, start: int, size: int | None, quiet: bool) -> bool:
    length = answer.headers.get("Content-Length")
    total = start + int(length) if length else None
    if size and total and total != size:
        raise OSError(f"the file there has {total:,} bytes; {size:,} are expected")
    check_room((total or size or start) - start, part.parent)
    name = part.name.removesuffix(".part")
    bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=name, disable=True if quiet else None)
    with open(part, "ab") as file, bar:
        try:
            while block := _read(answer):
                file.write(block)
                bar.update(len(block))
        except _CutOff:
            return False  # the caller connects again
    return total is None or _length(part) == total


def _read(answer: Any) -> bytes:
    try:
        return answer.read(CHUNK)
    except FAILURES as error:
        raise _CutOff from error


def _length(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _tag_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_tag(part: Path) -> dict[str, str]:
    """What the server said of the file when it was begun; nothing where that is not known, to begin anew."""
    file = _tag_file(part)
    try:
        return json.loads(file.read_text(encoding="utf8")) if file.exists() else {}
    except ValueError:
        return {}


def _same(tag: dict[str, str], headers: Any) -> bool:
    """Whether the file is still the one that was begun, by what both sides say of it."""
    pairs = ((tag.get("etag"), headers.get("ETag")), (tag.get("modified"), headers.get("Last-Modified")))
    return all(a == b for a, b in pairs if a and b)
