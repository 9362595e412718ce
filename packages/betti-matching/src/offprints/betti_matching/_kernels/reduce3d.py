"""Dimension 1: reduction of the boundary matrix from squares to edges over Z/2."""

from typing import Any

import numpy as np
from numba import boolean, int32, int64, njit, types, uint64
from numba.extending import intrinsic

from offprints.betti_matching._kernels.compile import CACHE

BLOCK = 128  # columns whose last rows are looked up at once, so that the loads overlap

_i4 = int32[::1]


def _count_leading_zeros(typingctx: Any, word: Any) -> Any:
    """Leading zero bits of a non-zero 64-bit word (one instruction)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctlz(args[0], context.get_constant(boolean, True))

    return int64(uint64), codegen


_leading_zeros: Any = intrinsic(_count_leading_zeros)


# The working column is a set of rows as a 64-ary tree of bits: bits0[row] says whether the row is in the column, a bit
# of bits1 and bits2 that a word one level below may be non-zero. Words of bits2 are scanned, from ``top`` downwards.


@njit(cache=CACHE, nogil=True)
def _flip(bits0, bits1, bits2, row):  # type: ignore[no-untyped-def]
    one = uint64(1)
    bits0[row >> 6] ^= one << uint64(row & 63)
    bits1[row >> 12] |= one << uint64((row >> 6) & 63)
    bits2[row >> 18] |= one << uint64((row >> 12) & 63)


@njit(cache=CACHE, nogil=True)
def _last_row(bits0, bits1, bits2, top):  # type: ignore[no-untyped-def]
    """Last row of the column, -1 if it is empty; clears the bits above words that turn out to be zero."""
    one = uint64(1)
    while top >= 0:
        if bits2[top] == 0:
            top -= 1
            continue
        w1 = (top << 6) + 63 - _leading_zeros(bits2[top])
        if bits1[w1] == 0:
            bits2[top] ^= one << uint64(w1 & 63)
            continue
        w0 = (w1 << 6) + 63 - _leading_zeros(bits1[w1])
        if bits0[w0] == 0:
            bits1[w1] ^= one << uint64(w0 & 63)
            continue
        return (w0 << 6) + 63 - _leading_zeros(bits0[w0])
    return -1


_reduced: Any = types.Tuple((_i4, _i4, _i4))  # type: ignore[no-untyped-call]


@njit(_reduced(_i4, _i4, int32[:, ::1], int64), cache=CACHE, nogil=True)
def reduce(squares, row_of_edge, steps, n_rows):  # type: ignore[no-untyped-def]
    """Left-to-right reduction of the columns ``squares``, none of which may reduce to zero.

    The edges of the square ``3 * base + type`` are ``3 * base + steps[type]``; edges of row -1 are not in the matrix.
    Nearly all columns are emergent: their last row is free when they are met. They are paired at once and stay
    implicit, as only their boundary is needed later. The others are reduced and stored.

    Returns per row the square it is paired with (-1: none), per row its reduced column, and the store. A reduced column
    is given as the square whose boundary it is, as ``-i`` where ``store[i:]`` begins with its rows, last one first
    (``store[i - 2]`` is their number, ``store[i - 1]`` the square), or as -1 if there is none.
    """
    owner = np.full(n_rows, -1, np.int32)
    store = np.empty(n_rows + 66, np.int32)
    used = 0
    bits0 = np.zeros((n_rows >> 6) + 1, np.uint64)
    bits1 = np.zeros((n_rows >> 12) + 1, np.uint64)
    bits2 = np.zeros((n_rows >> 18) + 1, np.uint64)
    pivots = np.empty(BLOCK, np.int32)
    for first in range(0, len(squares), BLOCK):
        count = min(BLOCK, len(squares) - first)
        for i in range(count):
            square = squares[first + i]
            base = square // 3
            kind = square - 3 * base
            base *= 3
            near = max(row_of_edge[base + steps[kind, 0]], row_of_edge[base + steps[kind, 1]])
            far = max(row_of_edge[base + steps[kind, 2]], row_of_edge[base + steps[kind, 3]])
            pivots[i] = max(near, far)
        for i in range(count):
            square = squares[first + i]
            pivot = int64(pivots[i])
            at = int64(owner[pivot])
            if at == -1:
                owner[pivot] = square
                continue
            top = pivot >> 18
            add = int64(square)
            while add != -1:
                if add >= 0:
                    base = add // 3
                    kind = add - 3 * base
                    base *= 3
                    for e in range(4):
                        row = row_of_edge[base + steps[kind, e]]
                        if row >= 0:
                            _flip(bits0, bits1, bits2, row)
                else:
                    for k in range(-add, -add + store[-add - 2]):
                        _flip(bits0, bits1, bits2, store[k])
                pivot = _last_row(bits0, bits1, bits2, top)
                add = int64(owner[pivot])
            head = used
            used += 2
            row = pivot
            while row >= 0:  # move the column to the store, a word at a time
                if used + 64 > len(store):
                    larger = np.empty(2 * used + 64, np.int32)
                    for k in range(used):  # a slice would bring in numba's shape errors: seconds of compilation
                        larger[k] = store[k]
                    store = larger
                word = bits0[row >> 6]
                bits0[row >> 6] = 0
                while word != 0:
                    bit = 63 - _leading_zeros(word)
                    word ^= uint64(1) << uint64(bit)
                    store[used] = (row & ~63) | bit
                    used += 1
                row = _last_row(bits0, bits1, bits2, top)
            if used > 2**31 - 2:
                raise OverflowError("the reduced columns of this image need more than 32-bit indices")
            store[head] = used - head - 2
            store[head + 1] = square
            owner[pivot] = -2 - head
    partner = np.empty(n_rows, np.int32)
    for row in range(n_rows):
        at = int64(owner[row])
        partner[row] = store[-at - 1] if at < -1 else at
    return partner, owner, store
