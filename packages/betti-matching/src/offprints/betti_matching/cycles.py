"""Representative cycles: the voxels that a bar of a barcode stands for."""

from collections.abc import Iterator
from itertools import product

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from offprints.betti_matching.images import as_image
from offprints.betti_matching.options import Construction, Filtration, MatchingOptions
from offprints.betti_matching.pairs import PairList
from offprints.shared.validation import check_number


def representative_cycles(
    image: ArrayLike | Tensor,
    pairs: PairList,
    *,
    dim: int,
    filtration: Filtration = "superlevel",
    construction: Construction = "V",
) -> list[np.ndarray]:
    """One cycle for each of `pairs`, the bars of `image` in homology dimension `dim`.

    - Dimension 0: the component just before it dies, that is the component of the birth voxel among the voxels strictly
      before the death value; the whole image for the essential pair.
    - Top dimension (loops in 2-D, cavities in 3-D): the boundary of what they enclose when they are born, that is of
      the component of the complement that contains the death voxel.
    - Loops in 3-D: the reduced boundary column of the death cell, a cycle that is there from birth on.

    Args:
        image: 1 to 3 axes; for pairs of ``relative=True`` the padded image.
        pairs: of this image, with this `filtration` and `construction`.
        dim: their homology dimension.

    Returns:
        For each pair the coordinates ``[m, d]`` of its voxels, int64, in row-major order.

    Raises:
        TypeError: complex or object dtype.
        ValueError: unknown option, wrong number of axes, NaN, `dim` out of range, or pairs that are not of this image.

    Example:
        >>> ring = np.array([[0.9, 0.9, 0.9], [0.9, 0.1, 0.9], [0.9, 0.9, 0.6]])
        >>> (loop,) = representative_cycles(ring, compute_barcode(ring)[1], dim=1)
        >>> len(loop)
        8
    """
    settings = MatchingOptions(filtration, construction)
    array = as_image(image, "image", superlevel=settings.superlevel).astype(np.float64)
    if np.isnan(array).any():
        raise ValueError("image must not contain NaN")
    dim = check_number(dim, "dim", low=0, high=array.ndim - 1, integer=True)
    values = settings.sign * array
    _check_pairs(pairs, array, values, dim)
    births, deaths = pairs.birth, pairs.death
    if dim == 0:
        return _components(values, births, deaths, construction)
    if dim == array.ndim - 1:
        return _enclosures(values, births, deaths, construction)
    return _loops(values, births, deaths, construction)


def _check_pairs(pairs: PairList, image: np.ndarray, values: np.ndarray, dim: int) -> None:
    """Refuse bars that cannot be of this image: other voxels, other values, or deaths not after births."""
    if not isinstance(pairs, PairList):
        raise TypeError(f"pairs must be a PairList, got {type(pairs).__name__}")
    if pairs.birth.ndim != 2 or pairs.birth.shape != pairs.death.shape:
        raise ValueError(f"pairs must have births and deaths of one shape [n, d], got {pairs.birth.shape}")
    finite = pairs.death[:, 0] >= 0
    births, deaths = pairs.birth, pairs.death[finite]
    if dim > 0 and not finite.all():
        raise ValueError(f"pairs of dimension {dim} must be finite, got an essential one")
    if births.shape[1] != image.ndim or not all(
        ((ends >= 0) & (ends < image.shape)).all() for ends in (births, deaths)
    ):
        raise ValueError(
            f"pairs must be voxels of the image (relative=True: of the padded one), of shape {image.shape}"
        )
    same = np.array_equal(image[tuple(births.T)], pairs.birth_values)
    same = same and np.array_equal(image[tuple(deaths.T)], pairs.death_values[finite])
    if not same or not (values[tuple(births[finite].T)] < values[tuple(deaths.T)]).all():
        raise ValueError("pairs must be bars of this image in this filtration: their voxels have other values there")


