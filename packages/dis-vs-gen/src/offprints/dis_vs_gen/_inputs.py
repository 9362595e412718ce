"""What the estimators do with X: tables of arrays, data frames, sparse matrices and tensors, rows in blocks."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from offprints.shared.estimators import as_features

BLOCK = 2**22  # entries of a block of rows
P = ParamSpec("P")
Owner = TypeVar("Owner")
Result = TypeVar("Result")


class LearnedAttributes:
    """Says that fit is missing where a learned attribute is read before it; keeps tensors out of stored states."""

    _learned: ClassVar[tuple[str, ...]] = ()
    n_features_in_: int

    def __getattr__(self, name: str) -> Any:
        if name in self._learned:
            from offprints.shared import estimators

            raise estimators.NotFittedError(f"{type(self).__name__} is not fitted yet; {name} comes with fit")
        return object.__getattribute__(self, name)  # raises again what was raised, also by a property

    def __getstate__(self) -> dict[str, Any]:
        """Plain values and arrays alone, so that pickle, joblib and skops store and load it."""
        return {name: _stored(value) for name, value in vars(self).items()}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update({name: _restored(value) for name, value in state.items()})


def all_or_nothing(
    method: Callable[Concatenate[Owner, P], Result],
) -> Callable[Concatenate[Owner, P], Result]:
    """A training method that leaves its object as it was where it refuses the data."""

    @functools.wraps(method)
    def train(self: Owner, /, *args: P.args, **kwargs: P.kwargs) -> Result:
        before = dict(vars(self))
        try:
            return method(self, *args, **kwargs)
        except Exception:
            vars(self).clear()
            vars(self).update(before)
            raise

    return train


def _stored(value: Any) -> Any:
    if isinstance(value, Tensor):
        held = value.detach().cpu()
        half = held.dtype == torch.bfloat16  # NumPy has no such type
        return {
            "tensor": (held.float() if half else held).numpy(),
            "dtype": str(held.dtype),
            "device": str(value.device),
        }
    return value


def _restored(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"tensor", "dtype", "device"}:
        dtype = getattr(torch, str(value["dtype"]).removeprefix("torch."))
        there = torch.device(value["device"])
        device = there if there.type != "cuda" or torch.cuda.is_available() else torch.device("cpu")
        return torch.from_numpy(np.array(value["tensor"])).to(device=device, dtype=dtype)
    return value


def is_sparse(X: Any) -> bool:
    """Whether X is one of SciPy's sparse matrices or arrays."""
    return hasattr(X, "toarray") and hasattr(X, "nnz")


def as_table(
    X: Any,
    name: str = "X",
    *,
    estimator: Any = None,
    reset: bool = False,
    device: torch.device | None = None,
    sparse: bool = False,
) -> Any:
    """X as a floating tensor ``[n, d]`` without a graph, or as a CSR matrix where ``sparse`` allows one.

    Integers and booleans become float32, those of 64 bits float64. What is no tensor goes through scikit-learn's own
    validation, which knows data frames and keeps the names of their columns; read-only memory is not copied.

    Args:
        X: The data.
        name: Name of the argument.
        estimator: What ``n_features_in_`` and ``feature_names_in_`` belong to; None checks neither.
        reset: Whether they are learned here (in fit) or compared.
        device: Where the tensor goes; default: where it is.
        sparse: Whether a sparse matrix is taken.

    Raises:
        TypeError: sparse where that is not supported, or not numbers.
        ValueError: not 2-D, empty, NaN or infinite; another number, other names or another order of columns.
    """
    if is_sparse(X) and not sparse:
        raise TypeError(f"{name} must be dense, sparse input is not supported: convert it with toarray()")
    if isinstance(X, (list, tuple)):
        try:
            X = np.asarray(X)
        except ValueError:
            raise ValueError(f"{name} must have rows of equal length") from None
    if X is None or isinstance(X, (str, bytes, set, bool, int, float, complex, np.generic)):
        raise TypeError(f"{name} must be a table of numbers, got {type(X).__name__}")
    shape = tuple(getattr(X, "shape", ()))
    if len(shape) == 1:
        raise ValueError(
            f"{name} must have 2 dimensions, got shape {shape}. Reshape your data: reshape(1, -1) for one sample"
        )
    if len(shape) > 2:
        raise ValueError(f"{name} must have 2 dimensions, got shape {shape}")
    if len(shape) == 2 and shape[0] == 0:
        raise ValueError(f"{name} must not be empty: found 0 sample(s) (shape={shape}), a minimum of 1 is required.")
    if len(shape) == 2 and shape[1] == 0:
        raise ValueError(f"{name} has 0 feature(s) (shape={shape}) while a minimum of 1 is required.")
    if isinstance(X, Tensor):
        if not X.is_floating_point() and not X.is_complex():
            X = X.to(torch.float64 if X.dtype == torch.int64 else torch.float32)
        table = as_features(X.detach(), name, device=device)
        if estimator is not None:
            _check_width(estimator, table.shape[1], reset)
        return table
    array = _validated(X, name, estimator, reset)
    if is_sparse(array):
        return array
    return shared_memory(array).to(device=device)


