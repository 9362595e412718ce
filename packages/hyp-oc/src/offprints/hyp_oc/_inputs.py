"""What `HypOCDetector` takes as X: tensors, arrays, lists and data frames of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offprints.hyp_oc._unit_ball import wide
from offprints.shared.estimators import as_features

LARGEST = 1e34  # float32 layers hold sums of such features


def training_rows(estimator: Any, X: Any, *, device: torch.device, reset: bool) -> Tensor:
    """`feature_rows` of at least two samples, which Hyp-PC pairs."""
    rows = feature_rows(estimator, X, device=device, reset=reset)
    if len(rows) < 2:
        raise ValueError(f"X must have at least 2 samples, got {len(rows)} sample")
    return rows


def feature_rows(estimator: Any, X: Any, *, device: torch.device, reset: bool = False) -> Tensor:
    """X as float32 `(n, d)` on the device.

    With `reset` the estimator learns the width and the names of the columns; without, X must have them.

    Raises:
        TypeError: X does not hold numbers, or is sparse.
        ValueError: X is not 2-D, empty, masked, NaN or infinite, too large for float32, or of another width.
    """
    if hasattr(X, "toarray"):
        raise TypeError("X must be dense, sparse input is not supported: convert it with toarray()")
    if X is None or isinstance(X, (str, bytes, set, Mapping, bool, int, float, complex, np.generic)):
        raise TypeError(f"X must be a table of numbers, got {type(X).__name__}")
    table = _of_tensor(estimator, X, reset) if isinstance(X, Tensor) else _of_array(estimator, X, reset)
    if bool((table.abs() > LARGEST).any()):
        raise ValueError(f"X must lie within {LARGEST:g} of 0, got {float(table.abs().max()):g}")
    return table.to(device=device, dtype=torch.float32)


def _of_tensor(estimator: Any, X: Tensor, reset: bool) -> Tensor:
    if not X.is_floating_point() and not X.is_complex():
        X = wide(X)
    table = as_features(X.detach(), "X")
    if reset:
        estimator.n_features_in_ = table.shape[1]
        estimator.__dict__.pop("feature_names_in_", None)
    elif table.shape[1] != estimator.n_features_in_:
        raise ValueError(
            f"X has {table.shape[1]} features, but {type(estimator).__name__} is expecting"
            f" {estimator.n_features_in_} features as input"
        )
    return table


def _of_array(estimator: Any, X: Any, reset: bool) -> Tensor:
    """What scikit-learn makes of it: it knows data frames, and keeps the names of their columns."""
    from sklearn.utils.validation import validate_data

    if isinstance(X, np.ma.MaskedArray):
        if np.ma.is_masked(X):
            raise ValueError("X must not have masked entries: fill them in first")
        X = X.data
    if isinstance(X, np.ndarray) and X.dtype.kind in "mM":
        raise TypeError(f"X must hold numbers, got {X.dtype}")
    if hasattr(X, "shape") and len(X.shape) != 2:
        raise ValueError(f"X must have 2 dimensions, got shape {tuple(X.shape)}. Reshape your data")
    try:
        array = validate_data(estimator, X, reset=reset, dtype=[np.float64, np.float32])
    except (TypeError, ValueError) as error:
        if "X" in str(error):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"X: {error}") from error
    return torch.from_numpy(array if array.flags.writeable else array.copy())
