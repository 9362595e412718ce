"""Betti matching error and Betti number error (Section 3.4), and their means over a data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from offprints.betti_matching.images import check_images, check_threshold, foreground, refuse_transformed
from offprints.betti_matching.matching import betti_numbers, match_voxels, on_threads
from offprints.betti_matching.options import (
    Comparison,
    Construction,
    Filtration,
    MatchingOptions,
    check_dims,
    check_num_workers,
    check_spatial_dims,
)
from offprints.shared.distributed import all_reduce_
from offprints.shared.validation import Reduction, reduce


@dataclass(frozen=True)
class ErrorOptions:
    """The options of the errors, checked once."""

    threshold: float
    filtration: Filtration
    construction: Construction
    comparison: Comparison
    relative: bool
    dims: Sequence[int] | None
    num_workers: int | None
    spatial_dims: int | None

    def __post_init__(self) -> None:
        matching = self.matching
        checked = {
            "threshold": check_threshold(self.threshold),
            "relative": matching.relative,
            "dims": check_dims(self.dims),
            "num_workers": check_num_workers(self.num_workers),
            "spatial_dims": check_spatial_dims(self.spatial_dims),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def matching(self) -> MatchingOptions:
        """Those of the matching."""
        return MatchingOptions(self.filtration, self.construction, self.comparison, self.relative)


def betti_matching_error(
    pred: Shaped[Tensor, "batch channels *spatial"],
    target: Shaped[Tensor, "batch channels *spatial"],
    *,
    threshold: float = 0.5,
    filtration: Filtration = "superlevel",
    construction: Construction = "V",
    comparison: Comparison = "union",
    relative: bool = False,
    dims: Sequence[int] | None = None,
    reduction: Reduction = "mean",
    num_workers: int | None = None,
    spatial_dims: int | None = None,
) -> Float[Tensor, "*reduced"]:
    """Number of components, loops and cavities of either binarized image that have no counterpart in the other.

    The foreground is ``image >= threshold`` in superlevel filtrations and ``image <= threshold`` in sublevel ones, the
    threshold rounded to the floating type of the image: the rule of `betti_numbers` and `betti_number_error` as well.
    The error is the Betti matching loss of the two binary images. Every unmatched bar costs 1; in dimension 0 the
    essential bar costs 2 if exactly one image has no foreground. It is never less than the Betti number error.

    Args:
        pred: ``[batch, channels, *spatial]`` of any real dtype; infinite values are allowed.
        target: the same shape and device, any real dtype.
        threshold: finite.
        dims: homology dimensions to count; all by default.
        reduction: over the ``batch * channels`` images; ``"none"`` returns ``[batch, channels]``.
        num_workers: threads; by default as many as torch uses (`torch.get_num_threads`).
        spatial_dims: as in `betti_matching_loss`.

    Returns:
        The error in torch's default dtype, on the device of `pred`. The other options are those of
        `betti_matching_loss`.

    Raises:
        TypeError: not real tensors.
        ValueError: shapes or devices differ, an axis is empty, a value is NaN, an option is unknown.

    Example:
        >>> target, pred = torch.zeros(2, 1, 1, 5, 5)
        >>> target[..., 2, :] = 1  # a line
        >>> pred[..., 2, [0, 1, 3, 4]] = 0.9  # in two pieces
        >>> betti_matching_error(pred, target)
        tensor(1.)
    """
    options = ErrorOptions(threshold, filtration, construction, comparison, relative, dims, num_workers, spatial_dims)
    check_images(pred, target, ("pred", "target"), floating=False, spatial_dims=options.spatial_dims)
    errors, _ = _errors(_binarize(pred, target, options), options)
    return _reduced(errors, pred, dims, reduction)


def betti_number_error(
    pred: Shaped[Tensor, "batch channels *spatial"],
    target: Shaped[Tensor, "batch channels *spatial"],
    *,
    threshold: float = 0.5,
    filtration: Filtration = "superlevel",
    construction: Construction = "V",
    relative: bool = False,
    dims: Sequence[int] | None = None,
    reduction: Reduction = "mean",
    num_workers: int | None = None,
    spatial_dims: int | None = None,
) -> Float[Tensor, "*reduced"]:
    """Sum over the homology dimensions of ``|betti_k(pred) - betti_k(target)|`` at the threshold.

    The foreground, the arguments, the result and the errors are those of `betti_matching_error`.

    Example:
        >>> target = torch.zeros(1, 1, 3, 8)
        >>> target[..., :3] = 1
        >>> target[..., 1, 1] = 0  # a ring
        >>> pred = target.flip(-1)  # in another place
        >>> betti_number_error(pred, target), betti_matching_error(pred, target)
        (tensor(0.), tensor(2.))
    """
    options = ErrorOptions(threshold, filtration, construction, "union", relative, dims, num_workers, spatial_dims)
    check_images(pred, target, ("pred", "target"), floating=False, spatial_dims=options.spatial_dims)
    numbers = _number_errors(_binarize(pred, target, options), options)
    return _reduced(numbers, pred, dims, reduction)


class BettiMatchingMetric:
    """Means of both errors and of the Dice score over a data set, fed batch by batch.

    Under `torch.distributed` every process feeds its own batches, and `compute`, called by all of them, adds them up.

    Args:
        threshold, filtration, construction, comparison, relative, dims, num_workers, spatial_dims: as in
            `betti_matching_error`.

    Raises:
        TypeError, ValueError: as those functions do; a rejected batch changes nothing.

    Example:
        >>> metric = BettiMatchingMetric()
        >>> metric.update(torch.eye(6)[None, None], torch.ones(1, 1, 6, 6))
        >>> metric.compute()["betti_matching_error"], round(metric.compute()["dice"], 3)
        (5.0, 0.286)
    """

    def __init__(
        self,
        *,
        threshold: float = 0.5,
        filtration: Filtration = "superlevel",
        construction: Construction = "V",
        comparison: Comparison = "union",
        relative: bool = False,
        dims: Sequence[int] | None = None,
        num_workers: int | None = None,
        spatial_dims: int | None = None,
    ) -> None:
        self._options = ErrorOptions(
            threshold, filtration, construction, comparison, relative, dims, num_workers, spatial_dims
        )
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        # matching errors of dimensions 0 to 2, number errors of dimensions 0 to 2, Dice, images with 1 to 3 axes
        self._sums = torch.zeros(10, dtype=torch.float64)

    def update(
        self, pred: Shaped[Tensor, "batch channels *spatial"], target: Shaped[Tensor, "batch channels *spatial"]
    ) -> None:
        """Add a batch; each ``(batch, channel)`` is one image."""
        options = self._options
        check_images(pred, target, ("pred", "target"), floating=False, spatial_dims=options.spatial_dims)
        ndim = pred.ndim - 2
        check_dims(options.dims, ndim)
        if self._sums[7:].any() and not self._sums[6 + ndim]:
            seen = int(self._sums[7:].argmax()) + 1
            raise ValueError(f"pred must have {seen} spatial axes like the batches before, got {ndim}")
        errors, numbers, dice = image_scores(pred, target, options)
        self._sums[:ndim] += torch.from_numpy(errors.sum(axis=0))
        self._sums[3 : 3 + ndim] += torch.from_numpy(numbers.sum(axis=0))
        self._sums[6] += dice.sum()
        self._sums[6 + ndim] += len(dice)

    def merge_(self, other: "BettiMatchingMetric") -> None:
        """Add the batches of another metric; ValueError unless its options are the same."""
        if not isinstance(other, BettiMatchingMetric):
            raise TypeError(f"other must be a BettiMatchingMetric, got {type(other).__name__}")
        mine, its = self._options, other._options
        if mine != its:
            raise ValueError(f"other must be a metric of the same options {mine}, got {its}")
        self._sums += other._sums

    def compute(self) -> dict[str, float]:
        """Means over all images: ``betti_matching_error``, ``betti_number_error``, both also ``_k``, and ``dice``.

        The totals sum over `dims`. `dice` is that of the binarized images, which are 1 where the value reaches the
        threshold (in sublevel filtrations: exceeds it), and 1 where both are empty. Raises RuntimeError if there was no
        image.
        """
        sums = self._sums.clone()
        all_reduce_(sums)
        count = float(sums[7:].sum())
        if not count:
            raise RuntimeError("BettiMatchingMetric.compute needs at least one update, got none")
        dims = check_dims(self._options.dims, int(sums[7:].argmax()) + 1) or ()
        means = sums / count
        result: dict[str, float] = {}
        for name, offset in (("betti_matching_error", 0), ("betti_number_error", 3)):
            parts = {f"{name}_{k}": float(means[offset + k]) for k in dims}
            result |= {name: sum(parts.values())} | parts
        return result | {"dice": float(means[6])}


def image_scores(pred: Tensor, target: Tensor, options: ErrorOptions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both errors of each pair of images and each dimension, ``[images, ndim]``, and the Dice scores ``[images]``."""
    masks = _binarize(pred, target, options)
    errors, numbers = _errors(masks, options)
    ones = masks.reshape(*masks.shape[:2], -1).astype(bool)
    size = ones.sum(axis=(0, 2))
    dice = np.divide(2 * ones.all(axis=0).sum(axis=1), size, out=np.ones(len(size)), where=size > 0)
    return errors, numbers, dice


