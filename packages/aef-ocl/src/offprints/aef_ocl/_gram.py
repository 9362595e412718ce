"""Sums over rows: targets of labels, the lower triangle of a Gram matrix, columns of classes that come later."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from offprints.aef_ocl._regions import check_magnitude
from offprints.shared.validation import check_labels, check_tensor

BLOCK = 256  # rows of a symmetric matrix at a time
MOST = 2**20  # classes: what is larger is a label, not the number of a column


def as_targets(Y: Any, length: int, like: Tensor) -> Tensor:
    """Targets ``[B, K]`` in the type and on the device of ``like``; one column per class where Y holds labels."""
    if isinstance(Y, Tensor) and Y.is_floating_point() and Y.ndim != 1:
        check_tensor(Y, "Y", shape=(length, None))
        check_magnitude(Y, "Y", like.dtype)
        return Y.to(like)
    labels = class_numbers(Y, "Y", length)
    one_hot = like.new_zeros(length, int(labels.max()) + 1)
    return one_hot.scatter_(1, labels.to(like.device).unsqueeze(1), 1.0)


def class_numbers(y: Any, name: str, length: int) -> Tensor:
    """Numbers of classes ``[length]``, int64, from 0 on and below `MOST`; at most as many columns are made for them."""
    numbers = check_labels(y, name, length=length, num_classes=MOST, validate=True)
    if numbers.ndim != 1:
        raise ValueError(f"{name} must have 1 dimension where it holds labels, got shape {tuple(numbers.shape)}")
    return numbers


def add_gram_(matrix: Tensor, rows: Tensor, alpha: float = 1.0) -> Tensor:
    """Add alpha rows' rows to the lower triangle, in blocks of rows of the matrix: half of the work of the whole."""
    for start in range(0, len(matrix), BLOCK):
        stop = min(start + BLOCK, len(matrix))
        matrix[start:stop, :stop].addmm_(rows[:, start:stop].T, rows[:, :stop], alpha=alpha)
    return matrix


def mirror_(matrix: Tensor) -> Tensor:
    """Copy the lower triangle to the upper one."""
    for start in range(0, len(matrix), BLOCK):
        stop = min(start + BLOCK, len(matrix))
        matrix[:start, start:stop] = matrix[start:stop, :start].T
        block = matrix[start:stop, start:stop]
        block.copy_(block.tril() + block.tril(-1).T)
    return matrix


def spread(columns: Tensor, places: Tensor, width: int) -> Tensor:
    """The columns at these places among ``width``; the others are those of classes not seen."""
    wide = columns.new_zeros(len(columns), width)
    wide[:, places.to(wide.device)] = columns
    return wide
