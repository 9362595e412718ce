"""What the classifier does with X: tables of arrays, data frames and tensors; pictures for a backbone."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from offprints.shared.estimators import as_features
from offprints.shared.validation import check_tensor

P = ParamSpec("P")
Owner = TypeVar("Owner")
Result = TypeVar("Result")


def all_or_nothing(method: Callable[Concatenate[Owner, P], Result]) -> Callable[Concatenate[Owner, P], Result]:
    """A training method that leaves its object's attributes as they were where it refuses the data.

    What it makes are plain tensors, without a graph, also where inference mode is on.
    """

    @functools.wraps(method)
    def train(self: Owner, /, *args: P.args, **kwargs: P.kwargs) -> Result:
        before = dict(vars(self))
        try:
            with torch.inference_mode(False), torch.no_grad():
                return method(self, *args, **kwargs)
        except Exception:
            vars(self).clear()
            vars(self).update(before)
            raise

    return train


def as_table(X: Any, estimator: Any, *, reset: bool) -> Tensor:
    """X as a floating tensor ``[n, d]`` without a graph.

    Integers and booleans become float32, those of 64 bits float64. What is no tensor goes through scikit-learn's own
    validation, which knows data frames and keeps the names of their columns; read-only memory is not copied.

    Raises:
        TypeError: sparse, or not numbers.
        ValueError: not 2-D, empty, NaN or infinite; another number, other names or another order of columns.
    """
    X = _array_like(X)
    shape = tuple(getattr(X, "shape", ()))
    if len(shape) == 1:
        raise ValueError(
            f"X must have 2 dimensions, got shape {shape}. Reshape your data: reshape(1, -1) for one sample"
        )
    if len(shape) != 2:
        raise ValueError(f"X must have 2 dimensions, got shape {shape}")
    if shape[0] == 0:
        raise ValueError(f"X must not be empty: found 0 sample(s) (shape={shape}), a minimum of 1 is required.")
    if shape[1] == 0:
        raise ValueError(f"X has 0 feature(s) (shape={shape}) while a minimum of 1 is required.")
    if isinstance(X, Tensor):
        table = as_features(_floating(X.detach()), "X")
        check_width(estimator, table.shape[1], reset)
        return table
    return shared_memory(_validated(X, estimator, reset))


def as_inputs(X: Any, estimator: Any, *, reset: bool) -> Tensor:
    """A backbone's input ``[n, ...]``: of any numbers, which it is for the backbone to understand."""
    X = _array_like(X)
    if not isinstance(X, Tensor):
        if np.ma.is_masked(X):
            raise ValueError("X must not have masked entries: fill them in first")
        array = np.asarray(X)
        if array.dtype.kind not in "iufb":
            raise TypeError(f"X must hold numbers, got {array.dtype}")
        X = shared_memory(array.astype(array.dtype.newbyteorder("="), copy=False))
    check_tensor(X, "X", min_ndim=2, floating=False)
    check_width(estimator, X[0].numel(), reset)
    return X.detach()


def check_width(estimator: Any, width: int, reset: bool) -> None:
    """The bookkeeping of scikit-learn's validation for what has no names of columns."""
    if reset:
        estimator.n_features_in_ = width
        vars(estimator).pop("feature_names_in_", None)
    elif width != estimator.n_features_in_:
        name = type(estimator).__name__
        raise ValueError(
            f"X has {width} features, but {name} is expecting {estimator.n_features_in_} features as input"
        )


def _array_like(X: Any) -> Any:
    if hasattr(X, "toarray") or (isinstance(X, Tensor) and X.layout != torch.strided):
        raise TypeError("X must be dense, sparse input is not supported: make it dense")
    if isinstance(X, (list, tuple)):
        try:
            return np.asarray(X)
        except ValueError:
            raise ValueError("X must have rows of equal length") from None
    if X is None or isinstance(X, (str, bytes, set, bool, int, float, complex, np.generic, Mapping)):
        raise TypeError(f"X must be an array or a tensor, got {type(X).__name__}")
    return X


def _floating(X: Tensor) -> Tensor:
    if X.is_floating_point() or X.is_complex():
        return X
    wide = X.dtype in (torch.int64, torch.uint64)
    return X.to(torch.float64 if wide else torch.float32)


def _validated(X: Any, estimator: Any, reset: bool) -> np.ndarray:
    from sklearn.utils.validation import validate_data

    if isinstance(X, np.ma.MaskedArray):
        if np.ma.is_masked(X):
            raise ValueError("X must not have masked entries: fill them in first")
        X = X.data
    dtypes: Any = [np.float64, np.float32, np.float16]
    given = getattr(X, "dtype", None)
    if isinstance(given, np.dtype):
        if given.kind in "iub" and given.itemsize < 8:
            dtypes = np.float32
        elif given.kind == "f" and not given.isnative and given.itemsize <= 8:
            X = X.astype(given.newbyteorder("="))
    try:
        return np.asarray(validate_data(estimator, X, reset=reset, dtype=dtypes))
    except (TypeError, ValueError) as error:
        if "X" in str(error):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"X: {error}") from error


def shared_memory(array: np.ndarray) -> Tensor:
    """The array's memory as a tensor, read-only memory too: nothing here writes to its input."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(array))
