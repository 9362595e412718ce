"""Geodesic distances in the Poincare ball: of pairs, to the center, and of all with all."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from offprints.hyp_oc import _unit_ball as unit
from offprints.hyp_oc.ball import check_curvature, check_vectors
from offprints.shared.device import eagerly, float32_region
from offprints.shared.validation import should_check

# Squared differences below this part of their terms are taken again, from the coordinates.
CANCELED = {torch.float64: 1e-6, torch.float32: 1e-2}
BLOCK = 2**22  # coordinates of a block of pairs


def distance(x: Float[Tensor, "*batch d"], y: Float[Tensor, "*batch d"], *, c: float) -> Float[Tensor, "*batch"]:
    """Geodesic distance `(...,)` of two points of the ball, `(2 / sqrt(c)) artanh(sqrt(c) |(-x) + y|)`.

    Computed as `(2 / sqrt(c)) arsinh(sqrt(c) |x - y| / sqrt((1 - c |x|^2)(1 - c |y|^2)))`, which keeps its digits for
    near and for far points. The gradient at coincident points is 0. Points outside the ball have no distance; they are
    not looked for, and `project` is the remedy.

    Args:
        x, y: Points `(..., d)`; leading axes broadcast.
        c: Curvature, positive.

    Raises:
        TypeError: not floating tensors.
        ValueError: another width, leading axes that do not broadcast; c is not positive.

    Example:
        >>> distance(torch.tensor([0.5, 0.0]), torch.tensor([-0.5, 0.0]), c=1.0)
        tensor(2.1972)
    """
    c, dtype = check_curvature(c), check_vectors(x=x, y=y)
    root = c**0.5
    return (2 / root * unit.half_distance(unit.separation(root * unit.wide(x), root * unit.wide(y)))).to(dtype)


def distance0(x: Float[Tensor, "*batch d"], *, c: float) -> Float[Tensor, "*batch"]:
    """Geodesic distance `(...,)` from 0, `(2 / sqrt(c)) artanh(sqrt(c) |x|)`.

    Raises:
        TypeError, ValueError: as in `distance`.

    Example:
        >>> distance0(expmap0(torch.tensor([3.0, 4.0]), c=0.1), c=0.1)  # twice the length of the tangent vector
        tensor(10.0000)
    """
    c, dtype = check_curvature(c), check_vectors(x=x)
    root = c**0.5
    point = root * unit.wide(x)
    sine = (unit.squared_norm(point) / unit.gap(point)).squeeze(-1)
    return (2 / root * unit.half_distance(sine)).to(dtype)


def pairwise_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], *, c: float) -> Float[Tensor, "n m"]:
    """Geodesic distance of every x to every y, `(n, m)`, by one matrix product.

    There is no tensor `(n, m, d)`. The squared differences are inner products of centered points in float64; pairs so
    close that these cancel are taken again from the coordinates, so that equal points have the distance 0 (that asks an
    accelerator how many there are).

    Args:
        x: Points `(n, d)`.
        y: Points `(m, d)`.
        c: Curvature, positive.

    Raises:
        TypeError: not floating tensors.
        ValueError: not two axes, another width; c is not positive.

    Example:
        >>> x = torch.tensor([[0.5, 0.0], [0.0, 0.0]])
        >>> pairwise_distance(x, x, c=1.0)
        tensor([[0.0000, 1.0986],
                [1.0986, 0.0000]])
    """
    c = check_curvature(c)
    for name, points in (("x", x), ("y", y)):
        if isinstance(points, Tensor) and points.ndim != 2:
            raise ValueError(f"{name} must have 2 dimensions, got shape {tuple(points.shape)}")
    dtype = check_vectors(x=x[:1] if isinstance(x, Tensor) else x, y=y[:1] if isinstance(y, Tensor) else y)
    root = c**0.5
    left, right = root * unit.wide(x), root * unit.wide(y)
    if not torch.compiler.is_compiling() and not should_check(left, validate=True):
        # Inside vmap there are no values to look at: differences of all pairs.
        return (2 / root * unit.half_distance(unit.separation(left[:, None], right))).to(dtype)
    return (2 / root * unit.half_distance(_separations(left, right).to(dtype))).to(dtype)


@eagerly()
def _separations(x: Tensor, y: Tensor) -> Tensor:
    """`unit.separation` of all pairs."""
    if x.shape[0] == 0 or y.shape[0] == 0:
        return x.new_zeros(x.shape[0], y.shape[0])
    center = (x.detach().mean(0) + y.detach().mean(0)) / 2
    a, b = x - center, y - center
    square_a, square_b, gap_x, gap_y = unit.squared_norm(a), unit.squared_norm(b), unit.gap(x), unit.gap(y)
    # |a - b|^2 / (gap gap) as an inner product of d + 2 numbers each.
    with float32_region(x.device):
        found = (torch.cat([-2 * a, square_a, torch.ones_like(gap_x)], 1) / gap_x) @ (
            torch.cat([b, torch.ones_like(gap_y), square_b], 1) / gap_y
        ).mT
    size_a, size_b = (square_a / gap_x).detach(), (square_b / gap_y).detach()
    # Of the terms of a pair, at least their sum, taken with the largest y.
    terms = (size_a / gap_y.detach().amin() + size_b.amax() / gap_x.detach()) * CANCELED[x.dtype]
    near = found.detach() <= terms
    rows, columns = near.nonzero(as_tuple=True)
    if rows.numel() == 0:
        return found
    block = max(1, BLOCK // x.shape[1])
    exact = [
        unit.separation(x.index_select(0, i), y.index_select(0, j))
        for i, j in zip(rows.split(block), columns.split(block), strict=True)
    ]
    return found.index_put((rows, columns), torch.cat(exact))
