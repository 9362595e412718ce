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

from offprints.shared.device import float32_region, working_dtype
from offprints.shared.validation import (
    Reduction,
    check_choice,
    check_number,
    check_same_device,
    check_same_shape,
    check_tensor,
    reduce,
    should_check,
)

Norm = Literal["mean", "sum", "element"]
RobustName = Literal["cauchy", "pseudo_huber", "geman_mcclure"]

NORMS = ("mean", "sum", "element")
# Sums of squares between these are taken as they are; beyond them float32 is near its ends.
LOWEST, HIGHEST = 1e-30, 1e30


class Robust(NamedTuple):
    """A robust function of the squared residual; c is a number or broadcasts with m."""

    rho: Callable[[Tensor, Any], Tensor]
    # Half the derivative of rho in the residual r: r times that in m.
    pull: Callable[[Tensor, Tensor, Any], Tensor]
    # The derivative in c.
    by_c: Callable[[Tensor, Any], Tensor]


def _geman_mcclure(m: Tensor, c: Any) -> Tensor:
    # From both ends: the derivative of the usual form, 2 / (m + 4 c^2) - 2 m / (m + 4 c^2)^2, cancels for outliers.
    inlier = 4 * c * c
    return 2 * torch.where(m > inlier, 1 - inlier / (m + inlier), m / (m + inlier))


# log1p and the conjugate form keep their digits in float32 where m is far below c^2.
ROBUST: dict[str, Robust] = {
    "cauchy": Robust(
        lambda m, c: (m / (2 * c * c)).log1p(),
        lambda r, m, c: r / (m + 2 * c * c),
        lambda m, c: -2 * m / (c * (m + 2 * c * c)),
    ),
    "pseudo_huber": Robust(
        lambda m, c: m / ((m + c * c).sqrt() + c),
        lambda r, m, c: 0.5 * r / (m + c * c).sqrt(),
        lambda m, c: -m / ((m + c * c).sqrt() * ((m + c * c).sqrt() + c)),
    ),
    "geman_mcclure": Robust(
        _geman_mcclure,
        lambda r, m, c: r * (8**0.5 * c / (m + 4 * c * c)).square(),
        lambda m, c: -m * c * (4 / (m + 4 * c * c)).square(),
    ),
}


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))


def _wide(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """float64 where the device has it: the square of any float32 fits in."""
    return dtype if device.type == "mps" else torch.float64


def _scale(difference: Tensor) -> Tensor:
    """A factor for each sample, ``[B]``, without a graph: its largest entry where squares would leave the type."""
    largest = torch.linalg.vector_norm(difference.detach().flatten(1), ord=float("inf"), dim=1)
    inside = (largest > LOWEST**0.5) & (largest < HIGHEST**0.5)
    return torch.where(inside | (largest == 0) | ~largest.isfinite(), 1.0, largest)


def _dot(difference: Tensor) -> Tensor:
    """Squared norm of each row: a product of matrices to autocast, which would take it in a half type."""
    with float32_region(difference.device):
        return torch.linalg.vecdot(difference, difference)


class _SquaredNorm(torch.autograd.Function):
    """Sum of squared differences per sample, ``[B]``, in float64 where the device has it; and the scale used.

    Two sweeps over the entries forward, two backward; nothing but the inputs is kept. The backward is made of torch's
    own operations, so that it can be differentiated again. The result does not depend on the scale, a scalar 1 where
    no residual is extreme.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        difference = (input - target).flatten(1)
        wide = _wide(difference.dtype, difference.device)
        if should_check(difference):  # values can be looked at: the usual case needs no sweep for the scale
            total = _dot(difference)
            if bool(((total > LOWEST) & (total < HIGHEST)).all()):
                return total.to(wide, copy=True), total.new_ones((), dtype=wide)
        scale = _scale(difference)
        difference = difference / scale[:, None]
        scale = scale.to(wide, copy=True)
        return _dot(difference).to(wide) * scale.square(), scale

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, output[1])
        ctx.save_for_forward(*inputs, output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        input, target, scale = ctx.saved_tensors
        factor = _column((2 * grads[0] * scale).to(input.dtype), input)
        difference = input - target
        if scale.ndim > 0:  # before the product, which else could leave the type
            difference = difference / _column(scale, input).to(input.dtype)
        return _both(ctx, difference * factor)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, None]:
        input, target, scale = ctx.saved_tensors
        difference = input - target
        if scale.ndim > 0:
            difference = difference / _column(scale, input).to(input.dtype)
        rate = (difference * _along(tangents, input)).flatten(1).sum(1)
        return 2 * rate.to(scale.dtype) * scale, None


class _ElementMean(torch.autograd.Function):
    """Mean of rho over the entries of each sample, ``[B]``. Twice differentiable, too.

    ``grouped`` takes one logarithm for four entries, which leaves the type earlier than one for each.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, target: Tensor, c: Tensor, name: str, grouped: bool) -> Tensor:
        m = input - target
        m.mul_(m)  # as `square_`, which has no rule for vmap
        column = _column(c, input)
        if name == "cauchy" and grouped:
            return _mean_log1p((m / (2 * column * column)).flatten(1))
        return ROBUST[name].rho(m, column).flatten(1).mean(1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, str, bool], output: Tensor) -> None:
        *saved, ctx.name, _ = inputs
        ctx.save_for_backward(*saved)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        input, target, c = ctx.saved_tensors
        column, entries = _column(c, input), max(input[0].numel(), 1)
        difference = input - target
        m = difference.square()
        gradients: tuple[Tensor | None, ...] = (None, None)
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            pull = ROBUST[ctx.name].pull(difference, m, column)
            gradients = _both(ctx, pull * _column(2 * grads[0] / entries, input))
        by_c = None
        if ctx.needs_input_grad[2]:
            by_c = grads[0] * ROBUST[ctx.name].by_c(m, column).flatten(1).mean(1)
        return (*gradients, by_c, None, None)


