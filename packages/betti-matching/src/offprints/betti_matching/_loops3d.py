"""Representative loops of 3-D images: the reduced boundary columns of dimension 1."""

import heapq
from collections import defaultdict

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order

from offprints.betti_matching._cells3d import Cells, T, attained_voxels, build_cells, positions
from offprints.betti_matching._kernel3d import _boundary, positive_pairs, sweep_dual, sweep_primal, voxel_pairs
from offprints.betti_matching._reduce3d import reduce


def loops_3d(f: np.ndarray, construction: int, births: np.ndarray, deaths: np.ndarray) -> list[np.ndarray]:
    """Flat voxels of the loops that are born and die at these flat voxels; `f` holds dense ranks, int32.

    V: both ends of every edge; T: the voxel that gives the edge its value. Raises KeyError if there is no such loop.
    """
    cells = build_cells(f, construction)
    primal, dual = sweep_primal(cells, [cells.keys[0]]), sweep_dual(cells, [cells.keys[3]])
    steps = _boundary(cells)
    rows = positions(primal.rest, len(cells.values[1]))
    owner, start, store = reduce(dual.rest, rows, steps, len(primal.rest))

    pairs = positive_pairs(cells, primal, dual, owner)[1]
    rows_of = defaultdict(list)
    for key, row in zip(map(tuple, voxel_pairs(cells, 1, pairs).tolist()), pairs.index.tolist(), strict=True):
        rows_of[key].append(row)
    wanted = [rows_of[key].pop() for key in zip(births.tolist(), deaths.tolist(), strict=True)]

    tree = _Tree(cells, primal.joined)
    loops = []
    for row in wanted:
        at = start[row]
        if at < 0:  # the square itself
            square = dual.rest[owner[row]]
            edges = 3 * (square // 3) + steps[square % 3]
        else:  # the edges of the forest have no row: they follow from the others
            edges = tree.close(primal.rest[store[at + 1 : at + 1 + store[at]]])
        voxels = attained_voxels(cells, 1, edges) if construction == T else np.concatenate(_ends(cells, edges))
        loops.append(np.unique(voxels))
    return loops


def _ends(cells: Cells, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices of edges."""
    base = edges.astype(np.int64) // 3
    return base, base + np.array(cells.strides)[edges % 3]


class _Tree:
    """The spanning tree of the edges that joined components."""

    def __init__(self, cells: Cells, edges: np.ndarray) -> None:
        self.cells = cells
        size = len(cells.values[0])
        a, b = _ends(cells, edges)
        graph = coo_array((np.ones(len(edges), np.int8), (a, b)), shape=(size, size)).tocsr()
        order, self.parent = breadth_first_order(graph, 0, directed=False)
        self.place = np.empty(size, np.int64)  # a child comes after its parent
        self.place[order] = np.arange(size)
        self.vertex = order
        lower = np.where(self.parent[a] == b, a, b)
        self.edge = np.full(size, -1, np.int64)  # from a vertex to its parent
        self.edge[lower] = edges

    def close(self, edges: np.ndarray) -> np.ndarray:
        """The cycle of these edges and edges of the tree: from its far end on, every vertex of odd degree moves up."""
        ends, degree = np.unique(np.concatenate(_ends(self.cells, edges)), return_counts=True)
        odd = (-self.place[ends[degree % 2 == 1]]).tolist()
        heapq.heapify(odd)
        closing = []
        while odd:
            place = heapq.heappop(odd)
            if odd and odd[0] == place:  # two met
                heapq.heappop(odd)
                continue
            vertex = self.vertex[-place]
            closing.append(self.edge[vertex])
            heapq.heappush(odd, -self.place[self.parent[vertex]])
        return np.concatenate((edges, np.array(closing, dtype=edges.dtype)))
