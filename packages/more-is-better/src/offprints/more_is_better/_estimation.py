"""What both regressors do with X, y and a positive semidefinite system."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import validate_data
from torch import Tensor

from offprints.shared.estimators import as_features
from offprints.shared.validation import check_tensor


def fit_features(X: Any, *, table: bool = True) -> Tensor:
    """X of a fit as a tensor without a graph: a table, or any points ``[n, ...]`` with at least one feature axis."""
    return _features(X, table=table)


def learn_columns(estimator: Any, X: Any) -> None:
    """Learn the number and the names of the columns, at the end of all checks: a refused fit changes nothing."""
    validate_data(estimator, X, reset=True, skip_check_array=True, ensure_2d=len(np.shape(X)) == 2)


def new_features(estimator: Any, X: Any, *, table: bool = True) -> Tensor:
    """X of a prediction: the columns must be those of the fit."""
    features = _features(X, table=table)
    validate_data(estimator, X, reset=False, skip_check_array=True, ensure_2d=features.ndim == 2)
    return features


def _features(X: Any, *, table: bool) -> Tensor:
    ndim = 2
    if not table and len(shape := tuple(getattr(X, "shape", ()))) > 2:
        ndim = len(shape)
    return as_features(X, "X", ndim=ndim).detach()


def as_targets(y: Any, length: int, device: torch.device, owner: str) -> Tensor:
    """Targets ``[n]`` or ``[n, C]`` in float64; whole numbers are numbers."""
    if y is None:
        raise ValueError(f"y must be given: {owner} requires y to be passed, but the target y is None")
    if not isinstance(y, Tensor):
        if hasattr(y, "toarray") or isinstance(y, (str, bytes, dict, set)):
            raise TypeError(f"y must be a dense array of numbers, got {type(y).__name__}")
        array = np.asarray(y)
        if array.dtype.kind not in "fiub":
            try:
                array = array.astype(np.float64) if array.dtype.kind == "O" else array
            except (TypeError, ValueError) as error:
                raise TypeError(f"y must hold numbers: {error}") from error
        if array.dtype.kind not in "fiub":
            raise TypeError(f"y must hold real numbers, got {array.dtype}")
        y = torch.from_numpy(np.array(array, dtype=np.float64))
    if y.is_complex():
        raise TypeError(f"y must hold real numbers, got {y.dtype}")
    check_tensor(y, "y", ndim=(1, 2), floating=False)
    if len(y) != length:
        raise ValueError(f"y must have as many rows as X, {length}, got {len(y)}: inconsistent numbers of samples")
    return y.detach().to(device=device, dtype=torch.float64)


def solve_semidefinite(A: Tensor, b: Tensor, ridge: float) -> Tensor:
    """(A + ridge I)^-1 b for a symmetric positive semidefinite A; without a ridge, or near it, the pseudo-inverse."""
    if ridge > 0:
        factor, info = torch.linalg.cholesky_ex(A + ridge * torch.eye(len(A), dtype=A.dtype, device=A.device))
        if not bool(info):
            return torch.cholesky_solve(b, factor)
    eigvals, eigvecs = torch.linalg.eigh(A)
    eigvals = torch.where(eigvals > len(A) * torch.finfo(A.dtype).eps * eigvals[-1].abs(), eigvals, 0.0) + ridge
    inverse = torch.where(eigvals > 0, 1 / torch.where(eigvals > 0, eigvals, 1.0), 0.0)
    return eigvecs @ (inverse[:, None] * (eigvecs.T @ b))


def r_squared(predicted: Any, y: Any, length: int, sample_weight: Any, owner: str) -> float:
    """R^2, the mean over the outputs."""
    from sklearn.metrics import r2_score

    targets = as_targets(y, length, torch.device("cpu"), owner).numpy()
    values = predicted.detach().cpu().numpy() if isinstance(predicted, Tensor) else predicted
    if targets.shape != values.shape:
        raise ValueError(f"y must have the shape of the predictions, {values.shape}, got {targets.shape}")
    weight = sample_weight.detach().cpu().numpy() if isinstance(sample_weight, Tensor) else sample_weight
    return float(r2_score(targets, values, sample_weight=weight))