def _components(values: np.ndarray, births: np.ndarray, deaths: np.ndarray, construction: str) -> list[np.ndarray]:
    """Components of the voxels strictly before the death values."""
    everything = np.argwhere(np.ones(values.shape, dtype=bool))
    near = [step for step in product((-1, 0, 1), repeat=values.ndim) if any(step)]
    if construction == "V":
        near = [step for step in near if np.abs(step).sum() == 1]
    finite = deaths[:, 0] >= 0
    limits = values[tuple(deaths[finite].T)]
    found = iter(_flood(values, births[finite], limits, near))
    return [next(found) if is_finite else everything.copy() for is_finite in finite]


def _enclosures(values: np.ndarray, births: np.ndarray, deaths: np.ndarray, construction: str) -> list[np.ndarray]:
    """Boundaries of the components of the death voxels among the cells after the birth values."""
    cells = _refine(values, construction)
    d = values.ndim
    steps = np.concatenate((np.eye(d, dtype=np.int64), -np.eye(d, dtype=np.int64)))
    # a top cell at the death voxel: all of them are in one component
    starts = np.minimum(2 * deaths + 1, np.array(cells.shape) - 2) if construction == "V" else 2 * deaths + 1
    limits = values[tuple(births.T)]
    corners = np.array(list(product((-1, 1), repeat=d)))

    cycles = []
    for inside in _flood(-cells, starts, -limits, steps):
        if inside.min() == 0 or (inside == np.array(cells.shape) - 1).any():
            raise ValueError(f"pairs must be bars of dimension {d - 1}: what they enclose reaches the border")
        top = inside[(inside % 2 == 1).all(axis=1)]
        facets, first, count = np.unique(
            (top[:, None] + steps).reshape(-1, d), axis=0, return_index=True, return_counts=True
        )
        if construction == "V":  # the vertices of the facets
            rim = facets[count == 1]
            voxels = (rim[:, None] + corners * (rim % 2)[:, None]).reshape(-1, d) // 2
        else:  # the voxels on their other side
            cell, step = np.divmod(first[count == 1], 2 * d)
            voxels = (top[cell] + 2 * steps[step]) // 2
        cycles.append(np.unique(voxels, axis=0))
    return cycles


def _loops(values: np.ndarray, births: np.ndarray, deaths: np.ndarray, construction: str) -> list[np.ndarray]:
    """Reduced boundary columns of the squares that fill the loops of a 3-D image."""
    from offprints.betti_matching._kernels.kernel3d import cycle_3d  # numba is slow to import

    ranks = np.unique(values, return_inverse=True)[1].reshape(values.shape).astype(np.int32)
    flat = [np.ravel_multi_index(tuple(ends.T), values.shape) for ends in (births, deaths)]
    found = cycle_3d(ranks, int(construction == "T"), *flat)
    return [np.stack(np.unravel_index(voxels, values.shape), axis=1) for voxels in found]


def _refine(values: np.ndarray, construction: str) -> np.ndarray:
    """Values of all cells, on the refined grid."""
    for axis in range(values.ndim):
        lines = np.moveaxis(values, axis, 0)
        if construction == "V":
            cells = np.repeat(lines, 2, axis=0)[:-1]
            cells[1::2] = np.maximum(lines[:-1], lines[1:])
        else:
            cells = np.repeat(lines, 2, axis=0)
            cells = np.concatenate((cells, lines[-1:]))
            cells[2:-1:2] = np.minimum(lines[:-1], lines[1:])
        values = np.moveaxis(cells, 0, axis)
    return values


def _flood(values: np.ndarray, starts: np.ndarray, limits: np.ndarray, steps: ArrayLike) -> Iterator[np.ndarray]:
    """Coordinates of the component of each start among the values below its limit."""
    from offprints.betti_matching._kernels.flood import flood  # numba is slow to import

    grid = np.ascontiguousarray(np.pad(values, 1, constant_values=np.inf))
    strides = np.array(grid.strides) // grid.itemsize
    levels, seen = grid.ravel(), np.full(grid.size, -1, dtype=np.int64)
    offsets = np.asarray(steps, dtype=np.int64) @ strides
    for i, (start, limit) in enumerate(zip((starts + 1) @ strides, limits, strict=True)):
        found = flood(levels, int(start), float(limit), offsets, seen, i)
        yield np.stack(np.unravel_index(np.sort(found), grid.shape), axis=1) - 1
