"""Dense ranks of the values of one or two images: all that the matching needs to know of them.

A filtration depends on the order of the values alone. Both images are sorted together, by a radix sort of their bit
patterns, so that one pass over the sorted values yields the ranks of both images and of the comparison image.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_DIGIT = 11  # bits sorted per pass
_PASSES = 3  # passes before neighbours are put right by insertion
_BUDGET = 4  # moves per value allowed to the insertion, beyond which all bits are sorted


@njit(cache=True, nogil=True)
def _keys(bits: np.ndarray, superlevel: bool) -> tuple[np.ndarray, int]:
    """Unsigned keys in the order of the float64 values (reversed for superlevel) and their width; -1 if NaN occurs."""
    n = bits.size
    keys = np.empty(n, np.uint64)
    low = np.int64(0x7FFFFFFFFFFFFFFF)
    high = -low - 1
    nan = False
    for i in range(n):
        b = bits[i]
        magnitude = b & np.int64(0x7FFFFFFFFFFFFFFF)
        nan |= magnitude > np.int64(0x7FF0000000000000)
        if magnitude == 0:  # -0.0 equals 0.0
            b = np.int64(0)
        b ^= (b >> 63) & np.int64(0x7FFFFFFFFFFFFFFF)
        if superlevel:
            b = ~b
        low = min(low, b)
        high = max(high, b)
        keys[i] = np.uint64(b)
    if nan:
        return keys, -1
    base = np.uint64(low)
    union = np.uint64(0)
    for i in range(n):
        key = keys[i] - base
        keys[i] = key
        union |= key
    shift = np.uint64(0)  # zeros at the end of all keys carry nothing
    if union != 0:
        while (union >> shift) & np.uint64(1) == 0:
            shift += np.uint64(1)
    width = 0
    rest = union >> shift
    while rest != 0:
        width += 1
        rest >>= np.uint64(1)
    for i in range(n):
        keys[i] >>= shift
    return keys, width


@njit(cache=True, nogil=True)
def _radix_sort(keys: np.ndarray, order: np.ndarray, first: int, width: int) -> np.ndarray:
    """Sort `order` stably by the bits `first` to `width` of its keys; returns the sorted array."""
    n = keys.size
    other = np.empty_like(order)
    buckets = 1 << _DIGIT
    mask = np.uint64(buckets - 1)
    count = np.empty(buckets, np.int64)
    shift = first
    while shift < width:
        s = np.uint64(shift)
        count[:] = 0
        for i in range(n):
            count[(keys[i] >> s) & mask] += 1
        total = 0
        for i in range(buckets):
            total, count[i] = total + count[i], total
        for i in range(n):
            item = order[i]
            digit = (keys[item] >> s) & mask
            other[count[digit]] = item
            count[digit] += 1
        order, other = other, order
        shift += _DIGIT
    return order


@njit(cache=True, nogil=True)
def _sorted_order(keys: np.ndarray, width: int) -> np.ndarray:
    """The stable sorting permutation of keys."""
    n = keys.size
    first = max(0, width - _DIGIT * _PASSES)
    order = _radix_sort(keys, np.arange(n).astype(np.int32), first, width)
    if first == 0:
        return order
    budget = n * _BUDGET
    for i in range(1, n):  # insertion: only values that agree in their leading bits can be out of order
        item = order[i]
        key = keys[item]
        j = i
        while j > 0 and keys[order[j - 1]] > key:
            order[j] = order[j - 1]
            j -= 1
        order[j] = item
        budget -= i - j
        if budget < 0:
            return _radix_sort(keys, np.arange(n).astype(np.int32), 0, width)
    return order


@njit(cache=True, nogil=True)
def rank_one(bits: np.ndarray, superlevel: bool) -> tuple[np.ndarray, bool]:
    """Dense int32 ranks of the float64 values whose bit patterns are given, and whether all of them are numbers."""
    n = bits.size
    rank = np.empty(n, np.int32)
    keys, width = _keys(bits, superlevel)
    if width < 0:
        return rank, False
    order = _sorted_order(keys, width)
    level = -1
    previous = np.uint64(0)
    for i in range(n):
        item = order[i]
        key = keys[item]
        if i == 0 or key != previous:
            level += 1
            previous = key
        rank[item] = level
    return rank, True


@njit(cache=True, nogil=True)
def rank_two(bits: np.ndarray, superlevel: bool, union: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """Dense ranks of two images (one after the other in `bits`) and of their comparison image.

    In the sublevel order the comparison image is the voxelwise minimum (union) or maximum (intersection): a voxel gets
    its rank where the sorted values meet it for the first or for the second time.
    """
    n = bits.size // 2
    f = np.empty(n, np.int32)
    g = np.empty(n, np.int32)
    c = np.full(n, -1, np.int32)
    keys, width = _keys(bits, superlevel)
    if width < 0:
        return f, g, c, False
    order = _sorted_order(keys, width)
    level_f = level_g = level_c = -1
    previous_f = previous_g = previous_c = np.uint64(0)
    for i in range(2 * n):
        item = order[i]
        key = keys[item]
        if item < n:
            voxel = item
            if level_f < 0 or key != previous_f:
                level_f += 1
                previous_f = key
            f[voxel] = level_f
        else:
            voxel = item - n
            if level_g < 0 or key != previous_g:
                level_g += 1
                previous_g = key
            g[voxel] = level_g
        seen = c[voxel]
        if seen == -1 and not union:
            c[voxel] = -2
        elif seen < 0:
            if level_c < 0 or key != previous_c:
                level_c += 1
                previous_c = key
            c[voxel] = level_c
    return f, g, c, True