class _ElementMeanForward(_ElementMean):
    """The same with derivatives in forward mode."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, str, bool], output: Tensor) -> None:
        _ElementMean.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:3])

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        input, target, c = ctx.saved_tensors
        column, difference = _column(c, input), input - target
        m = difference.square()
        pull = ROBUST[ctx.name].pull(difference, m, column)
        rate: Tensor = (2 * pull * _along(tangents, input)).flatten(1).mean(1)
        if tangents[2] is not None:
            rate = rate + tangents[2] * ROBUST[ctx.name].by_c(m, column).flatten(1).mean(1)
        return rate


def _mean_log1p(u: Tensor) -> Tensor:
    """Mean over the second axis of log(1 + u), one logarithm for four: (1 + a) (1 + b) = 1 + (a + b + a b)."""
    entries, odd = u.shape[1], []
    for _ in range(2):
        half = u.shape[1] // 2
        first, second, rest = u.split([half, half, u.shape[1] - 2 * half], 1)
        u = torch.addcmul(first, first, second).add_(second)
        odd.append(rest.log1p().sum(1))
    return (u.log1p_().sum(1) + odd[0] + odd[1]) / entries


def _along(tangents: tuple[Tensor | None, ...], like: Tensor) -> Tensor:
    """The tangent of the difference."""
    first, second = (torch.zeros_like(like) if t is None else t for t in tangents[:2])
    return first - second


def _both(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
    return (gradient if ctx.needs_input_grad[0] else None, -gradient if ctx.needs_input_grad[1] else None)


def squared_norm(input: Tensor, target: Tensor) -> Tensor:
    """Sum over the entries of the squared difference, ``[B]``, in float64 where the device has it."""
    dtype = working_dtype(input, target)
    input, target = input.to(dtype), target.to(dtype)
    if torch.compiler.is_compiling():
        # It fuses the sweeps by itself, refuses functions with forward mode, and in torch 2.7 takes the second result
        # of the function, which has no gradient, for the first: all gradients would be zero.
        difference = (input - target).flatten(1)
        scale = _scale(difference)
        wide = _wide(dtype, input.device)
        return _dot(difference / scale[:, None]).to(wide) * scale.to(wide).square()
    result: Tensor = _SquaredNorm.apply(input, target)[0]
    return result


def robust_values(name: str, input: Tensor, target: Tensor, c: float | Tensor, norm: Norm) -> Tensor:
    """The loss of each sample, ``[B]``, in float32 at least; arguments are not checked.

    The squared residuals of float32 reach 1e77: what is left of them, one number a sample, is float64.
    """
    dtype = working_dtype(input, target)
    if norm != "element":
        total = squared_norm(input, target)
        m = total / input[0].numel() if norm == "mean" else total
        return ROBUST[name].rho(m, c.to(m) if isinstance(c, Tensor) else c).to(dtype)
    if should_check(input, target):  # where values can be looked at, float64 is for those that need it
        values = _element_mean(name, input.to(dtype), target.to(dtype), c, grouped=True)
        if bool(values.isfinite().all()):
            return values
    wide = _wide(dtype, input.device)
    return _element_mean(name, input.to(wide), target.to(wide), c).to(dtype)


def _element_mean(name: str, input: Tensor, target: Tensor, c: float | Tensor, *, grouped: bool = False) -> Tensor:
    each = (
        c.to(input) if isinstance(c, Tensor) else torch.full((len(input),), c, dtype=input.dtype, device=input.device)
    )
    function = _ElementMean if torch.compiler.is_compiling() else _ElementMeanForward
    values: Tensor = function.apply(input, target, each, name, grouped)
    return values


def check_c(c: Any, name: str = "c", *, length: int | None = None) -> float | Tensor:
    """A positive number, or one for each of ``length`` samples where a length is given (one tensor for all, too).

    Raises:
        TypeError: neither a number nor a floating tensor.
        ValueError: not positive and finite, or a tensor of another length.
    """
    if isinstance(c, Tensor) and length is not None:
        check_tensor(c, name, shape=() if c.ndim == 0 else (length,))
        if should_check(c) and not bool((c > 0).all()):
            raise ValueError(f"{name} must be positive, got {float(c.min())}")
        return c.expand(length)
    return float(check_number(c, name, low=0, open_low=True))


def _loss(
    name: str,
    input: Tensor,
    target: Tensor,
    c: float | Tensor,
    norm: Norm,
    weight: Tensor | None,
    reduction: Reduction,
) -> Tensor:
    check_choice(norm, "norm", NORMS)
    check_choice(reduction, "reduction", ("mean", "sum", "none"))
    check_tensor(input, "input", finite=False, min_ndim=2)
    check_tensor(target, "target", finite=False)
    check_same_shape(input, target, ("input", "target"))
    check_same_device(input, target, names=("input", "target"))
    c = check_c(c, length=len(input))
    if weight is not None:
        check_tensor(weight, "weight", shape=(len(input),), finite=False)
    return reduce(robust_values(name, input, target, c, norm), reduction, weight=weight)


def cauchy_loss(
    input: Float[Tensor, "batch *shape"],
    target: Float[Tensor, "batch *shape"],
    *,
    c: float | Float[Tensor, " batch"],
    norm: Norm = "mean",
    weight: Float[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """The Cauchy loss ln(1 + m / (2 c^2)), whose gradient falls like 2 / r beyond r = sqrt(2) c and never cuts off.

    The official form ln(m / 2 + c^2) - 2 ln c, without its cancellation.

    Args:
        input: ``[B, ...]``, floating.
        target: The same shape; differentiable too.
        c: Scale of the residuals taken as inliers, in the units of sqrt(m): a number, or one for each sample, ``[B]``;
            as a tensor it is differentiated, too.
        norm: What m is, see the module: "mean" (default), "sum" or "element".
        weight: Factor of each sample; "mean" still divides by B.
        reduction: "mean", "sum" or "none" for ``[B]``.

    Returns:
        The loss, in float32 for half types. NaN in, NaN out. Residuals whose squares leave float32 have their right
        value, too.

    Raises:
        TypeError: not a floating tensor.
        ValueError: shapes that differ, fewer than two axes, an empty batch, ``c`` not a positive number, an unknown
            norm or reduction, a weight that is not ``[B]``.

    Example:
        >>> cauchy_loss(torch.ones(2, 3), torch.zeros(2, 3), c=0.1)
        tensor(3.9318)
    """
    return _loss("cauchy", input, target, c, norm, weight, reduction)


def pseudo_huber_loss(
    input: Float[Tensor, "batch *shape"],
    target: Float[Tensor, "batch *shape"],
    *,
    c: float | Float[Tensor, " batch"],
    norm: Norm = "mean",
    weight: Float[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """The Pseudo-Huber loss sqrt(m + c^2) - c of iCT, for comparison; arguments as in :func:`cauchy_loss`.

    Not the function of that name in ``offprints.ict``: here m is by default the mean over the entries and c is
    required, there m is the sum and c defaults to 0.00054 sqrt(d). Use ``norm="sum"`` for iCT's form. The official
    latent baseline takes iCT's c with the mean, which is sqrt(d) times softer than iCT.

    Example:
        >>> pseudo_huber_loss(torch.ones(2, 3), torch.zeros(2, 3), c=0.1)
        tensor(0.9050)
    """
    return _loss("pseudo_huber", input, target, c, norm, weight, reduction)


def geman_mcclure_loss(
    input: Float[Tensor, "batch *shape"],
    target: Float[Tensor, "batch *shape"],
    *,
    c: float | Float[Tensor, " batch"],
    norm: Norm = "mean",
    weight: Float[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """The Geman-McClure loss 2 m / (m + 4 c^2), which ignores outliers; arguments as in :func:`cauchy_loss`.

    Example:
        >>> geman_mcclure_loss(torch.ones(2, 3), torch.zeros(2, 3), c=0.1)
        tensor(1.9231)
    """
    return _loss("geman_mcclure", input, target, c, norm, weight, reduction)


class _RobustLoss(nn.Module):
    name: RobustName

    def __init__(self, *, c: float, norm: Norm = "mean", reduction: Reduction = "mean") -> None:
        super().__init__()
        check_choice(norm, "norm", NORMS)
        check_choice(reduction, "reduction", ("mean", "sum", "none"))
        self.c = float(check_number(c, "c", low=0, open_low=True))
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
    """:func:`cauchy_loss` as a module: ``CauchyLoss(c=0.03)(input, target)``.

    Example:
        >>> CauchyLoss(c=0.1)(torch.ones(2, 3), torch.zeros(2, 3))
        tensor(3.9318)
    """

    name = "cauchy"


class PseudoHuberLoss(_RobustLoss):
    """:func:`pseudo_huber_loss` as a module.

    Example:
        >>> PseudoHuberLoss(c=0.1)(torch.ones(2, 3), torch.zeros(2, 3))
        tensor(0.9050)
    """

    name = "pseudo_huber"


class GemanMcClureLoss(_RobustLoss):
    """:func:`geman_mcclure_loss` as a module.

    Example:
        >>> GemanMcClureLoss(c=0.1)(torch.ones(2, 3), torch.zeros(2, 3))
        tensor(1.9231)
    """

    name = "geman_mcclure"
