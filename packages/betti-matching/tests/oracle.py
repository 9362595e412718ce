"""The specification in plain Python: dense cell lists, set-based Z/2 reduction, nothing shared with the engine.

Slow on purpose (a few hundred voxels). Cells are named by their refined coordinates, so that cells of different images
on the same grid are the same objects. Voxels are flat row-major indices, on the padded grid if ``relative``.
"""

from itertools import product
from typing import Any, NamedTuple

import numpy as np

Cell = tuple[int, ...]
Pair = tuple[Cell, Cell]


class Complex(NamedTuple):
    """A filtered cubical complex of a sublevel image."""

    image: np.ndarray  # voxel values
    voxels: dict[Cell, list[tuple[int, ...]]]  # of each cell, in lexicographic order
    order: list[dict[Cell, int]]  # per dimension: cell -> position in the total order


def _dim(cell: Cell) -> int:
    return sum(c % 2 for c in cell)


def build(image: np.ndarray, construction: str) -> Complex:
    """All cells with their voxels, and the total order ``(value, base, type)`` of each dimension."""
    d = image.ndim
    extent = [2 * n - 1 if construction == "V" else 2 * n + 1 for n in image.shape]
    voxels: dict[Cell, list[tuple[int, ...]]] = {}
    for cell in product(*map(range, extent)):
        if construction == "V":  # vertices of the cell
            options = [((c - 1) // 2, (c + 1) // 2) if c % 2 else (c // 2,) for c in cell]
        else:  # top cells around the cell
            options = [((c - 1) // 2,) if c % 2 else (c // 2 - 1, c // 2) for c in cell]
        voxels[cell] = [p for p in product(*options) if all(0 <= x < n for x, n in zip(p, image.shape, strict=True))]
    extreme = max if construction == "V" else min

    def key(cell: Cell) -> tuple[Any, ...]:
        odd = [axis for axis in range(d) if cell[axis] % 2]
        even = [axis for axis in range(d) if not cell[axis] % 2]
        kind = odd[0] if len(odd) == 1 else even[0] if (len(odd), d) == (2, 3) else 0
        return (extreme(image[p] for p in voxels[cell]), *(c // 2 for c in cell), kind)

    by_dim: list[list[Cell]] = [[] for _ in range(d + 1)]
    for cell in voxels:
        by_dim[_dim(cell)].append(cell)
    return Complex(image, voxels, [{cell: i for i, cell in enumerate(sorted(cells, key=key))} for cells in by_dim])


def value(cx: Complex, construction: str, cell: Cell) -> float:
    values = [cx.image[p] for p in cx.voxels[cell]]
    return float(max(values) if construction == "V" else min(values))


def voxel(cx: Complex, construction: str, cell: Cell) -> int:
    """Flat index of the voxel that gives the cell its value, with the tie rule of each construction."""
    v = value(cx, construction, cell)
    attaining = [p for p in cx.voxels[cell] if cx.image[p] == v]
    # V: far end first for edges and squares, the lexicographically first corner for cubes. T: always the last.
    chosen = attaining[0] if construction == "V" and _dim(cell) == 3 else attaining[-1]
    return int(np.ravel_multi_index(chosen, cx.image.shape))


def boundary(cell: Cell) -> list[Cell]:
    return [(*cell[:i], c + s, *cell[i + 1 :]) for i, c in enumerate(cell) if c % 2 for s in (-1, 1)]


def reduce(rows: dict[Cell, int], columns: dict[Cell, int]) -> list[Pair]:
    """Left-to-right reduction over Z/2: pairs (lowest row, column), columns and rows each in their own order."""
    names = list(rows)
    stored: dict[int, set[int]] = {}
    pairs = []
    for column in columns:
        work = {rows[face] for face in boundary(column)}
        while work and (low := max(work)) in stored:
            work ^= stored[low]
        if work:
            stored[max(work)] = work
            pairs.append((names[max(work)], column))
    return pairs


def reduced_columns(cx: Complex, k: int) -> dict[Cell, list[Cell]]:
    """Death cell -> the cells of its reduced column (a cycle that represents the class)."""
    rows, names = cx.order[k], list(cx.order[k])
    stored: dict[int, set[int]] = {}
    cycles = {}
    for column in cx.order[k + 1]:
        work = {rows[face] for face in boundary(column)}
        while work and (low := max(work)) in stored:
            work ^= stored[low]
        if work:
            stored[max(work)] = work
            cycles[column] = [names[i] for i in sorted(work)]
    return cycles


def prepare(image: Any, filtration: str) -> np.ndarray:
    array = np.asarray(image, dtype=np.float64)
    return -array if filtration == "superlevel" else array


def pad(image: np.ndarray, relative: bool) -> np.ndarray:
    return np.pad(image, 1, constant_values=image.min()) if relative else image


def positive_pairs(cx: Complex, construction: str, k: int) -> list[Pair]:
    pairs = reduce(cx.order[k], cx.order[k + 1])
    return [(b, d) for b, d in pairs if value(cx, construction, b) != value(cx, construction, d)]


def _rows(rows: list[list[int]], width: int) -> np.ndarray:
    return np.array(sorted(rows), dtype=np.int64).reshape(-1, width)


def oracle_barcode(
    image: Any,
    *,
    filtration: str = "superlevel",
    construction: str = "V",
    relative: bool = False,
    reduced: bool = False,
) -> list[np.ndarray]:
    """Per dimension int64 ``[n, 2]`` (birth, death) voxels, sorted; the essential pair is row 0, its death -1."""
    cx = build(pad(prepare(image, filtration), relative), construction)
    out = []
    for k in range(cx.image.ndim):
        pairs = positive_pairs(cx, construction, k)
        bars = _rows([[voxel(cx, construction, cell) for cell in pair] for pair in pairs], 2)
        if k == 0 and not reduced:
            bars = np.concatenate([[[int(cx.image.argmin()), -1]], bars])
        out.append(bars)
    return out


def oracle_matching(
    pred: Any,
    target: Any,
    *,
    filtration: str = "superlevel",
    construction: str = "V",
    comparison: str = "union",
    relative: bool = False,
    reduced: bool = False,
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Per dimension ``(matched [n, 4], unmatched_pred [n, 2], unmatched_target [n, 2])``, int64, rows sorted.

    Columns are flat voxels: birth and death of the prediction, then birth and death of the target. The essential pair
    is row 0 of dimension 0 with -1 for both deaths.
    """
    f, g = prepare(pred, filtration), prepare(target, filtration)
    both = np.minimum(f, g) if comparison == "union" else np.maximum(f, g)
    cf, cg, cc = (build(pad(x, relative), construction) for x in (f, g, both))

    out = []
    for k in range(f.ndim):
        bars_c = positive_pairs(cc, construction, k)
        via: list[dict[Pair, Pair]] = []  # pair of c -> matched pair of f, and of g
        bars: list[list[Pair]] = []
        for cx in (cf, cg):
            own = positive_pairs(cx, construction, k)
            if comparison == "union":  # H(f) -> H(c): births of f, deaths of c
                image = dict(reduce(cx.order[k], cc.order[k + 1]))
                source = dict(own)  # birth -> death
                target_birth = {death: birth for birth, death in bars_c}
                matched = {
                    (target_birth[d], d): (b, source[b]) for b, d in image.items() if b in source and d in target_birth
                }
            else:  # H(c) -> H(f): births of c, deaths of f
                image = dict(reduce(cc.order[k], cx.order[k + 1]))
                source = dict(bars_c)
                target_birth = {death: birth for birth, death in own}
                matched = {
                    (b, source[b]): (target_birth[d], d) for b, d in image.items() if b in source and d in target_birth
                }
            via.append(matched)
            bars.append(own)
        pairs = [(via[0][bar], via[1][bar]) for bar in bars_c if bar in via[0] and bar in via[1]]
        taken = [{p for p, _ in pairs}, {q for _, q in pairs}]

        def flat(cx: Complex, pair: Pair) -> list[int]:
            return [voxel(cx, construction, cell) for cell in pair]

        matched_rows = _rows([flat(cf, p) + flat(cg, q) for p, q in pairs], 4)
        if k == 0 and not reduced:
            essential = [[int(cf.image.argmin()), -1, int(cg.image.argmin()), -1]]
            matched_rows = np.concatenate([essential, matched_rows])
        left, right = (
            _rows([flat(cx, bar) for bar in own if bar not in t], 2)
            for cx, own, t in zip((cf, cg), bars, taken, strict=True)
        )
        out.append((matched_rows, left, right))
    return out


def oracle_loss(pred: Any, target: Any, **options: Any) -> np.ndarray:
    """Float64 loss per homology dimension of one image pair (one filtration)."""
    filtration, relative = options.get("filtration", "superlevel"), options.get("relative", False)
    sign = -1.0 if filtration == "superlevel" else 1.0
    f, g = (sign * pad(prepare(x, filtration), relative).ravel() for x in (pred, target))
    essential_death = 0.0 if filtration == "superlevel" else 1.0

    def values(image: np.ndarray, index: np.ndarray) -> np.ndarray:
        return np.where(index < 0, essential_death, image[index])

    losses = []
    for matched, left, right in oracle_matching(pred, target, **options):
        total = 2 * ((values(f, matched[:, :2]) - values(g, matched[:, 2:])) ** 2).sum()
        for image, bars in ((f, left), (g, right)):
            total += ((image[bars[:, 0]] - image[bars[:, 1]]) ** 2).sum()
        losses.append(total)
    return np.array(losses)
