"""Dense ranks of one or two images: all that the matching of 3-D images needs to know of their values.

Both images are sorted together, so that one pass over the sorted values yields the ranks of both and of the comparison
image.
"""

import numpy as np
from numba import njit

from offprints.betti_matching._kernels.compile import CACHE
from offprints.betti_matching._kernels.order import sort_items


@njit(cache=CACHE, nogil=True)
def rank_one(values: np.ndarray) -> np.ndarray:
    """Dense int32 ranks of float64 values without NaN, in increasing order: equal where the values are."""
    ordered, order = sort_items(values, np.arange(values.size).astype(np.int32))
    rank = np.empty(values.size, np.int32)
    level = 0
    for i in range(values.size):
        level += i > 0 and ordered[i] != ordered[i - 1]
        rank[order[i]] = level
    return rank


@njit(cache=CACHE, nogil=True)
def rank_two(values: np.ndarray, union: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Dense ranks of two images, one after the other in `values`, and of their comparison image.

    This is the voxelwise minimum (union) or maximum (intersection): a voxel has its rank where the sorted values meet
    it for the first or for the second time.
    """
    n = values.size // 2
    ordered, order = sort_items(values, np.arange(values.size).astype(np.int32))
    rank = np.empty(2 * n, np.int32)
    rank_c = np.empty(n, np.int32)
    seen = np.zeros(n, np.bool_)
    level = np.array([-1, -1, -1])
    last = np.array([np.nan, np.nan, np.nan])  # values of these levels
    for i in range(2 * n):
        value = ordered[i]
        image = order[i] >= n
        voxel = order[i] - n if image else order[i]
        level[int(image)] += value != last[int(image)]
        last[int(image)] = value
        rank[order[i]] = level[int(image)]
        if seen[voxel] != union:
            level[2] += value != last[2]
            last[2] = value
            rank_c[voxel] = level[2]
        seen[voxel] = True
    return rank[:n], rank[n:], rank_c
