"""The arithmetic of the projection: dot products of weights and gradients, what follows from them, and the result.

Everything goes by blocks of bounded size: no copy of all weights or gradients in double precision ever exists, and on
an accelerator the number of operations does not grow with the number of tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 1 << 15  # elements whose weights and gradients fit in a core's cache together
BUCKET = 1 << 22  # elements that an accelerator projects at once; bounds the double precision temporaries

WW, WG, GG, COUNT, PRESENT = range(5)  # rows of the totals


@dataclass(frozen=True)
class Shard:
    """What this process holds of one parameter and its gradient, as matrices of the same shape.

    Attributes:
        weight: Weights, ``[rows, elements]``; each row is (a part of) one unit that is projected on its own.
        grad: Gradient of the same shape, or None where this process has none, which counts as zero where others have
            one. The result is written into it.
        size: Elements of a whole unit, or None where the other processes have to be asked.
    """

    weight: Tensor
    grad: Tensor | None
    size: int | None


@dataclass(frozen=True)
class Piece:
    """A block of some shard, and the number of the unit that its first row is (a part of)."""

    unit: int
    weight: Tensor
    grad: Tensor


def wide_type(device: torch.device) -> torch.dtype:
    """Type of the sums: double precision where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def offsets(shards: Sequence[Shard]) -> list[int]:
    """Number of the first unit of each shard, and the number of all units."""
    starts = [0]
    for shard in shards:
        starts.append(starts[-1] + len(shard.weight))
    return starts


