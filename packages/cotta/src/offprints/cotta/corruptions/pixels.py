"""What several corruptions stand on: seeded draws, borders, separable blurs, zooms, motion blur."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

Border = Literal["replicate", "symmetric", "mirror"]  # aa|abc, ba|abc and cb|abc (reflect-101)


class Draws:
    """Random numbers on the device of the images, the first axis one entry per image.

    From one generator, from the global stream, or, where an image has to get the same numbers in whatever company it
    comes, from a generator of each image's own.
    """

    def __init__(self, generator: torch.Generator | Sequence[torch.Generator] | None, images: Tensor) -> None:
        self.images = images
        self.each = generator if isinstance(generator, Sequence) else None
        self.generator = generator if isinstance(generator, torch.Generator) else None
        drawing = self.generator if self.each is None else self.each[0]
        self.device = images.device if drawing is None else drawing.device

    def _drawn(self, draw: Callable[..., Tensor], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        if self.each is None:
            drawn = draw(tuple(shape), generator=self.generator, device=self.device, dtype=dtype)
        else:
            rows = [draw(tuple(shape[1:]), generator=own, device=self.device, dtype=dtype) for own in self.each]
            drawn = torch.stack(rows)
        return drawn.to(self.images.device)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Numbers in [low, high), in the images' type."""
        return low + (high - low) * self._drawn(torch.rand, shape, self.images.dtype)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, in the images' type."""
        return self._drawn(torch.randn, shape, self.images.dtype)

    def integers(self, low: int, high: int, *shape: int) -> Int[Tensor, "..."]:
        """Integers in [low, high)."""
        return self._drawn(partial(torch.randint, low, high), shape, torch.int64)

    def poisson(self, rate: Tensor) -> Tensor:
        """Poisson numbers of these rates."""
        rates = rate.to(self.device)
        if self.each is None:
            drawn = torch.poisson(rates, generator=self.generator)
        else:
            drawn = torch.stack([torch.poisson(row, generator=own) for row, own in zip(rates, self.each, strict=True)])
        return drawn.to(rate.device)


def border_index(size: int, before: int, after: int, border: Border, device: torch.device) -> Int[Tensor, " n"]:
    """Which pixel stands at -before .. size + after - 1; also where the border is wider than the image."""
    position = torch.arange(-before, size + after, device=device)
    if border == "replicate" or size == 1:
        return position.clamp(0, size - 1)
    if border == "symmetric":
        position = position.remainder(2 * size)
        return torch.minimum(position, 2 * size - 1 - position)
    position = position.remainder(2 * size - 2)
    return torch.minimum(position, 2 * size - 2 - position)


def pad(x: Float[Tensor, "*N H W"], vertical: int, horizontal: int, border: Border) -> Tensor:
    """Pad both sides of the last two axes."""
    rows = border_index(x.shape[-2], vertical, vertical, border, x.device)
    columns = border_index(x.shape[-1], horizontal, horizontal, border, x.device)
    return x.index_select(-2, rows).index_select(-1, columns)


def correlate(x: Float[Tensor, "B C H W"], kernel: Float[Tensor, "h w"], border: Border) -> Tensor:
    """Correlate every channel with a kernel of odd sides."""
    padded = pad(x, kernel.shape[0] // 2, kernel.shape[1] // 2, border)
    if x.device.type != "cpu":
        return F.conv2d(padded.flatten(0, 1).unsqueeze(1), kernel.to(x)[None, None]).view(x.shape)
    # On the CPU a convolution of single float64 planes takes five times as long as adding up shifted images.
    total = torch.zeros_like(x)
    for i, row in enumerate(kernel.to(x.dtype).tolist()):
        for j, weight in enumerate(row):
            total.add_(padded[..., i : i + x.shape[2], j : j + x.shape[3]], alpha=weight)
    return total


def gaussian_taps(sigma: float, radius: int) -> Float[Tensor, " taps"]:
    """A sampled Gaussian of sum 1."""
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma) ** 2)
    return taps / taps.sum()


