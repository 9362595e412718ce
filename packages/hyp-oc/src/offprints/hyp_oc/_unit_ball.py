"""The ball of radius one, in which every operation of `ball` is computed: scaled by sqrt(c), float64, unchecked.

`1 - |x|^2` cancels near the boundary, and distances there are of its size: in float32 three of seven digits are gone at
the margin that `project` leaves. Vectors are short beside the layers around them, so that float64 costs next to
nothing. Devices without float64 stay with float32. The formulas are arranged so that nothing cancels twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

REACH = 40.0  # tanh(40) is 1 in float64
SEAM = 1e-3  # squared length below which series take over from quotients of zeros

# tanh(t) / t and artanh(t) / t in powers of t^2, to 1e-17 at the seam.
TANH = (1.0, -1 / 3, 2 / 15, -17 / 315, 62 / 2835)
ARTANH = tuple(1 / (2 * k + 1) for k in range(6))


def wide(x: Tensor) -> Tensor:
    """In float64, where the device has it."""
    return x.float() if x.device.type == "mps" else x.double()


def squared_norm(x: Tensor) -> Tensor:
    """`(..., 1)`."""
    return (x * x).sum(-1, keepdim=True)


def gap(x: Tensor) -> Tensor:
    """`1 - |x|^2`, `(..., 1)`: half of it is the inverse of the conformal factor."""
    return 1 - squared_norm(x)


def norm(x: Tensor) -> Tensor:
    """Length `(..., 1)`, whose gradient at 0 is 0."""
    square = squared_norm(x)
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())


def shortened(x: Tensor, limit: float, slack: float = 0.0) -> Tensor:
    """The vector, or what has its direction and the length `limit` where it is longer.

    With `slack`, a relative excess that is left alone, what was shortened and rounded is not shortened again.
    """
    unit = x.detach().abs().amax(-1, keepdim=True).clamp(min=1.0)  # squares of the largest numbers fit in too
    square, limits = squared_norm(x / unit), limit / unit
    inside = square <= (limits * (1 + slack)).square()
    return torch.where(inside, x, x / unit * (limit / torch.where(inside, 1.0, square).sqrt()))


def _series(coefficients: Sequence[float], q: Tensor) -> Tensor:
    total = torch.full_like(q, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * q + coefficient
    return total


def tanhc(q: Tensor) -> Tensor:
    """`tanh(t) / t` of `q = t^2`, smooth at 0."""
    near = q < SEAM
    t = torch.where(near, 1.0, q).sqrt()
    return torch.where(near, _series(TANH, torch.where(near, q, 0.0)), t.tanh() / t)


def artanhc(q: Tensor) -> Tensor:
    """`artanh(t) / t` of `q = t^2`, smooth at 0."""
    near = q < SEAM
    t = torch.where(near, 0.5, q).sqrt()
    return torch.where(near, _series(ARTANH, torch.where(near, q, 0.0)), t.atanh() / t)


def exp0(v: Tensor) -> Tensor:
    """`tanh(|v|) v / |v|`."""
    # From REACH on the result depends on the direction alone, and so do its derivatives but for a factor 1 / |v|, which
    # the rescaling keeps: no square overflows.
    largest = v.detach().abs().amax(-1, keepdim=True)
    v = v * (REACH / largest).clamp(max=1.0)
    return tanhc(squared_norm(v)) * v


def log0(x: Tensor) -> Tensor:
    """`artanh(|x|) x / |x|`."""
    return artanhc(squared_norm(x)) * x


def add(x: Tensor, y: Tensor) -> Tensor:
    """The Mobius sum: with `s = x + y`, `((1 - |x|^2) s + |s|^2 x) / (|s|^2 + (1 - |x|^2)(1 - |y|^2))`.

    The usual form subtracts numbers near each other where y is near -x; this one has no difference but the gaps.
    """
    total = x + y
    square, gap_x = squared_norm(total), gap(x)
    return (gap_x * total + square * x) / (square + gap_x * gap(y))


def separation(x: Tensor, y: Tensor) -> Tensor:
    """`|x - y|^2 / ((1 - |x|^2)(1 - |y|^2))`, `(...,)`: the squared hyperbolic sine of half the distance."""
    return (squared_norm(x - y) / (gap(x) * gap(y))).squeeze(-1)


def half_distance(squared_sine: Tensor) -> Tensor:
    """`arsinh(sqrt(r))`, whose gradient at 0 is 0."""
    zero = squared_sine == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squared_sine).sqrt().asinh())


def half_angle(squared_sine: Tensor) -> Tensor:
    """`arctan(t)` of the length t of the Mobius difference, `t^2 = r / (1 + r)`; its gradient at 0 is 0."""
    zero = squared_sine == 0
    safe = torch.where(zero, 1.0, squared_sine)
    return torch.where(zero, 0.0, (safe / (1 + safe)).sqrt().atan())
