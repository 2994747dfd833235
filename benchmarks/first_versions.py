"""Our first versions beside their peers, one thread, one run: `make bench`.

Ratios are medians of five alternating timings, so that a busy machine slows both sides. Scenes have no peer: their rate
is printed beside the floor that the toy world promises.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from minilib import curate, gda, world

torch.set_num_threads(1)


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def ratio(peer: Callable[[], object], ours: Callable[[], object], repeats: int = 5) -> float:
    """How many times longer the peer takes."""
    ours(), peer()
    return statistics.median(seconds(peer) / seconds(ours) for _ in range(repeats))


def formula(X: torch.Tensor, y: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The paper's precision taken literally, in torch float32: covariance, pseudo-inverse, weights, biases."""
    n, d = X.shape
    means = torch.stack([X[y == c].mean(0) for c in range(k)])
    rows = X - means[y]
    sigma = rows.T @ rows / (n - 1)
    precision = d * torch.linalg.pinv((n - 1) * sigma + sigma.trace() * torch.eye(d), hermitian=True)
    weights = means @ precision
    return weights, -(weights * means).sum(1) / 2


def main() -> None:
    world.make_scenes(8, seed=0)
    rate = 10_000 / seconds(lambda: world.make_scenes(10_000, seed=1))
    print(f"scenes drawn: {rate:,.0f} a second (the toy world promises 5,000)")
    rng = np.random.default_rng(0)
    for n, d, k in ((160, 1024, 10), (1600, 1024, 100), (1600, 512, 100)):
        X = rng.normal(size=(n, d)).astype(np.float32)
        X /= np.linalg.norm(X, axis=1, keepdims=True)
        y = np.arange(n) % k
        torch_X, torch_y = torch.from_numpy(X), torch.from_numpy(y)
        times = ratio(lambda: formula(torch_X, torch_y, k), lambda: gda.GDA().fit(X, y))  # noqa: B023
        print(f"GDA N={n} D={d} K={k}: {times:.1f}x the paper's formula (torch float32, pinv); ours is float64")
    entries = world.toy_entries() + [f"word{i} word{i + 1}" for i in range(5000)]
    captions = world.make_pool(500, seed=0, images=False).captions
    ours, peer = (curate.Matcher(entries, engine=engine) for engine in ("ngram", "naive"))
    times = ratio(lambda: peer.match(captions), lambda: ours.match(captions))
    print(f"matching, {len(entries):,} entries: {times:.0f}x the reference's loop over entries")


if __name__ == "__main__":
    main()
