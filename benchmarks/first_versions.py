"""Drawing scenes and matching captions, one thread, one run: `make bench`. For GDA see `gda.py`.

Ratios are medians of five alternating timings, so that a busy machine slows both sides. Scenes have no peer: their rate
is printed beside the floor that the toy world promises.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import statistics
import time
from collections.abc import Callable

import torch

from minilib import curate, world

torch.set_num_threads(1)


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def ratio(peer: Callable[[], object], ours: Callable[[], object], repeats: int = 5) -> float:
    """How many times longer the peer takes."""
    ours(), peer()
    return statistics.median(seconds(peer) / seconds(ours) for _ in range(repeats))


def main() -> None:
    world.make_scenes(8, seed=0)
    rate = 10_000 / seconds(lambda: world.make_scenes(10_000, seed=1))
    print(f"scenes drawn: {rate:,.0f} a second (the toy world promises 5,000)")
    entries = world.toy_entries() + [f"word{i} word{i + 1}" for i in range(5000)]
    captions = world.make_pool(500, seed=0, images=False).captions
    ours, peer = (curate.Matcher(entries, engine=engine) for engine in ("ngram", "naive"))
    times = ratio(lambda: peer.match(captions), lambda: ours.match(captions))
    print(f"matching, {len(entries):,} entries: {times:.0f}x the reference's loop over entries")


if __name__ == "__main__":
    main()
