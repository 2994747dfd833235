"""Find metadata entries in captions: MetaCLIP's rule, the oracle that spells it out, and engines that equal it.

References
----------
- Xu et al. (2024), "Demystifying CLIP Data", section 3, and the code of its authors.
- Chuang et al. (2025), "MetaCLIP 2", for scripts that set no spaces between words.
- Aho and Corasick (1975), "Efficient String Matching".

Taught in: notebooks/06_balance.ipynb
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilib.metadata import check_strings

Ids = NDArray[np.int32]
Ints = NDArray[np.int64]

ENGINES = ("naive", "dict", "ngram", "aho-corasick")
BATCH = 16_384  # captions that are converted at a time
_SPACING = {ord(mark): f" {mark} " for mark in ",.;:?!`"} | {ord(blank): " " for blank in "\t\n\r"}
_NEEDS = {"ngram": ("numba", "pyarrow"), "aho-corasick": ("ahocorasick_rs",)}
_SPACELESS = re.compile(  # Thai, Lao, Tibetan, Burmese, Khmer, kana, Han; Korean sets spaces
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u19e0-\u19ff\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff"
    "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uaa60-\uaa7f\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)


def space_punctuation(text: str) -> str:
    """A caption with a space at both ends and on both sides of seven marks; tabs and line breaks become spaces.

    The marks are comma, full stop, semicolon, colon, question mark, exclamation mark and backquote. No other mark is
    touched, and spaces are not collapsed.

    >>> space_punctuation("a, b.c")
    ' a ,  b . c '

    Source: Xu et al. (2024), code. Taught in: notebooks/06_balance.ipynb
    """
    return f" {text} ".translate(_SPACING)


def pad_entry(entry: str, *, normalize: bool = False, spaceless: bool = False) -> str:
    """The string that is looked for: the entry with one space at each end.

    ``normalize`` spaces the entry's marks as captions have theirs, so that "U.S." can match. ``spaceless`` is MetaCLIP
    2's rule: no space on a side where the entry begins or ends in a script that sets none between words.

    >>> pad_entry("U.S."), pad_entry("U.S.", normalize=True), pad_entry("猫 cat", spaceless=True)
    (' U.S. ', ' U . S .  ', '猫 cat ')

    Source: Xu et al. (2024) and Chuang et al. (2025), code. Taught in: notebooks/06_balance.ipynb
    """
    padded = space_punctuation(entry) if normalize else f" {entry} "
    if not (spaceless and entry):
        return padded
    start, stop = (1 if _SPACELESS.match(entry[end]) else 0 for end in (0, -1))
    return padded[start : len(padded) - stop]


def match_naive(text: str, entries: Sequence[str], *, normalize: bool = False, spaceless: bool = False) -> list[int]:
    """Ids of the entries that a caption holds: ``" entry " in space_punctuation(text)``, equation ``eq-curate-match``.

    Case counts; nested and overlapping entries all count, each once. Every engine must equal this one.

    >>> match_naive("a red T-shirt, new", ["red", "shirt", "T-shirt", "Red"])
    [0, 2]

    Source: Xu et al. (2024), section 3. Taught in: notebooks/06_balance.ipynb
    """
    spaced = space_punctuation(text)
    padded = (pad_entry(entry, normalize=normalize, spaceless=spaceless) for entry in entries)
    return [e for e, entry in enumerate(padded) if entry in spaced]


class Matcher:
    """Find metadata entries in captions; immutable, so that two metadata lists never mix.

    ``normalize`` and ``spaceless`` choose the rule (see `pad_entry`); without them it is the reference's. ``engine``
    changes nothing but the speed:

    - ``"naive"``: `match_naive`, the definition.
    - ``"dict"``: equation ``eq-curate-run`` in plain Python. An entry matches if and only if its tokens, split at
      single spaces, are a contiguous run of the caption's, empty tokens included. A dictionary holds every entry and
      every beginning of one; from each token a walk goes on while the dictionary knows the run.
    - ``"ngram"``: the same walk compiled, `minilib.ngram`; on ``n_threads`` threads (default: all cores).
    - ``"aho-corasick"``: the library ahocorasick_rs. Needs no tokens, so it serves ``spaceless``.
    - ``"auto"``: ``"aho-corasick"`` where ``spaceless``, else ``"ngram"`` where numba and pyarrow are installed (extra
      ``curate``), else ``"dict"``.

    An entry that stands twice is reported under both ids, as the definition says (the reference's Aho-Corasick variant
    reports the last id only); `minilib.metadata.lint_entries` finds such entries.

    >>> matcher = Matcher(["cat", "black cat", "dog"])
    >>> ids, offsets = matcher.match(["a black cat.", "no match", "Dog"])
    >>> ids.tolist(), offsets.tolist(), matcher.count(["a black cat.", "cat"]).tolist()
    ([0, 1], [0, 2, 2, 2], [2, 1, 0])

    Raises ``ValueError`` for empty entries, an unknown engine or one that cannot follow the rule, ``TypeError`` for an
    entry or a caption that is not a string (with its index), ``ImportError`` for an engine whose library is missing.
    Source: Xu et al. (2024), section 3. Taught in: notebooks/06_balance.ipynb
    """

    entries: tuple[str, ...]
    engine: str
    normalize: bool
    spaceless: bool
    n_threads: int

    def __init__(
        self,
        entries: Iterable[str],
        *,
        normalize: bool = False,
        spaceless: bool = False,
        engine: str = "auto",
        n_threads: int | None = None,
    ) -> None:
        engine = _choose(engine, spaceless)
        if n_threads is not None and (not isinstance(n_threads, int) or n_threads < 1):
            raise ValueError(f"n_threads must be None (all cores) or at least 1; not {n_threads!r}")
        listed = tuple(check_strings(entries, "entry"))
        if not listed:
            raise ValueError("entries is empty, so nothing could match: pass at least one metadata entry")
        padded = [pad_entry(entry, normalize=normalize, spaceless=spaceless) for entry in listed]
        made = {"naive": _naive, "dict": _walker, "ngram": _compiled, "aho-corasick": _automaton}[engine](padded)
        vars(self).update(
            entries=listed,
            engine=engine,
            normalize=normalize,
            spaceless=spaceless,
            n_threads=n_threads or os.cpu_count() or 1,
            _find=made,
        )

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a Matcher cannot change ({name}): make a new one for other entries or settings")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.entries, self.normalize, self.spaceless, self.engine, self.n_threads)

    def __repr__(self) -> str:
        return f"Matcher({len(self.entries):,} entries, engine={self.engine!r})"

    def match(self, texts: Iterable[str]) -> tuple[Ids, Ints]:
        """Matches of each caption: ids int32 (nnz,), ascending within a caption, and offsets int64 (N + 1,).

        ``texts`` is an iterable of strings, taken in batches, or a pyarrow array of strings, which is not copied.
        """
        find = vars(self)["_find"]
        if self.engine == "ngram":
            return _in_threads(find, _arrow_parts(texts), self.n_threads)
        ids: list[int] = []
        offsets = [0]
        plain = texts.to_pylist() if hasattr(texts, "to_pylist") else texts
        for text in check_strings(plain, "caption"):
            ids.extend(find(text))
            offsets.append(len(ids))
        return np.array(ids, dtype=np.int32), np.array(offsets, dtype=np.int64)

    def count(self, texts: Iterable[str]) -> Ints:
        """Number of captions that hold each entry: int64 (M,)."""
        ids, _ = self.match(texts)
        return np.bincount(ids, minlength=len(self.entries)).astype(np.int64)


def _choose(engine: str, spaceless: bool) -> str:
    def missing(name: str) -> list[str]:
        return [library for library in _NEEDS.get(name, ()) if find_spec(library) is None]

    if engine == "auto":
        engine = "aho-corasick" if spaceless else "dict" if missing("ngram") else "ngram"
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of auto, {', '.join(ENGINES)}; not {engine!r}")
    if spaceless and engine in ("dict", "ngram"):
        raise ValueError(f"engine={engine!r} walks over tokens, which spaceless scripts lack: use 'aho-corasick'")
    if lacking := missing(engine):
        raise ImportError(f"engine={engine!r} needs {' and '.join(lacking)}: pip install 'minilib[curate]'")
    return engine


def _rebuild(entries: tuple[str, ...], normalize: bool, spaceless: bool, engine: str, n_threads: int) -> Matcher:
    return Matcher(entries, normalize=normalize, spaceless=spaceless, engine=engine, n_threads=n_threads)


# --- engines: padded entries -> a function that finds them -----------------------------------------------------------


def _naive(padded: list[str]) -> Callable[[str], list[int]]:
    def find(text: str) -> list[int]:
        spaced = space_punctuation(text)
        return [e for e, entry in enumerate(padded) if entry in spaced]

    return find


def _walker(padded: list[str]) -> Callable[[str], list[int]]:
    table = _run_table([entry[1:-1] for entry in padded])

    def find(text: str) -> list[int]:
        tokens = space_punctuation(text)[1:-1].split(" ")
        found: set[int] = set()
        for start, run in enumerate(tokens):
            stop = start + 1
            while (known := table.get(run)) is not None:
                found.update(known)
                if stop == len(tokens):
                    break
                run, stop = f"{run} {tokens[stop]}", stop + 1
        return sorted(found)

    return find


def _run_table(entries: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Every entry, and every beginning of one that ends with a token, with the ids of the entries that it completes."""
    table: dict[str, tuple[int, ...]] = {}
    for e, entry in enumerate(entries):
        end = entry.find(" ")
        while end >= 0:
            table.setdefault(entry[:end], ())
            end = entry.find(" ", end + 1)
        table[entry] = (*table.get(entry, ()), e)
    return table


