"""Curate a pool that does not fit in memory, in one call: count, reduce, sample, and the papers that come with it.

Taught in: notebooks/06_balance.ipynb
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from minilib import __version__
from minilib.keys import row_keys
from minilib.metadata import lint_entries
from minilib.pools import REASONS, atomic, read_rows
from minilib.report import write_report
from minilib.runs import Run, Settings, start, write_json
from minilib.steps import count, match_rows, reduce, sample


def finish(run: Run, keep_work: bool = False) -> dict[str, Any]:
    """Add up the shards, write quarantine, report and manifest, in this order; the manifest's content.

    Taught in: notebooks/06_balance.ipynb
    """
    manifest = run.folder / "manifest.json"
    if not manifest.exists():
        notes = [_sampled(run, k) for k in range(len(run.shards))]
        totals = _totals(run, notes)
        with atomic(run.folder / "quarantine.jsonl") as file:
            for k in range(len(run.shards)):
                file.write(run.work(f"sample-{k:05d}.jsonl").read_bytes())
        write_report({**totals, **_curves(run, notes)}, run.folder)
        write_json(manifest, {**totals, **_files(run, notes)})
    if not keep_work:
        shutil.rmtree(run.work(""), ignore_errors=True)
    return json.loads(manifest.read_text(encoding="utf8"))


def _sampled(run: Run, k: int) -> dict[str, Any]:
    path = run.work(f"sample-{k:05d}.json")
    if not path.exists():
        raise FileNotFoundError(f"shard {k}, {run.shards[k]}, is not sampled yet: run sample for it first")
    return json.loads(path.read_text(encoding="utf8"))


def _totals(run: Run, notes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    reasons = np.sum([note["reasons"] for note in notes], axis=0).tolist()
    identity = json.loads((run.folder / "run.json").read_text(encoding="utf8"))
    return {
        "minilib": __version__,
        "settings": identity["settings"],
        "metadata": identity["metadata"],
        "t": json.loads(run.work("reduce.json").read_text())["t"],
        "n_rows": sum(reasons),
        "n_kept": reasons[0],
        "expected_size": sum(note["expected"] for note in notes),
        "expected_spread": sum(note["variance"] for note in notes) ** 0.5,
        "dropped": {reason: n for reason, n in zip(REASONS[1:], reasons[1:], strict=True) if n},
        "damaged_shards": sum(note["damage"] is not None for note in notes),
    }


def _files(run: Run, notes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    inputs = [
        {
            "path": str(shard),
            "bytes": shard.stat().st_size,
            **{name: note[name] for name in ("fingerprint", "rows", "damage")},
        }
        for shard, note in zip(run.shards, notes, strict=True)
    ]
    return {"inputs": inputs, "outputs": [note["output"] for note in notes if note["output"]]}


def _curves(run: Run, notes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the report adds to the totals: counts by entry, shards, and what the steps took."""
    after, expected = np.zeros(run.n_entries), np.zeros(run.n_entries)
    for k in range(len(run.shards)):
        touched, *values = np.load(run.work(f"sample-{k:05d}.npy"))
        for total, value in zip((after, expected), values, strict=True):
            total[touched.astype(np.int64)] += value
    reduced = json.loads(run.work("reduce.json").read_text())["seconds"]
    seconds = {
        "count": sum(n["count_seconds"] for n in notes),
        "reduce": reduced,
        "sample": sum(n["seconds"] for n in notes),
    }
    rows = sum(note["rows"] for note in notes)
    lists = [] if run.settings.normalize else run.languages.values()
    dead = [lint.entry for entries in lists for lint in lint_entries(entries) if lint.kind == "dead"]
    names = [f"{name}: {entry}" if name else entry for name, entries in run.languages.items() for entry in entries]
    return {
        "entries": names,
        "dead": dead,
        "counts_before": np.load(run.work("counts.npy")),
        "counts_expected": expected,
        "counts_after": after.astype(np.int64),
        "shards": [
            {"shard": str(shard), "rows": note["rows"], "kept": note["reasons"][0], "damage": note["damage"]}
            for shard, note in zip(run.shards, notes, strict=True)
        ],
        "seconds": seconds,
        "rates": {f"{step}, rows/s": rows / max(taken, 1e-9) for step, taken in seconds.items()},
    }


def curate_pool(
    pool: Iterable[str | Path],
    metadata: str | Path,
    out: str | Path,
    settings: Settings,
    *,
    n_threads: int | None = None,
    keep_work: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Curate the shards of a pool into ``out``; start again after any stop, and it goes on. The manifest's content.

    ``out`` gets ``kept/`` with a shard for each input shard, ``manifest.json``, ``quarantine.jsonl``, ``report.html``
    and ``report.json``. All but the seconds in the report depends on pool, metadata and settings only.

    Raises as `start` does, `Damage` where the settings are strict, ``OSError`` for a full disk.
    Source: Xu et al. (2024), section 3. Taught in: notebooks/06_balance.ipynb
    """
    threads = n_threads or os.cpu_count() or 1
    run = start(pool, metadata, out, settings)
    workers = min(threads, len(run.shards))
    run = replace(run, n_threads=-(-threads // workers))  # cores that the shards leave over help to match
    if not (run.folder / "manifest.json").exists():
        _each(run, count, workers, progress)
        reduce(run)
        _each(run, sample, workers, progress)
    return finish(run, keep_work)


def try_rows(run: Run, shards: Iterable[Path], limit: int) -> tuple[int, int, float]:
    """Match the first ``limit`` rows, about, and write nothing: rows read, rows with a match, seconds."""
    rows = matched = 0
    row_keys(pa.array([""], pa.large_string()))  # compiling is no part of the rate
    for matcher in run.matchers.values():
        matcher.match([""])
    began = time.perf_counter()
    for batch in (batch for shard in shards for batch in read_rows(shard, run.settings.columns)):
        matched += int((match_rows(run, batch)["lengths"] > 0).sum())
        rows += len(batch.codes)
        if rows >= limit:
            break
    return rows, matched, time.perf_counter() - began


def _each(run: Run, step: Callable[[Run, int], None], workers: int, progress: bool) -> None:
    """A step for every shard, several at a time; the first error stops what has not begun."""
    shards = range(len(run.shards))
    with ThreadPoolExecutor(workers) as pool:  # compiled code and files release Python's lock
        jobs = [pool.submit(step, run, k) for k in shards]
        try:
            for job in tqdm(jobs, desc=step.__name__, unit="shard", disable=not progress):
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
