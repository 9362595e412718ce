"""Betti matching of images, their barcodes and their Betti numbers."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import NamedTuple, TypedDict, TypeVar, Unpack

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from offprints.betti_matching.images import as_image, check_threshold, foreground, is_exact, refuse_transformed
from offprints.betti_matching.options import (
    Comparison,
    Construction,
    Filtration,
    MatchingOptions,
    check_num_workers,
    default_workers,
)
from offprints.betti_matching.pairs import Matching, PairList

# Flat voxels of one homology dimension: matched [n, 4] (birth and death of the prediction, birth and death of the
# target), unmatched pairs of the prediction [n, 2] and of the target [n, 2].
VoxelPairs = tuple[np.ndarray, np.ndarray, np.ndarray]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class _ImagePair(NamedTuple):
    pred: np.ndarray
    target: np.ndarray
    names: tuple[str, str] = ("pred", "target")


class Options(TypedDict, total=False):
    """Keyword arguments of `compute_matching`."""

    filtration: Filtration
    construction: Construction
    comparison: Comparison
    relative: bool
    reduced: bool


def compute_matching(
    pred: ArrayLike | Tensor,
    target: ArrayLike | Tensor,
    *,
    filtration: Filtration = "superlevel",
    construction: Construction = "V",
    comparison: Comparison = "union",
    relative: bool = False,
    reduced: bool = False,
) -> Matching:
    """Match the topological features of two images through their comparison image (Section 3.2 of the paper).

    Args:
        pred: 1 to 3 axes, any real dtype; tensors may be on any device. Infinite values are a mask: in ``"sublevel"``
            a voxel of value inf never enters, in ``"superlevel"`` one of value -inf. What NumPy's masked arrays and
            torch's masked tensors mask becomes such a voxel.
        target: of the same shape.
        filtration: ``"superlevel"`` follows the foreground from bright to dark, ``"sublevel"`` from dark to bright.
        construction: ``"V"``, voxels are vertices (foreground connected directly, by 4 or 6 neighbors), or ``"T"``,
            voxels are top cells (fully, by 8 or 26).
        comparison: compare both images with their union, as the paper does, or with their intersection.
        relative: put a frame of one voxel that is there from the start around the images, so that structures that leave
            the image are closed by it. Coordinates are then those of the padded images.
        reduced: leave out the pair of the component that is born first and never dies.

    Raises:
        TypeError: an image of complex numbers or of objects.
        ValueError: unknown option, shapes that differ, not 1 to 3 axes, an empty axis, NaN.

    Example:
        >>> target, pred = np.zeros((2, 5, 5))
        >>> target[1:4, 1:4] = pred[1:4, 1:4] = 1
        >>> target[2, 2] = 0  # a ring; the prediction has no hole
        >>> matching = compute_matching(pred, target)
        >>> matching.num_matched, matching.num_unmatched_target
        ((1, 0), (0, 1))
    """
    settings = MatchingOptions(filtration, construction, comparison, relative, reduced)
    return _match(_as_pair(pred, target, settings), settings)


def compute_matching_batch(
    preds: Sequence[ArrayLike] | np.ndarray | Tensor,
    targets: Sequence[ArrayLike] | np.ndarray | Tensor,
    *,
    num_workers: int | None = None,
    **options: Unpack[Options],
) -> list[Matching]:
    """`compute_matching` of each prediction with its target, on threads.

    Args:
        preds: images, or an array or tensor of them along its first axis; shapes may differ from pair to pair.
        targets: as many.
        num_workers: number of threads; by default as many as torch uses (`torch.get_num_threads`), and no more than
            there are processors. Those that a small batch leaves idle help with the single images, if these have three
            axes.
        **options: of `compute_matching`.

    Raises:
        TypeError, ValueError: as `compute_matching`; also if there are not as many targets as predictions, or none.

    Example:
        >>> preds, targets = np.random.default_rng(0).random((2, 4, 16, 16))
        >>> matchings = compute_matching_batch(preds, targets, num_workers=2)
        >>> len(matchings), len(matchings[0].matched_pred)
        (4, 2)
    """
    settings = MatchingOptions(**options)
    workers = check_num_workers(num_workers) or default_workers()
    pairs = _as_pairs(preds, targets, settings)
    of_each = max(1, workers // len(pairs))
    return on_threads(lambda pair: _match(pair, settings, of_each), pairs, workers)


def match_voxels(
    preds: Sequence[ArrayLike] | np.ndarray | Tensor,
    targets: Sequence[ArrayLike] | np.ndarray | Tensor,
    settings: MatchingOptions,
    *,
    num_workers: int | None = None,
) -> list[tuple[VoxelPairs, ...]]:
    """`compute_matching_batch` as bare flat voxel indices of the (padded) grid.

    For each pair of images and each homology dimension: matched [n, 4] (birth, death of the prediction, birth, death of
    the target), unmatched of the prediction [n, 2], unmatched of the target [n, 2]; death -1 for the essential pair.
    """
    pairs = _as_pairs(preds, targets, settings)
    workers = num_workers or default_workers()
    of_each = max(1, workers // len(pairs))
    return on_threads(lambda pair: _match_voxels(pair, settings, of_each), pairs, workers)


def compute_barcode(
    image: ArrayLike | Tensor,
    *,
    filtration: Filtration = "superlevel",
    construction: Construction = "V",
    relative: bool = False,
    reduced: bool = False,
) -> tuple[PairList, ...]:
    """Persistence pairs of positive length of an image, one list per homology dimension.

    Arguments, conventions and errors are those of `compute_matching`.

    Example:
        >>> ring = np.array([[0.9, 0.9, 0.9], [0.9, 0.1, 0.9], [0.9, 0.9, 0.6]])
        >>> components, loops = compute_barcode(ring)
        >>> loops.birth_values, loops.death_values
        (array([0.6]), array([0.1]))
    """
    settings = MatchingOptions(filtration, construction, "union", relative, reduced)
    array = as_image(image, "image", superlevel=settings.superlevel)
    (values,) = _ordered_values({"image": array})
    if values.ndim == 3:
        from offprints.betti_matching._kernels.kernel3d import barcode_3d
        from offprints.betti_matching._kernels.levels import rank_one

        ranks = rank_one(settings.sign * values.ravel()).reshape(values.shape)
        voxels = list(barcode_3d(framed(ranks, settings, 0), settings.code_of_construction))
    else:
        from offprints.betti_matching._kernels.kernel2d import barcode_2d

        found = barcode_2d(_plane(values, settings), settings.sign, settings.code_of_construction)
        voxels = list(found[: values.ndim])
    if not reduced:
        voxels[0] = np.concatenate(([[_first(values, settings), -1]], voxels[0]))
    return _pair_lists(voxels, array, settings)


def betti_numbers(
    image: ArrayLike | Tensor,
    *,
    threshold: float = 0.5,
    filtration: Filtration = "superlevel",
    construction: Construction = "V",
    relative: bool = False,
) -> np.ndarray:
    """Betti numbers of the foreground: int64 [d], the number of components, loops, cavities.

    The foreground are the voxels ``>= threshold`` in ``"superlevel"``, ``<= threshold`` in ``"sublevel"``; their number
    k is that of the bars of dimension k that are alive at the threshold. The threshold is rounded to the floating type
    of the image first, so that a pixel of 0.7 reaches the threshold 0.7 in every type; integers are compared exactly.

    Raises:
        TypeError, ValueError: as `compute_matching`; also if the threshold is not finite.

    Example:
        >>> ring = np.array([[0.9, 0.9, 0.9], [0.9, 0.1, 0.9], [0.9, 0.9, 0.6]])
        >>> betti_numbers(ring), betti_numbers(ring, threshold=0.7)
        (array([1, 1]), array([1, 0]))
    """
    settings = MatchingOptions(filtration, construction, "union", relative)
    limit = check_threshold(threshold)
    array = as_image(image, "image", superlevel=settings.superlevel)
    if np.isnan(array).any():
        raise ValueError("image must not contain NaN")
    from offprints.betti_matching._kernels.components import count_betti_numbers

    dtype = image.dtype if isinstance(image, Tensor) and array.dtype.kind == "f" else None
    inside = foreground(array, limit, superlevel=settings.superlevel, dtype=dtype)
    d = array.ndim
    if relative:  # the frame is there as soon as any voxel is
        inside = np.pad(inside, 1, constant_values=bool(inside.any()))
    padded = np.ascontiguousarray(np.pad(inside, 1))[(None,) * (3 - d)]
    return np.array(count_betti_numbers(padded, d, construction == "T")[:d], dtype=np.int64)


# ---- images ----------------------------------------------------------------------------------------------------------


def _as_pair(
    pred: ArrayLike | Tensor,
    target: ArrayLike | Tensor,
    settings: MatchingOptions,
    names: tuple[str, str] = ("pred", "target"),
) -> _ImagePair:
    f, g = (as_image(x, name, superlevel=settings.superlevel) for x, name in zip((pred, target), names, strict=True))
    if f.shape != g.shape:
        left, right = (name.partition(":")[0] for name in names)
        raise ValueError(f"{left} and {right} must have the same shape, got {f.shape} and {g.shape}")
    return _ImagePair(f, g, names)


def _as_pairs(
    preds: Sequence[ArrayLike] | np.ndarray | Tensor,
    targets: Sequence[ArrayLike] | np.ndarray | Tensor,
    settings: MatchingOptions,
) -> list[_ImagePair]:
    for images, name in ((preds, "preds"), (targets, "targets")):
        if not hasattr(images, "__len__") or isinstance(images, str) or getattr(images, "ndim", 1) == 0:
            raise TypeError(f"{name} must be a sequence, array or tensor of images, got {type(images).__name__}")
        refuse_transformed(images, name)
    preds, targets = (x.detach().cpu() if isinstance(x, Tensor) else x for x in (preds, targets))
    if len(preds) != len(targets):
        raise ValueError(f"preds and targets must have the same length, got {len(preds)} and {len(targets)}")
    if len(preds) == 0:
        raise ValueError("preds must hold at least one image, got none")
    pairs = enumerate(zip(preds, targets, strict=True))
    return [_as_pair(*pair, settings, (f"preds[{i}]: pred", f"targets[{i}]: target")) for i, pair in pairs]


def _ordered_values(images: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Finite float64 arrays that are ordered as the values of all (named) images together."""
    if all(is_exact(image) for image in images.values()):
        # writable, since compiled code would be compiled again for arrays that are not
        values = [np.require(image, np.float64, ("C", "W")) for image in images.values()]
        if all(np.isfinite(array).all() for array in values):
            return values
    for name, image in images.items():
        if np.isnan(image).any():
            raise ValueError(f"{name} must not contain NaN")
    # A value is the exact sum of its nearest float64 and a rest, and ordered by the two.
    nearest, rest = (np.concatenate(parts) for parts in zip(*map(_split, images.values()), strict=True))
    order = np.lexsort((rest, nearest))
    nearest, rest = nearest[order], rest[order]
    rank = np.empty(order.size)
    rank[order] = np.cumsum(np.r_[False, (nearest[1:] != nearest[:-1]) | (rest[1:] != rest[:-1])])
    shape = next(iter(images.values())).shape
    return list(rank.reshape(len(images), *shape))