def _check_width(estimator: Any, width: int, reset: bool) -> None:
    """The same bookkeeping for tensors, which have no names of columns."""
    if reset:
        estimator.n_features_in_ = width
        vars(estimator).pop("feature_names_in_", None)
    elif width != estimator.n_features_in_:
        name = type(estimator).__name__
        raise ValueError(
            f"X has {width} features, but {name} is expecting {estimator.n_features_in_} features as input"
        )


def _validated(X: Any, name: str, estimator: Any, reset: bool) -> Any:
    from sklearn.utils.validation import check_array, validate_data

    if isinstance(X, Mapping) and not is_sparse(X):
        raise TypeError(f"{name} must be a table of numbers, got {type(X).__name__}")
    if isinstance(X, np.ma.MaskedArray):
        if np.ma.is_masked(X):
            raise ValueError(f"{name} must not have masked entries: fill them in first")
        X = X.data
    dtypes: Any = [np.float64, np.float32, np.float16]
    given = getattr(X, "dtype", None)
    if isinstance(given, np.dtype):
        if given.kind in "iub" and given.itemsize < 8:
            dtypes = np.float32
        elif given.kind == "f" and not given.isnative and given.itemsize <= 8:
            X = X.astype(given.newbyteorder("="))
    options: dict[str, Any] = {"dtype": dtypes, "accept_sparse": "csr"}
    try:
        if estimator is None:
            return check_array(X, input_name=name, **options)
        return validate_data(estimator, X, reset=reset, **options)
    except (TypeError, ValueError) as error:
        if name in str(error):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name}: {error}") from error


def shared_memory(array: np.ndarray) -> Tensor:
    """The array's memory as a tensor, read-only memory too: nothing here writes to its input."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(array))


def row_blocks(X: Any) -> Iterator[Tensor]:
    """Dense rows in blocks whose copies in float64 stay small; also of a CSR matrix."""
    rows = max(1, BLOCK // X.shape[1])
    if isinstance(X, Tensor):
        yield from X.split(rows)
        return
    for start in range(0, X.shape[0], rows):
        yield torch.from_numpy(X[start : start + rows].toarray())


def as_weights(sample_weight: Any, length: int, device: torch.device) -> Tensor | None:
    """Sample weights as float64 ``[length]``; a single number weighs all samples alike.

    Raises:
        TypeError: not numbers.
        ValueError: another shape, negative, NaN or infinite, or all zero.
    """
    if sample_weight is None:
        return None
    if isinstance(sample_weight, Tensor):
        weights = sample_weight.detach().to(device="cpu", dtype=torch.float64)
    else:
        array = np.asarray(sample_weight)
        if array.dtype.kind == "O":
            array = np.array(array.tolist())
        if array.dtype.kind not in "iufb":
            raise TypeError(f"sample_weight must hold numbers, got {array.dtype}")
        weights = torch.from_numpy(array.astype(np.float64))
    if weights.ndim == 0:
        weights = weights.expand(length)
    if weights.ndim != 1:
        raise ValueError(f"sample_weight must be 1D array or scalar, got shape {tuple(weights.shape)}")
    if len(weights) != length:
        raise ValueError(f"sample_weight must have length {length}, got {len(weights)}")
    if not bool(weights.isfinite().all()) or bool((weights < 0).any()):
        raise ValueError(f"sample_weight must be finite and not negative, got {weights.min().item()}")
    if not bool((weights > 0).any()):
        raise ValueError("sample_weight must be positive for a sample, got zeros alone")
    return weights.to(device)
