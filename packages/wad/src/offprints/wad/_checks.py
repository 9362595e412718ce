"""Checks of values that the core does not have: signs, rows without a direction, samples of any shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from offprints.shared.estimators import as_features
from offprints.shared.validation import check_tensor, should_check


def require(condition: Bool[Tensor, ""], message: str) -> None:
    """Refuse values: at once on the CPU, without waiting on an accelerator, not where there are none to look at.

    Raises:
        ValueError: the condition is false.
    """
    if should_check(condition):
        if not bool(condition):
            raise ValueError(message)
    elif condition.device.type != "mps" and should_check(condition, validate=True):
        torch._assert_async(condition, message)


def unit_rows(z: Float[Tensor, "rows dim"], name: str) -> Float[Tensor, "rows dim"]:
    """Rows divided by their lengths.

    Raises:
        ValueError: a row of zeros, which has no direction.
    """
    norm = torch.linalg.vector_norm(z, dim=1, keepdim=True)
    if should_check(norm, validate=True) and bool(((norm > 1e-10) & (norm < 1e10)).all()):
        return z / norm  # no square that matters has left the type
    has_direction = (z.detach() != 0).any(1).all()
    require(has_direction, f"{name} must have no rows of zeros, which have no direction, got at least one")
    return normalized(z)


def normalized(z: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
    """The same without a look at the values; rows of zeros stay zeros.

    Rows are divided by their largest entry first, since squares of huge and tiny numbers leave the type. The direction
    does not depend on that divisor, so that no gradient has to flow through it.
    """
    peak = z.detach().abs().amax(1, keepdim=True)
    z = z / peak.where(peak > 0, 1)
    norm = torch.linalg.vector_norm(z, dim=1, keepdim=True)
    return z / norm.where(peak > 0, 1)


def as_samples(X: Any, name: str, *, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
    """Arrays, data frames and tensors of samples `(N, ...)` as a tensor without a graph.

    Raises:
        TypeError: not an array, sparse, or not floating.
        ValueError: fewer than two axes, empty, masked, NaN or infinite, too large for `dtype`.
    """
    if hasattr(X, "dtypes"):
        X = _values(X)
    try:
        ndim = X.ndim if hasattr(X, "ndim") else np.ndim(X)
    except ValueError:
        raise ValueError(f"{name} must be rows of equal length") from None
    samples = as_features(X, name, ndim=max(int(ndim), 2)).detach()
    cast = samples.to(device=device, dtype=dtype)
    if samples.dtype != cast.dtype and not bool(cast.isfinite().all()):
        raise ValueError(f"{name} must fit into {dtype}, got values up to {float(samples.abs().max()):g}")
    if cast.is_inference():
        with torch.inference_mode(False):
            cast = cast.clone()  # which training can use
    return cast


def _values(frame: Any) -> np.ndarray:
    """A data frame's values, of which nullable columns make objects."""
    values = np.asarray(frame)
    if values.dtype.kind == "O" and all(isinstance(value, (float, np.floating)) for value in values.flat):
        return values.astype(np.float64)
    return values


def check_features(z: Tensor, name: str) -> Tensor:
    """Rows of features, checked at once on every device.

    Raises:
        TypeError: not a floating tensor.
        ValueError: not two axes, empty, NaN or infinite.
    """
    return check_tensor(z, name, ndim=2, validate=True)
