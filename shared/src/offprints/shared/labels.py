"""Class labels of any kind as numbers 0..K-1, and back in the kind and type in which they came."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offprints.shared.tables import is_sparse


def as_labels(y: Any, name: str, length: int) -> np.ndarray:
    """Labels as a one-dimensional array: integers of any type, booleans, strings, or floats with integral values.

    Raises:
        TypeError: something else.
        ValueError: None, another length, more than one axis, missing or continuous values.

    Example:
        >>> as_labels(torch.tensor([3, 5]), "y", 2)
        array([3, 5])
        >>> as_labels([0.5, 1.0], "y", 2)
        Traceback (most recent call last):
        ValueError: Unknown label type: y must hold classes, got continuous values as 0.5
    """
    if y is None:
        raise ValueError(f"{name} must be given: the estimator requires y to be passed, but the target y is None")
    if is_sparse(y):
        raise TypeError(f"{name} must be dense, sparse labels are not supported")
    if isinstance(y, Tensor):
        held = y.detach().cpu()
        array = (held.float() if held.dtype == torch.bfloat16 else held).numpy()
    else:
        if np.ma.is_masked(y):
            raise ValueError(f"{name} must not have masked entries")
        array = _plain(np.asarray(y), name)
        if array.ndim == 2 and array.shape[1] == 1:
            from sklearn.exceptions import DataConversionWarning

            message = f"A column-vector {name} was passed when a 1d array was expected; its column is taken"
            warnings.warn(message, DataConversionWarning, stacklevel=4)
            array = array[:, 0]
    if array.dtype.kind not in "iubfUSO":
        raise TypeError(f"{name} must hold integers, strings or booleans, got {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"{name} must have 1 dimension, got shape {array.shape}")
    if len(array) != length:
        raise ValueError(f"{name} must have length {length}, got {len(array)}")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite: Input {name} contains NaN or infinity")
        if not (array == np.rint(array)).all():
            raise ValueError(f"Unknown label type: {name} must hold classes, got continuous values as {array[0]}")
    # torch takes the byte order of the machine alone.
    return array.astype(array.dtype.newbyteorder("=")) if array.dtype.kind in "iuf" else array


def _plain(array: np.ndarray, name: str) -> np.ndarray:
    """Arrays of objects with a type of their own: those of data frames with nullable columns, lists of strings."""
    if array.dtype.kind == "T":  # strings of varying width
        return array.astype(object)
    if array.dtype.kind != "O":
        return array
    kinds = {type(value) for value in array.ravel().tolist()}
    if kinds <= {str, np.str_}:
        return array  # stays an array of objects, as scikit-learn keeps it
    if not kinds or any(not issubclass(kind, (int, float, np.number, np.bool_)) for kind in kinds):
        told = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise TypeError(f"{name} must hold labels of one kind (argument must be a string or a number), got {told}")
    return np.array(array.tolist())


def training_classes(y: Any, length: int) -> tuple[Classes, Tensor]:
    """The classes among the labels of training data, and each label's number, int64.

    Raises:
        TypeError, ValueError: as `as_labels`; fewer than two classes.

    Example:
        >>> classes, numbers = training_classes(["cat", "dog", "cat"], 3)
        >>> classes.values.tolist(), numbers
        (['cat', 'dog'], tensor([0, 1, 0]))
    """
    classes, index = Classes.of(as_labels(y, "y", length))
    if len(classes) < 2:
        raise ValueError(f"y must hold at least 2 classes, got 1 class: {classes.values.tolist()}")
    return classes, index


class Classes:
    """The sorted labels of K classes, in their own type.

    Args:
        values: ``[K]``, sorted and distinct.

    Example:
        >>> classes = Classes(np.array([3, 5]))
        >>> classes.shown(torch.tensor([1, 0]), torch.zeros(2, 1))
        tensor([5, 3])
        >>> classes.numbers(np.array([5, 5]), "y")
        tensor([1, 1])
    """

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    @staticmethod
    def of(labels: np.ndarray) -> tuple[Classes, Tensor]:
        """The classes among the labels, and each label's number, int64."""
        values, index = np.unique(labels, return_inverse=True)
        return Classes(values), torch.from_numpy(index.reshape(-1).astype(np.int64))

    def __len__(self) -> int:
        return len(self.values)

    def numbers(self, labels: np.ndarray, name: str) -> Tensor:
        """The number of each label, int64.

        Raises:
            ValueError: a label that is none of the classes.
        """
        numbers, known = self.find(labels)
        if not known.all():
            unseen = labels[~known][0]
            raise ValueError(f"{name} must hold labels among the classes {self.values.tolist()}, got {unseen}")
        return torch.from_numpy(numbers)

    def find(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The number of each label, int64, and whether it is one of the classes."""
        mine = self.values.dtype.kind in "iubf"
        if mine != (labels.dtype.kind in "iubf"):
            return np.zeros(len(labels), np.int64), np.zeros(len(labels), bool)
        if mine and self.values.dtype != labels.dtype:  # unsigned and signed labels have no common integer type
            labels = labels.astype(object)
            lookup = {value: number for number, value in enumerate(self.values.tolist())}
            found = np.array([lookup.get(value, -1) for value in labels.tolist()], np.int64)
            return np.where(found < 0, 0, found), found >= 0
        numbers = np.searchsorted(self.values, labels).clip(max=len(self.values) - 1).astype(np.int64)
        return numbers, np.asarray(self.values[numbers] == labels, bool)

    def union(self, other: Classes) -> Classes:
        """The classes of both."""
        if (self.values.dtype.kind in "iubf") != (other.values.dtype.kind in "iubf"):
            raise TypeError("other must have labels of the same kind, got strings and numbers")
        return Classes(np.union1d(self.values, other.values))

    def shown(self, index: Tensor, X: Any) -> Any:
        """The labels of these numbers: a tensor on X's device where X is one and the labels are numbers."""
        labels = self.values[index.cpu().numpy()]
        if isinstance(X, Tensor) and labels.dtype.kind in "iubf":
            return torch.from_numpy(labels).to(X.device)
        return labels
