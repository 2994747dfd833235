"""Name a row by a 64-bit key of its values, so that its draw depends on what it is and not on where it stands.

Needs numba and pyarrow (extra ``curate``). Taught in: notebooks/06_balance.ipynb
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray

Keys = NDArray[np.uint64]


def row_keys(*columns: pa.Array) -> Keys:
    """A 64-bit hash of each row's values, (n,); equal rows have equal keys, and n rows collide with odds n**2 / 2**65.

    ``columns`` are large_string arrays without nulls. Eight bytes at a time are multiplied in and mixed; the length of
    each value counts, so ("ab", "c") is not ("a", "bc"). Not meant against forgers.

    >>> len(set(row_keys(pa.array(["a", "b", "a"], pa.large_string())).tolist()))
    2

    Taught in: notebooks/06_balance.ipynb
    """
    keys = np.zeros(len(columns[0]), np.uint64)
    for column in columns if len(keys) else ():
        _, offsets, data = column.buffers()
        bounds = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1]
        _absorb(keys, bounds, np.frombuffer(data or b"", np.uint8))
    return keys


@njit(nogil=True, cache=True)
def _absorb(keys, bounds, data):  # pragma: no cover  # compiled
    golden, odd = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)
    for row in range(len(keys)):
        state, start, stop = keys[row], bounds[row], bounds[row + 1]
        for at in range(start, stop, 8):
            word = np.uint64(0)
            for place in range(min(8, stop - at)):
                word |= np.uint64(data[at + place]) << np.uint64(8 * place)
            state = (state ^ word) * odd
            state ^= state >> np.uint64(32)
        state = (state ^ np.uint64(stop - start)) * golden
        state ^= state >> np.uint64(29)
        state *= odd
        keys[row] = state ^ (state >> np.uint64(32))