def _binarize(pred: Tensor, target: Tensor, options: ErrorOptions) -> np.ndarray:
    """The binary images on the host, uint8 ``[2, images, *spatial]``, in one transfer.

    The foreground, as `betti_numbers` has it, is 1 in superlevel filtrations and 0 in sublevel ones.
    """
    superlevel = options.filtration == "superlevel"
    codes = []
    for x, name in ((pred, "pred"), (target, "target")):
        refuse_transformed(x, name)
        inside = foreground(x.detach(), options.threshold, superlevel=superlevel)
        code = (inside if superlevel else ~inside).to(torch.uint8)
        codes.append(code + 2 * x.isnan().to(torch.uint8) if x.is_floating_point() else code)
    masks: np.ndarray = torch.stack(codes).flatten(1, 2).cpu().numpy()
    for mask, name in zip(masks, ("pred", "target"), strict=True):
        if mask.max() > 1:
            raise ValueError(f"{name} must not contain NaN")
    return masks


def _errors(masks: np.ndarray, options: ErrorOptions) -> tuple[np.ndarray, np.ndarray]:
    """Betti matching and Betti number error of each pair of masks and each dimension, ``[images, ndim]``."""
    matchings = match_voxels(masks[0], masks[1], options.matching, num_workers=options.num_workers)
    alone, missed = (np.array([[len(lists[side]) for lists in m] for m in matchings]) for side in (1, 2))
    errors, numbers = alone + missed, alone - missed
    # The bars of a mask go from one of its values to the other; the essential one may be born late, in a constant mask.
    superlevel = options.filtration == "superlevel"
    extreme = np.max if superlevel else np.min
    births = extreme(masks.reshape(*masks.shape[:2], -1).astype(np.int64), axis=2)
    difference = births[0] - births[1]
    errors[:, 0] += 2 * abs(difference)
    numbers[:, 0] += difference if superlevel else -difference
    return errors, abs(numbers)


def _number_errors(masks: np.ndarray, options: ErrorOptions) -> np.ndarray:
    """Betti number error of each pair of masks and each dimension, ``[images, ndim]``."""
    count = partial(
        betti_numbers,
        filtration=options.filtration,
        construction=options.construction,
        relative=options.relative,
    )
    numbers = np.stack(on_threads(count, list(masks.reshape(-1, *masks.shape[2:])), options.num_workers))
    return abs(np.subtract(*numbers.reshape(2, -1, masks.ndim - 2)))


def _reduced(errors: np.ndarray, pred: Tensor, dims: Sequence[int] | None, reduction: Reduction) -> Tensor:
    chosen = errors[:, list(check_dims(dims, pred.ndim - 2) or ())].sum(axis=1)
    values = torch.from_numpy(chosen).to(torch.get_default_dtype()).to(pred.device)
    return reduce(values.view(pred.shape[:2]), reduction)
