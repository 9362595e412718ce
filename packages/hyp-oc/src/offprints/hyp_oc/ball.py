"""The Poincare ball of curvature -c: the points x with |x| < 1 / sqrt(c).

Every function takes tensors `(..., d)` of any floating type and broadcasts their leading axes. Computed in float64 and
returned in the type of the arguments; half types come back as float32, since next to the boundary they have no numbers
left. Zero vectors, coincident points and points next to the boundary have finite values and gradients. What lies on or
outside the boundary is not looked for: `project` brings it back.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from offprints.hyp_oc import _unit_ball as unit
from offprints.shared.device import working_dtype
from offprints.shared.validation import check_number, check_same_device, check_tensor

MARGIN = 1e-3  # the paper's code: what `project` leaves to the boundary, relatively


def check_curvature(c: float) -> float:
    """The curvature as a plain number.

    Raises:
        TypeError: not a number.
        ValueError: not positive, or infinite.
    """
    return check_number(c, "c", low=0, open_low=True)


def check_vectors(**vectors: Tensor) -> torch.dtype:
    """Check types, widths and leading axes, and return the type of the result.

    Raises:
        TypeError: not a floating tensor.
        ValueError: a scalar, no coordinates, another width, leading axes that do not broadcast, two devices.
    """
    names = tuple(vectors)
    for name, x in vectors.items():
        check_tensor(x, name, min_ndim=1, finite=False, allow_empty=True)
        if x.shape[-1] == 0:
            raise ValueError(f"{name} must have at least one coordinate, got shape {tuple(x.shape)}")
    first = vectors[names[0]]
    for name in names[1:]:
        other = vectors[name]
        if other.shape[-1] != first.shape[-1]:
            raise ValueError(
                f"{names[0]} and {name} must have the same width, got {first.shape[-1]} and {other.shape[-1]}"
            )
        for one, two in zip(reversed(first.shape[:-1]), reversed(other.shape[:-1]), strict=False):
            if one != two and one != 1 and two != 1:
                raise ValueError(
                    f"{names[0]} and {name} must have leading axes that broadcast, got shapes {tuple(first.shape)} and"
                    f" {tuple(other.shape)}"
                )
    check_same_device(*vectors.values(), names=names)
    return working_dtype(*vectors.values())


def expmap0(u: Float[Tensor, "*batch d"], *, c: float) -> Float[Tensor, "*batch d"]:
    """The point reached from 0 along u: `tanh(sqrt(c) |u|) u / (sqrt(c) |u|)`.

    Its derivative at 0 is the identity. Beyond `|u| = 9 / sqrt(c)` float32 rounds to the boundary: `project` follows.

    Args:
        u: Tangent vectors at 0, `(..., d)`, of any length.
        c: Curvature, positive.

    Raises:
        TypeError: u is not a floating tensor.
        ValueError: u has no coordinates; c is not positive.

    Example:
        >>> expmap0(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), c=1.0)
        tensor([[0.7616, 0.0000],
                [0.0000, 0.0000]])
    """
    c, dtype = check_curvature(c), check_vectors(u=u)
    root = c**0.5
    return (unit.exp0(root * unit.wide(u)) / root).to(dtype)


def logmap0(x: Float[Tensor, "*batch d"], *, c: float) -> Float[Tensor, "*batch d"]:
    """The tangent vector at 0 that leads to x, the inverse of `expmap0`: `artanh(sqrt(c) |x|) x / (sqrt(c) |x|)`.

    Raises:
        TypeError, ValueError: as in `expmap0`.

    Example:
        >>> logmap0(expmap0(torch.tensor([0.5, -2.0]), c=0.1), c=0.1)
        tensor([ 0.5000, -2.0000])
    """
    c, dtype = check_curvature(c), check_vectors(x=x)
    root = c**0.5
    return (unit.log0(root * unit.wide(x)) / root).to(dtype)


def expmap(x: Float[Tensor, "*batch d"], u: Float[Tensor, "*batch d"], *, c: float) -> Float[Tensor, "*batch d"]:
    """The point reached from x along u: `x + tanh(sqrt(c) lambda_x |u| / 2) u / (sqrt(c) |u|)`, + the Mobius sum.

    Args:
        x: Points of the ball, `(..., d)`.
        u: Tangent vectors at x, `(..., d)`.
        c: Curvature, positive.

    Raises:
        TypeError: not floating tensors.
        ValueError: another width, leading axes that do not broadcast; c is not positive.

    Example:
        >>> x, u = torch.tensor([0.5, 0.0]), torch.tensor([0.1, 0.3])
        >>> distance(x, expmap(x, u, c=1.0), c=1.0) / u.norm()  # the conformal factor at x
        tensor(2.6667)
    """
    c, dtype = check_curvature(c), check_vectors(x=x, u=u)
    root = c**0.5
    start = root * unit.wide(x)
    return (unit.add(start, unit.exp0(root * unit.wide(u) / unit.gap(start))) / root).to(dtype)


def logmap(x: Float[Tensor, "*batch d"], y: Float[Tensor, "*batch d"], *, c: float) -> Float[Tensor, "*batch d"]:
    """The tangent vector at x that leads to y, the inverse of `expmap`; 0 where y is x.

    Raises:
        TypeError, ValueError: as in `expmap`.

    Example:
        >>> x, u = torch.tensor([0.5, 0.0]), torch.tensor([0.1, 0.3])
        >>> logmap(x, expmap(x, u, c=1.0), c=1.0)
        tensor([0.1000, 0.3000])
    """
    c, dtype = check_curvature(c), check_vectors(x=x, y=y)
    root = c**0.5
    start = root * unit.wide(x)
    return (unit.gap(start) * unit.log0(unit.add(-start, root * unit.wide(y))) / root).to(dtype)


def mobius_add(x: Float[Tensor, "*batch d"], y: Float[Tensor, "*batch d"], *, c: float) -> Float[Tensor, "*batch d"]:
    """The Mobius sum, which takes the place of x + y in the ball.

    `((1 + 2 c <x, y> + c |y|^2) x + (1 - c |x|^2) y) / (1 + 2 c <x, y> + c^2 |x|^2 |y|^2)`; neither commutative nor
    associative, but `(-x) + (x + y) = y`.

    Raises:
        TypeError, ValueError: as in `expmap`.

    Example:
        >>> x, y = torch.tensor([0.5, 0.0]), torch.tensor([0.0, 0.5])
        >>> mobius_add(x, y, c=1.0), mobius_add(y, x, c=1.0)
        (tensor([0.5882, 0.3529]), tensor([0.3529, 0.5882]))
    """
    c, dtype = check_curvature(c), check_vectors(x=x, y=y)
    root = c**0.5
    return (unit.add(root * unit.wide(x), root * unit.wide(y)) / root).to(dtype)


def project(x: Float[Tensor, "*batch d"], *, c: float, eps: float = MARGIN) -> Float[Tensor, "*batch d"]:
    """Rescale what is longer to the length `(1 - eps) / sqrt(c)`, inside the open ball.

    Args:
        x: Vectors `(..., d)`.
        c: Curvature, positive.
        eps: Relative margin to the boundary, in (0, 1).

    Raises:
        TypeError: x is not a floating tensor.
        ValueError: x has no coordinates; c is not positive; eps is out of range.

    Example:
        >>> project(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), c=1.0)
        tensor([[0.5994, 0.7992],
                [0.3000, 0.4000]])
    """
    c, dtype = check_curvature(c), check_vectors(x=x)
    eps = check_number(eps, "eps", low=0, high=1, open_low=True, open_high=True)
    return unit.shortened(unit.wide(x), (1 - eps) / c**0.5, slack=4 * torch.finfo(dtype).eps).to(dtype)


def clip_features(x: Float[Tensor, "*batch d"], *, max_norm: float = 2.0) -> Float[Tensor, "*batch d"]:
    """Euclidean features with their length limited: `x min(1, max_norm / |x|)`.

    Args:
        x: Features `(..., d)`.
        max_norm: The largest length, positive.

    Raises:
        TypeError: x is not a floating tensor.
        ValueError: x has no coordinates; max_norm is not positive.

    Example:
        >>> clip_features(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))
        tensor([[1.2000, 1.6000],
                [0.3000, 0.4000]])
    """
    dtype = check_vectors(x=x)
    limit = check_number(max_norm, "max_norm", low=0, open_low=True)
    return unit.shortened(unit.wide(x), limit, slack=4 * torch.finfo(dtype).eps).to(dtype)


def conformal_factor(x: Float[Tensor, "*batch d"], *, c: float) -> Float[Tensor, "*batch"]:
    """How much longer a step at x is than in Euclidean space, `lambda_x = 2 / (1 - c |x|^2)`, `(...,)`.

    Raises:
        TypeError, ValueError: as in `expmap0`.

    Example:
        >>> conformal_factor(torch.tensor([[0.0, 0.0], [0.6, 0.0]]), c=1.0)
        tensor([2.0000, 3.1250])
    """
    c, dtype = check_curvature(c), check_vectors(x=x)
    return (2 / unit.gap(c**0.5 * unit.wide(x))).squeeze(-1).to(dtype)