def _automaton(padded: list[str]) -> Callable[[str], list[int]]:
    from ahocorasick_rs import BytesAhoCorasick

    machine = BytesAhoCorasick([_bytes(entry) for entry in padded])

    def find(text: str) -> list[int]:
        found = machine.find_matches_as_indexes(_bytes(space_punctuation(text)), overlapping=True)
        return sorted({e for e, _, _ in found})

    return find


def _compiled(padded: list[str]) -> Callable[[Any, Ints], tuple[Ids, Ints]]:
    from minilib import ngram

    (part,) = _arrow_parts([entry[1:-1] for entry in padded], batch=len(padded))
    table = ngram.build(*part)
    return lambda data, offsets: ngram.match(table, data, offsets)


def _in_threads(find: Callable, parts: Iterator[tuple[Any, Ints]], n_threads: int) -> tuple[Ids, Ints]:
    with ThreadPoolExecutor(n_threads) as pool:  # the compiled code holds no lock
        found = [(np.empty(0, dtype=np.int32), np.zeros(1, dtype=np.int64)), *pool.map(lambda part: find(*part), parts)]
    firsts = np.cumsum([0] + [len(ids) for ids, _ in found])
    ends = [ends[1:] + first for (_, ends), first in zip(found, firsts, strict=False)]
    return np.concatenate([ids for ids, _ in found]), np.concatenate([[0], *ends])


