"""What users bring beside tables of numbers: images, vectors of class numbers, of booleans and of scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from offprints.shared.estimators import as_features
from offprints.shared.labels import as_labels
from offprints.shared.tables import as_table, shared_memory

NO_VECTOR = (str, bytes, set, frozenset, dict, bool, int, float, complex, np.generic)


def as_samples(X: Any, *, estimator: Any, reset: bool) -> Tensor:
    """X of two axes as `as_table` takes it, of more axes, as images, as a floating tensor `(N, ...)`.

    Raises:
        TypeError: Not numbers, or sparse.
        ValueError: One axis, empty, masked, NaN or infinite; in `predict` another width or other columns.
    """
    if isinstance(X, list | tuple):
        try:
            X = np.asarray(X)
        except ValueError:
            raise ValueError("X must have rows of equal length") from None
    ndim = getattr(X, "ndim", 2)
    if ndim <= 2 or not isinstance(X, np.ndarray | Tensor):
        table: Tensor = as_table(X, "X", estimator=estimator, reset=reset)
        return table
    if isinstance(X, Tensor):
        images = X.detach()
        if not images.is_floating_point() and not images.is_complex():
            images = images.float() if images.element_size() <= 2 else images.double()
    elif np.ma.is_masked(X):
        raise ValueError("X must not have masked entries: fill them in first")
    else:
        narrow = X.dtype.itemsize <= (4 if X.dtype.kind == "f" else 2)
        if X.dtype.kind not in "biuf":
            raise TypeError(f"X must hold numbers, got {X.dtype}")
        images = shared_memory(X.astype(np.float32 if narrow else np.float64, copy=False))
    images = as_features(images, "X", ndim=ndim)
    if reset:
        estimator.n_features_in_ = images.shape[1]
        vars(estimator).pop("feature_names_in_", None)
    elif images.shape[1] != estimator.n_features_in_:
        raise ValueError(f"X must have {estimator.n_features_in_} as its second size, got shape {tuple(images.shape)}")
    return images


def as_ids(y: Any, name: str, *, length: int | None = None, unlabeled: bool = False) -> np.ndarray:
    """A vector of class numbers as int64.

    Args:
        y: Tensor, array, column or list of integers, from 0.
        name: Name of the argument.
        length: How many.
        unlabeled: Whether -1 is allowed, for samples without a label.

    Raises:
        TypeError: Not integers.
        ValueError: Not one axis, empty, masked, of another length, negative or beyond int64.
    """
    if y is None or isinstance(y, NO_VECTOR):
        raise TypeError(f"{name} must be a vector of integers, got {type(y).__name__}")
    try:
        held = y.detach() if isinstance(y, Tensor) else np.asanyarray(y)
    except ValueError:
        raise ValueError(f"{name} must have 1 dimension, got lists of different lengths") from None
    if 0 in held.shape:
        raise ValueError(f"{name} must not be empty")
    if held.is_floating_point() if isinstance(held, Tensor) else held.dtype.kind == "f":
        raise TypeError(f"{name} must have an integer type, got {held.dtype}")
    if length is None:
        length = len(held) if held.ndim else 1
    array = as_labels(held, name, length)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must have an integer type, got {array.dtype}")
    lowest, smallest, largest = -1 if unlabeled else 0, int(array.min()), int(array.max())
    if smallest < lowest or largest > np.iinfo(np.int64).max:
        worst = smallest if smallest < lowest else largest
        raise ValueError(f"{name} must be at least {lowest} and fit int64, got {worst}")
    return array.astype(np.int64, copy=False)


def as_mask(mask: Any, name: str, *, length: int) -> np.ndarray:
    """A vector of booleans.

    Raises:
        TypeError: Not booleans.
        ValueError: Not one axis, masked, or of another length.
    """
    if np.ma.is_masked(mask):
        raise ValueError(f"{name} must not have masked entries: leave them out first")
    array = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    if array.dtype.kind == "O" and array.ndim == 1 and all(isinstance(v, bool | np.bool_) for v in array):
        array = array.astype(bool)
    if array.dtype != bool:
        raise TypeError(f"{name} must have the type bool, got {array.dtype}")
    if array.shape != (length,):
        raise ValueError(f"{name} must have length {length}, got shape {array.shape}")
    return array


def as_scores(scores: Any, name: str) -> np.ndarray:
    """A vector of finite numbers in float64.

    Raises:
        TypeError: Not numbers.
        ValueError: Not one axis, empty, masked, NaN or infinite.
    """
    if np.ma.is_masked(scores):
        raise ValueError(f"{name} must not have masked entries: leave them out first")
    if isinstance(scores, Tensor):
        array = scores.detach().cpu().to(torch.complex128 if scores.is_complex() else torch.float64).numpy()
    else:
        array = np.asarray(scores)
    if array.dtype.kind == "O":
        array = np.array(array.tolist())
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold numbers, got {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"{name} must have 1 dimensions, got shape {array.shape}")
    if len(array) == 0:
        raise ValueError(f"{name} must not be empty")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {array[~np.isfinite(array)][0]}")
    return array.astype(np.float64)


def numbered(labels: np.ndarray, name: str) -> int:
    """How many old classes there are, which must be numbered 0, 1, ... without a gap; -1 is no class."""
    found = np.unique(labels[labels >= 0])
    if len(found) and found[-1] != len(found) - 1:
        missing = np.setdiff1d(np.arange(len(found)), found)[0]
        raise ValueError(
            f"{name} must number the old classes 0, 1, ... without a gap, got {found[-1]} and no {missing}"
        )
    return len(found)
