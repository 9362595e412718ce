"""Barcodes and induced matching of 2-D (and 1-D) images.

Sweeps. The critical edges, from the last to the first, merge components of squares: an edge that does pairs with the
younger critical square (dimension 1). The others, from the first to the last, merge components of vertices (dimension
0). For image persistence a component also knows its elder in the order of another image, which may be any of its cells:
the cells that could be are the events of the sweep.

Constructions. All this is for V. The complex of T is dual to that of V of the negated image upside down, where
dimensions, birth and death, first and last, union and intersection change places and the outside of the image becomes a
frame that is there first.

The cache of compiled code follows this file, not those imported here: delete ``__pycache__`` after changing them.
"""

import numpy as np
from numba import njit

from offprints.betti_matching._kernels.compile import CACHE
from offprints.betti_matching._kernels.gradient2d import (
    SQUARES,
    VERTICES,
    edges_and_events,
    gradient,
    label_cells,
    make_grid,
    square_value,
)
from offprints.betti_matching._kernels.order import sort_items

_Graph = tuple[np.ndarray, np.ndarray, np.ndarray]  # pairs, critical cells, complements of the labels
_Lists = tuple[np.ndarray, np.ndarray, np.ndarray]


@njit(cache=CACHE, nogil=True)
def _find(parent: np.ndarray, node: int) -> int:
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@njit(cache=CACHE, nogil=True)
def _values_of(cells: np.ndarray, grid: np.ndarray, stride: int, dual: bool) -> np.ndarray:
    """Values of critical vertices, or of critical squares negated; label 0 is elder than all."""
    value = np.empty(cells.size)
    for i in range(cells.size):
        value[i] = -np.inf if i == 0 else (-square_value(grid, cells[i], stride) if dual else grid[cells[i]])
    return value


