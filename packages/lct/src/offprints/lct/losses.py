"""Robust losses of the squared residual: Cauchy, the paper's, and the two that it is compared with.

With m the squared residual of a sample under one of three norms:

=================  ======================  ====================  ==========================================
loss               rho(m)                  d rho / d m           gradient in r = sqrt(m)
=================  ======================  ====================  ==========================================
Cauchy             log(1 + m / (2 c^2))    1 / (2 c^2 + m)       at most 1 / (sqrt(2) c), falls like 2 / r
Pseudo-Huber       sqrt(m + c^2) - c       1 / (2 sqrt(m + c^2)) tends to 1
Geman-McClure      2 m / (m + 4 c^2)       8 c^2 / (m + 4 c^2)^2 falls like 16 c^2 / r^3
=================  ======================  ====================  ==========================================

``norm="mean"`` takes m as the mean over the entries (the official code), ``"sum"`` as their sum (the squared norm),
``"element"`` takes each entry's own square and then the mean of rho. The three differ by factors of the dimension d
inside rho: "sum" with c sqrt(d) is "mean" with c, for Cauchy and Geman-McClure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offprints.shared.validation import check_choice, check_number, check_same_shape, check_tensor, reduce

Norm = Literal["mean", "sum", "element"]
Reduction = Literal["mean", "sum", "none"]
RobustName = Literal["cauchy", "pseudo_huber", "geman_mcclure"]

NORMS = ("mean", "sum", "element")


class Robust(NamedTuple):
    """A robust function of the squared residual and its derivative."""

    rho: Callable[[Tensor, float], Tensor]
    slope: Callable[[Tensor, float], Tensor]


# log1p and the conjugate form keep their digits in float32 where m is far below c^2.
ROBUST: dict[str, Robust] = {
    "cauchy": Robust(
        lambda m, c: (m / (2 * c * c)).log1p_(),
        lambda m, c: (m + 2 * c * c).reciprocal_(),
    ),
    "pseudo_huber": Robust(
        lambda m, c: m / ((m + c * c).sqrt() + c),
        lambda m, c: 0.5 * (m + c * c).rsqrt(),
    ),
    "geman_mcclure": Robust(
        lambda m, c: 2 * m / (m + 4 * c * c),
        lambda m, c: 8 * c * c / (m + 4 * c * c).square(),
    ),
}


def at_least_float32(*tensors: Tensor) -> list[Tensor]:
    """The tensors in their common type, half types as float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return [tensor.to(dtype) for tensor in tensors]


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))


