"""Color operations on images in [0, 1], ``[V, B, C, H, W]`` with one factor ``[V, 1, 1, 1, 1]`` per view.

The formulas are torchvision's for tensors. The results are new tensors or the argument, changed in place.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)


def gray(x: Tensor) -> Tensor:
    """Luma, the channel axis kept."""
    if x.shape[-3] == 1:
        return x
    red, green, blue = x.unbind(-3)
    return (LUMA[0] * red).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2]).unsqueeze(-3)


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Scale all values."""
    return x.mul_(factor).clamp_(0, 1)


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Scale the distance from the image's mean luma."""
    mean = gray(x).mean((-3, -2, -1), keepdim=True)
    return x.mul_(factor).add_((1 - factor) * mean).clamp_(0, 1)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Scale the distance from each pixel's luma."""
    if x.shape[-3] == 1:
        return x
    luma = gray(x).mul_(1 - factor)
    return x.mul_(factor).add_(luma).clamp_(0, 1)


def adjust_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue, value and saturation kept: each channel is min + (max - min) times a piecewise linear hue curve."""
    if x.shape[-3] == 1:
        return x
    red, green, blue = x.unbind(-3)
    high, low = x.amax(-3), x.amin(-3)
    span = high - low
    scale = 1 / span.masked_fill(span == 0, 1)
    # The hue in sixths of a turn; gray pixels come out as they are whatever it is.
    hue = torch.where(
        high == red,
        (green - blue).mul_(scale),
        torch.where(high == green, (blue - red).mul_(scale).add_(2), (red - green).mul_(scale).add_(4)),
    )
    hue = hue.add_(6 * turns.squeeze(-3)).remainder_(6)
    return torch.stack(
        [
            ((hue - 3).abs_() - 1).clamp_(0, 1).mul_(span).add_(low),
            (2 - (hue - 2).abs_()).clamp_(0, 1).mul_(span).add_(low),
            (2 - (hue - 4).abs_()).clamp_(0, 1).mul_(span).add_(low),
        ],
        -3,
    )


def adjust_gamma(x: Tensor, exponent: Tensor) -> Tensor:
    """A power of the values."""
    return x.clamp_(1e-8, 1).pow_(exponent)


COLOR_OPERATIONS: tuple[tuple[str, Callable[[Tensor, Tensor], Tensor]], ...] = (
    ("brightness", adjust_brightness),
    ("contrast", adjust_contrast),
    ("saturation", adjust_saturation),
    ("hue", adjust_hue),
    ("gamma", adjust_gamma),
)
