"""GDA beside the paper's formula and scikit-learn, on CLIP-like float32 features: `make bench`.

The formula is written as its authors run it: torch float32, a loop over classes, the covariance taken twice, a
pseudo-inverse. Ratios are medians of alternating timings in this one run; errors are of the class scores' weights,
relative to float64. The floor is a symmetric rank-k update and a Cholesky factorisation with its solve, on centred
float32 rows: what any exact method must do.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import torch
from scipy.linalg import cho_factor, cho_solve
from scipy.linalg.blas import ssyrk
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from minilib.gda import GDA

SIZES = ((512, 1000, 16_000), (1024, 100, 1_600), (1024, 10, 160))  # D, K, N


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def features(d: int, k: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit-norm float32 rows around k prototypes, as many of each class."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % k
    rows = rng.normal(size=(k, d))[labels] + 1.5 * rng.normal(size=(n, d)) * np.geomspace(2, 0.2, d)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), labels


def formula(x: torch.Tensor, y: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (K, D) and biases (K,) in the precision of ``x``, one line a symbol."""
    n, d = x.shape
    mu = torch.cat([x[y == j].mean(0, keepdim=True) for j in range(k)])
    a = torch.cat([x[y == j] - mu[j] for j in range(k)])
    p = d * torch.linalg.pinv((n - 1) * a.T.cov() + a.T.cov().trace() * torch.eye(d, dtype=x.dtype))
    return mu @ p, torch.log(torch.tensor(1 / k)) - torch.einsum("kd,de,ke->k", mu, p, mu) / 2


def floor(rows: np.ndarray, k: int) -> np.ndarray:
    """The work nobody can save: S = A^T A by ssyrk (or A A^T where N < D), Cholesky, k right-hand sides."""
    thin = len(rows) < rows.shape[1]
    s = ssyrk(1.0, rows if thin else rows.T).astype(np.float64)
    return cho_solve(cho_factor(s + np.eye(len(s))), np.ones((len(s), k)))


def compare(d: int, k: int, n: int, repeats: int = 7) -> None:
    X, y = features(d, k, n)
    x, labels = torch.from_numpy(X), torch.from_numpy(y)
    runs: dict[str, Callable[[], object]] = {
        "ours": lambda: GDA().fit(X, y),
        "formula": lambda: formula(x, labels, k),
        "floor": lambda: floor(X, k),
    }
    times = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            times[name].append(seconds(run))
    ours, peer, least = (statistics.median(times[name][1:]) for name in ("ours", "formula", "floor"))
    lda = seconds(lambda: LinearDiscriminantAnalysis(solver="lsqr", shrinkage=d / (n - 1 + d)).fit(X, y))
    truth = formula(x.double(), labels, k)[0].numpy()
    error = [float(np.abs(w - truth).max() / np.abs(truth).max()) for w in (GDA().fit(X, y).coef_,
             formula(x, labels, k)[0].numpy())]  # fmt: skip
    versus = f"{peer / ours:.1f}x the formula, {lda / ours:.1f}x scikit-learn's LDA, {ours / least:.1f} times the floor"
    print(f"GDA D={d} K={k} N={n}: {1000 * ours:.1f} ms; {versus}; error {error[0]:.1e}, the formula's {error[1]:.1e}")


def stream(n: int = 1_000_000, d: int = 512, k: int = 100, chunk: int = 10_000) -> None:
    """Peak of what partial_fit allocates over n rows (as tracemalloc sees NumPy), the chunk itself not counted."""
    rows = np.random.default_rng(0).standard_normal((chunk, d), dtype=np.float32)
    model, started = GDA(), time.perf_counter()
    tracemalloc.start()
    for start in range(0, n, chunk):
        model.partial_fit(rows, (np.arange(chunk) + start) % k, classes=range(k))
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    took = time.perf_counter() - started
    print(f"streaming N={n:,} D={d}: {peak:.0f} MB above its {rows.nbytes / 1e6:.0f} MB chunk, {took:.0f} s")


if __name__ == "__main__":
    if sys.argv[1:] == ["stream"]:
        stream()
    else:
        print(f"{torch.get_num_threads()} threads, float32 features, float64 sums and solutions")
        for size in SIZES:
            compare(*size)
        subprocess.run([sys.executable, __file__, "stream"], check=True)  # a process of its own: a clean peak
