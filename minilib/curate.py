"""Decide which pairs of a web pool to keep: match captions to metadata entries, then balance the entries.

Symbols: M entries, e = 0 .. M-1, and N captions, i = 0 .. N-1.

- ``ids, offsets``: the matches in CSR form, int32 (nnz,) and int64 (N + 1,); ``ids[offsets[i]:offsets[i + 1]]`` is
  ``M_i``, the entries that caption i holds, ascending.
- ``counts``: ``c_e``, int64 (M,). ``t``: the threshold. ``p``: ``p_e``, float64 (M,).
- ``q``: the probability that caption i is kept, ``q_i``, float64 (N,).

References
----------
Xu et al. (2024), "Demystifying CLIP Data", section 3, and the code of its authors.

Taught in: notebooks/06_balance.ipynb
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minilib.metadata import check_strings

Ids = NDArray[np.int32]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

ENGINES = ("auto", "naive", "ngram")
_SPACING = {ord(mark): f" {mark} " for mark in ",.;:?!`"} | {ord(blank): " " for blank in "\t\n\r"}

# --- match -----------------------------------------------------------------------------------------------------------


def space_punctuation(text: str) -> str:
    """A caption with a space at both ends and on both sides of seven marks; tabs and line breaks become spaces.

    The marks are comma, full stop, semicolon, colon, question mark, exclamation mark and backquote. No other mark is
    touched, and spaces are not collapsed.

    >>> space_punctuation("a, b.c")
    ' a ,  b . c '

    Source: Xu et al. (2024), code. Taught in: notebooks/06_balance.ipynb
    """
    return f" {text} ".translate(_SPACING)


def match_naive(text: str, entries: Sequence[str]) -> list[int]:
    """Ids of the entries that a caption holds: ``" entry " in space_punctuation(text)``, equation ``eq-curate-match``.

    Case counts; nested and overlapping entries all count, each once. Every engine must equal this one.

    >>> match_naive("a red T-shirt, new", ["red", "shirt", "T-shirt", "Red"])
    [0, 2]

    Source: Xu et al. (2024), section 3. Taught in: notebooks/06_balance.ipynb
    """
    spaced = space_punctuation(text)
    return [e for e, entry in enumerate(entries) if f" {entry} " in spaced]


@dataclass(frozen=True, eq=False, init=False, repr=False)
class Matcher:
    """Find metadata entries in captions; immutable, so that two metadata lists never mix.

    Engine ``"ngram"`` (``"auto"``) uses equation ``eq-curate-run``: an entry matches if and only if its tokens, split
    at single spaces, are a contiguous run of the caption's, empty tokens included. A table holds every entry and every
    beginning of one; from each token a walk goes on while the table knows the run. ``"naive"`` asks `match_naive`.

    An entry that stands twice is reported under both ids, as the definition says (the reference's Aho-Corasick variant
    reports the last id only); `minilib.metadata.lint_entries` finds such entries.

    >>> matcher = Matcher(["cat", "black cat", "dog"])
    >>> ids, offsets = matcher.match(["a black cat.", "no match", "Dog"])
    >>> ids.tolist(), offsets.tolist(), matcher.count(["a black cat.", "cat"]).tolist()
    ([0, 1], [0, 2, 2, 2], [2, 1, 0])

    Raises ``ValueError`` for empty entries or an unknown engine, ``TypeError`` for an entry or a caption that is not a
    string (with its index). Source: Xu et al. (2024), section 3. Taught in: notebooks/06_balance.ipynb
    """

    entries: tuple[str, ...]
    engine: str
    _table: dict[str, tuple[int, ...]]

    def __init__(self, entries: Iterable[str], *, engine: str = "auto") -> None:
        if engine not in ENGINES:
            raise ValueError(f"engine must be one of {', '.join(ENGINES)}; not {engine!r}")
        listed = tuple(check_strings(entries, "entry"))
        if not listed:
            raise ValueError("entries is empty, so nothing could match: pass at least one metadata entry")
        object.__setattr__(self, "entries", listed)
        object.__setattr__(self, "engine", engine)
        object.__setattr__(self, "_table", {} if engine == "naive" else _run_table(listed))

    def __repr__(self) -> str:
        return f"Matcher({len(self.entries):,} entries, engine={self.engine!r})"

    def match(self, texts: Iterable[str]) -> tuple[Ids, Ints]:
        """Matches of each caption: ids int32 (nnz,), ascending within a caption, and offsets int64 (N + 1,)."""
        ids: list[int] = []
        offsets = [0]
        for text in check_strings(texts, "caption"):
            ids.extend(match_naive(text, self.entries) if self.engine == "naive" else self._walk(text))
            offsets.append(len(ids))
        return np.array(ids, dtype=np.int32), np.array(offsets, dtype=np.int64)

    def count(self, texts: Iterable[str]) -> Ints:
        """Number of captions that hold each entry: int64 (M,)."""
        return entry_counts(self.match(texts)[0], len(self.entries))

    def _walk(self, text: str) -> list[int]:
        tokens = space_punctuation(text)[1:-1].split(" ")
        found: set[int] = set()
        for start, run in enumerate(tokens):
            stop = start + 1
            while (known := self._table.get(run)) is not None:
                found.update(known)
                if stop == len(tokens):
                    break
                run, stop = f"{run} {tokens[stop]}", stop + 1
        return sorted(found)


def entry_counts(ids: ArrayLike, n_entries: int) -> Ints:
    """How many captions hold each entry: ``c_e = |{i : e in M_i}|``, equation ``eq-curate-count``; int64 (M,).

    >>> entry_counts([0, 2, 2], n_entries=4).tolist()
    [1, 0, 2, 0]

    Taught in: notebooks/06_balance.ipynb
    """
    return np.bincount(np.asarray(ids, dtype=np.int64), minlength=n_entries).astype(np.int64)


# --- balance ---------------------------------------------------------------------------------------------------------


def keep_probability(counts: ArrayLike, t: float) -> Floats:
    """Chance that one match of entry e keeps its caption: ``p_e = t / max(c_e, t)``, equation ``eq-curate-keep``; (M,).

    >>> keep_probability([0, 20, 80], t=20).tolist()
    [1.0, 1.0, 0.25]

    Raises ``ValueError`` for a t that is not a positive number, and for negative counts.
    Source: Xu et al. (2024), section 3: t = 20,000 for 400 M pairs. Taught in: notebooks/06_balance.ipynb
    """
    return _check_t(t) / np.maximum(_check_counts(counts), t)


def text_keep_probability(ids: ArrayLike, offsets: ArrayLike, p: ArrayLike) -> Floats:
    """Chance that caption i is kept: ``q_i = 1 - prod_{e in M_i} (1 - p_e)``, equation ``eq-curate-text``; (N,).

    A caption without a match has q = 0: that is the method's only noise filter.

    >>> text_keep_probability(ids=[0, 1], offsets=[0, 2, 2], p=[0.5, 0.2]).round(3).tolist()
    [0.6, 0.0]

    Source: Xu et al. (2024), section 3, its draws summed up in closed form. Taught in: notebooks/06_balance.ipynb
    """
    p = np.asarray(p, dtype=np.float64)
    ids, rows, n = _check_matches(ids, offsets, len(p))
    with np.errstate(divide="ignore"):  # p = 1: log 0 = -inf, and q = 1 as it should be
        log_miss = np.log1p(-p[ids])  # (nnz,)
    return 0.0 - np.expm1(np.bincount(rows, weights=log_miss, minlength=n))


def expected_size(ids: ArrayLike, offsets: ArrayLike, counts: ArrayLike, t: float) -> float:
    """Captions kept on average, ``sum_i q_i``, known before anything is drawn: equation ``eq-curate-expected``.

    At most ``sum_e min(c_e, t)``, which counts a caption once for each of its entries, and usually far less.

    >>> expected_size(ids=[0, 1, 0], offsets=[0, 2, 3], counts=[2, 1], t=1)
    1.5

    Taught in: notebooks/06_balance.ipynb
    """
    return float(text_keep_probability(ids, offsets, keep_probability(counts, t)).sum())


def expected_entry_counts(ids: ArrayLike, offsets: ArrayLike, q: ArrayLike, n_entries: int) -> Floats:
    """Each entry's count after the draw, on average: ``sum of q_i`` over the captions that hold e; (M,).

    At least ``min(c_e, t)``, equation ``eq-curate-floor``: t is a floor, not a cap.

    >>> expected_entry_counts(ids=[0, 1, 0], offsets=[0, 2, 3], q=[1.0, 0.5], n_entries=2).tolist()
    [1.5, 1.0]

    Taught in: notebooks/06_balance.ipynb
    """
    ids, rows, _ = _check_matches(ids, offsets, n_entries)
    weights = np.asarray(q, dtype=np.float64)[rows]  # (nnz,)
    return np.bincount(ids, weights=weights, minlength=n_entries).astype(np.float64)


def tail_share(counts: ArrayLike, t: float) -> float:
    """Share of all matches that fall in entries with ``c_e < t``, equation ``eq-curate-tail``; about 0.06 in the paper.

    >>> tail_share([1, 3, 16], t=16)
    0.2

    Source: Xu et al. (2024), section 3 and code. Taught in: notebooks/06_balance.ipynb
    """
    counts = _check_counts(counts, matched=True)
    return float(counts[counts < _check_t(t)].sum() / counts.sum())


def solve_t(counts: ArrayLike, *, tail_share: float) -> int:
    """The threshold t, one of the counts, whose `tail_share` is nearest to the one wanted; the smaller of two equals.

    Departs from the reference, which adds the entry at t itself to the tail: a share would then not come back from its
    own t where many entries have equal counts, as they do in small pools.

    >>> solve_t([1, 3, 16], tail_share=0.2)
    16

    Source: Xu et al. (2024), code. Taught in: notebooks/06_balance.ipynb
    """
    if not 0 <= tail_share <= 1:
        raise ValueError(f"tail_share must lie in 0 .. 1, such as 0.06; not {tail_share}")
    counts = np.sort(_check_counts(counts, matched=True))
    values, first = np.unique(counts[counts > 0], return_index=True)
    below = np.append(0, np.cumsum(counts[counts > 0]))[first]  # (distinct values,) matches in entries below each value
    return int(values[np.abs(below / counts.sum() - tail_share).argmin()])


# --- draw ------------------------------------------------------------------------------------------------------------


def hash_uniform(sample_ids: ArrayLike, seed: int, stream: ArrayLike = 0) -> Floats:
    """A number in [0, 1) that (sample id, seed, stream) alone decide: splitmix64's mixing, 53 bits; float64 (N,).

    There is no generator state to share, so neither order nor shards nor workers can change a draw.

    Source: Steele, Lea and Flood (2014), "Fast Splittable Pseudorandom Number Generators".
    Taught in: notebooks/06_balance.ipynb
    """
    numbers = np.asarray(sample_ids)
    if numbers.dtype.kind not in "iu":
        raise TypeError(f"sample_ids must be whole numbers; not {numbers.dtype}: number the samples or hash their keys")
    state = _mix(_mix(np.array([seed % 2**64], dtype=np.uint64)) ^ np.asarray(stream).astype(np.uint64))
    bits = _mix(state ^ _mix(numbers.astype(np.uint64)))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def sample(q: ArrayLike, sample_ids: ArrayLike, seed: int) -> Mask:
    """Keep caption i where the hash of (its id, seed) lies below q_i; bool (N,).

    A caption's fate depends on its q, its id and the seed; not on its place, its shard or its neighbours. A larger q
    never drops what a smaller one kept.

    >>> sample([1.0, 0.0], sample_ids=[7, 8], seed=0).tolist()
    [True, False]

    Taught in: notebooks/06_balance.ipynb
    """
    q, sample_ids = np.asarray(q, dtype=np.float64), np.asarray(sample_ids)
    if q.shape != sample_ids.shape:
        raise ValueError(f"expected one sample id for each of {len(q):,} captions; not shape {sample_ids.shape}")
    return hash_uniform(sample_ids, seed) < q


def sample_per_entry(ids: ArrayLike, offsets: ArrayLike, p: ArrayLike, sample_ids: ArrayLike, seed: int) -> Mask:
    """The reference's form: a draw for each (caption, entry), and the caption stays if any succeeds; bool (N,).

    Equal in distribution to `sample` of `text_keep_probability`, which needs one draw for each caption.

    Source: Xu et al. (2024), code. Taught in: notebooks/06_balance.ipynb
    """
    p = np.asarray(p, dtype=np.float64)
    ids, rows, n = _check_matches(ids, offsets, len(p))
    success = hash_uniform(np.asarray(sample_ids)[rows], seed, stream=ids + 1) < p[ids]  # (nnz,)
    return np.bincount(rows[success], minlength=n) > 0


# --- all at once -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Curation:
    """What `curate` decided and why; arrays as in the module's list of symbols."""

    kept: Mask  # (N,)
    reasons: NDArray[np.str_]  # (N,) "kept", "no match" or "not drawn"
    ids: Ids
    offsets: Ints
    counts: Ints
    p: Floats
    q: Floats


