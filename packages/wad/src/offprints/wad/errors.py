"""The paper's two errors of semi-supervised learning under class distribution mismatch."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from offprints.shared.validation import check_labels, check_tensor
from offprints.wad._checks import require


class ErrorDecomposition(NamedTuple):
    """What `error_decomposition` returns, shares of the whole weight.

    Attributes:
        pseudo_labeling: Weight of samples of target classes with a wrong pseudo-label.
        invasion: Weight of samples of unknown classes, which have no right one.

    Example:
        >>> sum(error_decomposition([0, 1, 0], [1.0, 1.0, 2.0], [0, 0, -1]))
        0.75
    """

    pseudo_labeling: float
    invasion: float


def error_decomposition(pseudo_labels: Any, weights: Any, true_labels: Any) -> ErrorDecomposition:
    """How much of the weight of unlabeled samples teaches the student something wrong, and why.

    For data whose classes are known: `WADTrainer.knowledge_` has what this needs of every round. Without weights give
    ones. Where all weights are 0 nothing is taught, and both errors are 0.

    Args:
        pseudo_labels: `(U,)` integers, array, tensor or list.
        weights: `(U,)`, not negative.
        true_labels: `(U,)` integers, -1 for a sample of an unknown class.

    Raises:
        TypeError: labels that are not integers, weights that are not floating.
        ValueError: empty, other lengths, NaN, infinities, negative weights, labels below 0 (-1 for `true_labels`).

    Example:
        >>> error_decomposition([0, 1, 1, 0], [0.9, 0.1, 0.5, 0.5], [0, 0, 1, -1])
        ErrorDecomposition(pseudo_labeling=0.05, invasion=0.25)
    """
    w = check_tensor(_tensor(weights, "weights"), "weights", ndim=1, validate=True).double().cpu()
    pseudo, true = (
        check_labels(_tensor(y, name), name, length=len(w), num_classes=2**62, unlabeled=extra).cpu()
        for y, name, extra in ((pseudo_labels, "pseudo_labels", None), (true_labels, "true_labels", -1))
    )
    for labels, name in ((pseudo, "pseudo_labels"), (true, "true_labels")):
        if labels.ndim != 1:
            raise ValueError(f"{name} must have 1 dimension, got shape {tuple(labels.shape)}")
    require((w >= 0).all(), "weights must not be negative, a smaller one was got")
    peak = float(w.max())
    if peak == 0:
        return ErrorDecomposition(0.0, 0.0)
    w = w / peak  # whose sum stays finite
    unknown = true == -1
    wrong = ~unknown & (pseudo != true)
    return ErrorDecomposition(*(float(w[part].sum() / w.sum()) for part in (wrong, unknown)))


def _tensor(value: Any, name: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    if np.ma.is_masked(value):
        raise ValueError(f"{name} must not have masked entries")
    if value is None or isinstance(value, (str, bytes, dict, set)) or hasattr(value, "toarray"):
        raise TypeError(f"{name} must be an array, a tensor or a list of numbers, got {type(value).__name__}")
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError(f"{name} must have 1 dimension") from None
    if array.dtype.kind not in "iufb" or array.dtype.itemsize > 8:
        raise TypeError(f"{name} must hold numbers, got {array.dtype}")
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))
