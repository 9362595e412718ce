"""Cells of a 3-D image and their total order: values, counting sort, the two graphs of a filtration.

Both constructions live on a grid of base points: the shape of the image for V, one longer per axis for T. A vertex or
cube is named by its flat base ``b``, an edge or square by ``3 * b + type``, where the type of an edge is its odd axis
and that of a square its even axis. The order of the cells of one dimension is (value, name), so a stable counting sort
over the names gives it. Values are dense ranks; cells that stick out of the grid have value -1.
"""

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numba import boolean, int32, int64, njit, types, void

from offprints.betti_matching._kernels.compile import CACHE

V, T = 0, 1
OTHER_AXES = ((1, 2), (0, 2), (0, 1))

_i4 = int32[::1]
_i8 = int64[::1]


@njit(_i4(_i4, int64), cache=CACHE, nogil=True)
def sort_cells(values, bins):  # type: ignore[no-untyped-def]
    """Names of the cells of non-negative value in the order (value, name)."""
    start = np.zeros(bins + 1, np.int32)
    for value in values:
        start[value + 1] += 1  # cells of value -1 are counted in start[0]
    start[0] = 0
    for i in range(1, bins + 1):
        start[i] += start[i - 1]
    order = np.empty(start[bins], np.int32)
    for name in range(len(values)):
        value = values[name]
        if value >= 0:
            order[start[value]] = name
            start[value] += 1
    return order


@njit(void(_i4, _i8, int64, _i4, _i4, int64[:, ::1], _i8), cache=CACHE, nogil=True)
def attain(cells, starts, kinds, values, voxels, steps, out):  # type: ignore[no-untyped-def]
    """First voxel of each cell that has the cell's value: ``starts[i] + steps[type]`` in order of preference."""
    for i in range(len(cells)):
        cell = cells[i]
        kind = cell % kinds
        for j in range(steps.shape[1]):
            voxel = starts[i] + steps[kind, j]
            if voxels[voxel] == values[cell]:
                out[i] = voxel
                break


@dataclass(frozen=True)
class Cells:
    """The cells of one image: values (dense ranks) and, for vertices and cubes, positions in the total order."""

    construction: int
    shape: tuple[int, int, int]  # of the base points
    bins: int  # number of distinct ranks
    voxels: np.ndarray  # ranks; T: with a frame of +inf
    values: tuple[np.ndarray, ...]  # per cell dimension, int32, flat
    keys: dict[int, np.ndarray]  # cell dimension 0 and 3 -> position of every cell, -1 off the grid

    @property
    def strides(self) -> tuple[int, int, int]:
        """Steps of a flat base along the axes."""
        return self.shape[1] * self.shape[2], self.shape[2], 1


