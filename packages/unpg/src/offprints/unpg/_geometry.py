"""Directions and lengths of embeddings, safe in every floating type and for every order of derivative."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from offprints.shared.validation import check_tensor


def directions(x: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
    """Rows of length 1; a row of zeros stays one, and passes its gradient on unscaled.

    Each row is divided by its largest entry first, so that no square overflows or vanishes. The result does not depend
    on that number, so it is a constant for the derivatives.
    """
    largest = x.detach().abs().amax(1, keepdim=True)
    scaled = x / torch.where(largest > 0, largest, 1)
    squares = scaled.square().sum(1, keepdim=True)
    return scaled * torch.where(squares > 0, squares, 1).rsqrt()


def clamped_norms(x: Float[Tensor, "rows dim"], low: float, high: float) -> Float[Tensor, " rows"]:
    """Lengths of the rows, clamped; the gradient is zero where they are, to any order."""
    squares = x.square().sum(1)
    inside = (squares > low**2) & (squares < high**2)
    # The root is taken of what lies inside alone: outside it may be one of zero, or infinite.
    norms = torch.where(inside, squares, 1).sqrt()
    ends = torch.where(squares <= low**2, low, high).to(x)
    return torch.where(inside, norms, ends)


def check_embeddings(x: Tensor, name: str = "embeddings", *, width: int | None = None) -> Tensor:
    """Refuse what is not a floating, finite `(B, d)` with rows, of this width if one is given."""
    check_tensor(x, name, ndim=2)
    return check_tensor(x, name, shape=(None, width), finite=False) if width is not None else x
