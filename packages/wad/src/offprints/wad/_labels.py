"""The labels that the classifier takes: those of the core, without floats and negative numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int
from torch import Tensor

from offprints.shared.labels import Classes, as_labels


def training_labels(y: Any, length: int) -> tuple[Classes, Int[Tensor, " labeled"]]:
    """The classes among the labels, and each label's number, int64.

    Raises:
        TypeError: not integers, booleans or strings.
        ValueError: None, another length, more than one axis, masked, negative integers, one class.
    """
    # Of a list NumPy would make one kind of what are several: 0 and "a" are strings to it.
    labels = as_labels(np.array(y, dtype=object) if isinstance(y, (list, tuple)) else y, "y", length)
    if labels.dtype.kind == "f":
        raise TypeError(f"y must hold integers, booleans or strings, got {labels.dtype}")
    if labels.dtype.kind == "i" and labels.min() < 0:
        raise ValueError(
            f"y must not be negative, got {labels.min()}: unlabeled samples are the argument X_unlabeled, not labels"
            " of -1"
        )
    classes, numbers = Classes.of(labels)
    if len(classes) < 2:
        raise ValueError(f"y must hold at least 2 classes, got {classes.values.tolist()}")
    return classes, numbers
