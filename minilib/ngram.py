"""The compiled walk over caption tokens behind ``Matcher(engine="ngram")``: two hash tables and one pass.

Every token that occurs in an entry gets a number; a prefix of an entry is a node. Two tables answer the walk:

- ``words`` (S, 4) uint64: the token's bytes (lo, hi), its number with the flag "some entry goes on", its entry's code.
  Up to 15 bytes the key *is* the token, so equality needs no second look; longer tokens carry a hash and are compared
  byte by byte with the entries.
- ``runs`` (R, 2) uint64: node and next token, both 32 bits, so the key is exact; the next node and the entry's code.

A code is entry + 1; its top bit says that the entry stands in the list again (``again`` chains the copies).

Needs numba (extra ``curate``). Taught in: notebooks/06_balance.ipynb
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]
Words = NDArray[np.uint64]

PADDING = 24  # zero bytes behind every buffer, so that a token's 16 bytes can be loaded in one go
MARK, BLANK, SPACE = 2, 1, 32
_CLASS = np.zeros(256, dtype=np.uint8)
_CLASS[list(b" \t\n\r")] = BLANK
_CLASS[list(b",.;:?!`")] = MARK

_U = np.uint64
SHORT, TOO_LONG = 15, 2**24 - 1  # bytes: tokens that are their own key; tokens that no entry may have
_LONG = _U(0xFF << 56)
_GOES_ON, _LOW, _COPIES = _U(1 << 32), _U(0xFFFFFFFF), _U(1 << 31)
_ZERO, _ONE, _MIX, _MIX2 = _U(0), _U(1), _U(0x9E3779B97F4A7C15), _U(0xD6E8FEB86659FD93)
_FNV, _FNV_PRIME = _U(0xCBF29CE484222325), _U(0x100000001B3)

compiled = numba.njit(nogil=True, cache=True)


class Table(NamedTuple):
    """The two tables, the chain of repeated entries (M,) int32, and the entries' bytes with their PADDING."""

    words: Words
    runs: Words
    again: NDArray[np.int32]
    data: Bytes


def build(data: Bytes, offsets: Ints) -> Table:
    """Tables of the entries ``data[offsets[e]:offsets[e + 1]]``, UTF-8, split at single spaces.

    Raises ``ValueError`` for more entries or longer ones than the packed slots can number.
    """
    if len(offsets) > 2**30 or len(data) >= 2**32 or np.diff(offsets).max() >= TOO_LONG:
        raise ValueError(
            f"the packed table holds 2**30 entries, 4 GiB of text and 16 MiB an entry; not {len(offsets) - 1:,} of "
            f"{len(data):,} bytes, the longest {np.diff(offsets).max():,}: split the list, or use engine='dict'"
        )
    n_runs = int(np.count_nonzero(data == SPACE))  # tokens after the first of each entry
    runs = np.zeros((_power_of_two(2 * n_runs), 2), dtype=np.uint64)
    again = np.full(len(offsets) - 1, -1, dtype=np.int32)
    padded = pad(data)
    words = _number_tokens(padded, padded.view(np.uint64), offsets)
    _number_runs(padded, padded.view(np.uint64), offsets, words, runs, again)
    return Table(words, runs, again, padded)


def match(table: Table, data: Bytes, offsets: Ints) -> tuple[NDArray[np.int32], Ints]:
    """Matches of the captions ``data[offsets[i]:offsets[i + 1]]``: ids, ascending and distinct in each, and offsets."""
    first, stop = int(offsets[0]), int(offsets[-1])
    padded, starts = pad(data[first:stop]), offsets - first
    tokens = np.empty((2 * int(np.diff(starts).max(initial=0)) + 2, 2), dtype=np.uint64)
    ids, ends, done = np.empty(8 * len(starts) + 64, dtype=np.int32), np.zeros(len(starts), dtype=np.int64), 0
    while done < len(starts) - 1:
        done = _match_all(*table, padded, padded.view(np.uint64), starts, _CLASS, tokens, ids, ends, done)
        if done < len(starts) - 1:
            ids = np.concatenate([ids, np.empty_like(ids)])  # full: twice the room, and on with the same caption
    return ids[: ends[-1]].copy(), ends


