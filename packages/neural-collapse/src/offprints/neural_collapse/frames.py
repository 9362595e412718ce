"""Frames: random orthonormal directions and the simplex equiangular tight frame."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from offprints.neural_collapse._inputs import check_dtype
from offprints.shared.device import make_generator
from offprints.shared.validation import check_number


def orthonormal(rows: int, columns: int, generator: torch.Generator) -> Float[Tensor, "rows columns"]:
    """Random orthonormal columns in float64, uniformly distributed."""
    Q, R = torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64))
    return Q * torch.where(R.diagonal() < 0, -1.0, 1.0)


def zero_sum_basis(num_classes: int, generator: torch.Generator) -> Float[Tensor, "classes directions"]:
    """A random orthonormal basis ``[K, K-1]`` of the vectors whose entries sum to zero, in float64."""
    draws = torch.randn(num_classes, num_classes - 1, generator=generator, dtype=torch.float64)
    Q, R = torch.linalg.qr(draws - draws.mean(0))
    return Q * torch.where(R.diagonal() < 0, -1.0, 1.0)


def simplex_etf(
    num_classes: int, dim: int, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Float[Tensor, "classes dim"]:
    """A randomly rotated simplex equiangular tight frame, to initialize or to freeze a classifier with.

    The rows have length 1, inner products -1 / (K - 1) with each other, and sum to zero.

    Args:
        num_classes: K, at least 2.
        dim: Width, at least K - 1.
        seed: Of the rotation.
        dtype: Type of the result; computed in float64.

    Raises:
        TypeError: numbers that are not integers, ``dtype`` not floating.
        ValueError: ``num_classes`` < 2, ``dim`` < K - 1.

    Example:
        >>> E = simplex_etf(3, 8)
        >>> (E @ E.T).round(decimals=6)
        tensor([[ 1.0000, -0.5000, -0.5000],
                [-0.5000,  1.0000, -0.5000],
                [-0.5000, -0.5000,  1.0000]], dtype=torch.float64)
    """
    K = check_number(num_classes, "num_classes", low=2, integer=True)
    dim = check_number(dim, "dim", low=1, integer=True)
    if dim < K - 1:
        raise ValueError(f"dim must be at least num_classes - 1 = {K - 1}, got {dim}")
    dtype, generator = check_dtype(dtype), make_generator(seed)
    frame = zero_sum_basis(K, generator) @ orthonormal(dim, K - 1, generator).T
    return (math.sqrt(K / (K - 1)) * frame).to(dtype)
