"""Barcodes of 2-D (and 1-D) images, nearly without sorting.

A component, of vertices or (from the last edge to the first) of squares, is left first by one of its edges. If what
lies behind is elder, this edge ends the component, whatever else happens, and the two are one from there on. All such
pairs are found in one pass over the critical edges in the order of the grid, without any search in memory. A few of
these rounds leave few edges to sort and to sweep over as `kernel2d` does. Pairs of dimension 0 and of dimension 1
never share an edge, so that the edges of either are left out for the other.

The cache of compiled code follows this file, not those imported here: delete ``__pycache__`` after changing them.
"""

import numpy as np
from numba import njit

from offprints.betti_matching._kernels.compile import CACHE
from offprints.betti_matching._kernels.gradient2d import (
    edges_and_events,
    gradient,
    label_cells,
    make_grid,
)
from offprints.betti_matching._kernels.kernel2d import find, values_of, voxels_of_pairs
from offprints.betti_matching._kernels.order import sort_items

_ENOUGH = 16  # rounds go on as long as each takes one edge of so many away


@njit(cache=CACHE, nogil=True)
def _ends(items: np.ndarray, label_v: np.ndarray, label_s: np.ndarray, stride: int) -> np.ndarray:
    """Rows of an edge: its number, the labels of both its vertices and of both its squares."""
    edges = np.empty((items.size, 5), np.int32)
    for i in range(items.size):
        v = items[i] >> 1
        along, across = (1, stride) if items[i] & 1 else (stride, 1)
        edges[i, 0] = items[i]
        edges[i, 1] = ~label_v[v]
        edges[i, 2] = ~label_v[v + along]
        edges[i, 3] = ~label_s[v]
        edges[i, 4] = ~label_s[v - across]
    return edges


@njit(cache=CACHE, nogil=True)
def _elder(value: np.ndarray, a: int, b: int, dual: bool) -> bool:
    """Whether the critical cell of label a comes before that of label b; labels are in the order of the cells."""
    return (value[a] < value[b]) | ((value[a] == value[b]) & ((a < b) ^ dual))


@njit(cache=CACHE, nogil=True)
def _merge_by_first_edges(
    edges: np.ndarray,
    values: np.ndarray,
    dual: bool,
    value: np.ndarray,
    parent: np.ndarray,
    first: np.ndarray,
    used: np.ndarray,
    pairs: np.ndarray,
    count: int,
) -> int:
    """One round of one dimension: the number of pairs, which are written from row `count` on."""
    column = 3 if dual else 1
    sign = -1.0 if dual else 1.0
    for a in range(first.size):
        first[a] = -1
    for i in range(values.size):
        a, b = edges[i, column], edges[i, column + 1]
        if a == b:
            continue
        for end in (a, b):
            j = first[end]
            # of equal edges the dual order begins with the last
            if j < 0 or sign * values[i] < sign * values[j] or (dual and values[i] == values[j]):
                first[end] = i
    for a in range(first.size):
        i = first[a]
        if i < 0:
            continue
        other = edges[i, column] + edges[i, column + 1] - a
        if not _elder(value, other, a, dual):
            continue
        parent[a] = other
        used[i] = True
        pairs[count, 0] = edges[i, 0]
        pairs[count, 1] = a
        # of positive length; the edges of the frame, if there is one, belong to no pair
        count += (value[a] != sign * values[i]) & (values[i] > -np.inf)
    return count


@njit(cache=CACHE, nogil=True)
def _unused(edges: np.ndarray, values: np.ndarray, used: np.ndarray, parent_v: np.ndarray, parent_s: np.ndarray) -> int:
    """The edges that are left, moved together, with the labels of what their ends are part of; their number."""
    n = 0
    for i in range(values.size):
        if used[i]:
            continue
        values[n] = values[i]
        edges[n, 0] = edges[i, 0]
        for column in range(1, 5):
            edges[n, column] = find(parent_v if column < 3 else parent_s, edges[i, column])
        n += 1
    return n


