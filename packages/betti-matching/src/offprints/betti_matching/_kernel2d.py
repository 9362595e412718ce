"""Barcodes and induced matching of 2-D (and 1-D) images by union-find.

Cells. Both constructions become a grid of `m0 x m1` vertices, numbered `v = x * m1 + y`; edge `2 v + t` leaves vertex v
along axis t, and square v has v as its corner of least index. Cells that do not exist (beyond the last row or column)
keep their numbers. In the dual graph square v is node `v + m1`, and the squares beyond the border are the outside,
node 0, so that edge `2 v + t` separates node `v + m1` from node `v + m1 - 1` (t = 0) or node `v` (t = 1).

Order. Cells of one dimension are ordered by (level, number). A node's key is `level << 32 | number`, negated in the dual
graph, so that in both graphs the elder of two nodes is the one of the smaller key.

Sweeps. Edges enter the dual graph from the last to the first; one that merges two components pairs with their younger
square (dimension 1). All the others merge vertices, from the first to the last (dimension 0). A component that knows
its elder in the order of a second image as well yields the pairs of the image of the first filtration in the second.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_V = 0
_UNION = 0
_OUTSIDE = np.iinfo(np.int32).max


@njit(cache=True, nogil=True)
def _complex(rank: np.ndarray, construction: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Levels of vertices [m0, m1], edges [m0, m1, 2] (-1: no such edge) and dual nodes [m0 + 1, m1]."""
    n0, n1 = rank.shape
    if construction == _V:
        m0, m1 = n0, n1
        vertex = rank
        edge = np.empty((m0, m1, 2), np.int32)
        node = np.empty((m0 + 1, m1), np.int32)
        for y in range(m1):
            node[0, y] = _OUTSIDE
        for x in range(m0):
            for y in range(m1):
                down = max(rank[x, y], rank[x + 1, y]) if x + 1 < m0 else np.int32(-1)
                right = max(rank[x, y], rank[x, y + 1]) if y + 1 < m1 else np.int32(-1)
                edge[x, y, 0] = down
                edge[x, y, 1] = right
                if x + 1 < m0 and y + 1 < m1:
                    node[x + 1, y] = max(right, max(rank[x + 1, y], rank[x + 1, y + 1]))
                else:
                    node[x + 1, y] = _OUTSIDE
        return vertex, edge, node
    m0, m1 = n0 + 1, n1 + 1
    vertex = np.empty((m0, m1), np.int32)
    edge = np.empty((m0, m1, 2), np.int32)
    node = np.full((m0 + 1, m1), _OUTSIDE, np.int32)
    node[1:m0, :n1] = rank
    for x in range(m0):
        for y in range(m1):
            here = node[x + 1, y]
            left = node[x + 1, y - 1] if y > 0 else _OUTSIDE
            up = node[x, y]
            corner = node[x, y - 1] if y > 0 else _OUTSIDE
            edge[x, y, 0] = min(left, here) if x < n0 else -1
            edge[x, y, 1] = min(up, here) if y < n1 else -1
            vertex[x, y] = min(min(here, left), min(up, corner))
    return vertex, edge, node


@njit(cache=True, nogil=True)
def _sorted_edges(level: np.ndarray, levels: int) -> np.ndarray:
    """Numbers of the existing edges in the order (level, number)."""
    start = np.zeros(levels + 2, np.int32)
    for e in range(level.size):
        start[level[e] + 2] += 1  # the edges that do not exist, level -1, are counted in start[1] and skipped
    start[1] = 0
    for i in range(1, levels + 1):
        start[i + 1] += start[i]
    order = np.empty(start[levels + 1], np.int32)
    for e in range(level.size):
        bucket = level[e] + 1
        if bucket > 0:
            order[start[bucket]] = e
            start[bucket] += 1
    return order


@njit(cache=True, nogil=True)
def _keys(level: np.ndarray, dual: bool) -> np.ndarray:
    key = np.empty(level.size, np.int64)
    for i in range(level.size):
        k = np.int64(level[i]) << 32 | i
        key[i] = -k if dual else k
    if dual:
        key[0] = -(np.int64(_OUTSIDE) << 32 | 0xFFFFFFFF)  # the outside is older than every square
    return key


