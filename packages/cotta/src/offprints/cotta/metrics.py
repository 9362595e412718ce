"""Mean intersection over union."""

from __future__ import annotations

import math

import torch
from jaxtyping import Int
from torch import Tensor

from offprints.shared.validation import check_labels, check_number, check_same_shape


def mean_iou(
    prediction: Int[Tensor, "..."], target: Int[Tensor, "..."], num_classes: int, *, ignore_index: int = 255
) -> float:
    """Mean over classes of intersection over union of all pixels together, in [0, 1].

    Args:
        prediction: Predicted classes.
        target: True classes, or ``ignore_index``, whose pixels do not count.
        num_classes: Number of classes; those in neither of the two are left out of the mean.
        ignore_index: See ``target``.

    Returns:
        The mean, NaN where no pixel counts.

    Raises:
        TypeError: an argument is not an integer tensor.
        ValueError: different shapes, empty, a class out of range.

    Example:
        >>> prediction, target = torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 1, 255])
        >>> mean_iou(prediction, target, 2)  # the last pixel does not count
        0.5
    """
    return iou_of(confusion(prediction, target, num_classes, ignore_index=ignore_index))


def confusion(
    prediction: Int[Tensor, "..."], target: Int[Tensor, "..."], num_classes: int, *, ignore_index: int = 255
) -> Int[Tensor, "K K"]:
    """Pixels by true and predicted class; matrices of several images add up."""
    check_number(num_classes, "num_classes", low=1, integer=True)
    prediction = check_labels(prediction, "prediction", num_classes=num_classes, ignore_index=ignore_index)
    target = check_labels(target, "target", num_classes=num_classes, ignore_index=ignore_index)
    check_same_shape(prediction, target, ("prediction", "target"))
    counted = target != ignore_index
    t, p = target[counted], prediction[counted]
    if bool((p == ignore_index).any()) and ignore_index >= num_classes:
        raise ValueError(f"prediction must be a class where target is one, got ignore_index {ignore_index}")
    return torch.bincount(t * num_classes + p, minlength=num_classes**2).view(num_classes, num_classes)


def iou_of(matrix: Int[Tensor, "K K"]) -> float:
    """Mean intersection over union of a confusion matrix."""
    matched = matrix.diagonal()
    union = matrix.sum(0) + matrix.sum(1) - matched
    present = union > 0
    if not bool(present.any()):
        return math.nan
    return float((matched[present].double() / union[present]).mean())
