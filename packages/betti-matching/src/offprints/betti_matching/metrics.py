"""Betti matching error and Betti number error (Section 3.4), and their means over a data set."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from offprints.betti_matching._checks import check_dims, check_images
from offprints.betti_matching.matching import (
    Comparison,
    Construction,
    Filtration,
    _on_threads,
    betti_numbers,
    match_voxels,
)
from offprints.shared.distributed import all_reduce_
from offprints.shared.validation import check_choice, check_number, reduce

Reduction = Literal["mean", "sum", "none"]


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
) -> Float[Tensor, "*reduced"]:
    """Number of components, loops and cavities of either binarized image that have no counterpart in the other.

    Equal to the Betti matching loss of the masks ``pred >= threshold`` and ``target >= threshold``. Every unmatched bar
    costs 1; in dimension 0 the essential bar costs 2 if exactly one mask has no foreground (in sublevel filtrations, no
    background).

    Args:
        pred: ``[batch, channels, *spatial]`` of any real dtype; infinite values are allowed.
        target: the same shape and device, any real dtype.
        threshold: finite.
        dims: homology dimensions to count; all by default.
        reduction: over the ``batch * channels`` images; ``"none"`` returns ``[batch, channels]``.

    Returns:
        The error in torch's default dtype, on the device of `pred`. The other options are those of
        `betti_matching_loss`.

    Raises:
        TypeError: not real tensors.
        ValueError: shapes or devices differ, an axis is empty, a value is NaN, an option is unknown.
    """
    options = _check_options(threshold, filtration, construction, comparison, relative, dims)
    check_images(pred, target, ("pred", "target"), floating=False)
    errors, _ = _errors(_binarize(pred, target, threshold), options)
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
) -> Float[Tensor, "*reduced"]:
    """Sum over the homology dimensions of ``|betti_k(pred) - betti_k(target)|`` at the threshold.

    The foreground is ``image >= threshold`` (superlevel) or ``image <= threshold`` (sublevel). Arguments, result and
    errors as in `betti_matching_error`.
    """
    options = _check_options(threshold, filtration, construction, "union", relative, dims)
    check_images(pred, target, ("pred", "target"), floating=False)
    return _reduced(_number_errors(pred, target, threshold, options), pred, dims, reduction)


class BettiMatchingMetric:
    """Means of both errors and of the Dice score over a data set, fed batch by batch.

    Under `torch.distributed` every process feeds its own batches, and `compute`, called by all of them, adds them up.

    Args:
        threshold, filtration, construction, comparison, relative, dims: as in `betti_matching_error`.

    Raises:
        TypeError, ValueError: as those functions do; a rejected batch changes nothing.
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
    ) -> None:
        self._options = _check_options(threshold, filtration, construction, comparison, relative, dims)
        self._threshold = threshold
        self._dims = check_dims(dims)
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        # matching errors of dimensions 0 to 2, number errors of dimensions 0 to 2, Dice, images with 1 to 3 axes
        self._sums = torch.zeros(10, dtype=torch.float64)

    def update(
        self, pred: Shaped[Tensor, "batch channels *spatial"], target: Shaped[Tensor, "batch channels *spatial"]
    ) -> None:
        """Add a batch; each ``(batch, channel)`` is one image."""
        check_images(pred, target, ("pred", "target"), floating=False)
        ndim = pred.ndim - 2
        check_dims(self._dims, ndim)
        if self._sums[7:].any() and not self._sums[6 + ndim]:
            seen = int(self._sums[7:].argmax()) + 1
            raise ValueError(f"pred must have {seen} spatial axes like the batches before, got {ndim}")
        masks = _binarize(pred, target, self._threshold)
        errors, numbers = _errors(masks, self._options)
        if self._options["filtration"] == "sublevel":  # counts at the threshold where the mask has no foreground
            numbers = _number_errors(pred, target, self._threshold, self._options)

        foreground = masks.reshape(*masks.shape[:2], -1).astype(bool)
        size = foreground.sum(axis=(0, 2))
        dice = np.divide(2 * foreground.all(axis=0).sum(axis=1), size, out=np.ones(len(size)), where=size > 0)
        self._sums[:ndim] += torch.from_numpy(errors.sum(axis=0))
        self._sums[3 : 3 + ndim] += torch.from_numpy(numbers.sum(axis=0))
        self._sums[6] += dice.sum()
        self._sums[6 + ndim] += len(dice)

    def merge_(self, other: "BettiMatchingMetric") -> None:
        """Add the batches of another metric; ValueError unless its options are the same."""
        mine, its = ((metric._threshold, metric._dims, metric._options) for metric in (self, other))
        if mine != its:
            raise ValueError(f"other must be a metric of the same options {mine}, got {its}")
        self._sums += other._sums

    def compute(self) -> dict[str, float]:
        """Means over all images: ``betti_matching_error``, ``betti_number_error``, both also ``_k``, and ``dice``.

        The totals sum over `dims`. `dice` is that of the binarized images, 1 where both are empty. Raises RuntimeError
        if there was no image.
        """
        sums = self._sums.clone()
        all_reduce_(sums)
        count = float(sums[7:].sum())
        if not count:
            raise RuntimeError("BettiMatchingMetric.compute needs at least one update, got none")
        dims = check_dims(self._dims, int(sums[7:].argmax()) + 1) or ()
        means = sums / count
        result: dict[str, float] = {}
        for name, offset in (("betti_matching_error", 0), ("betti_number_error", 3)):
            parts = {f"{name}_{k}": float(means[offset + k]) for k in dims}
            result |= {name: sum(parts.values())} | parts
        return result | {"dice": float(means[6])}


