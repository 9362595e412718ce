"""The transfer part phi: from one noise level to another along a constant noise prediction."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from offprints.shared.validation import check_number, check_same_shape, check_tensor, should_check

HALF = (torch.float16, torch.bfloat16)


def transfer(
    x: Float[Tensor, "batch *shape"],
    eps: Float[Tensor, "batch *shape"],
    alpha_bar_t: float | Tensor,
    alpha_bar_next: float | Tensor,
) -> Float[Tensor, "batch *shape"]:
    r"""Move `x` from level `alpha_bar_t` to level `alpha_bar_next` as if the noise prediction were `eps` on the way.

    The paper's transfer part: DDIM's step without noise, exact where `eps` is constant. With a and b the two levels,

    .. math:: x \sqrt{b/a} - \frac{b - a}{\sqrt{a}\,(\sqrt{(1-b)a} + \sqrt{(1-a)b})} \, \epsilon ,

    a form without cancellation for b near a. The coefficients are computed in float64, half types are accumulated in
    float32.

    Args:
        x: ``[B, ...]``, floating.
        eps: The noise prediction, of the same shape.
        alpha_bar_t: Level of `x`, a number or ``[B]``, in (0, 1].
        alpha_bar_next: Level of the result, likewise; above `alpha_bar_t` toward the data.

    Returns:
        ``[B, ...]`` in the type of `x`; neither argument is changed.

    Raises:
        TypeError: `x` or `eps` is not a floating tensor.
        ValueError: shapes that differ, a level outside (0, 1], levels of another length than the batch.
    """
    check_tensor(x, "x", finite=False, allow_empty=True)
    check_tensor(eps, "eps", finite=False, allow_empty=True)
    check_same_shape(x, eps, ("x", "eps"))
    start, end = _level(alpha_bar_t, "alpha_bar_t", x), _level(alpha_bar_next, "alpha_bar_next", x)
    if isinstance(start, float) and isinstance(end, float):
        of_x, of_eps = coefficients(start, end)
        return combine(x, of_x, (eps,), (of_eps,))
    a, b = (torch.as_tensor(level, dtype=torch.float64) for level in (start, end))
    denominator = a.sqrt() * (((1 - b) * a).sqrt() + ((1 - a) * b).sqrt())
    scales = ((b / a).sqrt(), torch.where(denominator > 0, (a - b) / denominator, 0.0))
    wide = torch.float32 if x.dtype in HALF else x.dtype
    shape = (-1,) + (1,) * (x.ndim - 1)
    on_x, on_eps = (scale.to(x.device, wide).reshape(shape) for scale in scales)
    return (on_x * x + on_eps * eps).to(x.dtype)


def coefficients(alpha_bar_t: float, alpha_bar_next: float) -> tuple[float, float]:
    """The factors of x and of eps in :func:`transfer`."""
    a, b = alpha_bar_t, alpha_bar_next
    denominator = math.sqrt(a) * (math.sqrt((1 - b) * a) + math.sqrt((1 - a) * b))
    return math.sqrt(b / a), (a - b) / denominator if denominator > 0 else 0.0


def combine(x: Tensor, scale: float, terms: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """``scale * x`` plus the weighted terms, in the type of `x`: one new tensor, changed in place."""
    total = x.to(torch.float32).mul(scale) if x.dtype in HALF else x.mul(scale)
    for term, weight in zip(terms, weights, strict=False):
        if weight != 0:
            total.add_(term, alpha=weight)
    return total.to(x.dtype)


def _level(level: float | Tensor, name: str, x: Tensor) -> float | Tensor:
    if not isinstance(level, Tensor):
        check_number(level, name, low=0, high=1, open_low=True)
        return float(level)
    if level.ndim == 0 and level.device.type == "cpu":
        return _level(level.item(), name, x)
    if level.ndim > 1 or (level.ndim == 1 and (x.ndim == 0 or len(level) != len(x))):
        raise ValueError(f"{name} must be a number or one for each of x's {len(x)} rows, got {tuple(level.shape)}")
    if should_check(level) and not bool(((level > 0) & (level <= 1)).all()):
        raise ValueError(f"{name} must lie in (0, 1], got {level.tolist()}")
    return level.to("cpu" if level.device.type == "mps" else level.device, torch.float64)
