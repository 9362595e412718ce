"""Class labels of a stream: integers or strings, of which new ones may come at any time and keep the others' type."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from offprints.shared import labels as shared
from offprints.shared.tables import is_sparse


def as_labels(y: Any, name: str, length: int | None = None) -> np.ndarray:
    """Labels as a one-dimensional array of integers of any type, or of strings.

    Raises:
        TypeError: something else; floating and boolean labels too.
        ValueError: None, empty, another length, more than one axis, masked entries.
    """
    if isinstance(y, (str, bytes, dict, set)) or not (
        y is None or hasattr(y, "__len__") or hasattr(y, "__array__") or is_sparse(y)
    ):
        raise TypeError(f"{name} must be an array or a tensor of labels, got {type(y).__name__}")
    if isinstance(y, Tensor):
        if y.layout != torch.strided:
            raise TypeError(f"{name} must be dense, sparse labels are not supported")
        shape, kind = tuple(y.shape), "f" if y.is_floating_point() else "b" if y.dtype == torch.bool else ""
    elif y is None or is_sparse(y):
        shape, kind = (1,), ""  # refused below
    else:
        try:
            array = np.asarray(y)
        except ValueError:
            raise ValueError(f"{name} must have 1 dimension, got rows of different lengths") from None
        shape, kind = array.shape, array.dtype.kind
    if 0 in shape:
        raise ValueError(f"{name} must not be empty, got shape {shape}")
    if kind not in ("f", "b"):
        if len(shape) != 1:
            raise ValueError(f"{name} must have 1 dimension, got shape {shape}")
        labels = shared.as_labels(y, name, shape[0] if length is None else length)
        kind = labels.dtype.kind
    if kind in ("f", "b", "S"):
        raise TypeError(f"{name} must hold integers or strings, got {getattr(y, 'dtype', type(y).__name__)}")
    return labels


def found_labels(labels: np.ndarray, classes: Any) -> np.ndarray:
    """The sorted labels of a batch; where classes are declared, theirs, which must hold those of the batch."""
    found = np.unique(labels)
    if classes is None:
        return found
    given = list(classes) if isinstance(classes, (set, frozenset, range)) else classes
    declared = np.unique(as_labels(given, "classes"))
    absent = (Classes(declared).places(found) < 0).numpy()
    if absent.any():
        raise ValueError(f"classes must hold all labels of y, they lack {found[absent].tolist()}")
    return declared


class Classes(shared.Classes):
    """The sorted labels of the K classes so far."""

    def places(self, labels: np.ndarray) -> Tensor:
        """The number of each label, int64; -1 for a label that is none of the classes."""
        if not len(self):
            return torch.full((len(labels),), -1, device="cpu")
        numbers, known = self.find(labels)
        return torch.from_numpy(np.where(known, numbers, -1))

    def joined(self, values: np.ndarray, name: str) -> Classes:
        """The classes with these sorted labels too, in their own type where it holds them all.

        Raises:
            TypeError: strings and numbers.
            ValueError: integers that no single type holds.
        """
        if not len(self):
            return Classes(values)
        numeric = self.values.dtype.kind in "iu"
        if numeric != (values.dtype.kind in "iu"):
            raise TypeError(f"{name} must hold labels of the same kind as before, got strings and numbers")
        if bool((self.places(values) >= 0).all()):
            return self
        every = sorted({*self.values.tolist(), *values.tolist()})
        if not numeric:
            plain = self.values.dtype.kind == "O" or values.dtype.kind == "O"
            return Classes(np.array(every, dtype=object if plain else None))
        kind = np.result_type(self.values.dtype, values.dtype)
        if kind.kind not in "iu":  # of int64 and uint64
            kind = np.dtype(np.int64 if every[-1] < 2**63 else np.uint64)
        if every[0] < np.iinfo(kind).min:
            raise ValueError(f"{name} must hold labels that one integer type can hold, got {every[0]} and {every[-1]}")
        return Classes(np.array(every, dtype=kind))