def curate(
    texts: Iterable[str], entries: Iterable[str], *, t: float, seed: int, sample_ids: ArrayLike | None = None
) -> Curation:
    """Match, count, balance and draw: which captions to keep, each with its reason.

    ``sample_ids`` (N,) are the captions' lasting ids; without them their places 0 .. N-1 are taken.

    >>> curate(["a cat", "a cat", "a dog", "junk"], ["cat", "dog"], t=1, seed=3).reasons.tolist()
    ['kept', 'not drawn', 'kept', 'no match']

    Source: Xu et al. (2024), section 3. Taught in: notebooks/06_balance.ipynb
    """
    _check_t(t)
    matcher = Matcher(entries)
    ids, offsets = matcher.match(texts)
    counts = entry_counts(ids, len(matcher.entries))
    p = keep_probability(counts, t)
    q = text_keep_probability(ids, offsets, p)
    kept = sample(q, np.arange(len(q)) if sample_ids is None else sample_ids, seed)
    reasons = np.where(kept, "kept", np.where(np.diff(offsets) == 0, "no match", "not drawn"))
    return Curation(kept, reasons, ids, offsets, counts, p, q)


def explain(text: str, matcher: Matcher, counts: ArrayLike, t: float) -> str:
    """Say which entries a caption holds, the count and p of each, rarest first, and the chance q of being kept.

    >>> print(explain("a cat, a dog", Matcher(["cat", "dog"]), counts=[100, 40], t=20))
    'a cat, a dog' is kept with probability 0.600
      dog: 40 captions, p = 0.500
      cat: 100 captions, p = 0.200

    Taught in: notebooks/06_balance.ipynb
    """
    counts = _check_counts(counts)
    p = keep_probability(counts, t)
    ids, offsets = matcher.match([text])
    q = text_keep_probability(ids, offsets, p)[0]
    rarest_first = sorted(ids, key=lambda e: counts[e])
    lines = [f"  {matcher.entries[e]}: {counts[e]:,} captions, p = {p[e]:.3f}" for e in rarest_first]
    verdict = f"is kept with probability {q:.3f}" if lines else "is dropped: no entry matches"
    return "\n".join([f"{text!r} {verdict}", *lines])


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


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Splitmix64's step and finaliser, modulo 2 ** 64."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _check_t(t: float) -> float:
    if not 0 < t < np.inf:
        raise ValueError(f"t must be a positive number, the count above which an entry is thinned out; not {t!r}")
    return t


