"""What the losses over matched bars share: sums of squared differences of voxels, for all images of a batch at once."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from offprints.betti_matching.matching import VoxelPairs
from offprints.shared.device import working_dtype


class Layout(NamedTuple):
    """Columns of the row of values that `sum_of_squares` makes of each image.

    Its prediction and its target; the constants 0 and 1; for each filtration with a frame, the values of both frames.
    """

    shape: tuple[int, ...]
    frames: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Voxels of an image."""
        return math.prod(self.shape)

    def constant(self, value: int) -> int:
        """Column of the constant 0 or 1."""
        return 2 * self.size + value

    def columns(self, frame: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Columns of the voxels of the (padded) grid, in the prediction and in the target."""
        voxels = np.arange(self.size).reshape(self.shape)
        if frame is None:
            return voxels.ravel(), voxels.ravel() + self.size
        behind = 2 * self.size + 2 + 2 * frame
        pred = np.pad(voxels, 1, constant_values=behind).ravel()
        return pred, np.where(pred < self.size, pred + self.size, behind + 1)


class Terms(NamedTuple):
    """``weight * (v[left] - v[right])^2`` of one filtration, all images one after the other."""

    left: np.ndarray
    right: np.ndarray
    image: np.ndarray
    weight: np.ndarray


def in_working_precision(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both images in one type: that of the prediction, float32 for half types, which keeps their order."""
    dtype = working_dtype(pred)
    return pred.to(dtype), target.to(dtype)


def in_output_precision(loss: Tensor, pred: Tensor) -> Tensor:
    """The loss in the type of the prediction; as it is under autocast and where that type cannot hold it."""
    if torch.is_autocast_enabled(pred.device.type) or loss.dtype == pred.dtype:
        return loss
    if pred.dtype == torch.float16 and not _fits(loss):
        return loss
    return loss.to(pred.dtype)


def transformed() -> bool:
    """Whether `torch.func` is at work, whose tensors must not be kept."""
    return not torch.compiler.is_compiling() and bool(torch._C._are_functorch_transforms_active())


def _fits(loss: Tensor) -> bool:
    """Whether all values can be read and are in the range of float16."""
    if torch.compiler.is_compiling() or transformed():
        return False
    return bool((loss.detach().abs() <= torch.finfo(torch.float16).max).all())


def square_terms(
    matchings: Sequence[Sequence[VoxelPairs]],
    layout: Layout,
    *,
    frame: int | None = None,
    weights: tuple[float, float] = (1.0, 1.0),
    corner: tuple[int, int] | None = None,
) -> Terms:
    """The terms of the matchings of all images.

    Args:
        matchings: for each image, one entry per homology dimension.
        layout: where the values are.
        frame: number of the frame in the layout on whose padded grid the bars lie.
        weights: factors of matched and unmatched bars. Matched ones count twice, for births and for deaths.
        corner: the constants to which births and deaths of the prediction's unmatched bars go, not to each other.
    """
    pred, target = layout.columns(frame)
    lists = [one for matching in matchings for one in matching]
    owner = np.repeat(np.arange(len(matchings)), [len(matching) for matching in matchings])
    matched, alone, missed = (np.concatenate(rows) for rows in zip(*lists, strict=True))
    of_matched, of_alone, of_missed = (np.repeat(owner, list(map(len, rows))) for rows in zip(*lists, strict=True))
    finite = matched[:, 1] >= 0
    left = [pred[matched[:, 0]], pred[matched[finite, 1]], target[missed[:, 0]], pred[alone[:, 0]]]
    right = [target[matched[:, 2]], target[matched[finite, 3]], target[missed[:, 1]]]
    image = [of_matched, of_matched[finite], of_missed, of_alone]
    if corner is None:
        right.append(pred[alone[:, 1]])
    else:
        left.append(pred[alone[:, 1]])
        right += [np.full(len(alone), layout.constant(value)) for value in corner]
        image.append(of_alone)
    n = len(matched) + int(finite.sum())
    images = np.concatenate(image)
    weight = np.full(len(images), weights[1])
    weight[:n] = 2 * weights[0]
    return Terms(np.concatenate(left), np.concatenate(right), images, weight)


def padded(parts: Sequence[Terms], images: int, spoiled: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Terms as one row per image: int64 ``[images, 2, m]`` columns, float64 ``[images, m]`` weights (0 where none is).

    Images that are `spoiled` have one term of weight NaN.
    """
    left, right, image, weight = (np.concatenate(rows) for rows in zip(*parts, strict=True))
    order = np.argsort(image, kind="stable")
    counts = np.bincount(image, minlength=images)
    starts = np.cumsum(counts) - counts
    place = np.arange(len(image)) - np.repeat(starts, counts)
    m = max(int(counts.max(initial=0)), 1)
    ends = np.zeros((images, 2, m), np.int64)
    weights = np.zeros((images, m))
    row = image[order]
    ends[row, 0, place], ends[row, 1, place], weights[row, place] = left[order], right[order], weight[order]
    if spoiled is not None:
        weights[spoiled, 0] = np.nan
    return ends, weights


def sum_of_squares(pred: Tensor, target: Tensor, ends: Tensor, weights: Tensor, frames: Sequence[str] = ()) -> Tensor:
    """``[batch, channels]`` sums of ``weight * (v[left] - v[right])^2``: one gather of all bar ends, one sum.

    ``v`` has one row per image, as `Layout` says.
    """
    rows = [image.flatten(0, 1).flatten(1) for image in (pred, target)]
    constants = torch.stack((torch.zeros_like(rows[0][:, 0]), torch.ones_like(rows[0][:, 0])), dim=1)
    parts = [*rows, constants.detach()]
    for filtration in frames:  # amax and amin share the gradient of the frame among the extreme voxels
        extreme = torch.amax if filtration == "superlevel" else torch.amin
        parts += [extreme(image, 1, keepdim=True) for image in rows]
    values = torch.cat(parts, dim=1)
    left, right = values.unsqueeze(1).expand(-1, 2, -1).gather(2, ends).unbind(1)
    losses = (weights.to(pred.dtype) * (left - right).square()).sum(1)
    return losses.view(pred.shape[:2])
