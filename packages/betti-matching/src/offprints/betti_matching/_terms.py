"""What the losses over matched bars share: sums of squared differences of voxels, for all images of a batch at once."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from offprints.betti_matching.matching import VoxelPairs


def in_working_precision(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both images in one dtype; float32 for halves, which keeps their order."""
    dtype = pred.dtype if pred.dtype == torch.float64 else torch.float32
    return pred.to(dtype), target.to(dtype)


def in_output_precision(loss: Tensor, pred: Tensor) -> Tensor:
    """The loss in the dtype of the prediction, under autocast as it is."""
    return loss if torch.is_autocast_enabled(pred.device.type) else loss.to(pred.dtype)


def square_terms(
    matchings: Sequence[Sequence[VoxelPairs]], shape: Sequence[int], *, frame: int | None = None, frames: int = 0
) -> np.ndarray:
    """The terms of `sum_of_squares` for the matchings of all images, int64 ``[4, n]``.

    Matched bars have the weight 2, for births and for deaths; the bars of `matchings` lie on the padded grid if there
    is a `frame`, the number of this one among the `frames` that `sum_of_squares` is given.
    """
    size = math.prod(shape)
    voxels = np.arange(size).reshape(shape)
    # columns of the voxels of the (padded) grid, in the prediction and in the target
    pred = (voxels if frame is None else np.pad(voxels, 1, constant_values=2 * (size + frame))).ravel()
    target = np.where(pred < size, pred + size, pred + 1)

    lists = [one for matching in matchings for one in matching]
    owner = np.repeat(np.arange(len(matchings)), [len(matching) for matching in matchings])
    matched, alone, missed = (np.concatenate(rows) for rows in zip(*lists, strict=True))
    of_matched, of_alone, of_missed = (np.repeat(owner, list(map(len, rows))) for rows in zip(*lists, strict=True))
    finite = matched[:, 1] >= 0
    left = (pred[matched[:, 0]], pred[matched[finite, 1]], pred[alone[:, 0]], target[missed[:, 0]])
    right = (target[matched[:, 2]], target[matched[finite, 3]], pred[alone[:, 1]], target[missed[:, 1]])
    image = np.concatenate((of_matched, of_matched[finite], of_alone, of_missed))
    weight = np.repeat((2, 1), (len(matched) + finite.sum(), len(alone) + len(missed)))
    ends = np.stack((np.concatenate(left), np.concatenate(right))) + image * 2 * (size + frames)
    return np.concatenate((ends, image[None], weight[None]))


def sum_of_squares(pred: Tensor, target: Tensor, terms: Tensor, frames: Sequence[str] = ()) -> Tensor:
    """``[batch, channels]`` sums of ``weight * (v[left] - v[right])^2``: one gather of all bar ends, one segment sum.

    `terms` is int64 ``[4, n]``: left, right, image, weight. ``v`` has one row per image: its prediction, its target,
    and for each filtration in `frames` the values of the frames of both.
    """
    rows = [image.flatten(0, 1).flatten(1) for image in (pred, target)]
    for filtration in frames:  # amax and amin share the gradient of the frame among the extreme voxels
        extreme = torch.amax if filtration == "superlevel" else torch.amin
        rows += [extreme(image, 1, keepdim=True) for image in rows[:2]]
    values = torch.cat(rows, dim=1).flatten()
    left, right = values.index_select(0, terms[:2].flatten()).view(2, -1)
    squares = terms[3] * (left - right).square()
    return values.new_zeros(len(rows[0])).index_add(0, terms[2], squares).view(pred.shape[:2])
