"""The H-consistency bound of the multiclass logistic loss (section 4)."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from offprints.shared.validation import check_bool, check_number, check_tensor


def logistic_h_consistency_bound(
    excess: Float[Tensor, "..."] | float, *, gap: float = 0.0, zero_one_gap: float = 0.0, exact: bool = False
) -> Float[Tensor, "..."]:
    """Bound on the zero-one regret by the regret of the logistic loss, clipped to [0, 1].

    With t = excess + gap: ``sqrt(2 t) - zero_one_gap``, or with ``exact`` the b that solves
    t = ((1 + b) log(1 + b) + (1 - b) log(1 - b)) / 2 in place of sqrt(2 t), which is never larger. Increasing in
    ``excess``. Mao, Mohri and Zhong (NeurIPS 2023) remark that the paper's version amounts to an excess error bound:
    for hypothesis sets in which both minimizability gaps vanish it is one.

    Args:
        excess: Regret of the logistic loss (natural logarithm) within the hypothesis set, of any shape.
        gap: Minimizability gap of the logistic loss.
        zero_one_gap: Minimizability gap of the zero-one loss.
        exact: Use the exact inverse.

    Raises:
        TypeError: ``excess`` is neither a number nor a floating tensor.
        ValueError: a negative, NaN or infinite argument; an empty tensor.

    Example:
        >>> logistic_h_consistency_bound(torch.tensor([0.02, 0.5]))
        tensor([0.2000, 1.0000])
        >>> logistic_h_consistency_bound(0.02, exact=True).item() < 0.2
        True
    """
    check_bool(exact, "exact")
    check_number(gap, "gap", low=0)
    check_number(zero_one_gap, "zero_one_gap", low=0)
    if not isinstance(excess, Tensor):
        check_number(excess, "excess", low=0)
        excess = torch.tensor(float(excess), dtype=torch.float64)
    check_tensor(excess, "excess")
    if bool((excess < 0).any()):
        raise ValueError(f"excess must not be negative, got {float(excess.min())}")
    t = excess.double() + gap
    value = _root(t.detach(), exact) - zero_one_gap
    inside = (value >= 0) & (value <= 1)
    # Where the bound is clipped its slope is 0: without this 0 times the infinite slope at t = 0, NaN.
    root = _root(torch.where(inside, t, 0.5), exact)
    return torch.where(inside, root - zero_one_gap, value.clamp(0, 1)).to(excess.dtype)


def _root(t: Tensor, exact: bool) -> Tensor:
    return _Inverse.apply(t) if exact else (2 * t).sqrt()


class _Inverse(torch.autograd.Function):
    """`_inverse` with its derivative, which bisection does not have: 1 / artanh b, from log 2 on 0."""

    generate_vmap_rule = True

    @staticmethod
    def forward(t: Tensor) -> Tensor:
        return _inverse(t)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (b,) = ctx.saved_tensors  # of this function's graph: derivatives of higher order are right too
        inside = torch.where(b < 1, b, 0.5)  # no infinite slope there, whose own derivative would be NaN
        return torch.where(b < 1, gradient / inside.atanh(), 0.0)


def _inverse(t: Tensor) -> Tensor:
    """b in [0, 1] with entropy deficit t, by bisection; 1 from log 2 on."""
    # The deficit over b^2 rises from 1/2 to log 2: a bracket that is as narrow for the smallest t.
    low, high = (t / math.log(2)).sqrt().clamp(max=1), (2 * t).sqrt().clamp(max=1)
    for _ in range(55):
        b = (low + high) / 2
        square = b.square()  # the logarithms cancel where b is small
        series = square * (1 / 2 + square * (1 / 12 + square * (1 / 30 + square * (1 / 56 + square / 90))))
        logarithms = ((1 + b) * b.log1p() + torch.special.xlog1py(1 - b, -b)) / 2
        deficit = torch.where(b < 0.05, series, logarithms)
        low, high = torch.where(deficit < t, b, low), torch.where(deficit < t, high, b)
    return torch.where(t >= math.log(2), 1.0, high)
