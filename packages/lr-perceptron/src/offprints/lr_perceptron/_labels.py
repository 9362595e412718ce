"""Class labels of the estimators: integers, booleans or strings, and their numbers 0..K-1."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_labels(y: Any, name: str, length: int | None = None) -> np.ndarray:
    """Labels as an array ``[n]`` of integers, booleans or strings.

    Raises:
        TypeError: floating or other labels, or not an array.
        ValueError: none given, more than one axis, another length.
    """
    if y is None:
        raise ValueError(f"{name} must be given: the estimator requires y to be passed, but the target y is None")
    if isinstance(y, str | bytes | dict | set) or hasattr(y, "toarray"):
        raise TypeError(f"{name} must be an array or a tensor of labels, got {type(y).__name__}")
    if np.ma.is_masked(y):
        raise ValueError(f"{name} must not have masked entries")
    if isinstance(y, Tensor):
        if y.is_floating_point() or y.is_complex():
            raise TypeError(f"{name} must hold integer labels, got {y.dtype}")
        y = y.detach().cpu().numpy()
    labels = np.asarray(y)
    if labels.dtype.kind in "OT":
        words = labels.ravel().tolist()
        if words and all(isinstance(word, str) for word in words):
            labels = np.array(words, dtype=str).reshape(labels.shape)
    if labels.dtype.kind not in "iubU":
        raise TypeError(f"{name} must hold integers, booleans or strings as labels, got {labels.dtype}")
    if labels.ndim != 1:
        raise ValueError(f"{name} must have 1 dimension, got shape {labels.shape}")
    if length is not None and len(labels) != length:
        raise ValueError(f"{name} must have length {length}, got {len(labels)}")
    return labels.astype(labels.dtype.newbyteorder("="))


def distinct(labels: np.ndarray, name: str) -> np.ndarray:
    """The sorted classes among labels.

    Raises:
        ValueError: fewer than two.
    """
    classes = np.unique(labels)
    if len(classes) < 2:
        raise ValueError(f"{name} must hold at least 2 classes, got 1 class: {classes.tolist()}")
    return classes


def numbers_of(labels: np.ndarray, classes: np.ndarray, name: str) -> np.ndarray:
    """The number of each label among the sorted classes, int64.

    Raises:
        ValueError: a label that is not among them.
    """
    places = {label: place for place, label in enumerate(classes.tolist())}
    values = labels.tolist()
    unknown = [label for label in dict.fromkeys(values) if label not in places]
    if unknown:
        raise ValueError(f"{name} must hold labels among the classes {classes.tolist()}, got {unknown[0]!r}")
    return np.array([places[label] for label in values], dtype=np.int64)


def shown(labels: np.ndarray, X: Any) -> Any:
    """Labels in the kind of X: a tensor on its device where it is one and the labels are numbers."""
    if isinstance(X, Tensor) and labels.dtype.kind in "iub":
        return torch.from_numpy(labels).to(X.device)
    return labels
