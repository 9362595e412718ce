"""Collectives with gradients: rows of all ranks, sums over ranks. Everything is a no-op in one process."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from offprints.shared.device import eagerly
from offprints.shared.distributed import rank, world_size


class _Gather(torch.autograd.Function):
    """Rows of all ranks. Backward sums over the ranks what each has for this rank's rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int], group: Any) -> Tensor:
        ctx.counts, ctx.group = counts, group
        return _gather(x, counts, group)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient.split(ctx.counts)[rank(ctx.group)], None, None


class _Sum(torch.autograd.Function):
    """The sum over ranks. Every rank has the same loss of it, so that its gradient is this rank's as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        total = x.detach().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _ScaleGradient(torch.autograd.Function):
    """The same values; the gradient times a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.factor * gradient, None


def _gather(x: Tensor, counts: list[int], group: Any) -> Tensor:
    """Ranks with fewer rows send some that are cut off again: a collective moves equal shapes."""
    sent = x.detach().contiguous()
    if len(x) < max(counts):
        sent = torch.cat([sent, sent.new_zeros(max(counts) - len(x), *x.shape[1:])])
    parts = [torch.empty_like(sent) for _ in counts]
    dist.all_gather(parts, sent, group=group)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


class Rows(NamedTuple):
    """What the ranks tell each other before their rows are gathered."""

    counts: list[int]  # rows of every rank
    differentiable: bool  # whether the rows of any rank have a gradient: then all take part in its collective


@eagerly()
def count_rows(x: Tensor, group: Any = None) -> Rows:
    """Ask every rank for its rows. This waits for the device: a hang of unequal shapes would take longer."""
    told = torch.tensor([len(x), int(x.requires_grad)], device=x.device)
    found = [torch.empty_like(told) for _ in range(world_size(group))]
    dist.all_gather(found, told, group=group)
    counts, gradients = torch.stack(found, 1).tolist()
    return Rows(counts, any(gradients))


@eagerly()
def gather_rows(x: Tensor, rows: Rows, group: Any = None) -> Tensor:
    """Rows of all ranks, in their order, with the gradient that all of them have for this rank's rows."""
    if not x.is_floating_point():
        return _gather(x, rows.counts, group)
    if rows.differentiable and not x.requires_grad:
        x = x.detach().requires_grad_()
    gathered: Tensor = _Gather.apply(x, rows.counts, group)
    return gathered


@eagerly()
def sum_over_ranks(x: Tensor, group: Any = None) -> Tensor:
    """The sum, for losses that are the same on every rank."""
    total: Tensor = _Sum.apply(x, group)
    return total


@eagerly()
def max_over_ranks(x: Tensor, group: Any = None) -> Tensor:
    """The largest of every rank's, without a gradient."""
    top = x.detach().clone()
    dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
    return top


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """The same values, whose gradient counts `factor` times."""
    scaled: Tensor = _ScaleGradient.apply(x, factor)
    return scaled