def _check_options(
    threshold: float, filtration: str, construction: str, comparison: str, relative: bool, dims: Sequence[int] | None
) -> dict[str, Any]:
    check_number(threshold, "threshold")
    check_choice(filtration, "filtration", ("superlevel", "sublevel"))
    check_choice(construction, "construction", ("V", "T"))
    check_choice(comparison, "comparison", ("union", "intersection"))
    check_dims(dims)
    return {"filtration": filtration, "construction": construction, "comparison": comparison, "relative": relative}


def _binarize(pred: Tensor, target: Tensor, threshold: float, *, strict: bool = False) -> np.ndarray:
    """Masks ``image >= threshold`` (``>`` if strict) on the host, uint8 ``[2, images, *spatial]``, in one transfer."""
    compare = torch.gt if strict else torch.ge
    codes = torch.stack([compare(x, threshold).to(torch.uint8) + 2 * x.isnan().to(torch.uint8) for x in (pred, target)])
    masks = codes.flatten(1, 2).cpu().numpy()
    for mask, name in zip(masks, ("pred", "target"), strict=True):
        if mask.max() > 1:
            raise ValueError(f"{name} must not contain NaN")
    return masks


def _errors(masks: np.ndarray, options: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Betti matching and Betti number error of each pair of masks and each dimension, ``[images, ndim]``."""
    matchings = match_voxels(*masks, **options, reduced=False)
    alone, missed = (np.array([[len(lists[side]) for lists in m] for m in matchings]) for side in (1, 2))
    errors, numbers = alone + missed, alone - missed
    # The bars of a mask go from one of its values to the other; the essential one may be born late, in a constant mask.
    extreme = np.max if options["filtration"] == "superlevel" else np.min
    births = extreme(masks.reshape(*masks.shape[:2], -1).astype(np.int64), axis=2)
    difference = births[0] - births[1]
    errors[:, 0] += 2 * abs(difference)
    numbers[:, 0] += difference if options["filtration"] == "superlevel" else -difference
    return errors, abs(numbers)


def _number_errors(pred: Tensor, target: Tensor, threshold: float, options: dict[str, Any]) -> np.ndarray:
    """Betti number error of each pair of images and each dimension, ``[images, ndim]``."""
    masks = _binarize(pred, target, threshold, strict=options["filtration"] == "sublevel")
    count = partial(betti_numbers, **{name: options[name] for name in ("filtration", "construction", "relative")})
    numbers = np.stack(list(_on_threads(count, list(masks.reshape(-1, *masks.shape[2:])), None)))
    return abs(np.subtract(*numbers.reshape(2, -1, pred.ndim - 2)))


def _reduced(errors: np.ndarray, pred: Tensor, dims: Sequence[int] | None, reduction: Reduction) -> Tensor:
    chosen = errors[:, list(check_dims(dims, pred.ndim - 2) or ())].sum(axis=1)
    values = torch.from_numpy(chosen).to(torch.get_default_dtype()).to(pred.device)
    return reduce(values.view(pred.shape[:2]), reduction)
