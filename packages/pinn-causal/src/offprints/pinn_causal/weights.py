"""Causal weights and the causal loss: residuals count only once the earlier ones are small."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offprints.shared.device import working_dtype
from offprints.shared.validation import check_bool, check_number, check_tensor, should_check


class CausalLossResult(NamedTuple):
    """The loss to minimize and the weights that went into it.

    Example:
        >>> loss, weights = causal_loss(torch.tensor([1.0, 2.0]), 0.0)
        >>> loss, weights
        (tensor(1.5000), tensor([1., 1.]))
    """

    loss: Tensor
    weights: Tensor


def _check_losses(losses: Tensor) -> None:
    check_tensor(losses, "losses")
    if losses.ndim == 0:
        raise ValueError("losses must have shape (..., n_t), got a scalar")
    if should_check(losses) and bool((losses.detach() < 0).any()):
        raise ValueError(f"losses must not be negative, got {losses.min().item():g}")


def _check_initial(initial_loss: Tensor | float | None, losses: Tensor) -> None:
    if not isinstance(initial_loss, Tensor):
        if initial_loss is not None:
            check_number(initial_loss, "initial_loss", low=0)
        return
    check_tensor(initial_loss, "initial_loss")
    wanted = losses.shape[:-1]
    try:
        fits = torch.broadcast_shapes(initial_loss.shape, wanted) == wanted
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"initial_loss must broadcast to the shape {tuple(wanted)} of losses without their times, got "
            f"{tuple(initial_loss.shape)}"
        )
    if should_check(initial_loss) and bool((initial_loss.detach() < 0).any()):
        raise ValueError(f"initial_loss must not be negative, got {initial_loss.min().item():g}")


def causal_weights(
    losses: Float[Tensor, "*batch n_t"], eps: float, *, initial_loss: Tensor | float | None = None
) -> Float[Tensor, "*batch n_t"]:
    """Return ``w_i = exp(-eps (L_0 + sum_{k<i} L_k))``, without gradient.

    Args:
        losses: temporal residual losses ``L_i`` in order of time, ``(..., n_t)``.
        eps: causality parameter; 0 weights all times equally.
        initial_loss: ``L_0``, weighted as in the loss, broadcastable to ``losses[..., 0]``; without it ``w_1 = 1``.

    The weights underflow to exactly 0 where the accumulated loss is large: such times do not count at all.
    Half types are summed in float32.

    Raises:
        TypeError: ``losses`` is not a floating tensor.
        ValueError: ``losses`` is empty or has negative, NaN or infinite entries; ``eps`` is negative or not finite;
            ``initial_loss`` is negative or not finite.

    Example:
        >>> causal_weights(torch.tensor([0.0, 1.0, 1.0]), 1.0)
        tensor([1.0000, 1.0000, 0.3679])
    """
    _check_losses(losses)
    check_number(eps, "eps", low=0)
    _check_initial(initial_loss, losses)
    detached = losses.detach()
    start = torch.zeros_like(detached[..., :1], dtype=working_dtype(detached))
    if isinstance(initial_loss, Tensor):
        start = start + initial_loss.detach().unsqueeze(-1)
    elif initial_loss is not None:
        start = start + initial_loss
    return weights_after(start, detached, eps)


def weights_after(start: Tensor, losses: Tensor, eps: float) -> Tensor:
    """Return the weights, given what the times before have accumulated; unchecked."""
    dtype = working_dtype(losses)
    # An exclusive sum by shifting: cumsum(l) - l would lose the small terms.
    earlier = torch.cat([start.to(dtype), losses[..., :-1].to(dtype)], dim=-1).cumsum(-1)
    if eps == 0:  # also where the sum has overflowed
        return torch.ones_like(losses)
    return torch.exp(-eps * earlier).to(losses.dtype)


def causal_loss(
    losses: Float[Tensor, "*batch n_t"],
    eps: float,
    *,
    initial_loss: Tensor | None = None,
    weight_by_initial: bool = True,
) -> CausalLossResult:
    """Return ``mean_i(w_i L_i) + L_0`` and the weights.

    Args:
        losses: temporal residual losses ``L_i`` in order of time, ``(..., n_t)``; the mean is over the last axis.
        eps: causality parameter; 0 is the plain loss.
        initial_loss: ``L_0``, shape ``(...)``, already multiplied by its weight.
        weight_by_initial: put ``L_0`` into the exponents too, so that nothing counts before the initial condition.

    Half types are computed in float32, and the loss is returned in it.

    Raises:
        TypeError: ``losses`` is not a floating tensor.
        ValueError: as `causal_weights`.

    Example:
        >>> loss, weights = causal_loss(torch.tensor([1.0, 2.0]), 0.0, initial_loss=torch.tensor(0.5))
        >>> loss
        tensor(2.)
    """
    _check_losses(losses)
    _check_initial(initial_loss, losses)
    check_bool(weight_by_initial, "weight_by_initial")
    values = losses.to(working_dtype(losses))
    weights = causal_weights(values, eps, initial_loss=initial_loss if weight_by_initial else None)
    loss = (weights * values).mean(-1)
    return CausalLossResult(loss if initial_loss is None else loss + initial_loss, weights.to(losses.dtype))


class CausalLoss(nn.Module):
    """`causal_loss` as a module; ``eps`` is a plain attribute that a schedule may set.

    Raises:
        ValueError: ``eps`` is negative or not finite.

    Example:
        >>> criterion = CausalLoss(eps=1.0)
        >>> criterion(torch.tensor([0.0, 1.0, 1.0])).weights
        tensor([1.0000, 1.0000, 0.3679])
    """

    def __init__(self, *, eps: float = 1.0, weight_by_initial: bool = True) -> None:
        super().__init__()
        self.eps = check_number(eps, "eps", low=0)
        self.weight_by_initial = check_bool(weight_by_initial, "weight_by_initial")

    def extra_repr(self) -> str:
        """Return the arguments."""
        return f"eps={self.eps}, weight_by_initial={self.weight_by_initial}"

    def forward(self, losses: Float[Tensor, "*batch n_t"], initial_loss: Tensor | None = None) -> CausalLossResult:
        """Return loss and weights."""
        return causal_loss(losses, self.eps, initial_loss=initial_loss, weight_by_initial=self.weight_by_initial)
