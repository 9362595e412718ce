"""What the functions accept as samples, labels and vectors of weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from offprints.shared.device import working_dtype
from offprints.shared.validation import check_same_device, check_tensor, should_check


def check_samples(X: Tensor) -> Tensor:
    """Samples ``[n, d]`` without their graph, in the type to compute in.

    Raises:
        TypeError: not a dense floating tensor.
        ValueError: not 2-D, empty, NaN or infinite.
    """
    check_tensor(X, "X", ndim=2)
    return X.detach().to(working_dtype(X))


def check_signs(y: Tensor, name: str, like: Tensor) -> Tensor:
    """Labels -1 and +1 ``[n]``, one for each row of ``like``, in its type.

    Raises:
        TypeError: not a dense tensor of integers or floating numbers.
        ValueError: another length or another device, values other than -1 and +1.
    """
    check_tensor(y, name, floating=False, finite=False, allow_empty=True)
    if y.dtype == torch.bool or y.is_complex():
        raise TypeError(f"{name} must hold the numbers -1 and +1, got {y.dtype}")
    if y.ndim != 1 or len(y) != len(like):
        raise ValueError(f"{name} must have length {len(like)}, got shape {tuple(y.shape)}")
    check_same_device(like, y, names=("X" if name == "y" else "scores", name))
    y = y.detach()
    if should_check(y):
        # In an unsigned type -1 would be compared as the largest number.
        good = (y == 1) | (y == -1) if y.dtype.is_signed else y == 1
        if not bool(good.all()):
            raise ValueError(f"{name} must hold -1 and +1 only, got {y[~good][0].item()}")
    return y.to(like.dtype)


def check_vector(theta: Tensor, name: str, X: Tensor) -> Tensor:
    """A vector ``[d]`` of weights for samples ``[n, d]``, on their device.

    Raises:
        TypeError: not a dense floating tensor.
        ValueError: another shape, another device, NaN or infinite.
    """
    check_tensor(theta, name, shape=(X.shape[1],))
    check_same_device(X, theta, names=("X", name))
    return theta


def finite_or_refused(theta: Tensor, *names: str) -> Tensor:
    """What was computed, unless it left the range of its type.

    Raises:
        ValueError: it is not finite.
    """
    if not bool(theta.isfinite().all()):
        told = " and ".join(names)
        raise ValueError(f"{told} must be small enough for theta to stay within {theta.dtype}, got an overflow")
    return theta


def like_samples(theta: Tensor, X: Tensor) -> Tensor:
    """``theta`` in the type of X; in float32 where a half type is too narrow for it."""
    rounded = theta.to(X.dtype)
    return rounded if bool(rounded.isfinite().all()) else theta


def as_steps(sizes: Sequence[float], name: str, like: Tensor) -> Tensor:
    """Step sizes in the type and on the device of the samples.

    Raises:
        ValueError: one is beyond the range of the type.
    """
    return finite_or_refused(torch.tensor(sizes, dtype=torch.float64).to(like.dtype).to(like.device), name)
