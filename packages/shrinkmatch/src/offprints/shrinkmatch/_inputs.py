"""What the classifier takes: feature tables or images, and labels of which -1 marks those that are not known."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from offprints.shared.estimators import as_features
from offprints.shared.labels import Classes, as_labels
from offprints.shared.tables import as_table, is_sparse

LARGEST = 1e34  # float32 layers hold sums of such features
UNLABELED = -1


def as_samples(estimator: Any, X: Any, *, device: torch.device, reset: bool = False) -> Tensor:
    """X as float32 ``(N, D)`` or ``(N, C, H, W)`` on the device, without a graph; it may share X's memory.

    With ``reset`` the estimator learns the shape of a sample and the names of columns; without, X must have them.

    Raises:
        TypeError: X does not hold numbers, or is sparse.
        ValueError: X has another number of axes, is empty, masked, NaN or infinite, too large for float32, or has
            samples of another shape.
    """
    if isinstance(X, (list, tuple)):
        try:
            X = np.asarray(X)
        except ValueError:
            raise ValueError("X must have rows of equal length") from None
    shape = tuple(getattr(X, "shape", ()))
    if len(shape) not in (0, 1, 2, 4):
        raise ValueError(f"X must have 2 dimensions (features) or 4 (images), got shape {shape}")
    if len(shape) == 4:
        samples = _images(X)
        if reset:
            estimator.n_features_in_ = int(np.prod(shape[1:]))
            vars(estimator).pop("feature_names_in_", None)
    else:
        of_table = reset or len(estimator._shape) == 1
        samples = as_table(X, estimator=estimator if of_table else None, reset=reset)
    if reset:
        estimator._shape = tuple(samples.shape[1:])
    elif tuple(samples.shape[1:]) != estimator._shape:
        raise ValueError(
            f"X has samples of shape {tuple(samples.shape[1:])}, but {type(estimator).__name__} is expecting"
            f" {estimator._shape}"
        )
    low, high = (float(x) for x in torch.aminmax(samples if samples.element_size() > 2 else samples.float()))
    if max(-low, high) > LARGEST:
        raise ValueError(f"X must lie within {LARGEST:g} of 0, got {low if -low > high else high:g}")
    return samples.to(device=device, dtype=torch.float32)


def _images(X: Any) -> Tensor:
    """Images of integers, as files have them, are in float32 where it holds all of them."""
    if isinstance(X, Tensor):
        if not X.is_floating_point() and not X.is_complex():
            X = X.to(torch.float32 if X.element_size() <= 2 or X.device.type == "mps" else torch.float64)
        return as_features(X.detach(), "X", ndim=4)
    array = X if isinstance(X, np.ndarray) else np.asarray(X)
    if array.dtype.kind in "iub":
        array = array.astype(np.float32 if array.itemsize <= 2 else np.float64)
    return as_features(array, "X", ndim=4)


def as_classes(y: Any, length: int) -> tuple[Classes, Tensor]:
    """The classes among the labels, and the number of each sample's class, int64, -1 for unlabeled samples.

    Raises:
        TypeError, ValueError: as `known_labels`; fewer than two classes.
    """
    labels, known = known_labels(y, length)
    classes, numbers = Classes.of(labels)
    if len(classes) < 2:
        told = "no labeled sample" if len(classes) == 0 else f"1 class: {classes.values.tolist()}"
        raise ValueError(f"y must hold at least 2 classes beside -1, which marks unlabeled samples, got {told}")
    codes = torch.full((length,), UNLABELED, dtype=torch.int64, device="cpu")
    codes[torch.from_numpy(known)] = numbers
    return classes, codes


def known_labels(y: Any, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The labels that are known, and a mask ``(length,)`` of the samples that have one.

    Labels are what `as_labels` takes; -1 marks a sample that has none, in text an object that is the number -1.

    Raises:
        TypeError: something else, or numbers and text mixed.
        ValueError: None, another length, more than one axis, missing values, fractions.
    """
    try:
        text = _text(y)
    except ValueError:
        raise ValueError("y must have rows of equal length") from None
    if text is None:
        labels = as_labels(y, "y", length)
        known = labels != UNLABELED if labels.dtype.kind in "iuf" else np.ones(length, bool)
        labels = labels[known]
    else:
        if len(text) != length:
            raise ValueError(f"y must have length {length}, got {len(text)}")
        known = np.array([not _marks(value) for value in text.tolist()], bool)
        labels = text[known]
        if kinds := {type(value).__name__ for value in labels.tolist() if not isinstance(value, str)}:
            raise TypeError(f"y must hold labels of one kind, text or the number -1, got also {', '.join(kinds)}")
    if labels.dtype.kind in "UO" and (labels == str(UNLABELED)).any():
        raise ValueError("y holds the text '-1': mark unlabeled samples by the number -1 in an array of objects")
    return labels, known


def _text(y: Any) -> np.ndarray | None:
    """Labels that are text and maybe the number -1, ``(N,)`` objects; None for other labels."""
    if isinstance(y, Tensor) or is_sparse(y) or np.ma.is_masked(y):
        return None
    if isinstance(y, (list, tuple)) and any(isinstance(value, str) for value in y):
        objects = np.empty(len(y), dtype=object)  # asarray would write the number -1 as text
        objects[:] = list(y)
    else:
        objects = np.asarray(y)
    if objects.dtype.kind != "O" or objects.ndim != 1:
        return None
    return objects if any(isinstance(value, str) for value in objects.tolist()) else None


def _marks(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and value == UNLABELED
