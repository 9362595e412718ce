"""StableMax: a softmax whose terms grow linearly instead of exponentially (section 4 of the paper).

With s(x) = x + 1 for x >= 0 and 1 / (1 - x) for x < 0, StableMax(x)_i = s(x_i) / sum_j s(x_j). Equivalently StableMax
is the softmax of g(x) = log s(x) = sign(x) log(1 + |x|), an odd function with g'(x) = 1 / (1 + |x|), also at 0.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad

from offprints.shared.device import working_dtype
from offprints.shared.validation import check_number, check_tensor


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
    """g(x) = sign(x) log(1 + |x|), with the right derivative at 0 in every mode; the second is 0 there, between those
    of its sides.
    """
    if forward_ad._current_level >= 0:
        # Forward mode has no rule for the function above that the compiler takes too.
        return (_sided(x, x >= 0) + _sided(x, x > 0)) / 2
    result: Tensor = SignedLog.apply(x)
    return result


def _sided(x: Tensor, positive: Tensor) -> Tensor:
    """g in two branches: its derivatives at 0 are those of the branch to which 0 belongs."""
    log = torch.where(positive, x, -x).log1p()
    return torch.where(positive, log, -log)


def _checked(input: Tensor, dim: int) -> Tensor:
    check_tensor(input, "input", finite=False)
    if input.ndim == 0:
        raise ValueError("input must have at least one dimension, got a scalar")
    check_number(dim, "dim", low=-input.ndim, high=input.ndim - 1, integer=True)
    return input.to(working_dtype(input))


def stablemax(input: Float[Tensor, "..."], dim: int = -1) -> Float[Tensor, "..."]:
    """StableMax probabilities along `dim`: the shape and type of `input`, every slice sums to 1.

    Half types are computed in float32. NaN propagates.

    Raises:
        TypeError: `input` is not a floating tensor.
        ValueError: `input` is empty or a scalar, or `dim` out of range.

    Example:
        >>> stablemax(torch.tensor([2.0, 0.0, -1.0]))  # terms 3, 1 and 1/2
        tensor([0.6667, 0.2222, 0.1111])
    """
    return torch.softmax(signed_log(_checked(input, dim)), dim).to(input.dtype)


def log_stablemax(input: Float[Tensor, "..."], dim: int = -1) -> Float[Tensor, "..."]:
    """Logarithm of `stablemax`, precise where the probability is tiny.

    Raises:
        TypeError: `input` is not a floating tensor.
        ValueError: `input` is empty or a scalar, or `dim` out of range.

    Example:
        >>> log_stablemax(torch.tensor([2.0, 0.0, -1.0]))
        tensor([-0.4055, -1.5041, -2.1972])
    """
    return torch.log_softmax(signed_log(_checked(input, dim)), dim).to(input.dtype)