def _pieces(shard: Shard, first: int, limit: int) -> Iterator[Piece]:
    """Blocks of at most ``limit`` elements: whole rows, or parts of one row that is longer."""
    grad = shard.weight.new_zeros(1, 1).expand_as(shard.weight) if shard.grad is None else shard.grad
    if grad.numel() == 0:
        return
    count, length = shard.weight.shape
    height = max(1, limit // length)
    for top in range(0, count, height):
        for left in range(0, length, limit):
            block = (slice(top, top + height), slice(left, left + limit))
            yield Piece(first + top, shard.weight[block], grad[block])


def _buckets(shards: Sequence[Shard], *, to_write: bool = False) -> Iterator[list[Piece]]:
    """Pieces gathered by device and type up to a bounded size; one at a time on a CPU, where it stays in the cache."""
    waiting: dict[tuple[torch.device, torch.dtype], list[Piece]] = {}
    for shard, first in zip(shards, offsets(shards), strict=False):
        if to_write and shard.grad is None:
            continue
        on_cpu = shard.weight.device.type == "cpu"
        key = (shard.weight.device, shard.weight.dtype)
        for piece in _pieces(shard, first, 8 * BLOCK if on_cpu else BUCKET):
            if on_cpu:
                yield [piece]
                continue
            bucket = waiting.setdefault(key, [])
            if bucket and sum(p.grad.numel() for p in bucket) + piece.grad.numel() > BUCKET:
                yield waiting.pop(key)
            waiting.setdefault(key, []).append(piece)
    yield from waiting.values()


def _flat(bucket: Sequence[Piece]) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """Weights and gradients end to end in the wide type, and unit and length of each of their rows."""
    device = bucket[0].grad.device
    w = torch.cat([piece.weight.reshape(-1) for piece in bucket]).to(wide_type(device))
    g = torch.cat([piece.grad.reshape(-1) for piece in bucket]).to(wide_type(device))
    units = torch.tensor([piece.unit + i for piece in bucket for i in range(len(piece.grad))], device=device)
    return w, g, units, [piece.grad.shape[1] for piece in bucket for _ in range(len(piece.grad))]


def dots(shards: Sequence[Shard], device: torch.device) -> Tensor:
    """<w, w>, <w, g>, <g, g>, elements, and 1 where there is a gradient: ``[5, units]`` of this process's shards."""
    counts = [float(shard.size or shard.weight.shape[1]) for shard in shards for _ in range(len(shard.weight))]
    present = [float(shard.grad is not None) for shard in shards for _ in range(len(shard.weight))]
    zeros = [0.0] * len(counts)
    totals = torch.tensor([zeros, zeros, zeros, counts, present], dtype=wide_type(device), device=device)
    for bucket in _buckets(shards):
        w, g, units, lengths = _flat(bucket)
        sums = torch.stack([_sums(w * w, lengths), _sums(w * g, lengths), _sums(g * g, lengths)])
        totals[:COUNT].index_add_(1, units.to(device), sums.to(device, totals.dtype))
    return totals


def _sums(values: Tensor, lengths: list[int]) -> Tensor:
    if len(set(lengths)) == 1:
        return values.view(len(lengths), -1).sum(1)
    sizes = torch.tensor(lengths, device=values.device)
    return torch.segment_reduce(values, "sum", lengths=sizes, initial=0, unsafe=True)


def coefficients(totals: Tensor, rounding: Tensor, eps: float, rescale: bool) -> tuple[Tensor, Tensor]:
    """Factors (a, b) of g'' = a g - b w of each unit; ``rounding`` is the machine epsilon of its type."""
    ww, wg, gg = totals[WW], totals[WG], totals[GG]
    r = wg / (ww + eps)
    # |g'|^2 from the dot products: they are double precision, so that its cancellation stays below the rounding of g
    # itself. Below zero there is rounding alone.
    remainder = (gg - r * (2 * wg - r * ww)).clamp(min=0).sqrt()
    norm = gg.sqrt()
    scale = norm / remainder.masked_fill(remainder == 0, 1) if rescale else torch.ones_like(r)
    # A gradient parallel to the weights leaves rounding noise alone, which rescaling would blow up to a full step: the
    # noise of its own type, and that of the sums, whose square root is taken.
    noise = (8 * rounding).clamp(min=8 * torch.finfo(totals.dtype).eps ** 0.5)
    scale = scale.masked_fill(remainder <= noise * norm, 0)
    # An overflowed gradient stays as it is, so that a gradient scaler sees it; of a single element nothing would
    # remain; where even the square of the norm underflows there is nothing to divide by.
    untouched = ~(gg.isfinite() & wg.isfinite()) | (totals[COUNT] == 1) | (gg == 0)
    return scale.masked_fill(untouched, 1), (scale * r).masked_fill(untouched, 0)


def _results(bucket: Sequence[Piece], a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """a g - b w of a bucket end to end, unit and length of each row."""
    w, g, units, lengths = _flat(bucket)
    repeats = torch.tensor(lengths, device=g.device)
    a, b = (
        factor.to(g.device, g.dtype)[units].repeat_interleave(repeats, output_size=sum(lengths)) for factor in (a, b)
    )
    return g.mul_(a).sub_(w.mul_(b)), units, lengths


def largest(shards: Sequence[Shard], a: Tensor, b: Tensor) -> Tensor:
    """The largest absolute value that the result would have in each unit."""
    found = torch.zeros_like(a)
    for bucket in _buckets(shards, to_write=True):
        g, units, lengths = _results(bucket, a, b)
        sizes = torch.tensor(lengths, device=g.device)
        peaks = torch.segment_reduce(g.abs_(), "max", lengths=sizes, initial=0, unsafe=True)
        found.scatter_reduce_(0, units.to(found.device), peaks.to(found.device, found.dtype), "amax")
    return found


def write(shards: Sequence[Shard], a: Tensor, b: Tensor) -> None:
    """Put a g - b w in place of every gradient."""
    for bucket in _buckets(shards, to_write=True):
        g, _, _ = _results(bucket, a, b)
        parts = g.to(bucket[0].grad.dtype).split([piece.grad.numel() for piece in bucket])
        shaped = [part.view(piece.grad.shape) for part, piece in zip(parts, bucket, strict=True)]
        torch._foreach_copy_([piece.grad for piece in bucket], shaped)


def project_vector_(weight: Tensor, grad: Tensor, eps: float, rescale: bool) -> bool:
    """Project one float32 tensor on a CPU in place; False where single precision is not enough for it."""
    ww = wg = gg = 0.0
    for w, g in zip(weight.reshape(-1).split(BLOCK), grad.reshape(-1).split(BLOCK), strict=True):
        ww += torch.dot(w, w).item()
        wg += torch.dot(w, g).item()
        gg += torch.dot(g, g).item()
    inside = 1e-20 < gg < 1e30 and 1e-20 < ww < 1e30
    if not inside or wg * wg > 0.75 * ww * gg:
        return False
    r = wg / (ww + eps)
    scale = math.sqrt(gg / (gg - r * (2 * wg - r * ww))) if rescale else 1.0
    if scale != 1.0:
        grad.mul_(scale)
    grad.add_(weight, alpha=-scale * r)
    return True
