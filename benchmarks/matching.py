"""Matching captions beside the peers, in one run: the reference's loop, its Aho-Corasick, and the other engines.

The metadata is a stand-in from a seed: 500,000 distinct entries of one to five pseudo-words (Zipf 1.0 over 150,000
words); captions of about 11 words with marks and capitals, two thirds of them cut from entries. Ratios are medians of
alternating timings, so that a busy machine slows both sides. Building is timed after a first, compiling call.

    python benchmarks/matching.py [--entries 500000] [--captions 200000]
"""

import argparse
import datetime
import gc
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import ahocorasick
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from minilib.matching import Matcher, match_naive, space_punctuation
from minilib.metadata import build_metadata, save_metadata
from minilib.pipeline import curate_pool
from minilib.runs import Settings

SYLLABLES = "ba be bi bo bu da de di do du ka ke ki ko ku la le li lo lu ma me mi mo mu ra re ri ro ru sa"


def stand_in(n_entries: int, n_captions: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Distinct entries and captions, Zipf-distributed words; the same from the same seed."""
    rng = np.random.default_rng(seed)
    n_words = 150_000
    syllables = rng.choice(SYLLABLES.split(), size=(n_words, 5))
    words = np.array(["".join(row[: 1 + k % 5]) + str(k % 10) * (k % 7 == 0) for k, row in enumerate(syllables)])
    mass = 1 / np.arange(1, n_words + 1)
    mass /= mass.sum()
    entries: dict[str, None] = {}
    while len(entries) < n_entries:
        lengths = rng.choice([1, 2, 3, 4, 5], p=[0.4, 0.4, 0.12, 0.05, 0.03], size=n_entries)
        drawn = words[np.where(lengths[:, None] == 1, rng.integers(0, n_words, (n_entries, 5)),
                               rng.choice(n_words, p=mass, size=(n_entries, 5)))]  # fmt: skip
        entries.update(dict.fromkeys(" ".join(row[:k]) for row, k in zip(drawn, lengths, strict=True)))
    kept = list(entries)[:n_entries]
    drawn = words[rng.choice(n_words, p=mass, size=(n_captions, 9))]
    foreign = rng.random(drawn.shape) < 0.6  # words of captions are often in no list
    drawn = np.where(foreign, np.char.add(drawn, "x"), drawn)
    cut = rng.integers(0, n_entries, n_captions)
    pieces = (" ".join(row[:5]) + ("." if k % 3 else ", ") + (kept[e] if k % 3 else row[8].title()) + " "
              + " ".join(row[5:]) for k, (row, e) in enumerate(zip(drawn, cut, strict=True)))  # fmt: skip
    return kept, list(pieces)


def seconds(call: Callable[[], object]) -> float:
    gc.collect()
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def reference_automaton(entries: Sequence[str]) -> Callable[[Sequence[str]], list[list[int]]]:
    """The reference's second variant: pyahocorasick over spaced captions, a list of ids for each."""
    machine = ahocorasick.Automaton()
    for e, entry in enumerate(entries):
        machine.add_word(f" {entry} ", e)
    machine.make_automaton()
    return lambda texts: [sorted({e for _, e in machine.iter(space_punctuation(text))}) for text in texts]


def compare(entries: list[str], captions: list[str], repeats: int) -> dict[str, float]:
    one, two = Matcher(entries, n_threads=1), Matcher(entries, n_threads=2)
    peer = reference_automaton(entries)
    few = captions[: len(captions) // 5]
    ids, offsets = one.match(few)
    assert peer(few) == [ids[a:b].tolist() for a, b in pairwise(offsets)], "the peers disagree"
    slow = seconds(lambda: [match_naive(text, entries) for text in captions[:4]]) / 4
    rows = [
        (seconds(lambda: peer(few)) * 5, seconds(lambda: one.match(captions)), seconds(lambda: two.match(captions)))
        for _ in range(repeats)
    ]
    theirs, ours, both = (statistics.median(column) for column in zip(*rows, strict=True))
    return {
        "matches a caption": len(ids) / len(few),
        "words a caption": float(np.mean([len(caption.split()) for caption in few])),
        "captions/s, one core": len(captions) / ours,
        "captions/s, two cores": len(captions) / both,
        "captions/s, pyahocorasick": len(captions) / theirs,
        "captions/s, the reference's loop": 1 / slow,
        "times pyahocorasick, one core": statistics.median(a / b for a, b, _ in rows),
        "two cores over one": statistics.median(b / c for _, b, c in rows),
        "times the reference's loop": slow * len(captions) / ours,
    }


def build(entries: list[str]) -> dict[str, float]:
    took = statistics.median(seconds(lambda: Matcher(entries, n_threads=1)) for _ in range(3))
    tracemalloc.start()
    matcher = Matcher(entries, n_threads=1)
    kept, peak = (size / 1e6 for size in tracemalloc.get_traced_memory())
    tracemalloc.stop()
    assert matcher.engine == "ngram"
    return {"build, s": took, "MB kept beside the list": kept, "MB at most": peak}


def end_to_end(entries: list[str], captions: list[str], n_rows: int) -> dict[str, float]:
    """From parquet to parquet, against matching alone: a further row's cost, from pools of n and 2n rows.

    The rest (reading the metadata, building the matcher, drawing the report) does not grow with the pool.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        save_metadata(place / "entries.json", build_metadata({"stand-in": entries}))
        shards, rows, texts = [], 0, captions
        while rows < 2 * n_rows:
            texts = [f"{caption} {len(shards)}x" for caption in captions]
            shards.append(place / f"{len(shards):03d}.parquet")
            pq.write_table(pa.table({"text": texts, "width": np.arange(len(texts))}), shards[-1])
            rows += len(texts)

        def run(part: list[Path], n_threads: int) -> None:
            shutil.rmtree(place / "out", ignore_errors=True)
            settings = {"n_threads": n_threads, "progress": False}
            curate_pool(part, place / "entries.json", place / "out", Settings(t=200), **settings)

        half = shards[: len(shards) // 2]
        more = rows - len(half) * len(texts)
        pairs = {
            n: [(seconds(lambda: run(half, n)), seconds(lambda: run(shards, n))) for _ in range(3)]  # noqa: B023
            for n in (1, 2)
        }
        steps = json.loads((place / "out" / "report.json").read_text(encoding="utf8"))["seconds"]
    best = {n: [min(column) for column in zip(*timed, strict=True)] for n, timed in pairs.items()}  # least disturbed
    one, two = ((best[n][1] - best[n][0]) / more for n in (1, 2))
    matcher = Matcher(entries, n_threads=2)
    alone = min(seconds(lambda: matcher.match(texts)) for _ in range(5)) / len(texts)
    return {
        "rows/s, one core": 1 / one,
        "rows/s, two cores": 1 / two,
        "share of the matcher's own rate": alone / two,
        "reduce, s a million rows": steps["reduce"] / rows * 1e6,
        "fixed cost, s": 2 * best[2][0] - best[2][1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=500_000)
    parser.add_argument("--captions", type=int, default=200_000)
    parser.add_argument("--pool", type=int, default=2_000_000, help="rows of the smaller pool, from parquet to parquet")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the figures there as JSON, with hardware and date")
    options = parser.parse_args()
    Matcher(["compile"]).match(["compile"])
    figures: dict[str, dict] = {}
    for n in (options.entries // 10, options.entries):
        entries, captions = stand_in(n, options.captions)
        figures[f"{n:,} entries"] = {**build(entries), **compare(entries, captions, options.repeats)}
    figures["end to end"] = end_to_end(entries, captions, options.pool)
    for name, values in figures.items():
        print(name, *(f"  {key}: {value:,.2f}" for key, value in values.items()), sep="\n")
    if options.out:
        machine = f"{os.cpu_count()} CPU cores, {platform.machine()}, Python {platform.python_version()}"
        figures["run"] = {"machine": machine, "date": datetime.date.today().isoformat(), "captions": options.captions,
                          "pool": options.pool}  # fmt: skip
        options.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
