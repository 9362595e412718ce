"""Barcodes and induced matchings of 3-D images: the exact engine behind the public functions.

Dimension 2 comes from one reverse sweep over the dual graph of an image, dimension 0 from one sweep over its edges,
dimension 1 from reducing what these two leave over: its columns are the squares that create no cavity (clearing), its
rows the edges that join no components (the last edge of a cycle never does). Image persistence needs no sweep of its
own in dimensions 0 and 2, because a component can keep its elder in several filtrations at once. Dimension 1 takes two
reductions more, with rows and columns of different images.

All images are dense ranks of the sublevel order: C-contiguous int32 ``[n1, n2, n3]``, equal values having equal ranks.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from offprints.betti_matching._kernels.cells3d import (
    OTHER_AXES,
    Cells,
    V,
    attained_voxels,
    build_cells,
    positions,
    sort_cells,
    sweep,
)
from offprints.betti_matching._kernels.reduce3d import reduce

UNION, INTERSECTION = 0, 1
C, F, G = 0, 1, 2  # index of the comparison image, the prediction and the target in lists


class Graph(NamedTuple):
    """One sweep: the cells that joined two components, the nodes that died there, and all other cells."""

    joined: np.ndarray  # int32 [merges]
    died: np.ndarray  # int32 [keys, merges]
    rest: np.ndarray  # int32, in filtration order


class Pairs(NamedTuple):
    """Positive pairs of one dimension: names of their cells, and their numbers among all pairs of the dimension."""

    birth: np.ndarray
    death: np.ndarray
    number: np.ndarray


def sweep_primal(cells: Cells, keys: list[np.ndarray]) -> Graph:
    """Components of the sublevel sets; the first key is the image's own, others give births in other filtrations."""
    size = len(keys[0])
    order = sort_cells(cells.values[1], cells.bins)
    parent = np.arange(size, dtype=np.int32)
    return Graph(*sweep(order, False, np.array(cells.strides), 0, parent, np.stack(keys), size - 1))


def sweep_dual(cells: Cells, keys: list[np.ndarray]) -> Graph:
    """Cavities of the sublevel sets: components of the complement, from the last square to the first."""
    size, pad = len(keys[0]), cells.strides[0]
    order = sort_cells(cells.values[2], cells.bins)
    # a square joins cube b to cube b - step; what is off the grid is the outside (node 0), which never dies
    inside = cells.values[3] >= 0
    parent = np.zeros(pad + size, np.int32)
    parent[pad:] = np.where(inside, np.arange(pad, pad + size, dtype=np.int32), 0)
    reverse_keys = np.full((len(keys), pad + size), np.iinfo(np.int32).min, np.int32)
    for row, key in zip(reverse_keys, keys, strict=True):
        row[pad:] = np.where(inside, ~key, row[pad:])
    steps = -np.array(cells.strides)
    joined, died, rest = sweep(order, True, steps, pad, parent, reverse_keys, int(np.count_nonzero(inside)))
    return Graph(joined, died - np.int32(pad), rest)