# --- captions as bytes -----------------------------------------------------------------------------------------------


def _arrow_parts(texts: Any, batch: int = BATCH) -> Iterator[tuple[NDArray[np.uint8], Ints]]:
    """UTF-8 bytes and offsets int64 (n + 1,) of the captions, ``batch`` of them at a time."""
    import pyarrow as pa

    if isinstance(texts, pa.Array | pa.ChunkedArray):
        for chunk in getattr(texts, "chunks", [texts]):
            for start in range(0, len(chunk), batch):
                yield _arrow_bytes(chunk[start : start + batch])
        return
    done, stream = 0, iter([next(check_strings(texts, "caption"))] if isinstance(texts, str) else texts)
    while listed := list(islice(stream, batch)):
        if set(map(type, listed)) != {str}:
            listed = list(check_strings(listed, "caption", done))
        try:
            yield _arrow_bytes(pa.array(listed, type=pa.large_string()))
        except UnicodeEncodeError:  # half of a surrogate pair: no valid UTF-8, yet a Python string
            yield _arrow_bytes(pa.array([_bytes(text) for text in listed], type=pa.large_binary()))
        done += len(listed)


def _arrow_bytes(array: Any) -> tuple[NDArray[np.uint8], Ints]:
    import pyarrow as pa

    if not (
        pa.types.is_string(array.type) or pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
    ):
        raise TypeError(f"captions must be an array of strings; not {array.type}: cast the column")
    if array.null_count:
        first = array.is_null().to_pylist().index(True)
        raise TypeError(f"caption {first} of an arrow array is null: fill it with '' or drop the row")
    wide = array.cast(pa.large_binary()) if not pa.types.is_large_binary(array.type) else array
    _, offsets, data = wide.buffers()
    marks = np.frombuffer(offsets, dtype=np.int64)[wide.offset : wide.offset + len(wide) + 1]
    return np.frombuffer(data or b"", dtype=np.uint8), marks


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
