"""Sorting of float64 values by their bit patterns: linear time, stable, no comparison of values."""

import numpy as np
from numba import njit

from offprints.betti_matching._kernels.compile import CACHE

_DIGIT = 11  # bits sorted per pass
_LEADING = 3 * _DIGIT  # bits sorted at first; values that agree in them are put right by insertion
_BUDGET = 4  # moves per value that the insertion may take before all bits are sorted
_MAGNITUDE = 0x7FFFFFFFFFFFFFFF


@njit(cache=CACHE, nogil=True)
def _encode(values: np.ndarray) -> tuple[np.ndarray, int | np.int64, int, int]:
    """Unsigned keys in the order of the values (-0.0 is 0.0); what was subtracted and shifted out; their bit length."""
    bits = values.view(np.int64)
    low: int | np.int64 = np.int64(_MAGNITUDE)
    keys = np.empty(values.size, np.uint64)
    for i in range(values.size):
        b = bits[i]
        b = 0 if b << 1 == 0 else b ^ ((b >> 63) & _MAGNITUDE)
        low = b if b < low else low
        keys[i] = np.uint64(b)
    union = np.uint64(0)
    for i in range(values.size):
        keys[i] -= np.uint64(low)
        union |= keys[i]
    shift = 0
    while union != 0 and union & np.uint64(1) == 0:
        union >>= np.uint64(1)
        shift += 1
    width = 0
    while union != 0:
        union >>= np.uint64(1)
        width += 1
    for i in range(values.size):
        keys[i] >>= np.uint64(shift)
    return keys, low, shift, width


@njit(cache=CACHE, nogil=True)
def _decode(keys: np.ndarray, low: int | np.int64, shift: int) -> np.ndarray:
    """The values of these keys, in the memory of the keys."""
    for i in range(keys.size):
        b = np.int64((keys[i] << np.uint64(shift)) + np.uint64(low))
        keys[i] = np.uint64(b ^ ((b >> 63) & _MAGNITUDE))
    return keys.view(np.float64)


@njit(cache=CACHE, nogil=True)
def _radix_sort(keys: np.ndarray, items: np.ndarray, width: int, leading: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys of `width` bits, and their items, sorted by the leading bits; both arrays may be overwritten."""
    if leading == 0:
        return keys, items
    keys_out = np.empty_like(keys)
    items_out = np.empty_like(items)
    mask = np.uint64((1 << _DIGIT) - 1)
    place = np.empty(1 << _DIGIT, np.int32)
    for bit in range(width - leading, width, _DIGIT):
        shift = np.uint64(bit)
        place[:] = 0
        for i in range(keys.size):
            place[(keys[i] >> shift) & mask] += 1
        total = np.int32(0)
        for digit in range(place.size):
            count = place[digit]
            place[digit] = total
            total += count
        for i in range(keys.size):
            digit = (keys[i] >> shift) & mask
            j = place[digit]
            place[digit] = j + 1
            keys_out[j] = keys[i]
            items_out[j] = items[i]
        keys, keys_out = keys_out, keys
        items, items_out = items_out, items
    return keys, items


@njit(cache=CACHE, nogil=True)
def sort_items(values: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values (float64 without NaN) and their items (int32), sorted by value, equal values in the order of the input.

    The array of items may be overwritten.
    """
    keys, low, shift, width = _encode(values)
    leading = min(width, _LEADING)
    keys, items = _radix_sort(keys, items, width, leading)
    budget = keys.size * _BUDGET
    for i in range(1, keys.size if leading < width else 0):
        key = keys[i]
        if keys[i - 1] <= key:
            continue
        item = items[i]
        j = i
        while j > 0 and keys[j - 1] > key:
            keys[j] = keys[j - 1]
            items[j] = items[j - 1]
            j -= 1
        keys[j] = key
        items[j] = item
        budget -= i - j
        if budget < 0:  # equal keys are in order already, so that a stable sort from here on keeps them so
            keys, items = _radix_sort(keys, items, width, width)
            break
    return _decode(keys, low, shift), items
