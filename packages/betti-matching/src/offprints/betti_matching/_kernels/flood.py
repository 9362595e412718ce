"""Flood fill on a flat grid, whose cost is that of its result."""

import numpy as np
from numba import njit

from offprints.betti_matching._kernels.compile import CACHE


@njit(cache=CACHE, nogil=True)
def flood(
    levels: np.ndarray, start: int, limit: float, offsets: np.ndarray, seen: np.ndarray, stamp: int
) -> np.ndarray:
    """Flat indices of the component of `start` in ``levels < limit``; neighbors are `offsets` away.

    The grid must have a closed rim (+inf). `seen` holds the stamps of earlier calls, all different from `stamp`.
    """
    found = [start]
    seen[start] = stamp
    head = 0
    while head < len(found):
        node = found[head]
        head += 1
        for offset in offsets:
            near = node + offset
            if seen[near] != stamp and levels[near] < limit:
                seen[near] = stamp
                found.append(near)
    result = np.empty(len(found), np.int64)
    for i in range(len(found)):
        result[i] = found[i]
    return result
