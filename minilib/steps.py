"""The three steps of a curation run: count each shard, reduce once, sample each shard.

The steps hand each other files under ``OUT/work``. Each step is done for a shard once its file stands under its final
name, so a run that was killed goes on where it stopped, in one process or on many machines, and the bytes are the same.

- count(k): match shard k -> per piece of about a million rows: CSR ``ids`` and ``offsets``, ``codes`` of rows that are
  not sound, and the distinct ``keys``, sorted, each with its number of ``times`` and the rows in the ``order`` of keys.
- reduce: ``before``, how often each key stands in earlier pieces; counts c_e of the rows that remain; t; p_e.
- sample(k): q_i from CSR and p; keep row i where the hash of (its key, seed, occurrence) lies below q_i.

Taught in: notebooks/06_balance.ipynb
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from minilib.curate import (
    Floats,
    entry_counts,
    expected_entry_counts,
    hash_uniform,
    keep_probability,
    language_thresholds,
    smallest_t,
    solve_t,
    text_keep_probability,
)
from minilib.pools import (
    DAMAGED,
    DUPLICATE,
    NO_MATCH,
    NO_METADATA,
    NOT_DRAWN,
    REASONS,
    TWICE,
    Codes,
    Damage,
    DamagedShard,
    Rows,
    atomic,
    copy_rows,
    output_name,
    read_rows,
)
from minilib.runs import Run, fingerprint, save_array, write_json

PIECE_ROWS = 1 << 20  # rows whose matches are held in memory at once
BUCKET_KEYS = 1 << 22  # keys that are compared at once

Arrays = dict[str, NDArray[Any]]


# --- count -----------------------------------------------------------------------------------------------------------


def count(run: Run, k: int) -> None:
    """Match shard k and write its pieces; does nothing where that is done.

    Raises `Damage` where the settings are strict. Taught in: notebooks/06_balance.ipynb
    """
    target = run.work(f"count-{k:05d}")
    if target.exists():
        return
    part, began, shard = target.with_suffix(".part"), time.perf_counter(), run.shards[k]
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    note: dict[str, Any] = {"rows": 0, "pieces": 0, "damage": None, "fingerprint": fingerprint(shard)}
    try:
        for piece in _pieces(run, shard):
            for name, array in piece.items():
                save_array(part / f"{note['pieces']:05d}.{name}.npy", array)
            note.update(pieces=note["pieces"] + 1, rows=note["rows"] + len(piece["codes"]))
    except DamagedShard as damage:
        if run.settings.strict:
            raise
        note.update(rows=damage.rows, pieces=0, damage=str(damage))
    write_json(part / "note.json", {**note, "seconds": time.perf_counter() - began})
    os.replace(part, target)


def _pieces(run: Run, shard: Path) -> Iterator[Arrays]:
    waiting: list[Arrays] = []
    done = rows = 0
    for batch in read_rows(shard, run.settings.columns, run.settings.keep_duplicates):
        if run.settings.strict and batch.codes.any():
            row = int(np.argmax(batch.codes > 0))
            raise _strict(shard, done + row, batch.codes[row])
        waiting.append(match_rows(run, batch))
        done, rows = done + len(batch.codes), rows + len(batch.codes)
        if rows >= PIECE_ROWS:
            yield _piece(waiting)
            waiting, rows = [], 0
    if waiting:
        yield _piece(waiting)


def match_rows(run: Run, batch: Rows) -> Arrays:
    """Codes, keys and matches of a batch: ``ids`` as in CSR, and ``lengths``, the number of matches of each row."""
    codes, languages = batch.codes.copy(), batch.language
    if languages is None:
        ids, offsets = run.matchers[""].match(batch.text)
    else:
        ids, offsets = _match_languages(run, batch.text, languages.dictionary_encode(), codes)
    return {"codes": codes, "once": batch.once, "keys": batch.keys, "ids": ids, "lengths": np.diff(offsets)}


def _match_languages(run: Run, text: pa.Array, languages: Any, codes: Codes) -> tuple[NDArray, NDArray]:
    """Match each row against its own language's entries; a row without any gets the code NO_METADATA."""
    numbers, lengths, parts = languages.indices.to_numpy(), np.zeros(len(text), np.int64), []
    for number, language in enumerate(languages.dictionary.to_pylist()):
        rows = np.flatnonzero(numbers == number)
        if language not in run.languages:
            codes[rows[codes[rows] == 0]] = NO_METADATA
            continue
        ids, offsets = run.matchers[language].match(text.take(pa.array(rows)))
        lengths[rows] = np.diff(offsets)
        parts.append((rows, ids + run.bases[language], offsets))
    ends = np.append(0, np.cumsum(lengths))
    merged = np.empty(ends[-1], np.int32)
    for rows, ids, offsets in parts:
        merged[np.repeat(ends[rows] - offsets[:-1], lengths[rows]) + np.arange(len(ids))] = ids
    return merged, ends


