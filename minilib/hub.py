"""Files and folders of the Hugging Face hub: what an address means, whether it is in the cache, how to bring it.

Taught in: notebooks/10_gpu.ipynb
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from minilib.download import check_room


class Place(NamedTuple):
    """A file or folder on the hub."""

    repo: str
    kind: str
    """model or dataset"""
    revision: str | None
    path: str


def place(url: str, revision: str | None = None) -> Place:
    """What an hf:// URL means; ``revision`` holds where the URL names none.

    >>> place("hf://datasets/MMVP/MMVP_VLM@211372d")
    Place(repo='MMVP/MMVP_VLM', kind='dataset', revision='211372d', path='')
    >>> place("hf://BAAI/DIVA/DFN/a.pth").path
    'DFN/a.pth'

    ValueError for another form. Taught in: notebooks/10_gpu.ipynb
    """
    text = url.removeprefix("hf://")
    kind = "dataset" if text.startswith("datasets/") else "model"
    owner, _, rest = text.removeprefix("datasets/").partition("/")
    repo, _, path = rest.partition("/")
    name, _, own = repo.partition("@")
    if not url.startswith("hf://") or not owner or not name:
        raise ValueError(f"a hub URL is hf://[datasets/]OWNER/NAME[@REVISION][/PATH]; not {url!r}")
    return Place(f"{owner}/{name}", kind, own or revision, path)


def members(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The files below a folder whose path fits one of the patterns, by path."""
    inside = (file for file in folder.rglob("*") if file.is_file())
    return sorted(f for f in inside if any(fnmatch(f.relative_to(folder).as_posix(), name) for name in patterns))


def cached(where: Place, patterns: Sequence[str]) -> Path | None:
    """A file, or a folder that has all its plainly named files and something for each wildcard. Opens no socket."""
    from huggingface_hub import try_to_load_from_cache

    plain = [where.path] if where.path else [name for name in patterns if "*" not in name]
    found = [try_to_load_from_cache(where.repo, name, repo_type=where.kind, revision=where.revision) for name in plain]
    if not found or not all(isinstance(file, str) for file in found):
        return None
    if where.path:
        return Path(str(found[0]))
    folder = Path(str(found[0])).parents[plain[0].count("/")]
    names = [file.relative_to(folder).as_posix() for file in members(folder, patterns)]
    return folder if all(any(fnmatch(n, pattern) for n in names) for pattern in patterns) else None


def download(where: Place, patterns: Sequence[str], *, size: int | None, quiet: bool) -> Path:
    """A file, or the files of a repository that fit the patterns, into the hub's cache; OSError says why not."""
    from huggingface_hub import constants, hf_hub_download, snapshot_download

    cache = Path(constants.HF_HUB_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    check_room(size or 0, cache)
    options: dict[str, Any] = {"repo_type": where.kind, "revision": where.revision}
    with _bars(quiet):
        try:
            if where.path:
                return Path(hf_hub_download(where.repo, where.path, **options))
            return Path(snapshot_download(where.repo, allow_patterns=list(patterns) or None, **options))
        except Exception as error:  # the hub's client lets through the errors of whichever HTTP library it is built on
            raise OSError(str(error).strip().split("\n")[0] or type(error).__name__) from error


@contextmanager
def _bars(quiet: bool) -> Iterator[None]:
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    change = quiet and not are_progress_bars_disabled()
    if change:
        disable_progress_bars()
    try:
        yield
    finally:
        if change:
            enable_progress_bars()
