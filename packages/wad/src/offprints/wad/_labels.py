"""Class labels of any kind as numbers 0..K-1 and back, and the names of columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor


class Classes:
    """The sorted labels of K classes, in their own type.

    Args:
        values: `(K,)`.
    """

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def shown(self, index: Tensor, X: Any) -> Any:
        """The labels of these numbers: a tensor on X's device where X is one and the labels are numbers."""
        labels = self.values[index.cpu().numpy()]
        if isinstance(X, Tensor) and labels.dtype.kind in "iub":
            return torch.from_numpy(labels).to(X.device)
        return labels


def training_classes(y: Any, length: int) -> tuple[Classes, Int[Tensor, " samples"]]:
    """The classes among the labels, and each label's number, int64.

    Raises:
        TypeError: not integers, booleans or strings.
        ValueError: another length, more than one axis, masked, negative integers, one class.
    """
    if y is None or isinstance(y, (str, bytes, dict, set)) or hasattr(y, "toarray"):
        raise TypeError(f"y must be an array of labels, got {type(y).__name__}")
    if np.ma.is_masked(y):
        raise ValueError("y must not have masked entries")
    try:
        if isinstance(y, Tensor):
            array = y.detach().cpu().numpy()
        else:  # of a list NumPy would make one kind of what are several: 0 and "a" are strings to it
            array = np.asarray(y, dtype=object if isinstance(y, (list, tuple)) else None)
    except (TypeError, ValueError) as error:
        raise TypeError(f"y must be an array of labels: {error}") from error
    if array.dtype.kind == "O":
        array = _of_objects(array)
    if array.dtype.kind not in "iubUT":
        raise TypeError(f"y must hold integers, booleans or strings, got {array.dtype}")
    if array.ndim != 1 or len(array) != length:
        raise ValueError(f"y must be one label for each of the {length} samples of X_labeled, got shape {array.shape}")
    if array.dtype.kind in "iub":
        array = array.astype(array.dtype.newbyteorder("="))
    values, index = np.unique(array, return_inverse=True)
    if array.dtype.kind == "i" and values[0] < 0:
        raise ValueError(
            f"y must not be negative, got {values[0]}: unlabeled samples are the argument X_unlabeled, not labels of -1"
        )
    if len(values) < 2:
        raise ValueError(f"y must hold at least 2 classes, got {values.tolist()}")
    return Classes(values), torch.from_numpy(index.reshape(-1).astype(np.int64))


def _of_objects(array: np.ndarray) -> np.ndarray:
    """Arrays of objects of one kind, such as strings of a data frame, with a type of their own."""
    for kinds, dtype in (((bool, np.bool_), np.bool_), ((str, np.str_), object), ((int, np.integer), np.int64)):
        if all(isinstance(value, kinds) for value in array.flat):
            return array.astype(str) if dtype is object else array.astype(dtype)
    raise TypeError("y must hold labels of one kind, integers, booleans or strings, got others among them")


def column_names(X: Any) -> np.ndarray | None:
    """The names of a data frame's columns, where all are strings."""
    columns = getattr(X, "columns", None)
    if columns is None or not hasattr(X, "dtypes"):
        return None
    names = np.asarray(columns, dtype=object)
    return names if len(names) and all(isinstance(name, str) for name in names) else None
