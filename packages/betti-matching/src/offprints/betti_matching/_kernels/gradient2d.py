"""The grid of a 2-D image, the cells that need no search, and what remains: labels, critical edges and events.

Grid. The image lies in a grid of ``stride`` values per row, with a border of +inf above, below and (one column that
serves both sides) beside it. Vertex, or voxel, ``v`` has the neighbors ``v - stride, v - 1, v + 1, v + stride``; edge
``2 v + t`` leaves it along axis t; square ``v`` has it as its corner of least index. Cells that touch the border do not
exist; the squares that do are together the outside. Cells of one dimension are ordered by (value, number).

Gradient. A vertex whose first edge has it as its last end is merged by that edge as soon as it appears, and a square
whose last edge has it as its first side is filled as soon as that edge closes. Both are seen from the next neighbors
alone. So each of these cells leads to an elder one of its kind, and in the end to one of the few without such an edge,
the critical ones, by which it is labeled. The edges that belong to neither a vertex nor a square are critical, too.
"""

import numpy as np
from numba import njit

from offprints.betti_matching._kernels.compile import CACHE

OUTSIDE = 5  # code of what does not exist; 0: critical, otherwise the direction of the edge and of the next cell
SQUARES = 1
VERTICES = 2


@njit(cache=CACHE, nogil=True)
def make_grid(image: np.ndarray, sign: float, construction: int) -> tuple[np.ndarray, int]:
    """The grid of ``sign * image`` (flat) and its stride.

    Construction 0 (V) is as above. For 1 (T) there is a frame of -inf around the image, and the image is upside down:
    its squares, edges and vertices are the vertices, edges and squares of T, in reverse order if the sign is reversed.
    """
    n0, n1 = image.shape
    frame = construction
    rows = n0 + 2 * frame
    stride = n1 + 2 * frame + 1
    grid = np.empty((rows + 2) * stride + 1)
    for x in range(-1, rows + 1):
        begin = (x + 1) * stride
        row = grid[begin : begin + stride]
        for y in range(stride):
            row[y] = -np.inf if frame and 0 <= x < rows and y < stride - 1 else np.inf
        if frame <= x < n0 + frame:
            row = grid[begin + frame : begin + frame + n1]
            source = image[n0 - x if frame else x]
            for y in range(n1):
                row[y] = sign * source[n1 - 1 - y if frame else y]
    grid[grid.size - 1] = np.inf
    return grid, stride


@njit(cache=CACHE, nogil=True)
def square_value(grid: np.ndarray, v: int | np.int64, stride: int) -> float:
    """The largest value of the corners of a square."""
    first = grid[v] if grid[v] > grid[v + 1] else grid[v + 1]
    second = grid[v + stride] if grid[v + stride] > grid[v + stride + 1] else grid[v + stride + 1]
    return first if first > second else second


