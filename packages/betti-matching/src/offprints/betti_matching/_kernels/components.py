"""Betti numbers of a binary image by counting: components by union-find, loops in 3-D by the Euler characteristic."""

import numpy as np
from numba import njit

from offprints.betti_matching._kernels.compile import CACHE

# Half of the 26 neighbors of a voxel: those before it in row-major order, the three that share a face with it first.
_BEFORE = np.array(
    [(-1, 0, 0), (0, -1, 0), (0, 0, -1)]
    + [(-1, y, z) for y in (-1, 0, 1) for z in (-1, 0, 1) if y or z]
    + [(0, -1, -1), (0, -1, 1)]
)


@njit(cache=CACHE, nogil=True)
def _components(inside: np.ndarray, value: bool, full: bool) -> int:
    """Number of components of the voxels of this value, connected fully or by faces.

    The image has a border of background. Steps that leave one side of it come in again on the other, which joins border
    to border: that is one component in any case.
    """
    flat = inside.reshape(-1)
    n0, n1, n2 = inside.shape
    steps = np.empty(13, np.int64)
    number = 0
    for x, y, z in _BEFORE[: 13 if full else 3]:
        if (x == 0 or n0 > 1) and (y == 0 or n1 > 1):
            steps[number] = (x * n1 + y) * n2 + z
            number += 1
    parent = np.empty(flat.size, np.int32)
    count = 0
    for i in range(flat.size):
        if flat[i] != value:
            continue
        parent[i] = i
        count += 1
        root = i
        for k in range(number):
            j = i + steps[k]
            if j < 0 or flat[j] != value:
                continue
            while parent[j] != j:
                parent[j] = parent[parent[j]]
                j = parent[j]
            if j != root:
                count -= 1
                parent[max(j, root)] = min(j, root)
                root = min(j, root)
    return count


@njit(cache=CACHE, nogil=True)
def _euler_characteristic(inside: np.ndarray, full: bool) -> int:
    """Of the complex whose vertices (or, if full, cubes) are the voxels inside; the image has a border of background.

    A block of 2^k voxels spans a k-cell if all of them are inside (V), or surrounds a (3 - k)-cell, present if one is
    (T).
    """
    n0, n1, n2 = inside.shape
    total = 0
    for x in range(n0 - 1):
        for y in range(n1 - 1):
            for z in range(n2 - 1):
                for block in range(8):
                    a, b, c = block >> 2, block >> 1 & 1, block & 1
                    some, every = False, True
                    for i in range(x, x + a + 1):
                        for j in range(y, y + b + 1):
                            for k in range(z, z + c + 1):
                                some |= inside[i, j, k]
                                every &= inside[i, j, k]
                    sign = -1 if a ^ b ^ c else 1
                    if full:
                        total -= sign * some
                    else:
                        total += sign * every
    return total


@njit(cache=CACHE, nogil=True)
def count_betti_numbers(inside: np.ndarray, ndim: int, full: bool) -> tuple[int, int, int]:
    """Betti numbers of a boolean 3-D array with a border of background along the last ndim axes.

    The top one is that of the bounded components of the background (Alexander duality), which is connected fully where
    the foreground is not.
    """
    foreground = ndim > 0  # a variable: of a constant there would be a compiled version for each value
    components = _components(inside, foreground, full)
    enclosed = 0 if ndim == 1 else _components(inside, not foreground, not full) - 1
    if ndim < 3:
        return components, enclosed, 0
    return components, components + enclosed - _euler_characteristic(inside, full), enclosed
