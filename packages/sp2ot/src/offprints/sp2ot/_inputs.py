"""Samples of an estimator as a tensor, and features put where their place and unit do not matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from offprints.shared.estimators import as_features

HEIGHT = 3.0  # of the plane that the features lie in, in units of their spread


def as_samples(X: Any, estimator: Any, *, reset: bool, table: bool) -> Float[Tensor, "samples *features"]:
    """X as a floating tensor without a graph, float32 or float64.

    A table that is not a tensor goes through scikit-learn's validation: data frames, lists, integers, sparse matrices,
    which become dense.

    Args:
        X: The data.
        estimator: What ``n_features_in_`` and ``feature_names_in_`` belong to.
        reset: Whether they are learned here (in fit) or compared.
        table: Whether X must have two axes; an encoder may take more.

    Raises:
        TypeError: not numbers.
        ValueError: another number of axes, empty, NaN or infinite; other columns than in fit.
    """
    if not isinstance(X, Tensor) and (table or not hasattr(X, "ndim") or X.ndim == 2):
        return torch.from_numpy(_validated(X, estimator, reset))
    if isinstance(X, Tensor) and not X.is_floating_point() and not X.is_complex():
        X = X.to(torch.float64 if X.dtype == torch.int64 else torch.float32)
    elif not isinstance(X, Tensor) and X.dtype.kind in "iub":
        X = X.astype(np.float32)
    samples = as_features(X, "X", ndim=2 if table else max(int(X.ndim), 2)).detach()
    if reset:
        estimator.n_features_in_ = samples.shape[1]
        vars(estimator).pop("feature_names_in_", None)
    elif samples.shape[1] != estimator.n_features_in_:
        raise ValueError(
            f"X has {samples.shape[1]} features, but {type(estimator).__name__} is expecting"
            f" {estimator.n_features_in_} features as input"
        )
    return samples if samples.dtype in (torch.float32, torch.float64) else samples.float()


def _validated(X: Any, estimator: Any, reset: bool) -> np.ndarray:
    from sklearn.utils.validation import validate_data

    if X is None or isinstance(X, (str, bytes, set, dict, bool, int, float, complex, np.number)):
        raise TypeError(f"X must be a table of numbers, got {type(X).__name__}")
    if isinstance(X, np.ma.MaskedArray):
        if np.ma.is_masked(X):
            raise ValueError("X must not have masked entries: fill them in first")
        X = X.data
    if isinstance(X, (list, tuple)):
        try:
            X = np.asarray(X)
        except ValueError:
            raise ValueError("X must be a table, got rows of different lengths") from None
    dtypes: Any = [np.float64, np.float32]
    given = getattr(X, "dtype", None)
    if isinstance(given, np.dtype):
        if given.itemsize < 4 or (given.kind in "iub" and given.itemsize < 8):
            dtypes = np.float32
        elif given.kind == "f" and not given.isnative:
            X = X.astype(given.newbyteorder("="))
    sparse = hasattr(X, "toarray")
    checked = validate_data(estimator, X, reset=reset, dtype=dtypes, accept_sparse="csr")
    dense = checked.toarray() if sparse else checked
    return np.array(dense, order="C", copy=True)


@dataclass(frozen=True)
class Place:
    """Features without place and unit: their mean taken off, divided by their spread, and a constant appended.

    Cosines of the result depend on distances between features and not only on their directions, so that clusters on
    one ray from the origin differ, and neither a shift nor a factor of all features changes anything.

    Attributes:
        mean: ``(D,)``, float64.
        spread: Root of the mean squared distance from the mean.
    """

    mean: Float[Tensor, " dim"]
    spread: float

    @classmethod
    def of(cls, features: Float[Tensor, "samples dim"]) -> Place:
        """The place of features."""
        x = features.detach().double()
        unit = float(x.abs().max()) or 1.0  # squares of huge and tiny numbers leave float64
        mean = (x / unit).mean(0)
        spread = float((x / unit - mean).square().sum(1).mean().sqrt()) * unit
        return cls(mean * unit, spread if spread > 0 else 1.0)

    def apply(self, features: Float[Tensor, "samples dim"]) -> Float[Tensor, "samples lifted"]:
        """Centered, scaled, with the constant as the last column; differentiable."""
        if features.requires_grad:
            placed = (features - self.mean.to(features)) / self.spread
        else:
            placed = ((features.double() - self.mean.to(features.device)) / self.spread).to(features.dtype)
        return F.pad(placed, (0, 1), value=HEIGHT)