def pad(data: Bytes) -> Bytes:
    """A copy with at least PADDING zero bytes behind it, a multiple of 8 long."""
    padded = np.zeros((len(data) + PADDING + 7) // 8 * 8, dtype=np.uint8)
    padded[: len(data)] = data
    return padded


def _power_of_two(n: int) -> int:
    return 1 << max(n, 1).bit_length()


@compiled
def _load(words, at):
    """Eight bytes from byte ``at`` on, from two aligned loads."""
    shift = _U((at & 7) * 8)
    low = words[at >> 3] >> shift
    return low | (words[(at >> 3) + 1] << (_U(64) - shift)) if shift else low


@compiled
def _key(data, words, start, stop):
    """A token as two numbers: its bytes and its length; a longer one as its hash, its length and where it stands."""
    n = stop - start
    if n > SHORT:
        hashed = _FNV
        for i in range(start, stop):
            hashed = (hashed ^ _U(data[i])) * _FNV_PRIME
        return hashed, _LONG | (_U(min(n, TOO_LONG)) << _U(32)) | _U(start)
    lo = _load(words, start)
    if n < 8:
        return lo & ((_ONE << _U(8 * n)) - _ONE), _U(n) << _U(56)
    hi = _load(words, start + 8) & ((_ONE << _U(8 * (n - 8))) - _ONE)
    return lo, hi | (_U(n) << _U(56))


@compiled
def _place(lo, hi):
    hashed = lo if hi >= _LONG else lo ^ (hi * _MIX2)
    hashed = (hashed ^ (hashed >> _U(32))) * _MIX
    return hashed ^ (hashed >> _U(29))


@compiled
def _same(table, slot, lo, hi, data, mine):
    """Does the slot hold this token? A short one is its key; a long one is compared in full."""
    if table[slot, 0] != lo:
        return False
    if hi < _LONG:
        return table[slot, 1] == hi
    if table[slot, 1] >> _U(32) != hi >> _U(32):
        return False
    there, here = np.int64(table[slot, 1] & _LOW), np.int64(hi & _LOW)
    n = np.int64(hi >> _U(32)) & TOO_LONG
    return np.array_equal(data[there : there + n], mine[here : here + n])


@compiled
def _find_word(table, lo, hi, data, mine):
    """The slot of a token, or the empty slot where it belongs."""
    mask = _U(len(table) - 1)
    slot = _place(lo, hi) & mask
    while table[slot, 2] != _ZERO and not _same(table, slot, lo, hi, data, mine):
        slot = (slot + _ONE) & mask
    return slot


@compiled
def _find_run(runs, key):
    mask = _U(len(runs) - 1)
    slot = (((key ^ (key >> _U(32))) * _MIX) >> _U(20)) & mask
    while runs[slot, 0] != key and runs[slot, 0] != _ZERO:
        slot = (slot + _ONE) & mask
    return slot


@compiled
def _grow(table):
    """Twice the room: every token finds its new slot."""
    larger = np.zeros((2 * len(table), 4), dtype=np.uint64)
    mask = _U(len(larger) - 1)
    for old in range(len(table)):
        if table[old, 2] != _ZERO:
            slot = _place(table[old, 0], table[old, 1]) & mask
            while larger[slot, 2] != _ZERO:
                slot = (slot + _ONE) & mask
            larger[slot] = table[old]
    return larger


@compiled
def _number_tokens(data, words, offsets):
    """The table of all tokens of all entries, numbered from 1 on."""
    table, n_tokens = np.zeros((1024, 4), dtype=np.uint64), 0
    for e in range(len(offsets) - 1):
        start = offsets[e]
        for stop in range(offsets[e], offsets[e + 1] + 1):
            if stop < offsets[e + 1] and data[stop] != SPACE:
                continue
            lo, hi = _key(data, words, start, stop)
            slot = _find_word(table, lo, hi, data, data)
            if table[slot, 2] == _ZERO:
                n_tokens += 1
                table[slot, 0], table[slot, 1], table[slot, 2] = lo, hi, _U(n_tokens)
                if 2 * n_tokens > len(table):
                    table = _grow(table)
            start = stop + 1
    return table


@compiled
def _number_runs(data, words, offsets, table, runs, again):
    """Enter every beginning of an entry that has two tokens or more; mark where entries end and where they go on."""
    last, n_nodes = np.full(len(again), -1, dtype=np.int32), _U(1 << 31)  # nodes below 2**31 are tokens
    for e in range(len(offsets) - 1):
        start, node = offsets[e], _ZERO
        for stop in range(offsets[e], offsets[e + 1] + 1):
            ends = stop == offsets[e + 1]
            if not ends and data[stop] != SPACE:
                continue
            lo, hi = _key(data, words, start, stop)
            word = _find_word(table, lo, hi, data, data)
            token = table[word, 2] & _LOW
            if start == offsets[e]:
                node = token
                if ends:
                    table[word, 3] |= _code(table[word, 3], e, last, again)
                else:
                    table[word, 2] |= _GOES_ON
            else:
                run = _find_run(runs, (node << _U(32)) | token)
                runs[run, 0] = (node << _U(32)) | token
                if ends:
                    runs[run, 1] |= _code(runs[run, 1] & _LOW, e, last, again)
                elif runs[run, 1] >> _U(32) == _ZERO:
                    runs[run, 1] |= n_nodes << _U(32)
                    n_nodes += _ONE
                node = runs[run, 1] >> _U(32)
            start = stop + 1


@compiled
def _code(code, e, last, again):
    """What entry ``e`` adds to the code of its slot; a copy is chained behind the last one (``last``, int32 (M,))."""
    if code == _ZERO:
        return _U(e + 1)
    original = np.int64(code & (_COPIES - _ONE)) - 1
    again[last[original] if last[original] >= 0 else original] = e
    last[original] = e
    return _COPIES


@compiled
def _match_all(table, runs, again, entries, data, words, offsets, kinds, tokens, ids, ends, done):
    """Match captions from number ``done`` on until all are done or ``ids`` is full; returns the next caption's number.

    ``tokens`` is scratch: number and flag of each known token (0 for others), and its entry's code.
    """
    for i in range(done, len(offsets) - 1):
        n, start = 0, offsets[i]
        for stop in range(offsets[i], offsets[i + 1] + 1):
            kind = kinds[data[stop]] if stop < offsets[i + 1] else BLANK
            if kind == 0:
                continue
            lo, hi = _key(data, words, start, stop)
            slot = _find_word(table, lo, hi, entries, data)
            tokens[n, 0], tokens[n, 1] = table[slot, 2], table[slot, 3]
            n += 1
            if kind == MARK:  # a mark is a token of its own
                slot = _find_word(table, _U(data[stop]), _ONE << _U(56), entries, data)
                tokens[n, 0], tokens[n, 1] = table[slot, 2], table[slot, 3]
                n += 1
            start = stop + 1
        end = _walk(runs, again, tokens, n, ids, ends[i])
        if end < 0:
            return i
        ends[i + 1] = end
    return len(offsets) - 1


@compiled
def _walk(runs, again, tokens, n, ids, begin):
    """Write the entries found from every token on to ``ids[begin:]``, sorted; returns the end, -1 if full."""
    end = begin
    for i in range(n):
        if tokens[i, 1] != _ZERO:
            end = _emit(tokens[i, 1], again, ids, begin, end)
        node, j = tokens[i, 0] & _LOW, i + 1
        goes_on = tokens[i, 0] >= _GOES_ON
        while goes_on and end >= 0 and j < n and tokens[j, 0] != _ZERO:
            slot = _find_run(runs, (node << _U(32)) | (tokens[j, 0] & _LOW))
            if runs[slot, 0] == _ZERO:
                break
            if runs[slot, 1] & _LOW != _ZERO:
                end = _emit(runs[slot, 1] & _LOW, again, ids, begin, end)
            node = runs[slot, 1] >> _U(32)
            goes_on, j = node != _ZERO, j + 1
        if end < 0:
            return -1
    return _distinct(ids, begin, end)


@compiled
def _emit(code, again, ids, begin, end):
    e = np.int64(code & (_COPIES - _ONE)) - 1
    while e >= 0:
        if end < 0 or end >= len(ids):
            return -1
        ids[end] = e
        end += 1
        e = np.int64(again[e]) if code >= _COPIES else np.int64(-1)
    return end


@compiled
def _distinct(ids, begin, end):
    """Sort ``ids[begin:end]`` in place and drop repetitions; returns the new end."""
    if end - begin > 40:
        ids[begin:end] = np.sort(ids[begin:end])
    else:
        for i in range(begin + 1, end):
            value, j = ids[i], i
            while j > begin and ids[j - 1] > value:
                ids[j] = ids[j - 1]
                j -= 1
            ids[j] = value
    kept = min(begin + 1, end)
    for i in range(begin + 1, end):
        if ids[i] != ids[kept - 1]:
            ids[kept] = ids[i]
            kept += 1
    return kept
