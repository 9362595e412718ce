"""What users bring as data: tables of numbers and vectors of labels, in any of their kinds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offprints.shared.estimators import as_features

NOT_DATA = (str, bytes, set, frozenset, Mapping, bool, int, float, complex, np.generic)


def as_table(X: Any, name: str, *, ndim: int | None = 2) -> Tensor:
    """Numbers as a finite float32 or float64 tensor without a graph, `(N, ...)`; whole numbers become float64.

    Args:
        X: Tensor, array, data frame or list of rows.
        name: Name of the argument.
        ndim: Number of axes; None: at least two.

    Raises:
        TypeError: Not numbers, or sparse.
        ValueError: Another number of axes, empty, masked, missing, NaN or infinite.
    """
    if hasattr(X, "toarray"):
        raise TypeError(f"{name} must be dense, sparse input is not supported: convert it with toarray()")
    if isinstance(X, Tensor):
        table = X.detach()
        if table.layout == torch.strided and not table.is_floating_point() and not table.is_complex():
            table = table.double()
    else:
        table = torch.from_numpy(_array(X, name))
    if ndim is None:
        ndim = max(table.ndim, 2)
    table = as_features(table, name, ndim=ndim)
    return table if table.dtype == torch.float64 else table.float()


def _array(X: Any, name: str) -> np.ndarray:
    if X is None or isinstance(X, NOT_DATA):
        raise TypeError(f"{name} must be a table of numbers, got {type(X).__name__}")
    if np.ma.is_masked(X):
        raise ValueError(f"{name} must not have masked entries: fill them in first")
    try:
        array = np.asarray(X)
    except ValueError:
        raise ValueError(f"{name} must be a table, got rows of different lengths") from None
    if array.dtype.kind == "O":
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{name} must hold numbers and none missing: {error}") from None
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold numbers, got {array.dtype}")
    kind = np.float32 if array.dtype.kind == "f" and array.dtype.itemsize <= 4 else np.float64
    return np.array(array, dtype=kind)


def as_labels(y: Any, name: str, *, length: int | None = None, unlabeled: bool = False) -> np.ndarray:
    """A vector of integer labels as int64.

    Args:
        y: Tensor, array, column or list of integers, from 0.
        name: Name of the argument.
        length: How many.
        unlabeled: Whether -1 is allowed, for samples without a label.

    Raises:
        TypeError: Not integers.
        ValueError: Not one axis, empty, masked, of another length, negative or beyond int64.
    """
    if isinstance(y, Tensor):
        array = y.detach().cpu().numpy()
    elif y is None or isinstance(y, NOT_DATA):
        raise TypeError(f"{name} must be a vector of integers, got {type(y).__name__}")
    elif np.ma.is_masked(y):
        raise ValueError(f"{name} must not have masked entries: leave them out first")
    else:
        try:
            array = np.asarray(y)
        except ValueError:
            raise ValueError(f"{name} must have 1 dimensions, got lists of different lengths") from None
    if array.ndim != 1:
        raise ValueError(f"{name} must have 1 dimensions, got shape {array.shape}")
    if len(array) == 0:
        raise ValueError(f"{name} must not be empty")
    if array.dtype.kind == "O" and all(isinstance(v, int | np.integer) and not isinstance(v, bool) for v in array):
        array = np.array([int(v) for v in array], dtype=np.int64)  # a nullable column without missing values
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must have an integer type, got {array.dtype}")
    if length is not None and len(array) != length:
        raise ValueError(f"{name} must have length {length}, got {len(array)}")
    lowest = -1 if unlabeled else 0
    if int(array.min()) < lowest or int(array.max()) > np.iinfo(np.int64).max:
        worst = int(array.min()) if int(array.min()) < lowest else int(array.max())
        raise ValueError(f"{name} must be at least {lowest} and fit int64, got {worst}")
    return array.astype(np.int64)


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
    if isinstance(scores, Tensor):
        if scores.is_complex():
            raise TypeError(f"{name} must hold numbers, got {scores.dtype}")
        array = scores.detach().cpu().double().numpy()
    else:
        array = _array(scores, name).astype(np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name} must have 1 dimensions, got shape {array.shape}")
    if len(array) == 0:
        raise ValueError(f"{name} must not be empty")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {array[~np.isfinite(array)][0]}")
    return array


def numbered(labels: np.ndarray, name: str) -> int:
    """How many old classes there are, which must be numbered 0, 1, ... without a gap; -1 is no class."""
    found = np.unique(labels[labels >= 0])
    if len(found) and found[-1] != len(found) - 1:
        missing = np.setdiff1d(np.arange(len(found)), found)[0]
        raise ValueError(
            f"{name} must number the old classes 0, 1, ... without a gap, got {found[-1]} and no {missing}"
        )
    return len(found)