def positions(order: np.ndarray, size: int) -> np.ndarray:
    """Inverse of a list of names: int32 ``[size]``, -1 for names that are not listed."""
    place = np.full(size, -1, np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    return place


def build_cells(ranks: np.ndarray, construction: int) -> Cells:
    """Values of all cells: V the maximum over their vertices, T the minimum over their voxels."""
    top_down = construction == T
    if top_down:
        shape = tuple(n + 1 for n in ranks.shape)
        voxels = np.pad(ranks, 1, constant_values=np.iinfo(np.int32).max)
    else:
        shape, voxels = ranks.shape, ranks
    size = int(np.prod(shape, dtype=np.int64))
    if 3 * (size + shape[1] * shape[2]) > np.iinfo(np.int32).max:
        raise ValueError(f"an image of shape {ranks.shape} has too many cells for 32-bit indices")
    values = tuple(np.full(kinds * size, -1, np.int32) for kinds in (1, 3, 3, 1))
    extreme = np.minimum if top_down else np.maximum

    def spread(x: np.ndarray, axis: int) -> np.ndarray:
        x = np.moveaxis(x, axis, 0)
        return np.moveaxis(extreme(x[:-1], x[1:]), 0, axis)

    def store(x: np.ndarray, axes: tuple[int, ...], kind: int) -> None:
        # spreading along k axes gives the k-cells of V, the (3 - k)-cells of T; there, the other axes lose the frame
        if top_down:
            x = x[tuple(slice(None) if axis in axes else slice(1, -1) for axis in range(3))]
        dim = 3 - len(axes) if top_down else len(axes)
        grid = values[dim].reshape(*shape, -1)
        grid[: x.shape[0], : x.shape[1], : x.shape[2], kind] = x

    store(voxels, (), 0)
    for axis, (p, q) in enumerate(OTHER_AXES):
        store(spread(voxels, axis), (axis,), axis)
        both = spread(spread(voxels, p), q)
        store(both, (p, q), axis)
    store(spread(both, 2), (0, 1, 2), 0)  # of the last round, which spread axes 0 and 1
    bins = int(ranks.max()) + 1
    keys = {dim: positions(sort_cells(values[dim], bins), size) for dim in (0, 3)}
    return Cells(construction, (shape[0], shape[1], shape[2]), bins, voxels, values, keys)


def attained_voxels(cells: Cells, dim: int, names: np.ndarray) -> np.ndarray:
    """Flat voxel (int64) that gives each cell its value, by the tie rule of the construction.

    V: the far end of an edge, then the near one; the far corner of a square, then along its first axis, its second,
    the near corner; the lexicographically first corner of a cube. T: the lexicographically last voxel.
    """
    kinds = 3 if dim in (1, 2) else 1
    s = np.array(cells.voxels.strides) // cells.voxels.itemsize
    start = names.astype(np.int64)
    if kinds == 3:
        start //= 3
    spans = {0: ((),), 1: ((0,), (1,), (2,)), 2: OTHER_AXES, 3: ((0, 1, 2),)}[dim]  # odd axes of each type
    if cells.construction == T:
        start = np.ravel_multi_index(np.unravel_index(start, cells.shape), cells.voxels.shape) + int(s.sum())
        spans = tuple(tuple(axis for axis in range(3) if axis not in odd) for odd in spans)
    steps = np.array([[sum(pick) for pick in product(*((s[axis], 0) for axis in axes))] for axes in spans], np.int64)
    if cells.construction == T:
        steps -= steps.max(axis=1, keepdims=True)
    elif dim == 3:
        steps = np.ascontiguousarray(steps[:, ::-1])
    found = np.empty(len(names), np.int64)
    attain(names, start, kinds, cells.values[dim], cells.voxels.ravel(), steps, found)
    if cells.construction == T:
        inner = np.unravel_index(found, cells.voxels.shape)
        found = np.ravel_multi_index(tuple(x - 1 for x in inner), tuple(n - 2 for n in cells.voxels.shape))
    return found


_swept: Any = types.Tuple((_i4, int32[:, ::1], _i4))  # type: ignore[no-untyped-call]


@njit(_swept(_i4, boolean, _i8, int64, _i4, int32[:, ::1], int64), cache=CACHE, nogil=True)
def sweep(order, reverse, steps, shift, parent, keys, merges):  # type: ignore[no-untyped-def]
    """Merge the components of a graph whose edges are the cells ``order`` (edges: primal, squares: dual graph).

    Cell ``3 * b + type`` joins the nodes ``b + shift`` and ``b + shift + steps[type]``. The class of the younger
    component, by ``keys[k]`` (smaller is older), dies; every row k of ``keys`` has elders of its own. ``parent`` is
    the forest to begin with and is overwritten. Returns the ``merges`` cells that joined two components, in the order
    of the sweep, the nodes ``[k, merge]`` that died there, and all other cells in the order of ``order``.
    """
    n_keys = len(keys)
    joined = np.empty(merges, np.int32)
    rest = np.empty(len(order) - merges, np.int32)
    died = np.empty((n_keys, merges), np.int32)
    elder = np.empty((n_keys - 1, len(parent)), np.int32)
    for k in range(n_keys - 1):
        for node in range(len(parent)):
            elder[k, node] = parent[node]
    key = keys[0]
    n = len(order)
    found = 0
    for i in range(n):
        cell = order[n - 1 - i] if reverse else order[i]
        if found < merges:
            base = cell // 3
            a = base + shift
            b = a + steps[cell - 3 * base]
            while parent[a] != a:
                parent[a] = parent[parent[a]]
                a = parent[a]
            while parent[b] != b:
                parent[b] = parent[parent[b]]
                b = parent[b]
            if a != b:
                if key[a] > key[b]:
                    a, b = b, a
                parent[b] = a
                joined[found] = cell
                died[0, found] = b
                for k in range(1, n_keys):
                    x, y = elder[k - 1, a], elder[k - 1, b]
                    if keys[k, x] > keys[k, y]:
                        x, y = y, x
                    elder[k - 1, a] = x
                    died[k, found] = y
                found += 1
                continue
        rest[len(rest) - 1 - (i - found) if reverse else i - found] = cell
    return joined, died, rest
