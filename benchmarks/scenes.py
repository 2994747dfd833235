"""Drawing scenes, on one thread: they have no peer, so the rate stands beside the floor that the toy world promises."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import time

from minilib import world


def main() -> None:
    world.make_scenes(8, seed=0)
    started = time.perf_counter()
    world.make_scenes(10_000, seed=1)
    rate = 10_000 / (time.perf_counter() - started)
    print(f"scenes drawn: {rate:,.0f} a second (the toy world promises 5,000)")


if __name__ == "__main__":
    main()
