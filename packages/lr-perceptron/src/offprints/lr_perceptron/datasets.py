"""The two data sets of the paper's lower bounds."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from offprints.shared.device import resolve_device
from offprints.shared.validation import check_number


def _check_dtype(dtype: torch.dtype) -> torch.dtype:
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating torch type, got {dtype!r}")
    return dtype


def worst_case_dataset(
    n: int, *, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None
) -> tuple[Float[Tensor, "n 2"], Float[Tensor, " n"]]:
    """The imbalanced set of Theorem 5.1: Batch Perceptron needs of the order of n updates, Normalized LR+GD does not.

    One sample (0.5, -1) is labeled +1, the n - 1 others are (-0.5, -1) and labeled -1; the margin is 0.5 and the
    radius sqrt(1.25) for every n. Batch Perceptron needs ``floor(0.3 n + 0.2) + 1`` updates.

    Args:
        n: Number of samples.
        dtype: Type of both tensors.
        device: Where they are; default: the CPU.

    Returns:
        Samples ``[n, 2]``, the single one first, and labels ``[n]``.

    Raises:
        TypeError: ``n`` is not an integer, ``dtype`` not a floating type.
        ValueError: ``n`` < 2, ``device`` is not available.

    Example:
        >>> X, y = worst_case_dataset(3)
        >>> X.tolist(), y.tolist()
        ([[0.5, -1.0], [-0.5, -1.0], [-0.5, -1.0]], [1.0, -1.0, -1.0])
    """
    n = check_number(n, "n", low=2, integer=True)
    place = resolve_device("cpu" if device is None else device)
    X = torch.tensor([[-0.5, -1.0]], dtype=_check_dtype(dtype), device=place).repeat(n, 1)
    X[0, 0] = 0.5
    y = torch.full((n,), -1.0, dtype=dtype, device=place)
    y[0] = 1
    return X, y


def loss_divergence_dataset(
    *, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None
) -> tuple[Float[Tensor, "2 2"], Float[Tensor, " 2"]]:
    """The two samples of Theorem 4.1: (1, -1) labeled +1 and (-1, -4) labeled -1.

    Gradient descent with step size gamma separates them in two updates; on the way, at theta_1, the loss grows without
    bound with gamma.

    Args:
        dtype: Type of both tensors.
        device: Where they are; default: the CPU.

    Raises:
        TypeError: ``dtype`` is not a floating type.
        ValueError: ``device`` is not available.

    Example:
        >>> loss_divergence_dataset()[1]
        tensor([ 1., -1.], dtype=torch.float64)
    """
    options: dict[str, Any] = {
        "dtype": _check_dtype(dtype),
        "device": resolve_device("cpu" if device is None else device),
    }
    return torch.tensor([[1.0, -1.0], [-1.0, -4.0]], **options), torch.tensor([1.0, -1.0], **options)
