"""The class part of the losses in blocks of classes: what a block needs stays in the cache.

The cosines `(B, C)` are kept for backward, or never stored and computed again there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from offprints.shared.device import eagerly, float32_region
from offprints.unpg.pairs import nothing

BLOCK = 2**19  # cosines of a block where all of them are kept


class _Terms(torch.autograd.Function):
    """`(x, weight, labels)` to the logsumexp over the other classes, and the cosine with the own class.

    `x` has unit rows; those of `weight` are normalized block by block, so that no second `(C, d)` exists but the
    gradient. Rows whose own class is not here get the cosine 0.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, labels: Tensor, scale: float, chunk: int, first: int, keep: bool
    ) -> tuple[Tensor, ...]:
        total = torch.full_like(x[:, 0], nothing(x.dtype))
        target = torch.zeros_like(total)
        # Written in place: small tensors that stay alive between the blocks keep the allocator from using a block's
        # memory again, which then grows with the number of classes after all.
        lengths = weight.new_empty(len(weight), dtype=x.dtype)
        kept = []
        for start, rows in _blocks(weight, chunk, x.dtype):
            length = _lengths(rows)
            cosine = (x @ rows.T) / length
            own, index = among(labels, first + start, len(rows))
            target = target + torch.where(own, cosine.gather(1, index)[:, 0], 0)
            total = torch.logaddexp(total, _without_own(scale * cosine, own, index).logsumexp(1))
            lengths[start : start + len(rows)] = length
            if keep:
                kept.append(cosine)
        return total, target, lengths, *kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, labels, ctx.scale, ctx.chunk, ctx.first, _ = inputs
        total, _, lengths, *kept = output
        ctx.mark_non_differentiable(lengths, *kept)
        ctx.save_for_backward(x, weight, labels, total, lengths, *kept)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, of_total: Tensor | None, of_target: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, labels, total, lengths, *kept = ctx.saved_tensors
        of_total, of_target = (torch.zeros_like(total) if of is None else of for of in (of_total, of_target))
        with float32_region(x.device):
            if torch.is_grad_enabled():
                found = _traced(x, weight, labels, total, of_total, of_target, ctx.scale, ctx.chunk, ctx.first)
            else:
                found = _in_place(x, weight, labels, total, lengths, kept, of_total, of_target, ctx)
        return (*found, None, None, None, None, None)


def _traced(
    x: Tensor,
    weight: Tensor,
    labels: Tensor,
    total: Tensor,
    of_total: Tensor,
    of_target: Tensor,
    scale: float,
    chunk: int,
    first: int,
) -> tuple[Tensor, Tensor]:
    """The gradients by operations that can be differentiated again."""
    of_x, of_weight = torch.zeros_like(x), []
    for start, rows in _blocks(weight, chunk, x.dtype):
        length = _lengths(rows)
        cosine = (x @ rows.T) / length
        own, index = among(labels, first + start, len(rows))
        # The own class is no term of the total, and may exceed it by more than an exponential can hold.
        share = scale * of_total[:, None] * (_without_own(scale * cosine, own, index) - total[:, None]).exp()
        share = share.scatter(1, index, torch.where(own, of_target, share.gather(1, index)[:, 0])[:, None])
        scaled = share / length
        of_x = of_x + scaled @ rows
        along = (share * cosine).sum(0) / length.square()
        of_weight.append((scaled.T @ x - along[:, None] * rows).to(weight.dtype))
    return of_x, torch.cat(of_weight)


def _in_place(
    x: Tensor,
    weight: Tensor,
    labels: Tensor,
    total: Tensor,
    lengths: Tensor,
    kept: list[Tensor],
    of_total: Tensor,
    of_target: Tensor,
    ctx: Any,
) -> tuple[Tensor, Tensor]:
    """The same with one block in memory, and the gradient of the weights written where it belongs."""
    of_x, of_weight = torch.zeros_like(x), torch.empty_like(weight)
    factor = ctx.scale * of_total[:, None]
    for number, (start, rows) in enumerate(_blocks(weight, ctx.chunk, x.dtype)):
        length = lengths[start : start + len(rows)]
        cosine = kept[number] if kept else (x @ rows.T).div_(length)
        own, index = among(labels, ctx.first + start, len(rows))
        share = torch.sub(ctx.scale * cosine, total[:, None]).exp_().mul_(factor)
        share.scatter_(1, index, torch.where(own, of_target, share.gather(1, index)[:, 0])[:, None])
        along = (cosine * share).sum(0).div_(length.square())
        share.div_(length)
        of_x.addmm_(share, rows)
        of_rows = torch.addmm(along[:, None] * rows, share.T, x, beta=-1)
        of_weight[start : start + len(rows)] = of_rows
    return of_x, of_weight


def _blocks(weight: Tensor, chunk: int, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(weight), chunk):
        yield start, weight[start : start + chunk].to(dtype)


def _lengths(rows: Tensor) -> Tensor:
    """Lengths to divide by: 1 for a row of zeros, as `unit_rows` has it."""
    squares = rows.square().sum(1)
    return torch.where(squares > 0, squares, 1).sqrt()


def among(labels: Int[Tensor, " batch"], first: int, count: int) -> tuple[Tensor, Tensor]:
    """Which labels lie in `[first, first + count)`, and their places there `(B, 1)` (any for the others)."""
    index = labels - first
    return (index >= 0) & (index < count), index.clamp(0, count - 1)[:, None]


def _without_own(logits: Tensor, own: Tensor, index: Tensor) -> Tensor:
    """The logits, with one that adds nothing in place of the own class's: at `index` of the rows in `own`."""
    entry = torch.where(own[:, None], nothing(logits.dtype), logits.gather(1, index))
    return logits.scatter(1, index, entry)


@eagerly()
def class_terms(
    x: Float[Tensor, "batch dim"],
    weight: Float[Tensor, "classes dim"],
    labels: Int[Tensor, " batch"],
    scale: float,
    chunk: int | None,
    first: int = 0,
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """For unit rows: `log sum exp(scale * c_ij)` over the classes j that are not the own, and `c_iy` of the own.

    Classes are those of the rows of `weight`, from `first` on; where the own is not among them the cosine is 0. Without
    `chunk` the cosines are kept for backward, else they are computed again, `chunk` classes at a time.
    """
    size = max(1, BLOCK // len(x)) if chunk is None else chunk
    total, target, *_ = _Terms.apply(x, weight, labels, scale, size, first, chunk is None)
    return total, target
