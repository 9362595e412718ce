"""The metric of the CLAD-C challenge: accuracy averaged over classes, and that over the points of a stream."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from offprints.aef_ocl._labels import as_labels
from offprints.shared.validation import check_number


def mean_class_accuracy(y_true: Any, y_pred: Any) -> float:
    """Accuracy of each class, averaged over the classes present in ``y_true``: rare ones count as much as others.

    Args:
        y_true: Labels ``[N]``: integers or strings, as array, tensor or list.
        y_pred: Predicted labels ``[N]``.

    Raises:
        TypeError: labels that are floating or boolean, or no labels.
        ValueError: empty, of different lengths, or with more than one axis.

    Example:
        >>> mean_class_accuracy(torch.tensor([0, 0, 0, 7]), torch.tensor([0, 0, 0, 0]))
        0.5
    """
    true = as_labels(y_true, "y_true")
    predicted = as_labels(y_pred, "y_pred", len(true))
    classes, number = np.unique(true, return_inverse=True)
    if (true.dtype.kind in "iu") != (predicted.dtype.kind in "iu"):
        raise TypeError(f"y_pred must hold labels of the kind of y_true, {true.dtype}, got {predicted.dtype}")
    if true.dtype.kind in "iu" and true.dtype != predicted.dtype:  # uint64 and int64 have no common integer type
        right = np.array([a == b for a, b in zip(true.tolist(), predicted.tolist(), strict=True)])
    else:
        right = np.asarray(true == predicted)
    number = number.reshape(-1)
    return float((np.bincount(number, right, len(classes)) / np.bincount(number, minlength=len(classes))).mean())


def average_mean_class_accuracy(values: Sequence[float]) -> float:
    """AMCA: the mean over the evaluation points of a stream of their mean class accuracies.

    Raises:
        TypeError: something that is not a number.
        ValueError: empty, NaN, infinite or negative.

    Example:
        >>> average_mean_class_accuracy([0.5, 0.7])
        0.6
    """
    given: Any = values  # an array or a tensor too
    listed = given.tolist() if isinstance(given, (np.ndarray, Tensor)) else given
    if isinstance(listed, (str, bytes)) or not isinstance(listed, Sequence):
        raise TypeError(f"values must be a sequence of numbers, got {type(given).__name__}")
    if len(listed) == 0:
        raise ValueError("values must hold at least one accuracy, got none")
    return math.fsum(check_number(value, "values", low=0) for value in listed) / len(listed)