def _piece(batches: Sequence[Arrays]) -> Arrays:
    joined = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    codes, keys = joined["codes"], joined["keys"]
    sound = np.flatnonzero(codes == 0)
    order = sound[np.argsort(keys[sound], kind="stable")]  # rows by key, the earlier first
    distinct, times = np.unique(keys[order], return_counts=True)
    return {
        "ids": joined["ids"],
        "offsets": np.append(0, np.cumsum(joined["lengths"])).astype(np.int64),
        "codes": codes,
        "once": joined["once"],
        "keys": distinct,
        "times": times.astype(np.uint32),
        "order": order.astype(np.uint32),
    }


# --- reduce ----------------------------------------------------------------------------------------------------------


def reduce(run: Run) -> None:
    """Rank equal keys over the whole pool, count the rows that remain, choose t, and write each entry's p.

    Taught in: notebooks/06_balance.ipynb
    """
    if run.work("reduce.json").exists():
        return
    began = time.perf_counter()
    pieces = [piece for k in range(len(run.shards)) for piece in run.pieces(k)]
    _rank(pieces)
    counts = sum((_counts(run, k) for k in range(len(run.shards))), np.zeros(run.n_entries, np.int64))
    thresholds = _thresholds(run, pieces, counts)
    save_array(run.work("counts.npy"), counts)
    save_array(run.work("p.npy"), _keep_probability(run, counts, thresholds))
    write_json(run.work("reduce.json"), {"t": thresholds, "seconds": time.perf_counter() - began})


def _counts(run: Run, k: int) -> NDArray[np.int64]:
    """How many rows of shard k hold each entry, duplicates left out; (M,)."""
    counts, first = np.zeros(run.n_entries, np.int64), 0
    for piece in run.pieces(k):
        codes, ids, lengths = _remain(run, piece)[0], _load(piece, "ids"), np.diff(_load(piece, "offsets"))
        if run.settings.strict and (codes == TWICE).any():
            raise _strict(run.shards[k], first + int(np.argmax(codes == TWICE)), TWICE)
        counts += entry_counts(ids[np.repeat(codes == 0, lengths)], run.n_entries)
        first += len(codes)
    return counts


def _strict(shard: Path, row: int, code: int) -> Damage:
    return Damage(f"{shard}, row {row}: {REASONS[code]}; repair it, or run without --strict to quarantine such rows")


def _thresholds(run: Run, pieces: Sequence[Path], counts: NDArray[np.int64]) -> dict[str, float]:
    """t by language, as the settings ask for it."""
    settings = run.settings
    if settings.t is not None:
        return _spread(run, counts, settings.t)
    if settings.tail_share is not None:
        whole = _by_language(run, counts)[settings.reference if settings.language else ""]
        return _spread(run, counts, solve_t(whole, tail_share=settings.tail_share))

    def size_at(t: int) -> float:
        return _expected(run, pieces, _keep_probability(run, counts, _spread(run, counts, t)))

    return _spread(run, counts, smallest_t(size_at, settings.size or 0, max(1, int(counts.max()))))


def _spread(run: Run, counts: NDArray[np.int64], t: float) -> dict[str, float]:
    """The t of every language from that of the reference language."""
    if run.settings.language is None:
        return {"": t}
    return dict(language_thresholds(_by_language(run, counts), t=t, reference=run.settings.reference))


