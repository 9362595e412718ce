"""What the classifier takes: samples and labels of many kinds, and labels back in the kind in which they came."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offprints.shared.estimators import as_features

LARGEST = 1e34  # float32 layers hold sums of such features
UNLABELED = -1


# ---- samples ---------------------------------------------------------------------------------------------------------


def as_samples(estimator: Any, X: Any, *, device: torch.device, reset: bool = False) -> Tensor:
    """X as float32 ``(N, D)`` or ``(N, C, H, W)`` on the device, without a graph.

    With ``reset`` the estimator learns the shape of a sample and the names of columns; without, X must have them.

    Raises:
        TypeError: X does not hold numbers, or is sparse.
        ValueError: X has another number of axes, is empty, masked, NaN or infinite, too large for float32, or has
            samples of another shape.
    """
    if hasattr(X, "toarray"):
        raise TypeError("X must be dense, sparse input is not supported: convert it with toarray()")
    if X is None or isinstance(X, (str, bytes, set, Mapping, bool, int, float, complex, np.generic)):
        raise TypeError(f"X must be an array of numbers, got {type(X).__name__}")
    if isinstance(X, np.ma.MaskedArray):
        if np.ma.is_masked(X):
            raise ValueError("X must not have masked entries: fill them in first")
        X = X.data
    if isinstance(X, np.ndarray) and X.dtype.kind in "mM":
        raise TypeError(f"X must hold numbers, got {X.dtype}")
    axes = X.ndim if isinstance(X, Tensor) else len(getattr(X, "shape", ())) or None
    if axes is not None and axes not in (2, 4):
        raise ValueError(
            f"X must have 2 dimensions (features) or 4 (images), got shape {tuple(X.shape)}. Reshape your data"
        )
    read = _of_numbers if isinstance(X, Tensor) or axes == 4 else _of_table
    samples = read(estimator, X, reset)
    largest = float(samples.abs().max())
    if largest > LARGEST:
        raise ValueError(f"X must lie within {LARGEST:g} of 0, got {largest:g}")
    return samples.to(device=device, dtype=torch.float32)


def _of_numbers(estimator: Any, X: Any, reset: bool) -> Tensor:
    """A tensor or an array of images."""
    if not isinstance(X, Tensor):
        array = np.asarray(X)
        if array.dtype.kind in "iub":
            array = array.astype(np.float64)
        X = as_features(array, "X", ndim=4)
    elif not X.is_floating_point() and not X.is_complex() and X.layout == torch.strided:
        # An unsigned type of 64 bits has no conversion of its own on every device.
        X = X.to(torch.float32 if X.element_size() < 4 else torch.float64)
    samples = as_features(X.detach(), "X", ndim=X.ndim)
    shape = tuple(samples.shape[1:])
    if reset:
        estimator.n_features_in_ = int(np.prod(shape))
        estimator._shape = shape
        estimator.__dict__.pop("feature_names_in_", None)
    else:
        _check_shape(estimator, shape)
    return samples


def _check_shape(estimator: Any, shape: tuple[int, ...]) -> None:
    if shape != estimator._shape:
        told = f"{shape[0]} features" if len(shape) == 1 else f"samples of shape {shape}"
        wanted = estimator._shape
        expected = f"{wanted[0]} features" if len(wanted) == 1 else f"samples of shape {wanted}"
        raise ValueError(f"X has {told}, but {type(estimator).__name__} is expecting {expected} as input")


def _of_table(estimator: Any, X: Any, reset: bool) -> Tensor:
    """What scikit-learn makes of it: it knows data frames, and keeps the names of their columns."""
    from sklearn.utils.validation import validate_data

    if not reset and len(estimator._shape) != 1:
        X = np.asarray(X)
        _check_shape(estimator, X.shape[1:])
    try:
        array = validate_data(estimator, X, reset=reset, dtype=[np.float64, np.float32])
    except (TypeError, ValueError) as error:
        if "X" in str(error):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"X: {error}") from error
    if reset:
        estimator._shape = (array.shape[1],)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


# ---- labels ----------------------------------------------------------------------------------------------------------


def as_classes(y: Any, length: int) -> tuple[np.ndarray, Tensor]:
    """The sorted classes among the labels, and the number of each sample's class, int64, -1 for unlabeled samples.

    Labels are integers of any type, booleans, floats with whole values, or text; -1 marks a sample that has none, in
    text an object that is the number -1.

    Raises:
        TypeError: something else, or numbers and text mixed.
        ValueError: None, another length, more than one axis, missing values, fractions; fewer than two classes.
    """
    if y is None:
        raise ValueError("y must have -1 for unlabeled samples: requires y to be passed, but the target y is None")
    if hasattr(y, "toarray"):
        raise TypeError("y must be dense, sparse labels are not supported")
    labels = _as_array(y)
    if labels.ndim == 2 and labels.shape[1] == 1:
        import warnings

        from sklearn.exceptions import DataConversionWarning

        message = "A column-vector y was passed when a 1d array was expected; its column is taken"
        warnings.warn(message, DataConversionWarning, stacklevel=3)
        labels = labels[:, 0]
    if labels.dtype.kind not in "iubfUO":
        raise TypeError(f"y must hold integers, text or booleans, got {labels.dtype}")
    if labels.ndim != 1:
        raise ValueError(f"y must have 1 dimension, got shape {labels.shape}")
    if len(labels) != length:
        raise ValueError(f"y must have length {length}, as many labels as X has samples, got {len(labels)}")
    if labels.dtype.kind == "f":
        if not np.isfinite(labels).all():
            raise ValueError("y must be finite: Input y contains NaN or infinity")
        if not (labels == np.rint(labels)).all():
            raise ValueError(f"Unknown label type: y must hold classes, got continuous values as {labels[0]}")
    if labels.dtype.kind == "b":
        labeled = np.ones(len(labels), bool)
    elif labels.dtype.kind == "O":
        labeled = np.array([isinstance(value, str) or value != UNLABELED for value in labels.tolist()])
    elif labels.dtype.kind == "U":
        if (labels == str(UNLABELED)).any():
            raise ValueError("y holds the text '-1': mark unlabeled samples by the number -1 in an array of objects")
        labeled = np.ones(len(labels), bool)
    else:
        labeled = labels != UNLABELED
    classes, numbers = np.unique(labels[labeled], return_inverse=True)
    if len(classes) < 2:
        count = "no labeled sample" if len(classes) == 0 else f"1 class: {classes.tolist()}"
        raise ValueError(f"y must hold at least 2 classes beside -1, which marks unlabeled samples, got {count}")
    codes = np.full(length, UNLABELED, np.int64)
    codes[labeled] = numbers.reshape(-1)
    return classes, torch.from_numpy(codes)


def _as_array(y: Any) -> np.ndarray:
    if isinstance(y, Tensor):
        if y.layout != torch.strided:
            raise TypeError("y must be dense, got a sparse tensor")
        held = y.detach().cpu()
        return (held.float() if held.dtype == torch.bfloat16 else held).numpy()
    if np.ma.is_masked(y):
        raise ValueError("y must not have masked entries")
    if isinstance(y, np.ma.MaskedArray):
        y = y.data
    if isinstance(y, (list, tuple)) and any(isinstance(value, str) for value in y):
        labels = np.empty(len(y), dtype=object)  # asarray would write the number -1 as text
        labels[:] = list(y)
    else:
        try:
            labels = np.asarray(y)
        except ValueError:
            raise ValueError("y must have rows of equal length") from None
    if labels.dtype.kind == "T":  # text of varying width
        labels = labels.astype(object)
    return _of_objects(labels) if labels.dtype.kind == "O" else labels


def _of_objects(labels: np.ndarray) -> np.ndarray:
    """Arrays of objects with a type of their own: nullable columns of data frames, text with the number -1."""
    values = labels.ravel().tolist()
    text = [value for value in values if isinstance(value, str)]
    others = [value for value in values if not isinstance(value, str)]
    if all(isinstance(value, (bool, int, float, np.generic)) for value in others):
        if not text:
            return np.array(values).reshape(labels.shape)
        if all(value == UNLABELED for value in others):
            if str(UNLABELED) in text:
                raise ValueError("y holds the text '-1': mark unlabeled samples by the number -1")
            return labels
    told = ", ".join(sorted({type(value).__name__ for value in values}))
    raise TypeError(f"y must hold labels of one kind (argument must be a string or a number), got {told}")


def shown(classes: np.ndarray, numbers: Tensor, X: Any) -> Any:
    """The labels of these numbers: a tensor on X's device where X is one and the labels are numbers."""
    labels = classes[numbers.cpu().numpy()]
    if isinstance(X, Tensor) and labels.dtype.kind in "iubf":
        return torch.from_numpy(labels.astype(labels.dtype.newbyteorder("="))).to(X.device)
    return labels