def _split(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values = image.ravel()
    if is_exact(values):
        return values.astype(np.float64), np.zeros(values.size)
    if values.dtype.kind == "f":
        nearest = values.astype(np.float64)
        return nearest, np.where(np.isfinite(nearest), values - nearest, 0).astype(np.float64)
    high = (values >> 32).astype(np.float64) * 2.0**32
    low = (values & 0xFFFFFFFF).astype(np.float64)
    nearest = high + low
    return nearest, low - (nearest - high)


def framed(image: np.ndarray, settings: MatchingOptions, value: float | None = None) -> np.ndarray:
    """The image with the frame of ``relative``, which has the value that is first in the order of the filtration."""
    if not settings.relative:
        return image
    if value is None:
        value = image.max() if settings.superlevel else image.min()
    result = np.full([n + 2 for n in image.shape], value, image.dtype)
    result[(slice(1, -1),) * image.ndim] = image
    return result


# ---- matching --------------------------------------------------------------------------------------------------------


def on_threads(function: Callable[[_Item], _Result], items: Sequence[_Item], num_workers: int | None) -> list[_Result]:
    """The function of every item, in order, on threads."""
    workers = min(num_workers or default_workers(), len(items))
    if workers == 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, items))


def _match_voxels(
    pair: _ImagePair, settings: MatchingOptions, num_threads: int | None = None
) -> tuple[VoxelPairs, ...]:
    f, g = _ordered_values({pair.names[0]: pair.pred, pair.names[1]: pair.target})
    union = settings.comparison == "union"
    construction, comparison = settings.code_of_construction, int(not union)
    # the modules of compiled code are loaded when they are needed
    if f.ndim == 3:
        from offprints.betti_matching._kernels.kernel3d import match_3d
        from offprints.betti_matching._kernels.levels import rank_two

        ranks = rank_two(settings.sign * np.concatenate((f.ravel(), g.ravel())), union)
        rank_f, rank_g, rank_c = (framed(rank.reshape(f.shape), settings, 0) for rank in ranks)
        lists = match_3d(rank_f, rank_g, rank_c, construction, comparison, num_threads=num_threads)
    else:
        from offprints.betti_matching._kernels.kernel2d import match_2d

        c = np.maximum(f, g) if union == settings.superlevel else np.minimum(f, g)
        plane_f, plane_g, plane_c = (_plane(values, settings) for values in (f, g, c))
        lists = match_2d(plane_f, plane_g, plane_c, settings.sign, construction, comparison)
    (matched, *unmatched), *others = lists[: f.ndim]
    if not settings.reduced:
        essential = np.array([[_first(f, settings), -1, _first(g, settings), -1]])
        matched = np.concatenate((essential, matched))
    return ((matched, unmatched[0], unmatched[1]), *others)