def _by_language(run: Run, values: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {name: values[base : base + len(run.languages[name])] for name, base in run.bases.items()}


def _keep_probability(run: Run, counts: NDArray[np.int64], thresholds: dict[str, float]) -> Floats:
    parts = _by_language(run, counts)
    return np.concatenate([keep_probability(parts[name], thresholds[name]) for name in run.languages])


def _expected(run: Run, pieces: Sequence[Path], p: Floats) -> float:
    return sum(float(_chances(piece, _remain(run, piece)[0], p).sum()) for piece in pieces)


def _chances(piece: Path, codes: Codes, p: Floats) -> Floats:
    """q of each row; 0 for a row that is out."""
    return np.where(codes == 0, text_keep_probability(_load(piece, "ids"), _load(piece, "offsets"), p), 0.0)


def _rank(pieces: Sequence[Path]) -> None:
    """Append to each piece, bucket by bucket of the key space, how often each of its keys stands in earlier pieces."""
    for piece in pieces:
        piece.with_name(piece.name + ".before").write_bytes(b"")
    buckets = 1 + sum(len(_load(piece, "keys")) for piece in pieces) // BUCKET_KEYS
    for bucket in range(buckets):
        edges = np.array([(bucket << 64) // buckets, ((bucket + 1 << 64) // buckets) - 1], np.uint64)
        cuts = [slice(*_between(_load(piece, "keys"), *edges)) for piece in pieces]
        keys = [_load(piece, "keys")[cut] for piece, cut in zip(pieces, cuts, strict=True)]
        times = [_load(piece, "times")[cut] for piece, cut in zip(pieces, cuts, strict=True)]
        before = occurrences(np.concatenate(keys), np.concatenate(times)) if keys else np.zeros(0, np.uint32)
        for piece, part in zip(pieces, np.split(before, np.cumsum([len(k) for k in keys])), strict=False):
            with open(piece.with_name(piece.name + ".before"), "ab") as file:
                file.write(part.tobytes())


def _between(keys: NDArray[np.uint64], low: np.uint64, high: np.uint64) -> tuple[int, int]:
    return int(np.searchsorted(keys, low)), int(np.searchsorted(keys, high, side="right"))


def occurrences(keys: NDArray[np.uint64], times: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """How often each key occurs before its place in the list, where key i stands for ``times[i]`` rows; (n,).

    >>> occurrences(np.array([7, 9, 7, 7], np.uint64), np.array([2, 1, 3, 1], np.uint32)).tolist()
    [0, 0, 2, 5]

    Taught in: notebooks/06_balance.ipynb
    """
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    before = np.cumsum(times[order], dtype=np.int64) - times[order]
    first = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(keys)])
    before -= np.repeat(before[first], np.diff(np.append(first, len(keys))))
    out = np.empty(len(keys), np.uint32)
    out[order] = before
    return out


def _remain(run: Run, piece: Path) -> tuple[Codes, NDArray[np.uint64], NDArray[np.int64]]:
    """Codes with duplicates marked, key and occurrence of each row of a piece."""
    codes, order = np.array(_load(piece, "codes")), _load(piece, "order")
    times = _load(piece, "times").astype(np.int64)
    before = np.fromfile(piece.with_name(piece.name + ".before"), np.uint32).astype(np.int64)
    keys, rank = np.zeros(len(codes), np.uint64), np.zeros(len(codes), np.int64)
    keys[order] = np.repeat(_load(piece, "keys"), times)
    rank[order] = np.repeat(before - np.cumsum(times) + times, times) + np.arange(len(order))
    codes[(codes == 0) & _load(piece, "once") & (rank > 0)] = TWICE if run.settings.id else DUPLICATE
    return codes, keys, rank


# --- sample ----------------------------------------------------------------------------------------------------------


def sample(run: Run, k: int) -> None:
    """Write what is kept of shard k, and what was tallied; does nothing where that is done.

    Raises ``ValueError`` for a shard that changed since it was counted, `Damage` where the settings are strict.
    Taught in: notebooks/06_balance.ipynb
    """
    note, shard, began = run.note(k), run.shards[k], time.perf_counter()
    if run.work(f"sample-{k:05d}.json").exists():
        return
    if fingerprint(shard) != note["fingerprint"]:
        raise ValueError(f"{shard} changed since it was counted: restore it, or start anew in another folder")
    tally, output = Tally(run, k), None
    with atomic(run.work(f"sample-{k:05d}.jsonl")) as quarantine:
        if note["damage"] is None:
            try:
                output = _write_shard(run, k, tally, quarantine)
            except DamagedShard as damage:
                if run.settings.strict:
                    raise
                note["damage"] = str(damage)
        if note["damage"]:
            tally = Tally(run, k)
            tally.reasons[DAMAGED] = note["rows"]
            quarantine.seek(0)
            quarantine.truncate()
            quarantine.write(_line(shard, None, f"{REASONS[DAMAGED]}: {note['damage']}"))
    touched = np.flatnonzero(tally.foreseen)
    after = np.stack([touched, tally.observed[touched], tally.foreseen[touched]])  # float64 is exact up to 2**53
    save_array(run.work(f"sample-{k:05d}.npy"), after)
    sums = {"reasons": tally.reasons.tolist(), "expected": tally.expected, "variance": tally.variance}
    write_json(
        run.work(f"sample-{k:05d}.json"),
        {**note, **sums, "output": output, "count_seconds": note["seconds"], "seconds": time.perf_counter() - began},
    )


def _write_shard(run: Run, k: int, tally: Tally, quarantine: BinaryIO) -> dict[str, Any]:
    shard, done = run.shards[k], 0
    path = run.folder / "kept" / output_name(k, shard)

    def take(n: int) -> NDArray[np.bool_]:
        nonlocal done
        codes = tally.take(n)
        for row in np.flatnonzero((codes > 0) & (codes <= TWICE)):
            quarantine.write(_line(shard, done + int(row), REASONS[codes[row]]))
        done += n
        return codes == 0

    with atomic(path) as file:
        copy_rows(shard, file, take)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "rows": int(tally.reasons[0]), "bytes": path.stat().st_size, "sha256": digest}


def _line(shard: Path, row: int | None, reason: str) -> bytes:
    return json.dumps({"shard": str(shard), "row": row, "reason": reason}).encode() + b"\n"


class Tally:
    """Sums over the rows of a shard, and the codes of the rows to come."""

    def __init__(self, run: Run, k: int) -> None:
        self.run, self.pieces, self.waiting = run, iter(run.pieces(k)), np.zeros(0, np.uint8)
        self.p: Floats = np.load(run.work("p.npy"))
        self.reasons = np.zeros(len(REASONS), np.int64)
        self.expected = self.variance = 0.0
        self.observed, self.foreseen = np.zeros(len(self.p), np.int64), np.zeros(len(self.p))

    def take(self, n: int) -> Codes:
        """Codes of the next n rows, 0 for a row that is kept."""
        while len(self.waiting) < n:
            self.waiting = np.concatenate([self.waiting, self.draw(next(self.pieces))])
        now, self.waiting = self.waiting[:n], self.waiting[n:]
        return now

    def draw(self, piece: Path) -> Codes:
        """Decide on the rows of a piece, and add them up."""
        codes, keys, rank = _remain(self.run, piece)
        ids, offsets = _load(piece, "ids"), _load(piece, "offsets")
        q, lengths = _chances(piece, codes, self.p), np.diff(offsets)
        kept = hash_uniform(keys, self.run.settings.seed, rank) < q
        codes[(codes == 0) & ~kept] = NOT_DRAWN
        codes[(codes == NOT_DRAWN) & (lengths == 0)] = NO_MATCH
        self.reasons += np.bincount(codes, minlength=len(REASONS))
        self.expected += float(q.sum())
        self.variance += float((q * (1 - q)).sum())
        self.observed += entry_counts(ids[np.repeat(kept, lengths)], len(self.p))
        self.foreseen += expected_entry_counts(ids, offsets, q, len(self.p))
        return codes


def _load(piece: Path, name: str) -> NDArray[Any]:
    return np.load(piece.with_name(f"{piece.name}.{name}.npy"), mmap_mode="r")