@njit(cache=CACHE, nogil=True)
def _sweep(
    values: np.ndarray,
    items: np.ndarray,
    dual: bool,
    roots: np.ndarray,
    label: np.ndarray,
    grid: np.ndarray,
    stride: int,
    further: int,
    p: np.ndarray,
    q: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of positive length of one dimension; then the items that merge nothing, moved together in their arrays.

    A pair is a row: edge, label of the younger critical cell, and in each of the `further` orders (by grids p and q)
    the younger cell. In the dual sweep values and numbers are negated, so that the elder is always the lesser.
    """
    sign = -1 if dual else 1
    parent = np.empty(roots.size, np.int32)
    for i in range(roots.size):
        parent[i] = i
    value = _values_of(roots, grid, stride, dual)
    value_p = _values_of(roots if further > 0 else roots[:0], p, stride, dual)
    value_q = _values_of(roots if further > 1 else roots[:0], q, stride, dual)
    cell_p = np.empty(value_p.size, np.int32)
    cell_q = np.empty(value_q.size, np.int32)
    for i in range(value_p.size):
        cell_p[i] = sign * roots[i]
    for i in range(value_q.size):
        cell_q[i] = sign * roots[i]
    pairs = np.empty((roots.size, 2 + further), np.int32)
    count = 0
    n = items.size
    unused = n if dual else 0
    for k in range(n):
        i = n - 1 - k if dual else k
        edge = items[i]
        a = b = 0
        if edge >= 0:
            v = edge >> 1
            w = v + 1 if (edge & 1) ^ dual else v + stride
            w = w if not dual else 2 * v - w
            a = _find(parent, ~label[v])
            b = _find(parent, ~label[w])
        elif further > 0:
            cell = ~edge
            a = _find(parent, ~label[cell])
            x = -square_value(p, cell, stride) if dual else p[cell]
            if x < value_p[a] or (x == value_p[a] and sign * cell < cell_p[a]):
                value_p[a] = x
                cell_p[a] = sign * cell
            if further > 1:
                x = -square_value(q, cell, stride) if dual else q[cell]
                if x < value_q[a] or (x == value_q[a] and sign * cell < cell_q[a]):
                    value_q[a] = x
                    cell_q[a] = sign * cell
            continue
        if a == b:  # also the events of the other sweep
            unused -= dual
            items[unused] = edge
            values[unused] = values[i]
            unused += not dual
            continue
        # critical cells are labeled in the order of their numbers
        elder = (value[a] < value[b]) | ((value[a] == value[b]) & ((a < b) ^ dual))
        young, old = (b, a) if elder else (a, b)
        parent[young] = old
        pairs[count, 0] = edge
        pairs[count, 1] = young
        if further > 0:
            keep = (value_p[old] < value_p[young]) | ((value_p[old] == value_p[young]) & (cell_p[old] < cell_p[young]))
            pairs[count, 2] = sign * (cell_p[young] if keep else cell_p[old])
            value_p[old] = value_p[old] if keep else value_p[young]
            cell_p[old] = cell_p[old] if keep else cell_p[young]
        if further > 1:
            keep = (value_q[old] < value_q[young]) | ((value_q[old] == value_q[young]) & (cell_q[old] < cell_q[young]))
            pairs[count, 3] = sign * (cell_q[young] if keep else cell_q[old])
            value_q[old] = value_q[old] if keep else value_q[young]
            cell_q[old] = cell_q[old] if keep else cell_q[young]
        # the edges of the frame, if there is one, belong to no pair
        count += (value[young] != sign * values[i]) & (values[i] > -np.inf)
    if dual:
        return pairs[:count], values[unused:], items[unused:]
    return pairs[:count], values[:unused], items[:unused]


@njit(cache=CACHE, nogil=True)
def _pairs(
    grid: np.ndarray, stride: int, events: int, further: int, p: np.ndarray, q: np.ndarray
) -> tuple[_Graph, _Graph]:
    """For vertices and for squares: pairs, critical cells, complement of the label of every cell.

    The sweep of the kind `events` names the younger cells in `further` orders, those of the grids p and q.
    """
    vertex, square = gradient(grid, stride)
    roots_v, label_v = label_cells(vertex, np.array([0, -stride, -1, stride, 1, 0]))
    roots_s, label_s = label_cells(square, np.array([0, stride, 1, -stride, 0, 0]))
    roots, label = (roots_s, label_s) if events == SQUARES else (roots_v, label_v)
    values, items = edges_and_events(grid, stride, vertex, square, roots, label, events, further, p, q)
    values, items = sort_items(values, items)
    in_squares = further if events == SQUARES else 0
    dual = items.size >= 0  # a variable: of a constant there would be a compiled version for each value
    loops, values, items = _sweep(values, items, dual, roots_s, label_s, grid, stride, in_squares, p, q)
    in_vertices = further if events == VERTICES else 0
    components, _, _ = _sweep(values, items, not dual, roots_v, label_v, grid, stride, in_vertices, p, q)
    return (components, roots_v, label_v), (loops, roots_s, label_s)


@njit(cache=CACHE, nogil=True)
def _voxel(v: int, stride: int, shape: tuple[int, int], construction: int) -> int:
    """Flat index of a vertex of the grid in the image."""
    row = int((v + 0.5) * (1.0 / stride))  # exact, and faster than the division of integers
    x, y = row - 1, v - row * stride
    if construction:
        x, y = shape[0] - x, shape[1] - y
    return x * shape[1] + y


@njit(cache=CACHE, nogil=True)
def _voxels(
    graph: _Graph, dim: int, grid: np.ndarray, stride: int, shape: tuple[int, int], construction: int
) -> np.ndarray:
    """Voxels of birth and death [n, 2] of the pairs of one dimension of the grid.

    A cell's voxel is the last that has its value; the first in T, where the image is upside down.
    """
    pairs, roots, _ = graph
    found = np.empty((pairs.shape[0], 2), np.int64)
    for i in range(pairs.shape[0]):
        v = pairs[i, 0] >> 1
        edge = v + 1 if pairs[i, 0] & 1 else v + stride
        if grid[v] > grid[edge] or (construction and grid[v] == grid[edge]):
            edge = v
        root = roots[pairs[i, 1]]
        other = root
        if dim == 1:
            other = root + stride + 1
            for offset in (stride, 1, 0):
                v = root + offset
                if grid[v] > grid[other] or (construction and grid[v] == grid[other]):
                    other = v
        found[i, 0] = _voxel(other if dim == construction else edge, stride, shape, construction)
        found[i, 1] = _voxel(edge if dim == construction else other, stride, shape, construction)
    return found


@njit(cache=CACHE, nogil=True)
def _critical(cell: int, graph: _Graph) -> int:
    """The label of a critical cell; 0 for another."""
    _, roots, label = graph
    found = ~label[cell]
    return found if roots[found] == cell else 0


@njit(cache=CACHE, nogil=True)
def _partners(graph: _Graph, c: _Graph, named: bool) -> np.ndarray:
    """Which pair names the critical cell of a label of c, or has that of a label of its own; -1 for none."""
    pairs, roots, _ = graph
    table = np.empty(c[1].size if named else roots.size, np.int32)
    for i in range(table.size):
        table[i] = -1
    for i in range(pairs.shape[0]):
        table[_critical(pairs[i, 2], c) if named else pairs[i, 1]] = i
    table[0] = -1
    return table


@njit(cache=CACHE, nogil=True)
def _left(voxels: np.ndarray) -> np.ndarray:
    """The rows that are not marked by -1, moved to the front of the array."""
    count = 0
    for i in range(voxels.shape[0]):
        voxels[count, 0] = voxels[i, 0]
        voxels[count, 1] = voxels[i, 1]
        count += voxels[i, 0] >= 0
    return voxels[:count]


@njit(cache=CACHE, nogil=True)
def _join(f: _Graph, g: _Graph, c: _Graph, voxels_f: np.ndarray, voxels_g: np.ndarray, named: bool) -> _Lists:
    """Match the pairs of f and g that have the same partner among the pairs of the comparison image c.

    Either the pairs of f and g name the cells of their partners (column 2), or those of c name theirs (2 and 3). Only
    critical cells have pairs. Returns the matched voxels [n, 4] and those left of `voxels_f` and `voxels_g`.
    """
    table_f = _partners(f, c, named)
    table_g = _partners(g, c, named)
    matched = np.empty((min(voxels_f.shape[0], voxels_g.shape[0]), 4), np.int64)
    count = 0
    for i in range(c[0].shape[0]):
        a = b = c[0][i, 1]
        if not named:
            a, b = _critical(c[0][i, 2], f), _critical(c[0][i, 3], g)
        a, b = table_f[a], table_g[b]
        if a >= 0 and b >= 0:
            for k in range(2):
                matched[count, k] = voxels_f[a, k]
                matched[count, 2 + k] = voxels_g[b, k]
                voxels_f[a, k] = -1
                voxels_g[b, k] = -1
            count += 1
    return matched[:count], _left(voxels_f), _left(voxels_g)


def barcode_2d(image: np.ndarray, sign: float, construction: int) -> list[np.ndarray]:
    """Finite pairs of positive length of the sublevel filtration of ``sign * image`` (finite float64 [n0, n1]).

    Returns the flat voxels of birth and death, int64 [n, 2], of dimensions 0 and 1. Construction: 0 for V, 1 for T.
    """
    grid, stride = make_grid(image, -sign if construction else sign, construction)
    graphs = _pairs(grid, stride, 0, 0, grid, grid)
    lists = [_voxels(graph, dim, grid, stride, image.shape, construction) for dim, graph in enumerate(graphs)]
    return lists[::-1] if construction else lists


def match_2d(
    f: np.ndarray, g: np.ndarray, c: np.ndarray, sign: float, construction: int, comparison: int
) -> list[_Lists]:
    """Induced matching of the sublevel filtrations of ``sign * f`` and ``sign * g`` (finite float64 [n0, n1]).

    Returns the flat voxels of the finite pairs of positive length of dimensions 0 and 1: matched, int64 [n, 4] (birth
    and death in f, birth and death in g), unmatched of f [n, 2], unmatched of g [n, 2]. c is the comparison image, by
    union (comparison 0) or intersection (1). Construction: 0 for V, 1 for T.
    """
    sign = -sign if construction else sign
    union = comparison == construction
    (grid_f, stride), (grid_g, _), (grid_c, _) = (make_grid(image, sign, construction) for image in (f, g, c))
    # births are matched by the image pairs that the sweep of c finds, deaths by those that the sweeps of f and g find
    named, naming = (SQUARES, VERTICES) if union else (VERTICES, SQUARES)
    graphs_f = _pairs(grid_f, stride, named, 1, grid_c, grid_c)
    graphs_g = _pairs(grid_g, stride, named, 1, grid_c, grid_c)
    graphs_c = _pairs(grid_c, stride, naming, 2, grid_f, grid_g)
    lists = []
    for dim, (of_f, of_g, of_c) in enumerate(zip(graphs_f, graphs_g, graphs_c, strict=True)):
        voxels_f = _voxels(of_f, dim, grid_f, stride, f.shape, construction)
        voxels_g = _voxels(of_g, dim, grid_g, stride, f.shape, construction)
        lists.append(_join(of_f, of_g, of_c, voxels_f, voxels_g, union == (dim == 1)))
    return lists[::-1] if construction else lists
