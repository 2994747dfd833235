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

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minilib.matching import Ids, Ints, Matcher
from minilib.metadata import check_strings

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


# --- count ----------------------------------------------------------------------------------------------------------


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


def solve_t(
    counts: ArrayLike,
    *,
    tail_share: float | None = None,
    size: float | None = None,
    matches: tuple[ArrayLike, ArrayLike] | None = None,
) -> int:
    """The threshold t for a wanted share of the tail, or for a wanted number of captions.

    ``tail_share`` gives the count whose `tail_share` is nearest to it; the smaller of two equals. Departs from the
    reference, which adds the entry at t itself to the tail: a share would then not come back from its own t where many
    entries have equal counts, as they do in small pools. ``size`` gives the smallest whole t whose `expected_size` over
    ``matches`` (ids, offsets) reaches it.

    >>> solve_t([1, 3, 16], tail_share=0.2)
    16
    >>> solve_t([3], size=2, matches=([0, 0, 0], [0, 1, 2, 3]))
    2

    Raises ``ValueError`` for a share outside 0 .. 1, and for a size of 0 or of more captions than hold any entry.
    Source: Xu et al. (2024), code, for the share. Taught in: notebooks/06_balance.ipynb
    """
    if (tail_share is None) == (size is None) or (size is None) != (matches is None):
        raise ValueError("pass tail_share=, or size= with matches=(ids, offsets) of the captions; one of the two")
    if size is not None and matches is not None:
        return smallest_t(lambda t: expected_size(*matches, counts, t), size, _check_counts(counts, matched=True).max())
    if not 0 <= tail_share <= 1:  # type: ignore[operator]
        raise ValueError(f"tail_share must lie in 0 .. 1, such as 0.06; not {tail_share}")
    counts = np.sort(_check_counts(counts, matched=True))
    values, first = np.unique(counts[counts > 0], return_index=True)
    below = np.append(0, np.cumsum(counts[counts > 0]))[first]  # (distinct values,) matches in entries below each value
    return int(values[np.abs(below / counts.sum() - tail_share).argmin()])


def smallest_t(size_at: Callable[[int], float], size: float, largest: int) -> int:
    """The smallest whole t in 1 .. ``largest`` with ``size_at(t) >= size``, for a size that grows with t, by halving.

    >>> smallest_t(lambda t: 10 * t, size=35, largest=100)
    4

    Taught in: notebooks/06_balance.ipynb
    """
    low, high = 1, int(largest)
    most = size_at(high)
    if not 0 < size <= most * (1 + 1e-12):
        raise ValueError(f"size must lie in 1 .. {most:,.0f}, the captions that hold an entry; not {size:,}")
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if size_at(middle) >= size else (middle + 1, high)
    return low


def language_thresholds(counts: Mapping[str, ArrayLike], *, t: float, reference: str = "en") -> dict[str, int]:
    """MetaCLIP 2's rule: every language gets the t at which its tail has the share that the reference's has at ``t``.

    ``counts`` holds the counts of each language's own entries. The reference keeps ``t``; a language without any match
    gets 1, which drops nothing.

    >>> language_thresholds({"en": [1, 3, 16], "de": [2, 2, 6, 10]}, t=16)
    {'en': 16, 'de': 6}

    Raises ``ValueError`` when the reference language is missing or has no match.
    Source: Chuang et al. (2025), code. Taught in: notebooks/06_balance.ipynb
    """
    if reference not in counts:
        raise ValueError(f"the reference language must be one of {', '.join(sorted(counts))}; not {reference!r}")
    share = tail_share(counts[reference], t)
    others = {name: solve_t(own, tail_share=share) if np.any(own) else 1 for name, own in counts.items()}
    return others | {reference: int(t)}


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


def sample_epoch(
    q: ArrayLike, sample_ids: ArrayLike, *, seed: int, epoch: int, images: ArrayLike | None = None
) -> Ints:
    """Rows to train on in one epoch, ascending: the draw is repeated each time a picture is seen, and nothing is lost.

    Where pictures have several captions, ``images`` (N,) names the picture of each row: one caption a picture is
    chosen, all equally likely, and then stays with its own q. Epoch 0 without ``images`` is `sample`.

    >>> sample_epoch([1.0, 0.0, 1.0], sample_ids=[7, 8, 9], seed=0, epoch=3).tolist()
    [0, 2]

    Source: Xu et al. (2024), section 3, the online variant. Taught in: notebooks/06_balance.ipynb
    """
    q, sample_ids = np.asarray(q, dtype=np.float64), np.asarray(sample_ids)
    rows = np.arange(len(q))
    if images is not None:
        lot = hash_uniform(sample_ids, seed, stream=epoch + 2**40)  # a stream that no epoch draws from
        order = np.lexsort((lot, np.asarray(images)))
        rows = np.sort(order[np.unique(np.asarray(images)[order], return_index=True)[1]])
    return rows[hash_uniform(sample_ids[rows], seed, stream=epoch) < q[rows]]


def find_duplicates(texts: Iterable[str], urls: Iterable[str] | None = None) -> Mask:
    """True where a row repeats the text, and where given the URL too, of a row before it; bool (N,).

    One picture with two captions is no duplicate, and neither is one caption under two pictures.

    >>> find_duplicates(["a cat", "a cat", "a cat"], ["u/1", "u/2", "u/1"]).tolist()
    [False, False, True]

    Taught in: notebooks/06_balance.ipynb
    """
    keys: Iterable[Any] = check_strings(texts, "caption") if urls is None else zip(texts, urls, strict=True)
    first: dict[Any, int] = {}
    return np.array([first.setdefault(key, row) != row for row, key in enumerate(keys)], dtype=np.bool_)


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


def explain(
    text: str, matcher: Matcher, counts: ArrayLike, t: float, *, sample_id: int | None = None, seed: int = 0
) -> str:
    """Say which entries a caption holds, the count and p of each, rarest first, and the chance q of being kept.

    With ``sample_id`` and ``seed`` also what became of it: `sample`'s number for this id beside q.

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
    if lines and sample_id is not None:
        draw = hash_uniform([sample_id], seed)[0]
        verdict += f"; {'kept' if draw < q else 'dropped'}, since its draw is {draw:.3f}"
    return "\n".join([f"{text!r} {verdict}", *lines])


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