@njit(cache=True, nogil=True)
def _find(parent: np.ndarray, node: int) -> int:
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@njit(cache=True, nogil=True)
def _sweep(
    edges: np.ndarray, level: np.ndarray, key: np.ndarray, elders: np.ndarray, m1: int, dual: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of one dimension, and the edges that merge nothing.

    Arguments: sorted edges, their levels by number, keys of the nodes, and for up to two further orders the keys of the
    nodes [k, nodes], which are overwritten. A pair (of positive length) is a row: edge, younger node, and the younger
    node in each further order.
    """
    n = edges.size
    nodes = key.size
    further = elders.shape[0]
    parent = np.arange(nodes).astype(np.int32)
    if dual:
        for i in range(nodes):
            if -key[i] >> 32 == _OUTSIDE:
                parent[i] = 0
    pairs = np.empty((min(n, nodes), 2 + further), np.int32)
    count = 0
    rest = np.empty(n, np.int32)
    unused = n
    for i in range(n):
        e = edges[n - 1 - i] if dual else edges[i]
        v = e >> 1
        if dual:
            a = v + m1
            b = v if e & 1 else a - 1
        else:
            a = v
            b = v + 1 if e & 1 else v + m1
        a = _find(parent, a)
        b = _find(parent, b)
        if a == b:
            unused -= 1
            rest[unused] = e
            continue
        if key[a] < key[b]:
            a, b = b, a
        parent[a] = b  # b is the elder
        positive = (-key[a] if dual else key[a]) >> 32 != level[e]
        if positive:
            pairs[count, 0] = e
            pairs[count, 1] = a
        for k in range(further):
            young = elders[k, a]
            old = elders[k, b]
            if young < old:
                young, old = old, young
            elders[k, b] = old
            if positive:
                pairs[count, 2 + k] = (-young if dual else young) & 0xFFFFFFFF
        count += positive
    return pairs[:count], rest[unused:]


@njit(cache=True, nogil=True)
def _none(nodes: int) -> np.ndarray:
    return np.empty((0, nodes), np.int64)


@njit(cache=True, nogil=True)
def _voxel_of_vertex(v: int, rank: np.ndarray, construction: int) -> int:
    n0, n1 = rank.shape
    if construction == _V:
        return v
    x, y = divmod(v, n1 + 1)
    best, level = 0, _OUTSIDE
    for i in range(max(x - 1, 0), min(x + 1, n0)):
        for j in range(max(y - 1, 0), min(y + 1, n1)):
            if rank[i, j] <= level:
                best, level = i * n1 + j, rank[i, j]
    return best


@njit(cache=True, nogil=True)
def _voxel_of_edge(e: int, rank: np.ndarray, construction: int) -> int:
    n0, n1 = rank.shape
    v, axis = e >> 1, e & 1
    if construction == _V:
        x, y = divmod(v, n1)
        far = v + 1 if axis else v + n1
        return far if rank[far // n1, far % n1] >= rank[x, y] else v
    x, y = divmod(v, n1 + 1)
    i, j = (x - 1, y) if axis else (x, y - 1)
    if i < 0 or j < 0:
        return x * n1 + y
    if x == n0 or y == n1 or rank[i, j] < rank[x, y]:
        return i * n1 + j
    return x * n1 + y


@njit(cache=True, nogil=True)
def _voxel_of_square(v: int, rank: np.ndarray, construction: int) -> int:
    n1 = rank.shape[1]
    if construction != _V:
        x, y = divmod(v, n1 + 1)
        return x * n1 + y
    x, y = divmod(v, n1)
    level = max(max(rank[x, y], rank[x, y + 1]), max(rank[x + 1, y], rank[x + 1, y + 1]))
    if rank[x + 1, y + 1] == level:
        return v + n1 + 1
    if rank[x + 1, y] == level:
        return v + n1
    if rank[x, y + 1] == level:
        return v + 1
    return v


@njit(cache=True, nogil=True)
def _voxels(pairs: np.ndarray, rank: np.ndarray, construction: int, dim: int, out: np.ndarray) -> None:
    """Voxels of birth and death [n, 2] of the pairs of one dimension."""
    m1 = rank.shape[1] + (0 if construction == _V else 1)
    for i in range(pairs.shape[0]):
        e, node = pairs[i, 0], pairs[i, 1]
        if dim == 0:
            out[i, 0] = _voxel_of_vertex(node, rank, construction)
            out[i, 1] = _voxel_of_edge(e, rank, construction)
        else:
            out[i, 0] = _voxel_of_edge(e, rank, construction)
            out[i, 1] = _voxel_of_square(node - m1, rank, construction)


@njit(cache=True, nogil=True)
def barcode_2d(rank: np.ndarray, construction: int) -> tuple:
    """Finite pairs of positive length of each dimension: int64 [n, 2], flat voxels of birth and death."""
    vertex, edge, node = _complex(rank, construction)
    m1 = vertex.shape[1]
    level = edge.reshape(-1)
    edges = _sorted_edges(level, rank.max() + 1)
    node_key = _keys(node.reshape(-1), True)
    pairs1, edges = _sweep(edges, level, node_key, _none(node_key.size), m1, True)
    vertex_key = _keys(vertex.reshape(-1), False)
    pairs0, _ = _sweep(edges, level, vertex_key, _none(vertex_key.size), m1, False)
    voxels0 = np.empty((pairs0.shape[0], 2), np.int64)
    voxels1 = np.empty((pairs1.shape[0], 2), np.int64)
    _voxels(pairs0, rank, construction, 0, voxels0)
    _voxels(pairs1, rank, construction, 1, voxels1)
    return voxels0, voxels1


@njit(cache=True, nogil=True)
def _join(
    pairs_f: np.ndarray,
    pairs_g: np.ndarray,
    pairs_c: np.ndarray,
    nodes: int,
    rank_f: np.ndarray,
    rank_g: np.ndarray,
    construction: int,
    dim: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Match the pairs of both images: those with the same partner among the pairs of the comparison image.

    Either the pairs of the images name their partner's node (column 2), or those of the comparison image name the nodes
    of theirs (columns 2 and 3).
    """
    named = pairs_f.shape[1] == 3
    table_f = np.full(nodes, -1, np.int32)
    table_g = np.full(nodes, -1, np.int32)
    for i in range(pairs_f.shape[0]):
        table_f[pairs_f[i, 2 if named else 1]] = i
    for i in range(pairs_g.shape[0]):
        table_g[pairs_g[i, 2 if named else 1]] = i
    voxels_f = np.empty((pairs_f.shape[0], 2), np.int64)
    voxels_g = np.empty((pairs_g.shape[0], 2), np.int64)
    _voxels(pairs_f, rank_f, construction, dim, voxels_f)
    _voxels(pairs_g, rank_g, construction, dim, voxels_g)
    matched = np.empty((min(pairs_f.shape[0], pairs_g.shape[0]), 4), np.int64)
    free_f = np.ones(pairs_f.shape[0], np.bool_)
    free_g = np.ones(pairs_g.shape[0], np.bool_)
    count = 0
    for i in range(pairs_c.shape[0]):
        f = table_f[pairs_c[i, 1 if named else 2]]
        g = table_g[pairs_c[i, 1 if named else 3]]
        if f >= 0 and g >= 0:
            matched[count, :2] = voxels_f[f]
            matched[count, 2:] = voxels_g[g]
            free_f[f] = False
            free_g[g] = False
            count += 1
    return matched[:count].copy(), voxels_f[free_f], voxels_g[free_g]


@njit(cache=True, nogil=True)
def match_2d(f: np.ndarray, g: np.ndarray, c: np.ndarray, construction: int, comparison: int) -> tuple:
    """Induced matching of two images: for each dimension (matched, unmatched of f, unmatched of g).

    Arguments: dense int32 ranks [n0, n1] of both images and their comparison image; 0 for V or 1 for T; 0 for union or
    1 for intersection. Matched rows are int64 [n, 4]: flat voxels of birth and death in f, birth and death in g;
    unmatched rows int64 [n, 2]. Finite pairs of positive length only.
    """
    union = comparison == _UNION
    vertex_f, edge_f, node_f = _complex(f, construction)
    vertex_g, edge_g, node_g = _complex(g, construction)
    vertex_c, edge_c, node_c = _complex(c, construction)
    m1 = vertex_f.shape[1]
    level_f, level_g, level_c = edge_f.reshape(-1), edge_g.reshape(-1), edge_c.reshape(-1)
    edges_f = _sorted_edges(level_f, f.max() + 1)
    edges_g = _sorted_edges(level_g, g.max() + 1)
    edges_c = _sorted_edges(level_c, c.max() + 1)
    loops = components = (np.empty((0, 4), np.int64), np.empty((0, 2), np.int64), np.empty((0, 2), np.int64))
    for dim in (1, 0):
        dual = dim == 1
        key_f = _keys((node_f if dual else vertex_f).reshape(-1), dual)
        key_g = _keys((node_g if dual else vertex_g).reshape(-1), dual)
        key_c = _keys((node_c if dual else vertex_c).reshape(-1), dual)
        nodes = key_f.size
        named = dual == union  # the pairs of f and g name their partners in c, or those of c theirs in f and g
        elders_f = np.empty((1 if named else 0, nodes), np.int64)
        elders_g = np.empty((1 if named else 0, nodes), np.int64)
        elders_c = np.empty((0 if named else 2, nodes), np.int64)
        if named:
            elders_f[0] = key_c
            elders_g[0] = key_c
        else:
            elders_c[0] = key_f
            elders_c[1] = key_g
        pairs_f, edges_f = _sweep(edges_f, level_f, key_f, elders_f, m1, dual)
        pairs_g, edges_g = _sweep(edges_g, level_g, key_g, elders_g, m1, dual)
        pairs_c, edges_c = _sweep(edges_c, level_c, key_c, elders_c, m1, dual)
        loops, components = components, _join(pairs_f, pairs_g, pairs_c, nodes, f, g, construction, dim)
    return components, loops
