"""Tables of numbers as users bring them: arrays, lists, data frames, sparse matrices and tensors; rows in blocks.

What is no tensor goes through scikit-learn's own validation, which is imported when it is needed.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offprints.shared.estimators import as_features

BLOCK = 2**22  # entries of a block of rows


def is_sparse(X: Any) -> bool:
    """Whether X is one of SciPy's sparse matrices or arrays.

    Example:
        >>> is_sparse(np.eye(2))
        False
    """
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

    Booleans and integers of at most 16 bits become float32, which holds all of them, wider ones float64. What is no
    tensor goes through scikit-learn's own validation, which knows data frames and keeps the names of their columns;
    read-only memory is not copied.

    Args:
        X: The data.
        name: Name of the argument.
        estimator: What ``n_features_in_`` and ``feature_names_in_`` belong to; None checks neither.
        reset: Whether they are learned here (in fit) or compared.
        device: Where the tensor goes; default: where it is.
        sparse: Whether a sparse matrix is taken.

    Raises:
        TypeError: sparse where that is not supported, or not numbers.
        ValueError: not 2-D, empty, masked, NaN or infinite; another number, other names or another order of columns.

    Example:
        >>> as_table([[1, 2], [3, 4]])
        tensor([[1., 2.],
                [3., 4.]], dtype=torch.float64)
        >>> as_table([1.0, 2.0])
        Traceback (most recent call last):
        ValueError: X must have 2 dimensions, got shape (2,). Reshape your data: reshape(1, -1) for one sample
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
            narrow = X.element_size() <= 2 or X.device.type == "mps"  # which has no float64
            X = X.to(torch.float32 if narrow else torch.float64)
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
    given = getattr(X, "dtype", None)
    columns = getattr(X, "dtypes", [given])  # of a data frame one each
    if any(getattr(column, "kind", "f") in "mM" for column in columns):
        raise TypeError(f"{name} must hold numbers, got dates or times")  # scikit-learn takes them for numbers
    dtypes: Any = [np.float64, np.float32, np.float16]
    if isinstance(given, np.dtype):
        if given.kind in "iub" and given.itemsize <= 2:
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
    """The array's memory as a tensor, read-only memory too: for those who do not write to it.

    Example:
        >>> memory = np.zeros(2)
        >>> shared_memory(memory).data_ptr() == memory.ctypes.data
        True
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(array))


def row_blocks(X: Any) -> Iterator[Tensor]:
    """Dense rows in blocks whose copies in float64 stay small; also of a CSR matrix.

    Example:
        >>> [len(block) for block in row_blocks(torch.zeros(3, BLOCK // 2))]
        [2, 1]
    """
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

    Example:
        >>> as_weights([1, 2], 2, torch.device("cpu"))
        tensor([1., 2.], dtype=torch.float64)
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
