"""Rows of unit length, and cosines of rows: one spelling of both for prototypes, projections and features."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from offprints.shared.device import float32_region, working_dtype


def unit_rows(x: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
    """Rows divided by their lengths, whatever these are; a row of zeros stays one, and its gradient is finite.

    Each row is divided by its largest entry first, which no square overflows or underflows after.
    """
    largest = x.detach().abs().amax(-1, keepdim=True)
    zero = largest == 0
    scaled = x / torch.where(zero, 1, largest)
    length = torch.where(zero, 1, scaled.square().sum(-1, keepdim=True)).sqrt()
    return scaled / length


def products(a: Float[Tensor, "a dim"], b: Float[Tensor, "b dim"]) -> Float[Tensor, "a b"]:
    """Inner products of rows in full precision, under autocast too: a cosine is divided by a small temperature."""
    dtype = working_dtype(a, b)
    with float32_region(a.device):
        return a.to(dtype) @ b.to(dtype).T
