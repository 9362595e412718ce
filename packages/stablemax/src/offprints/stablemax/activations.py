"""StableMax: a softmax whose terms grow linearly instead of exponentially (section 4 of the paper).

With s(x) = x + 1 for x >= 0 and 1 / (1 - x) for x < 0, StableMax(x)_i = s(x_i) / sum_j s(x_j). Equivalently StableMax
is the softmax of g(x) = log s(x) = sign(x) log(1 + |x|), an odd function with g'(x) = 1 / (1 + |x|), also at 0.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from offprints.shared.validation import check_number, check_tensor


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Type of the arithmetic: half types are computed in float32, float64 stays."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class SignedLog(torch.autograd.Function):
    """g(x) = sign(x) log(1 + |x|); automatic differentiation of this formula would give 0 at x = 0 instead of 1."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        """Evaluate g elementwise."""
        return torch.copysign(x.abs().log1p(), x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        """Keep the input alone."""
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """g'(x) = 1 / (1 + |x|)."""
        (x,) = ctx.saved_tensors
        return grad / (1 + x.abs())


def signed_log(x: Tensor) -> Tensor:
    """g(x) = sign(x) log(1 + |x|), with the right derivative at 0."""
    return SignedLog.apply(x)


def _checked(input: Tensor, dim: int) -> Tensor:
    check_tensor(input, "input", finite=False)
    if input.ndim == 0:
        raise ValueError("input must have at least one dimension, got a scalar")
    check_number(dim, "dim", low=-input.ndim, high=input.ndim - 1, integer=True)
    return input.to(at_least_float32(input.dtype))


def stablemax(input: Float[Tensor, "..."], dim: int = -1) -> Float[Tensor, "..."]:
    """StableMax probabilities along ``dim``: the shape and type of ``input``, every slice sums to 1.

    Half types are computed in float32. NaN propagates.

    Raises:
        TypeError: ``input`` is not a floating tensor.
        ValueError: ``input`` is empty or a scalar, or ``dim`` out of range.
    """
    return torch.softmax(signed_log(_checked(input, dim)), dim).to(input.dtype)


def log_stablemax(input: Float[Tensor, "..."], dim: int = -1) -> Float[Tensor, "..."]:
    """Logarithm of :func:`stablemax`, precise where the probability is tiny.

    Raises:
        TypeError: ``input`` is not a floating tensor.
        ValueError: ``input`` is empty or a scalar, or ``dim`` out of range.
    """
    return torch.log_softmax(signed_log(_checked(input, dim)), dim).to(input.dtype)