@njit(cache=CACHE, nogil=True)
def _sweep(
    edges: np.ndarray,
    values: np.ndarray,
    order: np.ndarray,
    dual: bool,
    value: np.ndarray,
    parent: np.ndarray,
    pairs: np.ndarray,
    count: int,
) -> int:
    """The pairs of the edges that are left, in their order; those that merge something are marked in it by -1."""
    column = 3 if dual else 1
    sign = -1.0 if dual else 1.0
    n = order.size
    for k in range(n):
        place = n - 1 - k if dual else k
        i = order[place]
        if i < 0:
            continue
        a, b = find(parent, edges[i, column]), find(parent, edges[i, column + 1])
        if a == b:
            continue
        young, old = (b, a) if _elder(value, a, b, dual) else (a, b)
        parent[young] = old
        order[place] = -1
        pairs[count, 0] = edges[i, 0]
        pairs[count, 1] = young
        count += (value[young] != sign * values[place]) & (values[place] > -np.inf)
    return count


@njit(cache=CACHE, nogil=True)
def _pairs(grid: np.ndarray, stride: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pairs (edge, label of the younger critical cell) and critical cells of vertices, then those of squares."""
    vertex, square = gradient(grid, stride)
    roots_v, label_v = label_cells(vertex, np.array([0, -stride, -1, stride, 1, 0]))
    roots_s, label_s = label_cells(square, np.array([0, stride, 1, -stride, 0, 0]))
    values, items = edges_and_events(grid, stride, vertex, square, roots_v, label_v, 0, 0, grid, grid)
    edges = _ends(items, label_v, label_s, stride)
    dual = items.size >= 0  # a variable: of a constant there would be a compiled version for each value
    value_v, value_s = values_of(roots_v, grid, stride, not dual), values_of(roots_s, grid, stride, dual)
    parent_v, parent_s = np.arange(roots_v.size).astype(np.int32), np.arange(roots_s.size).astype(np.int32)
    first_v, first_s = np.empty_like(parent_v), np.empty_like(parent_s)
    pairs_v, pairs_s = np.empty((roots_v.size, 2), np.int32), np.empty((roots_s.size, 2), np.int32)
    count_v = count_s = 0
    n, taken = items.size, items.size
    used = np.empty(n, np.bool_)
    while taken * _ENOUGH > n:
        used[:n] = False
        count_v = _merge_by_first_edges(
            edges[:n], values[:n], not dual, value_v, parent_v, first_v, used, pairs_v, count_v
        )
        count_s = _merge_by_first_edges(edges[:n], values[:n], dual, value_s, parent_s, first_s, used, pairs_s, count_s)
        left = _unused(edges[:n], values[:n], used, parent_v, parent_s)
        n, taken = left, n - left
    values, order = sort_items(values[:n], np.arange(n).astype(np.int32))
    count_s = _sweep(edges, values, order, dual, value_s, parent_s, pairs_s, count_s)
    count_v = _sweep(edges, values, order, not dual, value_v, parent_v, pairs_v, count_v)
    return pairs_v[:count_v], roots_v, pairs_s[:count_s], roots_s


def barcode_2d(image: np.ndarray, sign: float, construction: int) -> list[np.ndarray]:
    """Finite pairs of positive length of the sublevel filtration of ``sign * image`` (finite float64 [n0, n1]).

    Returns the flat voxels of birth and death, int64 [n, 2], of dimensions 0 and 1. Construction: 0 for V, 1 for T.
    """
    grid, stride = make_grid(image, -sign if construction else sign, construction)
    pairs_v, roots_v, pairs_s, roots_s = _pairs(grid, stride)
    graphs = ((pairs_v, roots_v), (pairs_s, roots_s))
    lists = [
        voxels_of_pairs(pairs, roots, dim, grid, stride, image.shape, construction)
        for dim, (pairs, roots) in enumerate(graphs)
    ]
    return lists[::-1] if construction else lists
