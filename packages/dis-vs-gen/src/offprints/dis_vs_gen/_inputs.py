"""What the estimators do with X and y: NumPy or tensors in, classes numbered, the same kind out."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from offprints.shared.estimators import NotFittedError, as_features
from offprints.shared.validation import check_labels


class LearnedAttributes:
    """Says that fit is missing where a learned attribute is read before it."""

    _learned: ClassVar[tuple[str, ...]] = ()

    def __getattr__(self, name: str) -> Any:
        if name in self._learned:
            raise NotFittedError(f"{type(self).__name__} is not fitted yet; {name} comes with fit")
        return object.__getattribute__(self, name)  # raises again what was raised, also by a property


def as_table(X: Any, name: str = "X", *, device: torch.device | None = None) -> Tensor:
    """``as_features`` with the words that scikit-learn has for what is commonly wrong.

    Raises:
        TypeError: sparse, or not of a floating type.
        ValueError: not 2-D, empty, NaN or infinite.
    """
    if hasattr(X, "toarray"):
        raise TypeError(f"{name} must be dense, sparse input is not supported: convert it with toarray()")
    shape = tuple(getattr(X, "shape", ()))
    if len(shape) == 1:
        raise ValueError(
            f"{name} must have 2 dimensions, got shape {shape}. Reshape your data: reshape(1, -1) for one sample"
        )
    if len(shape) == 2 and shape[0] > 0 and shape[1] == 0:
        raise ValueError(f"{name} has 0 feature(s) (shape={shape}) while a minimum of 1 is required.")
    return as_features(X, name, device=device)


def as_labels(y: Any, name: str, length: int, device: torch.device) -> Tensor:
    """Integer labels of any values as int64 ``[length]`` on ``device``.

    Raises:
        TypeError: not of an integer type.
        ValueError: another length or more than one axis.
    """
    if y is None:
        raise ValueError(f"{name} must be given: the estimator requires y to be passed, but the target y is None")
    if not isinstance(y, Tensor):
        array = np.asarray(y)
        if array.dtype.kind not in "iu":
            raise TypeError(f"{name} must have an integer type, got {array.dtype}")
        y = torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))
    labels = check_labels(y, name, length=length)
    if labels.ndim != 1:
        raise ValueError(f"{name} must have 1 dimension, got shape {tuple(labels.shape)}")
    return labels.to(device)


def training_data(X: Any, y: Any) -> tuple[Tensor, Tensor, Tensor]:
    """X ``[n, d]``, the sorted classes ``[K]`` and each sample's class ``[n]`` as an index.

    Raises:
        TypeError, ValueError: as ``as_features`` and ``as_labels``; fewer than two classes.
    """
    features = as_table(X)
    classes, index = torch.unique(as_labels(y, "y", len(features), features.device), return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"y must hold at least 2 classes, got 1 class: {classes.tolist()}")
    return features, classes, index


def check_width(X: Tensor, estimator: Any) -> None:
    """Refuse another number of features than in fit."""
    if X.shape[1] != (expected := estimator.n_features_in_):
        name = type(estimator).__name__
        raise ValueError(f"X has {X.shape[1]} features, but {name} is expecting {expected} features as input")


def row_blocks(X: Tensor) -> tuple[Tensor, ...]:
    """Rows in blocks whose copies in float64 stay small."""
    return X.split(max(1, 2**22 // X.shape[1]))