class _SquaredNorm(torch.autograd.Function):
    """Sum of squared differences per sample, ``[B]``: two sweeps over the entries forward, two backward.

    Nothing but the inputs is kept. Twice differentiable: the backward is made of torch's own operations.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(input, target)
        difference = (input - target).flatten(1)
        return torch.linalg.vecdot(difference, difference)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        input, target = ctx.saved_tensors
        gradient = (input - target).mul_(_per_sample(2 * grads[0], input))
        return _both(ctx, gradient)


class _ElementMean(torch.autograd.Function):
    """Mean of rho over the entries of each sample, ``[B]``. Twice differentiable, too."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, target: Tensor, name: str, c: float) -> Tensor:
        difference = input - target
        ctx.save_for_backward(input, target, difference)
        ctx.name, ctx.c = name, c
        return ROBUST[name].rho(difference.square(), c).flatten(1).mean(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        input, target, difference = ctx.saved_tensors
        share = _per_sample(2 * grads[0] / max(input[0].numel(), 1), input)
        slope = ROBUST[ctx.name].slope
        if torch.is_grad_enabled():  # a second derivative needs the graph
            difference = input - target
            gradient = slope(difference.square(), ctx.c) * difference * share
        else:
            gradient = slope(difference.square(), ctx.c).mul_(difference).mul_(share)
        return (*_both(ctx, gradient), None, None)


def _both(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
    return (gradient if ctx.needs_input_grad[0] else None, -gradient if ctx.needs_input_grad[1] else None)


def squared_norm(input: Tensor, target: Tensor) -> Tensor:
    """Sum over the entries of the squared difference, ``[B]``, in float32 at least."""
    result: Tensor = _SquaredNorm.apply(*at_least_float32(input, target))
    return result


def robust_values(name: str, input: Tensor, target: Tensor, c: float, norm: Norm) -> Tensor:
    """The loss of each sample, ``[B]``; arguments are not checked."""
    if norm == "element":
        result: Tensor = _ElementMean.apply(*at_least_float32(input, target), name, c)
        return result
    total = squared_norm(input, target)
    return ROBUST[name].rho(total / input[0].numel() if norm == "mean" else total, c)


def _loss(
    name: str, input: Tensor, target: Tensor, c: float, norm: Norm, weight: Tensor | None, reduction: Reduction
) -> Tensor:
    check_number(c, "c", low=0, open_low=True)
    check_choice(norm, "norm", NORMS)
    check_tensor(input, "input", finite=False)
    check_tensor(target, "target", finite=False)
    check_same_shape(input, target, ("input", "target"))
    if input.ndim < 2:
        raise ValueError(f"input must have a batch axis and at least one more, got shape {tuple(input.shape)}")
    if weight is not None:
        check_tensor(weight, "weight", shape=(len(input),), finite=False)
    return reduce(robust_values(name, input, target, float(c), norm), reduction, weight=weight)


def cauchy_loss(
    input: Float[Tensor, "batch *shape"],
    target: Float[Tensor, "batch *shape"],
    *,
    c: float,
    norm: Norm = "mean",
    weight: Float[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """The Cauchy loss ln(1 + m / (2 c^2)), whose gradient falls like 2 / r beyond r = sqrt(2) c and never cuts off.

    The official form ln(m / 2 + c^2) - 2 ln c, without its cancellation.

    Args:
        input: ``[B, ...]``, floating.
        target: The same shape; differentiable too.
        c: Scale of the residuals taken as inliers, in the units of sqrt(m).
        norm: What m is, see the module: "mean" (default), "sum" or "element".
        weight: Factor of each sample; "mean" still divides by B.
        reduction: "mean", "sum" or "none" for ``[B]``.

    Returns:
        The loss, in float32 for half types. NaN in, NaN out.

    Raises:
        TypeError: not a floating tensor.
        ValueError: shapes that differ, fewer than two axes, an empty batch, ``c`` not a positive number, an unknown
            norm or reduction, a weight that is not ``[B]``.
    """
    return _loss("cauchy", input, target, c, norm, weight, reduction)


def pseudo_huber_loss(
    input: Float[Tensor, "batch *shape"],
    target: Float[Tensor, "batch *shape"],
    *,
    c: float,
    norm: Norm = "mean",
    weight: Float[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """The Pseudo-Huber loss sqrt(m + c^2) - c of iCT, for comparison; arguments as in :func:`cauchy_loss`.

    Not the function of that name in ``offprints.ict``: here m is by default the mean over the entries and c is
    required, there m is the sum and c defaults to 0.00054 sqrt(d). Use ``norm="sum"`` for iCT's form. The official
    latent baseline takes iCT's c with the mean, which is sqrt(d) times softer than iCT.
    """
    return _loss("pseudo_huber", input, target, c, norm, weight, reduction)


def geman_mcclure_loss(
    input: Float[Tensor, "batch *shape"],
    target: Float[Tensor, "batch *shape"],
    *,
    c: float,
    norm: Norm = "mean",
    weight: Float[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """The Geman-McClure loss 2 m / (m + 4 c^2), which ignores outliers; arguments as in :func:`cauchy_loss`."""
    return _loss("geman_mcclure", input, target, c, norm, weight, reduction)


class _RobustLoss(nn.Module):
    name: RobustName

    def __init__(self, *, c: float, norm: Norm = "mean", reduction: Reduction = "mean") -> None:
        super().__init__()
        check_number(c, "c", low=0, open_low=True)
        check_choice(norm, "norm", NORMS)
        check_choice(reduction, "reduction", ("mean", "sum", "none"))
        self.c = c
        self.norm = norm
        self.reduction = reduction

    def forward(
        self,
        input: Float[Tensor, "batch *shape"],
        target: Float[Tensor, "batch *shape"],
        weight: Float[Tensor, " batch"] | None = None,
    ) -> Tensor:
        """The loss, as the function of the same name."""
        return _loss(self.name, input, target, self.c, self.norm, weight, self.reduction)

    def extra_repr(self) -> str:
        """The settings."""
        return f"c={self.c}, norm={self.norm!r}, reduction={self.reduction!r}"


class CauchyLoss(_RobustLoss):
    """:func:`cauchy_loss` as a module: ``CauchyLoss(c=0.03)(input, target)``."""

    name = "cauchy"


class PseudoHuberLoss(_RobustLoss):
    """:func:`pseudo_huber_loss` as a module."""

    name = "pseudo_huber"


class GemanMcClureLoss(_RobustLoss):
    """:func:`geman_mcclure_loss` as a module."""

    name = "geman_mcclure"
