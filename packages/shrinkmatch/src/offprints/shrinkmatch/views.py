"""Weak and strong views of whole batches of arrays: the classifier's defaults, and checks of the user's own."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Views = Callable[[Tensor], Tensor]


class FeatureViews:
    """Views of rows of features: noise in units of a feature's scatter, and entries replaced by the mean.

    Args:
        mean: ``(D,)``.
        std: ``(D,)``.
    """

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        self.mean, self.std = mean, std

    def weak(self, x: Tensor) -> Tensor:
        """A tenth of the scatter as noise."""
        return x + 0.1 * self.std * torch.randn_like(x)

    def strong(self, x: Tensor) -> Tensor:
        """A quarter of the scatter as noise; a fifth of the entries are dropped."""
        noisy = x + 0.25 * self.std * torch.randn_like(x)
        return torch.where(torch.rand_like(x) < 0.2, self.mean, noisy)


class ImageViews:
    """Views of images ``(N, C, H, W)``: small shifts; shifts, an affine map, contrast, brightness, noise and a cutout.

    Nothing is assumed about the values: edges are repeated, squares are filled with the image's mean, and noise is in
    units of a channel's scatter. There are no flips, which change the class of digits and letters.

    Args:
        std: ``(C, 1, 1)``.
    """

    def __init__(self, std: Tensor) -> None:
        self.std = std

    def weak(self, x: Tensor) -> Tensor:
        """Shifts of up to an eighth of the shorter side, at least one pixel, along each axis."""
        count, _, height, width = x.shape
        reach = max(1, min(height, width) // 8)
        padded = F.pad(x, (reach,) * 4, mode="replicate")
        places = []
        for size in (height, width):
            shift = torch.randint(2 * reach + 1, (count, 1), device=x.device)
            places.append(shift + torch.arange(size, device=x.device))
        rows, columns = places
        sample = torch.arange(count, device=x.device)
        moved = padded[sample[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        return moved.permute(0, 3, 1, 2)

    def strong(self, x: Tensor) -> Tensor:
        """The weak view turned by up to 30 degrees, sheared and scaled, less clear, and with a square missing."""
        x = self._affine(self.weak(x))
        count = len(x)
        mean = x.mean((2, 3), keepdim=True)
        contrast, brightness = (self._spread(count, x) for _ in range(2))
        x = mean + (1 + 0.5 * contrast) * (x - mean) + 0.3 * brightness * self.std
        x = x + 0.2 * self.std * torch.randn_like(x)
        return torch.where(self._square(x), mean, x)

    @staticmethod
    def _spread(count: int, x: Tensor) -> Tensor:
        return 2 * torch.rand(count, 1, 1, 1, device=x.device, dtype=x.dtype) - 1

    @classmethod
    def _affine(cls, x: Tensor) -> Tensor:
        count = len(x)
        angle, shear, scale = (cls._spread(count, x).flatten() for _ in range(3))
        angle, shear, scale = angle * math.pi / 6, 0.3 * shear, 1 + 0.2 * scale
        cosine, sine = angle.cos(), angle.sin()
        maps = torch.zeros(count, 2, 3, device=x.device, dtype=x.dtype)
        maps[:, 0, 0], maps[:, 0, 1] = scale * cosine, scale * (shear * cosine - sine)
        maps[:, 1, 0], maps[:, 1, 1] = scale * sine, scale * (shear * sine + cosine)
        grid = F.affine_grid(maps, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, padding_mode="border", align_corners=False)

    @staticmethod
    def _square(x: Tensor) -> Tensor:
        """A mask ``(N, 1, H, W)`` with a square of three eighths of the shorter side, around any pixel."""
        count, _, height, width = x.shape
        side = max(1, round(0.375 * min(height, width)))
        inside = []
        for size in (height, width):
            first = torch.randint(size, (count, 1), device=x.device) - side // 2
            place = torch.arange(size, device=x.device)
            inside.append((place >= first) & (place < first + side))
        return (inside[0][:, :, None] & inside[1][:, None, :]).unsqueeze(1)


def checked(views: Views | None, name: str, default: Views) -> Views:
    """The default, or the user's views with a check of what they give."""
    if views is None:
        return default
    given = views

    def call(x: Tensor) -> Tensor:
        made = given(x.clone())  # it may work in place
        if not isinstance(made, Tensor):
            raise TypeError(f"{name} must return a tensor, got {type(made).__name__}")
        if made.shape != x.shape:
            raise ValueError(f"{name} must return views of shape {tuple(x.shape)}, got {tuple(made.shape)}")
        return made.to(x)

    return call