def gaussian_blur(x: Float[Tensor, "B C H W"], sigma: float, border: Border, truncate: float) -> Tensor:
    """Gaussian blur, cut at ``truncate`` standard deviations."""
    radius = int(truncate * sigma + 0.5)
    if radius == 0:
        return x
    taps = gaussian_taps(sigma, radius)
    return correlate(correlate(x, taps[:, None], border), taps[None], border)


def clipped_zoom(x: Float[Tensor, "B C H W"], zoom: float) -> Float[Tensor, "B C H W"]:
    """Enlarge the middle of the images, corners aligned, and cut them back to their size."""
    height, width = x.shape[-2:]
    crop = [math.ceil(height / zoom), math.ceil(width / zoom)]
    top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
    middle = x[..., top : top + crop[0], left : left + crop[1]]
    size = [round(crop[0] * zoom), round(crop[1] * zoom)]
    large = F.interpolate(middle, size=size, mode="bilinear", align_corners=True)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return large[..., top : top + height, left : left + width]


def motion_blur(
    x: Float[Tensor, "B C H W"], radius: int, sigma: float, degrees: Float[Tensor, " B"]
) -> Float[Tensor, "B C H W"]:
    """ImageMagick's: the weighted mean of the pixels along a one-sided line, edges replicated."""
    batch, _, height, width = x.shape
    steps = torch.arange(2 * radius + 1, dtype=torch.float64, device=x.device)
    weights = torch.exp(-0.5 * (steps / sigma) ** 2)
    weights = (weights / weights.sum()).to(x.dtype)
    angle = torch.deg2rad(degrees.double())[:, None]
    dx = (steps * angle.cos() - 0.5).ceil().long()  # [B, taps]
    dy = (steps * angle.sin() - 0.5).ceil().long()
    rows = (torch.arange(height, device=x.device)[:, None] + dy[:, None]).clamp_(0, height - 1)  # [B, H, taps]
    columns = (torch.arange(width, device=x.device)[:, None] + dx[:, None]).clamp_(0, width - 1)
    planes = x.flatten(2)
    total = torch.zeros_like(x)
    for tap in range(len(steps)):
        places = rows[:, :, None, tap] * width + columns[:, None, :, tap]
        places = places.view(batch, 1, -1).expand(-1, x.shape[1], -1)
        total.add_(planes.gather(2, places).view(x.shape) * weights[tap])
    return total


def plasma(draws: Draws, count: int, side: int, decay: float, *, maps: int = 1) -> Float[Tensor, "B M s s"]:
    """Diamond-square height maps in [0, 1], periodic, so many for each image; the side is the next power of two."""
    side = 1 << max(side - 1, 1).bit_length()
    heights = torch.zeros(count, maps, side, side, dtype=draws.images.dtype, device=draws.images.device)
    step, wobble = side, 100.0

    def settled(neighbors: Sequence[Tensor]) -> Tensor:
        mean = torch.stack(list(neighbors)).sum(0) / 4
        return mean + wobble * draws.uniform(*mean.shape, low=-wobble, high=wobble)

    while step >= 2:
        half = step // 2
        corners = heights[..., ::step, ::step]
        below = corners.roll(-1, 2)
        heights[..., half::step, half::step] = settled([corners, below, corners.roll(-1, 3), below.roll(-1, 3)])
        centers = heights[..., half::step, half::step]
        corners = heights[..., ::step, ::step]
        heights[..., ::step, half::step] = settled([centers, centers.roll(1, 2), corners, corners.roll(-1, 3)])
        heights[..., half::step, ::step] = settled([centers, centers.roll(1, 3), corners, corners.roll(-1, 2)])
        step, wobble = half, wobble / decay
    heights -= heights.amin((-1, -2), keepdim=True)
    return heights / heights.amax((-1, -2), keepdim=True)
