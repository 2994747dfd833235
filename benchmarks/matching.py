"""Matching captions beside the peers, in one run: the reference's loop, its Aho-Corasick, and the other engines.

The metadata is a stand-in from a seed: 500,000 distinct entries of one to five pseudo-words (Zipf 1.0 over 150,000
words); captions of about 11 words with marks and capitals, two thirds of them cut from entries. Ratios are medians of
alternating timings, so that a busy machine slows both sides. Building is timed after a first, compiling call.

    python benchmarks/matching.py [--entries 500000] [--captions 200000]
"""

import argparse
import gc
import statistics
import time
import tracemalloc
from collections.abc import Callable, Sequence
from itertools import pairwise

import ahocorasick
import numpy as np

from minilib.matching import Matcher, match_naive, space_punctuation

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


def compare(entries: list[str], captions: list[str], repeats: int) -> None:
    one, two = Matcher(entries, n_threads=1), Matcher(entries, n_threads=2)
    peer = reference_automaton(entries)
    few = captions[: len(captions) // 5]
    ids, offsets = one.match(few)
    print(f"  {len(ids) / len(few):.1f} matches a caption, {np.mean([len(c.split()) for c in few]):.1f} words")
    assert peer(few) == [ids[a:b].tolist() for a, b in pairwise(offsets)], "the peers disagree"
    rows = [
        (seconds(lambda: peer(few)) * 5, seconds(lambda: one.match(captions)), seconds(lambda: two.match(captions)))
        for _ in range(repeats)
    ]
    theirs, ours, both = (statistics.median(column) for column in zip(*rows, strict=True))
    print(f"  one core {len(captions) / ours:,.0f}/s, two {len(captions) / both:,.0f}/s, pyahocorasick "
          f"{len(captions) / theirs:,.0f}/s")  # fmt: skip
    print(f"  {statistics.median(a / b for a, b, _ in rows):.1f}x pyahocorasick on one core; "
          f"two cores {statistics.median(b / c for _, b, c in rows):.2f}x one")  # fmt: skip
    slow = seconds(lambda: [match_naive(text, entries) for text in captions[:4]]) / 4
    print(f"  {slow * len(captions) / ours:,.0f}x the reference's loop ({1 / slow:.0f} captions/s)")


def build(entries: list[str]) -> None:
    took = statistics.median(seconds(lambda: Matcher(entries, n_threads=1)) for _ in range(3))
    tracemalloc.start()
    matcher = Matcher(entries, n_threads=1)
    kept, peak = (size / 1e6 for size in tracemalloc.get_traced_memory())
    tracemalloc.stop()
    print(f"  built in {took:.2f} s; {kept:.0f} MB kept, {peak:.0f} MB at most, beside the list ({matcher.engine})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=500_000)
    parser.add_argument("--captions", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    Matcher(["compile"]).match(["compile"])
    for n in (options.entries // 10, options.entries):
        print(f"{n:,} entries")
        entries, captions = stand_in(n, options.captions)
        build(entries)
        compare(entries, captions, options.repeats)


if __name__ == "__main__":
    main()