def _plane(values: np.ndarray, settings: MatchingOptions) -> np.ndarray:
    plane = framed(values, settings)
    return plane[None] if plane.ndim == 1 else plane


def _first(values: np.ndarray, settings: MatchingOptions) -> int:
    """Flat index in the (padded) grid of the voxel that is the first in the filtration."""
    if settings.relative:
        return 0
    return int(values.argmax() if settings.superlevel else values.argmin())


def _match(pair: _ImagePair, settings: MatchingOptions, num_threads: int | None = None) -> Matching:
    found = _match_voxels(pair, settings, num_threads)
    pred, target, _ = pair
    d = pred.ndim
    of_pred = _pair_lists([m[:, :2] for m, _, _ in found] + [u for _, u, _ in found], pred, settings)
    of_target = _pair_lists([m[:, 2:] for m, _, _ in found] + [u for _, _, u in found], target, settings)
    return Matching(
        shape=pred.shape,
        **asdict(settings),
        matched_pred=of_pred[:d],
        matched_target=of_target[:d],
        unmatched_pred=of_pred[d:],
        unmatched_target=of_target[d:],
    )


def _pair_lists(voxels: list[np.ndarray], image: np.ndarray, settings: MatchingOptions) -> tuple[PairList, ...]:
    """Coordinates and values of flat voxels of the (padded) image; the essential pair is the first of all."""
    padded = framed(image, settings)
    flat = np.concatenate(voxels)
    coordinates = np.stack(np.unravel_index(np.maximum(flat, 0), padded.shape), axis=-1)
    values = padded.ravel()[flat].astype(np.float64)
    if not settings.reduced:
        coordinates[0, 1] = -1
        values[0, 1] = -np.inf if settings.superlevel else np.inf
    lists = []
    start = 0
    for block in voxels:
        end = start + len(block)
        lists.append(PairList(*coordinates[start:end].swapaxes(0, 1), *values[start:end].T))
        start = end
    return tuple(lists)
