"""The transfer part phi: from one noise level to another along a constant noise prediction."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from offprints.shared.device import working_dtype
from offprints.shared.validation import check_number, check_same_shape, check_tensor, should_check

Levels = float | Tensor | np.ndarray | Sequence[float]
FULL = (torch.float32, torch.float64)


def transfer(
    x: Float[Tensor, "batch *shape"],
    eps: Float[Tensor, "batch *shape"],
    alpha_bar_t: Levels,
    alpha_bar_next: Levels,
) -> Float[Tensor, "batch *shape"]:
    """Move `x` from level `alpha_bar_t` to level `alpha_bar_next` as if the noise prediction were `eps` on the way.

    The paper's transfer part phi (its formula (9) as the comments of diffusers number it): DDIM's step without noise,
    exact where `eps` is constant. With a and b the two levels,

        x sqrt(b / a) - eps (b - a) / (sqrt(a) (sqrt((1 - b) a) + sqrt((1 - a) b))),

    a form without cancellation for b near a. The coefficients are computed in float64, half types are accumulated in
    float32. Gradients flow to `x` and `eps`; the levels are constants. NaN in either tensor gives NaN in its place.

    Args:
        x: ``[B, ...]``, floating.
        eps: The noise prediction, of the same shape.
        alpha_bar_t: Level of `x`, in (0, 1]: a number, or ``[B]`` as a tensor, an array or a sequence.
        alpha_bar_next: Level of the result, likewise; above `alpha_bar_t` toward the data.

    Returns:
        ``[B, ...]`` in the type of `x`; neither argument is changed.

    Example:
        >>> x, eps = torch.ones(2, 3), torch.zeros(2, 3)
        >>> transfer(x, eps, 0.25, 1.0)
        tensor([[2., 2., 2.],
                [2., 2., 2.]])

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
        if max(of_x, abs(of_eps)) > torch.finfo(working_dtype(x)).max:
            raise ValueError(f"alpha_bar_t is too small for a step from it in {x.dtype}, got {start}")
        return add(scaled(x, of_x), (eps,), (of_eps,)).to(x.dtype)
    a, b = (torch.as_tensor(level, dtype=torch.float64) for level in (start, end))
    denominator = a.sqrt() * (((1 - b) * a).sqrt() + ((1 - a) * b).sqrt())
    scales = ((b / a).sqrt(), torch.where(denominator > 0, (a - b) / denominator, 0.0))
    shape = (-1,) + (1,) * (x.ndim - 1)
    on_x, on_eps = (scale.to(x.device, working_dtype(x)).reshape(shape) for scale in scales)
    return (on_x * x + on_eps * eps).to(x.dtype)


def coefficients(alpha_bar_t: float, alpha_bar_next: float) -> tuple[float, float]:
    """The factors of x and of eps in `transfer`."""
    a, b = alpha_bar_t, alpha_bar_next
    denominator = math.sqrt(a) * (math.sqrt((1 - b) * a) + math.sqrt((1 - a) * b))
    return math.sqrt(b / a), (a - b) / denominator if denominator > 0 else 0.0


def scaled(x: Tensor, factor: float) -> Tensor:
    """``factor * x`` as a new tensor, in float32 for half types: what `add` may change in place."""
    return x.mul(factor) if x.dtype in FULL else x.to(working_dtype(x)).mul(factor)


def add(total: Tensor, terms: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted terms added to `total`, in place. A weight of zero is added too: it does not hide NaN."""
    for term, weight in zip(terms, weights, strict=False):
        try:
            total.add_(term, alpha=weight)
        except RuntimeError:
            # A transform of torch.func over the model alone (its weights): `total` is not part of it.
            total = total.add(term, alpha=weight)
    return total


def _level(level: Levels, name: str, x: Tensor) -> float | Tensor:
    if isinstance(level, (np.ndarray, list, tuple)):
        try:
            array = np.asarray(level)
            numeric = array.dtype.kind in "fiu" and not np.ma.isMaskedArray(level)
        except ValueError:  # rows of different lengths
            numeric = False
        if not numeric:
            raise TypeError(f"{name} must be a number, a tensor, an array or numbers, got {level!r}")
        level = torch.from_numpy(array.astype(np.float64))
    if not isinstance(level, Tensor):
        return float(check_number(level, name, low=0, high=1, open_low=True))
    if level.is_complex() or level.dtype == torch.bool:
        raise TypeError(f"{name} must hold real numbers, got {level.dtype}")
    if level.ndim > 1 or (level.ndim == 1 and (x.ndim == 0 or len(level) != len(x))):
        rows = f" or one for each of the {len(x)} rows of x" if x.ndim else ""
        raise ValueError(f"{name} must be a number{rows}, got shape {tuple(level.shape)}")
    if should_check(level):
        if not bool(((level > 0) & (level <= 1)).all()):
            raise ValueError(f"{name} must lie in (0, 1], got {level.tolist()}")
        if level.ndim == 0:
            return float(level.item())
    return level.detach().to("cpu" if level.device.type == "mps" else level.device, torch.float64)
