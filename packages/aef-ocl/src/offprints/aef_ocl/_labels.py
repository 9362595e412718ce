"""Class labels, integers or strings, as numbers 0..K-1, and back in the kind and type in which they came."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_labels(y: Any, name: str, length: int | None = None) -> np.ndarray:
    """Labels as a one-dimensional array of integers of any type, or of strings.

    Raises:
        TypeError: something else; floating and boolean labels too.
        ValueError: None, empty, another length, more than one axis, masked entries.
    """
    if y is None:
        raise ValueError(f"{name} must be given: the estimator requires y to be passed, but the target y is None")
    if hasattr(y, "toarray") or (isinstance(y, Tensor) and y.layout != torch.strided):
        raise TypeError(f"{name} must be dense, sparse labels are not supported")
    if isinstance(y, (str, bytes, dict, set)) or not (hasattr(y, "__len__") or hasattr(y, "__array__")):
        raise TypeError(f"{name} must be an array or a tensor of labels, got {type(y).__name__}")
    if isinstance(y, Tensor):
        if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
            raise TypeError(f"{name} must hold integers or strings, got {y.dtype}")
        array = y.detach().cpu().numpy()
    else:
        if np.ma.is_masked(y):
            raise ValueError(f"{name} must not have masked entries")
        try:
            array = _plain(np.asarray(y), name)
        except ValueError:
            raise ValueError(f"{name} must have 1 dimension, got rows of different lengths") from None
    if array.size == 0:
        raise ValueError(f"{name} must not be empty, got shape {array.shape}")
    if array.dtype.kind not in "iuUO":
        raise TypeError(f"{name} must hold integers or strings, got {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"{name} must have 1 dimension, got shape {array.shape}")
    if length is not None and len(array) != length:
        raise ValueError(f"{name} must have length {length}, got {len(array)}")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _plain(array: np.ndarray, name: str) -> np.ndarray:
    """Arrays of objects with a type of their own: nullable columns of data frames, lists of strings."""
    if array.dtype.kind == "T":  # strings of varying width
        return array.astype(object)
    if array.dtype.kind != "O":
        return array
    kinds = {type(value) for value in array.ravel().tolist()}
    if kinds and kinds <= {str, np.str_}:
        return array
    if not kinds or any(kind is bool or not issubclass(kind, (int, np.integer)) for kind in kinds):
        told = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise TypeError(f"{name} must hold labels of one kind (argument must be a string or a number), got {told}")
    return np.array(array.tolist())


class Classes:
    """The sorted labels of K classes, in their own type."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    @staticmethod
    def of(labels: np.ndarray) -> Classes:
        """The classes among the labels."""
        return Classes(np.unique(labels))

    def __len__(self) -> int:
        return len(self.values)

    @property
    def numeric(self) -> bool:
        """Whether labels are integers."""
        return self.values.dtype.kind in "iu"

    def find(self, labels: np.ndarray) -> np.ndarray:
        """The number of each label, int64; -1 for a label that is none of the classes."""
        if self.numeric != (labels.dtype.kind in "iu"):
            return np.full(len(labels), -1, np.int64)
        lookup = {value: number for number, value in enumerate(self.values.tolist())}  # uint64 beside int64 too
        present, inverse = np.unique(labels, return_inverse=True)
        numbers = np.array([lookup.get(value, -1) for value in present.tolist()], np.int64)
        return numbers[inverse.reshape(-1)]

    def union(self, other: Classes, name: str) -> Classes:
        """The classes of both, in the type of the first where it holds them all.

        Raises:
            TypeError: strings and numbers.
        """
        if self.numeric != other.numeric:
            raise TypeError(f"{name} must hold labels of the same kind as before, got strings and numbers")
        if (self.find(other.values) >= 0).all():
            return self
        values = sorted({*self.values.tolist(), *other.values.tolist()})
        if not self.numeric:
            plain = self.values.dtype.kind == "O" or other.values.dtype.kind == "O"
            return Classes(np.array(values, dtype=object if plain else None))
        kind = np.result_type(self.values.dtype, other.values.dtype)
        if kind.kind not in "iu":  # of int64 and uint64
            kind = np.dtype(np.int64 if values[-1] < 2**63 else np.uint64)
        if values[0] < np.iinfo(kind).min:
            raise ValueError(
                f"{name} must hold labels that one integer type can hold, got {values[0]} and {values[-1]}"
            )
        return Classes(np.array(values, dtype=kind))

    def shown(self, numbers: Tensor, X: Any) -> Any:
        """The labels of these numbers: a tensor on X's device where X is one and the labels are integers."""
        labels = self.values[numbers.cpu().numpy()]
        if isinstance(X, Tensor) and self.numeric:
            return torch.from_numpy(labels).to(X.device)
        return labels
