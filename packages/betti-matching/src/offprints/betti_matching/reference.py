"""The induced matching of Sections 3.1 to 3.3 of arXiv 2211.15272, by plain reduction of boundary matrices.

Read this first: it is slow (a few hundred voxels), uses nothing of the rest of the package, and is what the fast code
is tested against. Superlevel filtrations are sublevel ones of ``-image``; cells are named by refined coordinates.
"""

from itertools import product
from typing import Any, NamedTuple

import numpy as np

Cell = tuple[int, ...]
Pair = tuple[Cell, Cell]


class Complex(NamedTuple):
    """A filtered cubical complex: for each dimension its cells in order, and their values."""

    order: list[list[Cell]]
    value: dict[Cell, float]


def filtered_complex(image: np.ndarray, construction: str = "V") -> Complex:
    """Step 1: all cells of the grid, ordered by value, then by place, then by direction."""
    vertices = construction == "V"
    around: dict[Cell, list[float]] = {}
    for cell in product(*(range(2 * n - 1 if vertices else 2 * n + 1) for n in image.shape)):
        if vertices:  # voxels are vertices: those of the cell
            near = [{(c - 1) // 2, (c + 1) // 2} if c % 2 else {c // 2} for c in cell]
        else:  # voxels are top cells: those around the cell
            near = [{(c - 1) // 2} if c % 2 else {c // 2 - 1, c // 2} for c in cell]
        inside = [{x for x in axis if 0 <= x < n} for axis, n in zip(near, image.shape, strict=True)]
        around[cell] = [float(image[voxel]) for voxel in product(*inside)]
    value = {cell: max(values) if vertices else min(values) for cell, values in around.items()}

    def key(cell: Cell) -> tuple[Any, ...]:
        odd = [axis for axis, c in enumerate(cell) if c % 2]
        even = [axis for axis, c in enumerate(cell) if not c % 2]
        direction = odd[0] if len(odd) == 1 else even[0] if len(odd) == 2 and len(cell) == 3 else 0
        return (value[cell], *(c // 2 for c in cell), direction)

    cells = sorted(value, key=key)
    return Complex([[c for c in cells if sum(x % 2 for x in c) == k] for k in range(image.ndim + 1)], value)


def reduced_pairs(rows: list[Cell], columns: list[Cell]) -> list[Pair]:
    """Step 2: pairs (lowest row, column) of the boundary matrix, reduced over Z/2 from left to right."""
    number = {cell: i for i, cell in enumerate(rows)}
    stored: dict[int, set[int]] = {}
    pairs = []
    for cell in columns:
        steps = [(i, s) for i, c in enumerate(cell) if c % 2 for s in (-1, 1)]
        column = {number[(*cell[:i], cell[i] + s, *cell[i + 1 :])] for i, s in steps}
        while column and max(column) in stored:
            column ^= stored[max(column)]
        if column:
            stored[max(column)] = column
            pairs.append((rows[max(column)], cell))
    return pairs


def barcode(complex_: Complex, k: int) -> list[Pair]:
    """Step 3: the pairs (birth, death) of positive length in dimension k."""
    pairs = reduced_pairs(complex_.order[k], complex_.order[k + 1])
    return [(b, d) for b, d in pairs if complex_.value[b] != complex_.value[d]]


def induced_matching(f: Complex, g: Complex, c: Complex, k: int) -> list[tuple[Pair, Pair]]:
    """Steps 4 and 5: pairs of f and g with the same partner in the union c, which contains both."""
    target = {death: (birth, death) for birth, death in barcode(c, k)}
    partners: list[dict[Pair, Pair]] = []
    for source in (f, g):
        # 4. image persistence of H(source) -> H(c): rows in the order of the source, columns in that of c
        image = dict(reduced_pairs(source.order[k], c.order[k + 1]))  # birth in the source -> death in c
        own = [pair for pair in barcode(source, k) if image.get(pair[0]) in target]
        partners.append({target[image[birth]]: (birth, death) for birth, death in own})
    # 5. composition through c
    return [(partners[0][pair], partners[1][pair]) for pair in target.values() if all(pair in p for p in partners)]


def betti_matching_loss(pred: Any, target: Any, *, filtration: str = "superlevel", construction: str = "V") -> float:
    """Step 6: twice the squared distance to the partner, or to the diagonal, summed over all bars."""
    images = [np.asarray(x, dtype=np.float64) * (-1 if filtration == "superlevel" else 1) for x in (pred, target)]
    f, g, c = (filtered_complex(x, construction) for x in (*images, np.minimum(*images)))
    total = 2 * float(images[0].min() - images[1].min()) ** 2  # the essential bars, which never die
    for k in range(images[0].ndim):
        matched = induced_matching(f, g, c, k)
        total += sum(2 * (f.value[p[i]] - g.value[q[i]]) ** 2 for p, q in matched for i in (0, 1))
        for side, own in ((0, f), (1, g)):
            taken = {pair[side] for pair in matched}
            total += sum((own.value[b] - own.value[d]) ** 2 for b, d in barcode(own, k) if (b, d) not in taken)
    return total
