"""Dimension 1: reduction of the boundary matrix from squares to edges over Z/2."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import int32, int64, njit, types, uint64
from numba.extending import intrinsic

_i4 = int32[::1]


@intrinsic
def _leading_zeros(typingctx: Any, x: Any) -> Any:
    """Leading zero bits of a non-zero 64-bit word (one instruction)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctlz(args[0], ir.Constant(ir.IntType(1), 1))

    return int64(uint64), codegen


@njit(
    types.Tuple((_i4, _i4, _i4))(_i4, _i4, int32[:, ::1], int64),
    cache=True,
    nogil=True,
)
def reduce(columns, row_of_edge, steps, n_rows):  # type: ignore[no-untyped-def]
    """Pair every row with the column whose reduced boundary has it as its last row."""
    owner = np.full(n_rows, -1, np.int32)
    start = np.full(n_rows, -1, np.int32)
    store = np.empty(max(1024, n_rows), np.int32)
    used = 0
    n0 = (n_rows >> 6) + 1
    n1 = (n0 >> 6) + 1
    n2 = (n1 >> 6) + 1
    bits0 = np.zeros(n0, np.uint64)
    bits1 = np.zeros(n1, np.uint64)
    bits2 = np.zeros(n2, np.uint64)
    one = uint64(1)
    for j in range(len(columns)):
        square = columns[j]
        base = square // 3
        kind = square - 3 * base
        base *= 3
        pivot = -1
        for e in range(4):
            row = row_of_edge[base + steps[kind, e]]
            pivot = max(pivot, row)
        if owner[pivot] < 0:
            owner[pivot] = j
            continue
        top = pivot >> 18
        for e in range(4):
            row = row_of_edge[base + steps[kind, e]]
            if row >= 0:
                bits0[row >> 6] ^= one << uint64(row & 63)
                bits1[row >> 12] |= one << uint64((row >> 6) & 63)
                bits2[row >> 18] |= one << uint64((row >> 12) & 63)
        while True:
            other = owner[pivot]
            if other < 0:
                break
            at = start[pivot]
            if at < 0:
                base = columns[other] // 3
                kind = columns[other] - 3 * base
                base *= 3
                for e in range(4):
                    row = row_of_edge[base + steps[kind, e]]
                    if row >= 0:
                        bits0[row >> 6] ^= one << uint64(row & 63)
                        bits1[row >> 12] |= one << uint64((row >> 6) & 63)
                        bits2[row >> 18] |= one << uint64((row >> 12) & 63)
            else:
                for i in range(at + 1, at + 1 + store[at]):
                    row = store[i]
                    bits0[row >> 6] ^= one << uint64(row & 63)
                    bits1[row >> 12] |= one << uint64((row >> 6) & 63)
                    bits2[row >> 18] |= one << uint64((row >> 12) & 63)
            # the last row, clearing the summary bits of words that turned out to be empty
            while True:
                while bits2[top] == 0:
                    top -= 1
                w1 = (top << 6) + 63 - _leading_zeros(bits2[top])
                if bits1[w1] == 0:
                    bits2[top] ^= one << uint64(w1 & 63)
                    continue
                w0 = (w1 << 6) + 63 - _leading_zeros(bits1[w1])
                if bits0[w0] == 0:
                    bits1[w1] ^= one << uint64(w0 & 63)
                    continue
                pivot = (w0 << 6) + 63 - _leading_zeros(bits0[w0])
                break
        owner[pivot] = j
        start[pivot] = used
        head = used
        used += 1
        if used >= len(store):
            larger = np.empty(2 * used, np.int32)
            larger[:head] = store[:head]
            store = larger
        while True:  # move the column to the store
            while top >= 0 and bits2[top] == 0:
                top -= 1
            if top < 0:
                break
            w1 = (top << 6) + 63 - _leading_zeros(bits2[top])
            while bits1[w1] != 0:
                w0 = (w1 << 6) + 63 - _leading_zeros(bits1[w1])
                word = bits0[w0]
                while word != 0:
                    if used == len(store):
                        larger = np.empty(2 * used, np.int32)
                        larger[:used] = store[:used]
                        store = larger
                    bit = 63 - _leading_zeros(word)
                    store[used] = (w0 << 6) + bit
                    used += 1
                    word ^= one << uint64(bit)
                bits0[w0] = 0
                bits1[w1] ^= one << uint64(w0 & 63)
            bits2[top] ^= one << uint64(w1 & 63)
        store[head] = used - head - 1
    return owner, start, store