@njit(cache=CACHE, nogil=True)
def gradient(grid: np.ndarray, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes of the vertices (1 up, 2 left, 3 down, 4 right) and of the squares (1 down, 2 right, 3 up)."""
    vertex = np.empty(grid.size, np.uint8)
    square = np.empty(grid.size, np.uint8)
    for i in range(grid.size):
        vertex[i] = OUTSIDE
        square[i] = OUTSIDE
    n = grid.size - 2 * stride - 1
    above, above_right, left, here = grid[:n], grid[1:], grid[stride - 1 :], grid[stride:]
    right, below, below_right = grid[stride + 1 :], grid[2 * stride :], grid[2 * stride + 1 :]
    vertex_here, square_here = vertex[stride:], square[stride:]
    for i in range(n):
        a, b, c, d, e, f, g = above[i], left[i], here[i], right[i], below[i], above_right[i], below_right[i]
        code = (3 if e < c else 0) if e <= c else (4 if d < c else 0)
        code = 1 if a <= c else (2 if b <= c else code)
        vertex_here[i] = OUTSIDE if c == np.inf else code
        low = e if e > g else g
        high = c if c > d else d
        over = a if a > f else f
        code = 1 if low >= high else (2 if d >= c else (3 if over > c else 0))
        square_here[i] = OUTSIDE if (low if low > high else high) == np.inf else code
    return vertex, square


@njit(cache=CACHE, nogil=True)
def label_cells(code: np.ndarray, step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The critical cells in the order of their numbers, and for every cell the bitwise complement of its label.

    Label k > 0 is that of cell ``critical[k]``, label 0 that of the outside.
    """
    count = 1
    for v in range(code.size):
        count += code[v] == 0
    critical = np.empty(count + 1, np.int32)  # one more, for what is overwritten again
    critical[0] = 0
    label = np.empty(code.size, np.int32)  # first the next cell on the way, later the label's complement: negative
    count = 1
    rest = np.empty(code.size, np.int32)
    # every load is unconditional: the directions cannot be predicted
    for v in range(code.size):
        direction = code[v]
        ahead = v + step[direction]
        known = label[ahead]
        known = known if ahead < v else ahead
        critical[count] = v
        known = ~count if direction == 0 else known
        count += direction == 0
        label[v] = ~0 if direction == OUTSIDE else known
    unknown = 0
    for i in range(label.size):
        v = label.size - 1 - i
        ahead = label[v]
        known = label[max(ahead, 0)]
        known = known if ahead >= 0 else ahead
        label[v] = known
        rest[unknown] = v
        unknown += known >= 0
    for i in range(unknown):  # the few whose way winds
        v = rest[i]
        end = label[v]
        while end >= 0:
            end = label[end]
        while label[v] >= 0:
            label[v], v = end, label[v]
    return critical[:count], label


@njit(cache=CACHE, nogil=True)
def _flags(
    grid: np.ndarray,
    stride: int,
    vertex: np.ndarray,
    square: np.ndarray,
    events: int,
    further: int,
    p: np.ndarray,
    q: np.ndarray,
) -> tuple[np.ndarray, int]:
    """What each vertex's two edges mean to the sweeps, as bits, and their number.

    Bits 0 and 1: the edge along axis 0 or 1 is critical. Events of squares, bits 2 to 4: the edge along axis 0 is that
    of the square before, the edge along axis 1 that of the square at or above the vertex. Events of vertices, bits 2 to
    5: the edge along axis 0 is that of the vertex below or of this one, along axis 1 that of the vertex to the right or
    of this one. There is an event only if the cell is elder, in a further order, than the one that it leads to.
    """
    flags = np.empty(grid.size, np.uint8)
    for i in range(grid.size):
        flags[i] = 0
    n = grid.size - 2 * stride - 1
    here, right, below = grid[stride : stride + n], grid[stride + 1 :], grid[2 * stride :]
    v_here, v_right, v_below = vertex[stride:], vertex[stride + 1 :], vertex[2 * stride :]
    s_above, s_left, s_here = square, square[stride - 1 :], square[stride:]
    flags_here = flags[stride:]
    for i in range(n):
        down = (below[i] < np.inf) & (v_here[i] != 3) & (v_below[i] != 1) & (s_left[i] != 2)
        across = (right[i] < np.inf) & (v_here[i] != 4) & (v_right[i] != 2) & (s_here[i] != 3) & (s_above[i] != 1)
        flags_here[i] = (np.uint8(down) | np.uint8(across) << 1) if here[i] < np.inf else 0
    for k in range(further):
        other = q if k else p
        if events == SQUARES:
            a, b, d, e = other[:n], other[1:], other[stride - 1 :], other[stride:]
            f, g, h, j = other[stride + 1 :], other[2 * stride - 1 :], other[2 * stride :], other[2 * stride + 1 :]
            for i in range(n):
                level = max(e[i], f[i])
                above = max(level, max(a[i], b[i]))
                left = max(max(d[i], e[i]), max(g[i], h[i]))
                level = max(level, max(h[i], j[i]))
                before = (s_left[i] == 2) & (left >= level)
                at = (s_here[i] == 3) & (level >= above)
                over = (s_above[i] == 1) & (above >= level)
                flags_here[i] |= np.uint8(before) << 2 | np.uint8(at) << 3 | np.uint8(over) << 4
        elif events == VERTICES:
            e, f, h = other[stride : stride + n], other[stride + 1 :], other[2 * stride :]
            for i in range(n):
                up = (v_below[i] == 1) & (h[i] <= e[i])
                down = (v_here[i] == 3) & (e[i] <= h[i])
                left = (v_right[i] == 2) & (f[i] <= e[i])
                right_ = (v_here[i] == 4) & (e[i] <= f[i])
                flags_here[i] |= np.uint8(up) << 2 | np.uint8(down) << 3 | np.uint8(left) << 4 | np.uint8(right_) << 5
    count = 0
    for i in range(n):
        flag = flags_here[i]
        count += (flag & 1) + (flag >> 1 & 1) + (flag >> 2 & 1) + (flag >> 3 & 1) + (flag >> 4 & 1) + (flag >> 5 & 1)
    return flags, count


@njit(cache=CACHE, nogil=True)
def edges_and_events(
    grid: np.ndarray,
    stride: int,
    vertex: np.ndarray,
    square: np.ndarray,
    roots: np.ndarray,
    label: np.ndarray,
    events: int,
    further: int,
    p: np.ndarray,
    q: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Critical edges (their number) and events (the complement of the cell), in the order of the edges, with values.

    An event is a cell of the kind `events` (0 for none) that may be the elder of its component in the order of p or, if
    there are two further orders, q: it is elder there than the cell that it leads to and than the critical cell at the
    end.
    """
    flags, bound = _flags(grid, stride, vertex, square, events, further, p, q)
    places = np.empty(flags.size, np.int32)
    n = 0
    for v in range(flags.size):
        places[n] = v
        n += flags[v] != 0
    items = np.empty(bound + 1, np.int32)
    values = np.empty(bound + 1)
    count = 0
    for i in range(n):
        v = places[i]
        flag = flags[v]
        for axis in range(2):
            end = v + 1 if axis else v + stride
            values[count] = grid[v] if grid[v] > grid[end] else grid[end]
            items[count] = 2 * v + axis
            if flag >> axis & 1:
                count += 1
                continue
            cell = -1
            if events == SQUARES:
                across = v if flag & 8 else (v - stride if flag & 16 else -1)
                cell = across if axis else (v - 1 if flag & 4 else -1)
            elif events == VERTICES:
                cell = end if flag & (4 << 2 * axis) else (v if flag & (8 << 2 * axis) else -1)
            if cell < 0:
                continue
            root = ~label[cell]
            if root == 0:  # nothing is elder than the outside
                continue
            root = np.int64(roots[root])
            items[count] = ~cell
            if events == SQUARES:
                elder = square_value(p, cell, stride) >= square_value(p, root, stride)
                if further > 1:
                    elder |= square_value(q, cell, stride) >= square_value(q, root, stride)
            else:
                elder = (p[cell] <= p[root]) | (q[cell] <= q[root])
            count += elder
    return values[:count], items[:count]