def reduce_middle(cells: Cells, edges: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Dimension 1: the square that every edge (rows, in their order) is paired with, int32 ``[edges]``."""
    partner, _, _ = reduce(squares, positions(edges, len(cells.values[1])), _boundary(cells), len(edges))
    return partner


def _boundary(cells: Cells) -> np.ndarray:
    """Edges of a square of each type, relative to ``3 * base``: int32 ``[3, 4]``."""
    s = [3 * step for step in cells.strides]
    return np.array([[p, q, s[q] + p, s[p] + q] for p, q in OTHER_AXES], np.int32)


def positive_pairs(cells: Cells, primal: Graph, dual: Graph, middle: np.ndarray) -> list[Pairs]:
    """Pairs of positive length in dimensions 0, 1 and 2; ``middle`` is the image's own reduction."""
    births = (primal.died[0], primal.rest, dual.joined)
    deaths = (primal.joined, middle, dual.died[0])
    result = []
    for k in range(3):
        number = np.flatnonzero(cells.values[k][births[k]] != cells.values[k + 1][deaths[k]])
        result.append(Pairs(births[k][number], deaths[k][number], number))
    return result


def voxel_pairs(cells: Cells, k: int, pairs: Pairs) -> np.ndarray:
    """Flat birth and death voxels, int64 ``[n, 2]``."""
    return np.stack([attained_voxels(cells, k, pairs.birth), attained_voxels(cells, k + 1, pairs.death)], axis=1)


@contextmanager
def _workers(num_threads: int | None) -> Iterator[Callable[..., "Future[Any]"]]:
    """A function that starts a task. A task may wait for the results of those started before it."""
    threads = (os.cpu_count() or 1) if num_threads is None else num_threads
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            yield pool.submit
        return

    def run(task: Callable[..., Any], *args: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        future.set_result(task(*args))
        return future

    yield run


def barcode_3d(f: np.ndarray, construction: int, *, num_threads: int | None = None) -> list[np.ndarray]:
    """Birth and death voxels of the finite positive pairs of each dimension: three int64 ``[n, 2]`` of flat indices."""
    with _workers(num_threads) as submit:
        cells = build_cells(f, construction)
        first = submit(sweep_dual, cells, [cells.keys[3]])
        primal = sweep_primal(cells, [cells.keys[0]])
        dual = first.result()
        pairs = positive_pairs(cells, primal, dual, reduce_middle(cells, primal.rest, dual.rest))
        return [voxel_pairs(cells, k, pairs[k]) for k in range(3)]


def match_3d(
    f: np.ndarray,
    g: np.ndarray,
    c: np.ndarray,
    construction: int,
    comparison: int,
    *,
    num_threads: int | None = None,
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Induced matching of the prediction ``f`` and the target ``g`` through the comparison image ``c``.

    Args:
        f: Ranks of the prediction.
        g: Ranks of the target.
        c: Ranks of the voxelwise minimum (union) or maximum (intersection).
        construction: 0 for V, 1 for T.
        comparison: 0 for union, 1 for intersection.
        num_threads: Threads to use, all cores by default. The result does not depend on it.

    Returns:
        Per dimension 0, 1, 2 flat voxels of the finite positive pairs: ``matched`` int64 ``[n, 4]`` (birth and death in
        f, birth and death in g), ``unmatched_f`` int64 ``[m, 2]``, ``unmatched_g`` int64 ``[p, 2]``.
    """
    union = comparison == UNION
    joint, split = ((C, F, G), (F,), (G,)), ((C,), (F, C), (G, C))  # whose elders the sweeps of C, F and G keep
    with _workers(num_threads) as submit:
        cells: list[Cells] = [task.result() for task in [submit(build_cells, x, construction) for x in (c, f, g)]]

        def graphs(
            sweeper: Callable[..., Graph], dim: int, elders: tuple[tuple[int, ...], ...]
        ) -> list["Future[Graph]"]:
            return [submit(sweeper, cells[group[0]], [cells[x].keys[dim] for x in group]) for group in elders]

        primal = graphs(sweep_primal, 0, joint if union else split)
        dual = graphs(sweep_dual, 3, split if union else joint)

        def middle(rows: int, columns: int) -> np.ndarray:
            return reduce_middle(cells[columns], primal[rows].result().rest, dual[columns].result().rest)

        def positive(x: int) -> list[Pairs]:
            return positive_pairs(cells[x], primal[x].result(), dual[x].result(), own[x].result())

        # image pairs have births of the smaller complex and deaths of the larger one; these tasks take longest
        cross = [submit(middle, x, C) if union else submit(middle, C, x) for x in (F, G)]
        own = [submit(middle, x, x) for x in (C, F, G)]
        pairs = [submit(positive, x) for x in (C, F, G)]

        def match(k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            at = [task.result()[k] for task in pairs]
            cell = [p.birth if k == 0 else p.death for p in at]
            by_cell = union == (k > 0)
            if k == 1:
                image = [task.result() for task in cross]
            else:
                graph = [task.result() for task in (primal if k == 0 else dual)]
                image = [graph[x].died[1] if by_cell else graph[C].died[x] for x in (F, G)]
            # Bars of C, F and G belong together where they have the same slot. The image pairs lead from a bar of F or
            # G (by number) to the cell of a bar of C, or from a bar of C (by number) to the cell of a bar of F or G.
            size = len(cells[C].values[1])
            if by_cell:
                in_c, in_f, in_g = cell[C], image[0][at[F].number], image[1][at[G].number]
            else:
                in_c, in_f, in_g = at[C].number, positions(image[0], size)[cell[F]], positions(image[1], size)[cell[G]]
            partner = np.full(size, -1, np.int32)
            partner[in_g] = np.arange(len(in_g), dtype=np.int32)
            valid = np.zeros(size, bool)
            valid[in_c] = True
            of_f = np.where(valid[in_f], partner[in_f], -1)
            bars_f, bars_g = (voxel_pairs(cells[x], k, pairs[x].result()[k]) for x in (F, G))
            is_matched = of_f >= 0
            left = np.ones(len(bars_g), bool)
            left[of_f[is_matched]] = False
            return np.hstack([bars_f[is_matched], bars_g[of_f[is_matched]]]), bars_f[~is_matched], bars_g[left]

        return [task.result() for task in [submit(match, k) for k in range(3)]]


def cycle_3d(f: np.ndarray, construction: int, births: np.ndarray, deaths: np.ndarray) -> list[np.ndarray]:
    """Representative cycles of dimension-1 pairs: the reduced columns of their death squares.

    Args:
        f: Ranks of the image.
        construction: 0 for V, 1 for T.
        births: Flat birth voxels ``[n]``; a pair that is listed again stands for the next bar with these two voxels.
        deaths: Flat death voxels ``[n]``.

    Returns:
        Per pair the flat voxels of its cycle, int64, ascending. V: the ends of the edges; T: the voxels that the edges
        enter with.

    Raises:
        ValueError: A pair is not a finite pair of dimension 1 of this image.
    """
    cells = build_cells(f, construction)
    edges = sort_cells(cells.values[1], cells.bins)
    squares = sweep_dual(cells, [cells.keys[3]]).rest
    # all edges are rows here, so that the stored columns are whole cycles
    partner, owner, store = reduce(squares, positions(edges, len(cells.values[1])), _boundary(cells), len(edges))
    paired = np.flatnonzero(partner >= 0)
    paired = paired[cells.values[1][edges[paired]] != cells.values[2][partner[paired]]]
    bars = voxel_pairs(cells, 1, Pairs(edges[paired], partner[paired], paired))
    rows: dict[tuple[int, int], list[int]] = {}
    for (birth, death), row in zip(bars.tolist(), paired.tolist(), strict=True):
        rows.setdefault((birth, death), []).append(row)

    cycles = []
    seen: Counter[tuple[int, int]] = Counter()
    for pair in zip(births.tolist(), deaths.tolist(), strict=True):
        if pair not in rows:
            raise ValueError(f"pairs: birth voxel {pair[0]} and death voxel {pair[1]} are not a pair of dimension 1")
        row = rows[pair][seen[pair] % len(rows[pair])]
        seen[pair] += 1
        at = int(owner[row])
        stored = store[-at : -at + store[-at - 2]] if at < 0 else store[:0]
        names = edges[stored] if at < 0 else 3 * (at // 3) + _boundary(cells)[at % 3]
        if construction == V:
            base, axis = np.divmod(names.astype(np.int64), 3)
            voxels = np.concatenate([base, base + np.array(cells.strides)[axis]])
        else:
            voxels = attained_voxels(cells, 1, names)
        cycles.append(np.unique(voxels))
    return cycles