def _check_counts(counts: ArrayLike, matched: bool = False) -> Ints:
    array = np.asarray(counts)
    if array.ndim != 1 or array.dtype.kind not in "iu" or (array < 0).any():
        raise ValueError(f"counts must be whole numbers >= 0, one for each entry; not {array.dtype} {array.shape}")
    if matched and not array.any():
        raise ValueError("counts are all 0, so there is no tail: no caption matched; look at case and language")
    return array.astype(np.int64)


def _check_matches(ids: ArrayLike, offsets: ArrayLike, n_entries: int) -> tuple[Ids, NDArray[Any], int]:
    """Checked ids (nnz,), the caption that each belongs to (nnz,), and the number of captions."""
    ids, offsets = np.asarray(ids, dtype=np.int32), np.asarray(offsets, dtype=np.int64)
    if [*offsets[:1], *offsets[-1:]] != [0, len(ids)] or (np.diff(offsets) < 0).any():
        raise ValueError(f"offsets must rise from 0 to {len(ids)}, the number of ids; not {offsets}: take Matcher's")
    if len(ids) and not 0 <= ids.min() <= ids.max() < n_entries:
        raise ValueError(f"ids must lie in 0 .. {n_entries - 1}; not {ids.min()} .. {ids.max()}: from other metadata?")
    return ids, np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)), len(offsets) - 1
