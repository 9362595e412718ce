"""Batch norm with a mix of the source's and the batch's statistics, inside any layer derived from torch's."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from offprints.shared.device import working_dtype


def mix_statistics(norm: nn.Module, source_weight: float) -> None:
    """Let a batch-norm layer normalize with ``source_weight * source + (1 - source_weight) * batch``, in place.

    The layer's own forward stays: what a subclass adds (an activation, dropout) and all hooks go on working. It
    normalizes with its running statistics, so it is given the input that these map to where the mixed ones would have
    mapped the batch; gradients flow through the batch's statistics, as in batch norm.
    """
    # On the instance, beneath the hooks; a partial of the layer itself is copied with it.
    vars(norm)["forward"] = partial(mixed_forward, norm, source_weight, vars(norm).get("forward"))


def unmix_statistics(norm: nn.Module) -> None:
    """Take back what `mix_statistics` did."""
    if is_mixed(norm):
        before = vars(norm).pop("forward").args[2]
        if before is not None:
            vars(norm)["forward"] = before


def is_mixed(norm: nn.Module) -> bool:
    """Whether `mix_statistics` was applied."""
    return getattr(vars(norm).get("forward"), "func", None) is mixed_forward


def mixed_forward(norm: Any, source_weight: float, forward: Any, x: Tensor) -> Tensor:
    """The layer's forward with mixed statistics; the batch's variance is the biased one."""
    wide = working_dtype(x, norm.running_mean)
    batch = x.to(wide)
    own_var, own_mean = torch.var_mean(batch, [0, *range(2, x.ndim)], correction=0)
    source_mean, source_var = norm.running_mean.to(wide), norm.running_var.to(wide)
    mean = torch.lerp(own_mean, source_mean, source_weight)
    var = torch.lerp(own_var, source_var, source_weight)
    shape = (1, -1, *[1] * (x.ndim - 2))
    scale = ((source_var + norm.eps) / (var + norm.eps)).sqrt()
    moved = (batch - mean.view(shape)) * scale.view(shape) + source_mean.view(shape)
    return (partial(type(norm).forward, norm) if forward is None else forward)(moved.to(x.dtype))
