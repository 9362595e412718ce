"""The corruptions of hendrycks/robustness, on batches ``[B, C, H, W]`` in [0, 1]; results are not clipped yet.

C is 3, or 1 for gray images, which are treated as colored ones of three equal channels would be, but for noise, which
colored images have in each channel. Every function takes the images, the constants of a severity and the random draws.
Sizes that the public scripts fix for 32 or 224 pixels follow the images' own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from offprints.cotta.corruptions.jpeg import jpeg
from offprints.cotta.corruptions.pixels import (
    Draws,
    clipped_zoom,
    correlate,
    gaussian_blur,
    gaussian_taps,
    motion_blur,
    plasma,
)

Images = Float[Tensor, "B C H W"]


@dataclass(frozen=True)
class Setting:
    """What a corruption depends on beside the images."""

    constants: Any
    draws: Draws
    small: bool  # the constants for CIFAR
    levels: bool  # the images have 256 levels, and so has what lies between two passes
    frost_textures: Tensor | None


def gaussian_noise(x: Images, s: Setting) -> Images:
    """Additive noise."""
    return x + s.constants * s.draws.normal(*x.shape)


def shot_noise(x: Images, s: Setting) -> Images:
    """Counted photons."""
    return s.draws.poisson(x * s.constants) / s.constants


def impulse_noise(x: Images, s: Setting) -> Images:
    """Salt and pepper."""
    u = s.draws.uniform(*x.shape)
    return x.masked_fill(u < s.constants / 2, 0).masked_fill(u >= 1 - s.constants / 2, 1)


def defocus_blur(x: Images, s: Setting) -> Images:
    """A disk, smoothed a little."""
    radius, alias = s.constants
    reach, taps = (8, 1) if radius <= 8 else (radius, 2)
    line = torch.arange(-reach, reach + 1, dtype=torch.float64)
    disk = (line[:, None] ** 2 + line**2 <= radius**2).double()
    smoothing = gaussian_taps(alias, taps)
    kernel = correlate(disk[None, None] / disk.sum(), smoothing[:, None] * smoothing, "mirror")[0, 0]
    kept = min(reach, math.floor(radius) + taps)  # the rest is zero
    kernel = kernel[reach - kept : reach + kept + 1, reach - kept : reach + kept + 1]
    return correlate(x, kernel, "mirror")


def speckle_noise(x: Images, s: Setting) -> Images:
    """Noise that grows with the value."""
    return x + x * s.constants * s.draws.normal(*x.shape)


def gaussian(x: Images, s: Setting) -> Images:
    """A Gaussian blur, edges replicated."""
    return gaussian_blur(x, s.constants, "replicate", 4.0)


def saturate(x: Images, s: Setting) -> Images:
    """The saturation in HSV, scaled and raised: the distances from the largest channel scale with it.

    A gray pixel has the hue of red in HSV, so that raising its saturation colors it; gray images stay as they are.
    """
    if x.shape[1] == 1:
        return x
    factor, raised = s.constants
    value, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    span = value - low
    saturation = span / value.masked_fill(value == 0, 1)
    new = (saturation * factor + raised).clamp(0, 1)
    red = torch.zeros_like(x)
    red[:, 1:] = 1
    away = torch.where(span > 0, (value - x) / span.masked_fill(span == 0, 1), red)
    return value * (1 - new * away)


def glass_blur(x: Images, s: Setting) -> Images:
    """Blur, pixels that take the value of one nearby, blur.

    Pixels are visited from the lower right; each copies the pixel at its offset as that is then. So a pixel follows its
    offset, that pixel's own if it was visited before, and so on, until one that was not: chains that all are followed
    at once by doubling.
    """
    sigma, delta, iterations = s.constants
    batch, channels, height, width = x.shape
    x = quantized(gaussian_blur(x, sigma, "replicate", 4.0))
    rows = torch.arange(height, device=x.device)[:, None].expand(height, width)
    columns = torch.arange(width, device=x.device).expand(height, width)
    visited = (rows > delta) & (rows <= height - delta) & (columns > delta) & (columns <= width - delta)
    own = rows * width + columns
    for _ in range(iterations):
        dx, dy = s.draws.integers(-delta, delta, batch, 2, height, width).unbind(1)
        target_rows, target_columns = (rows + dy).clamp(0, height - 1), (columns + dx).clamp(0, width - 1)
        target = target_rows * width + target_columns
        target_visited = (
            (target_rows > delta)
            & (target_rows <= height - delta)
            & (target_columns > delta)
            & (target_columns <= width - delta)
        )
        # Entry p of the first half leads to the pixel whose value p has at the end; the second half are the values.
        follows = torch.where((target > own) & target_visited, target, target + height * width)
        follows = torch.where(visited, follows, own + height * width).flatten(1)
        values = torch.arange(height * width, 2 * height * width, device=x.device).expand(batch, -1)
        follows = torch.cat([follows, values], 1)
        for _ in range((height * width).bit_length()):
            further = follows.gather(1, follows)
            if torch.equal(further, follows):
                break
            follows = further
        places = (follows[:, : height * width] - height * width)[:, None].expand(-1, channels, -1)
        x = x.flatten(2).gather(2, places).view(x.shape)
    return gaussian_blur(x, sigma, "replicate", 4.0)


def quantized(x: Tensor) -> Tensor:
    """Truncated to 256 levels; the small number undoes the rounding of what was a level already."""
    return (x.clamp(0, 1) * 255 + 1e-3).floor() / 255


def motion(x: Images, s: Setting) -> Images:
    """A line in a random direction."""
    radius, sigma = s.constants
    return motion_blur(x, radius, sigma, s.draws.uniform(len(x), low=-45, high=45))


def zoom_blur(x: Images, s: Setting) -> Images:
    """The mean of enlargements."""
    count, step = s.constants
    total = x.clone()
    step = (1 + step) - 1  # as NumPy's arange adds it up: the last digit decides how some sides are rounded
    for i in range(count):
        total += clipped_zoom(x, 1 + step * i)
    return total / (count + 1)


def snow(x: Images, s: Setting) -> Images:
    """Flakes in motion, and a paler picture."""
    mean, std, zoom, threshold, radius, sigma, mix = s.constants
    batch, _, height, width = x.shape
    layer = clipped_zoom(mean + std * s.draws.normal(batch, 1, height, width), zoom)
    layer = quantized(torch.where(layer < threshold, 0, layer))
    layer = motion_blur(layer, radius, sigma, s.draws.uniform(batch, low=-135, high=-45))
    return mix * x + (1 - mix) * torch.maximum(x, 1.5 * luma(x) + 0.5) + layer + layer.flip(2, 3)


def luma(x: Images) -> Float[Tensor, "B 1 H W"]:
    """The gray value; of gray images themselves."""
    if x.shape[1] == 1:
        return x
    return (x * x.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)


def frost(x: Images, s: Setting) -> Images:
    """A picture of ice over the picture."""
    ours, ice = s.constants
    if s.frost_textures is None:
        texture = frost_like(x, s.draws)
        return ours * x + ice * (texture if x.shape[1] == 3 else luma(texture))
    textures = s.frost_textures.to(x) / (1 if s.frost_textures.is_floating_point() else 255)
    if s.small:
        size = [round(side * 0.2) for side in textures.shape[2:]]
        textures = F.interpolate(textures, size=size, mode="bilinear", align_corners=False)
    room = [have - need for have, need in zip(textures.shape[2:], x.shape[2:], strict=True)]
    if min(room) < 0:
        raise ValueError(
            f"frost_textures must be at least as large as the images, {tuple(x.shape[2:])}, got"
            f" {tuple(textures.shape[2:])}" + (" after the reduction to a fifth" if s.small else "")
        )
    chosen = s.draws.integers(0, min(5, len(textures)), len(x))
    top = s.draws.integers(0, max(room[0], 1), len(x))
    left = s.draws.integers(0, max(room[1], 1), len(x))
    rows = top[:, None, None] + torch.arange(x.shape[2], device=x.device)[:, None]
    columns = left[:, None, None] + torch.arange(x.shape[3], device=x.device)
    crops = textures.permute(0, 2, 3, 1)[chosen[:, None, None], rows, columns]
    crops = crops.permute(0, 3, 1, 2)
    return ours * x + ice * (crops if x.shape[1] == 3 else luma(crops))


def frost_like(x: Images, draws: Draws) -> Images:
    """A texture of our own in place of the photographs: ridges of height maps, bluish white on dark blue gray."""
    height, width = x.shape[2:]
    maps = plasma(draws, len(x), max(height, width), 1.4, maps=3)[..., :height, :width]
    ridges = 1 - (2 * maps[:, :2] - 1).abs()
    ice = (ridges.prod(1, keepdim=True) ** 1.5 + 0.35 * maps[:, 2:]).clamp(0, 1)
    low, high = (x.new_tensor(color).view(3, 1, 1) for color in ([0.2, 0.27, 0.35], [0.93, 0.97, 1.0]))
    return low + (high - low) * ice


def fog(x: Images, s: Setting) -> Images:
    """A height map of mist."""
    amount, decay = s.constants
    height, width = x.shape[2:]
    mist = plasma(s.draws, len(x), max(height, width), decay)[..., :height, :width]
    brightest = x.amax((1, 2, 3), keepdim=True)
    return (x + amount * mist) * brightest / (brightest + amount)


def brightness(x: Images, s: Setting) -> Images:
    """A higher value in HSV: the channels scale with it; black becomes gray."""
    value = x.amax(1, keepdim=True)
    raised = (value + s.constants).clamp(max=1)
    return torch.where(value > 0, x * (raised / value.masked_fill(value == 0, 1)), raised)


def contrast(x: Images, s: Setting) -> Images:
    """Closer to each channel's mean."""
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * s.constants + mean


def elastic_transform(x: Images, s: Setting) -> Images:
    """A random affine map, then random smooth displacements."""
    batch, _, height, width = x.shape
    # The public ImageNet script takes 244 for its 224 pixels.
    alpha, sigma, affine = (min(height, width) * (1 if s.small else 244 / 224) * c for c in s.constants)
    third = min(height, width) // 3
    corners = x.new_tensor([[third, third], [third, -third], [-third, -third]])
    corners = corners + x.new_tensor([width // 2, height // 2])
    moved = corners + s.draws.uniform(batch, 3, 2, low=-affine, high=affine)
    ones = torch.ones_like(moved[..., :1])
    # The map takes the corners to where they moved; sampling needs its inverse.
    inverse = torch.linalg.solve(torch.cat([moved, ones], 2), corners.expand(batch, 3, 2))
    ys, xs = torch.meshgrid(
        torch.arange(height, dtype=x.dtype, device=x.device),
        torch.arange(width, dtype=x.dtype, device=x.device),
        indexing="ij",
    )
    positions = torch.stack([xs, ys, torch.ones_like(xs)], -1).view(1, -1, 3) @ inverse
    x = sample(x, positions.view(batch, height, width, 2), mirror=True)
    if alpha == 0:
        return x
    noise = s.draws.uniform(batch, 2, height, width, low=-1, high=1)
    shifts = alpha * gaussian_blur(noise, sigma, "symmetric", 3.0)
    return sample(x, torch.stack([xs + shifts[:, 0], ys + shifts[:, 1]], -1), mirror=False)


def sample(x: Images, positions: Float[Tensor, "B H W 2"], *, mirror: bool) -> Images:
    """Bilinear values at pixel positions (x, y); outside mirrored about the outer pixels, or about their edges."""
    sides = positions.new_tensor([x.shape[3], x.shape[2]])
    grid = 2 * positions / (sides - 1).clamp(min=1) - 1 if mirror else (2 * positions + 1) / sides - 1
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=mirror)


def pixelate(x: Images, s: Setting) -> Images:
    """Down to a part of the size and back by Pillow's box filter."""
    height, width = x.shape[2:]
    small = max(1, int(height * s.constants)), max(1, int(width * s.constants))
    for size in (small, (height, width)):
        x = levels(x @ box_weights(x.shape[3], size[1]).to(x).T, s)
        x = levels(box_weights(x.shape[2], size[0]).to(x) @ x, s)
    return x


def levels(x: Tensor, s: Setting) -> Tensor:
    """Rounded, halves upwards, where the images have 256 levels."""
    return (x * 255 + (0.5 + 1e-4)).floor() / 255 if s.levels else x


def box_weights(before: int, after: int) -> Float[Tensor, "after before"]:
    """Each new pixel is the mean of the old ones whose center lies in its box."""
    scale = before / after
    reach = 0.5 * max(scale, 1.0)
    centers = (torch.arange(after, dtype=torch.float64)[:, None] + 0.5) * scale
    distance = (torch.arange(before, dtype=torch.float64) + 0.5 - centers) / max(scale, 1.0)
    first, last = (centers - reach + 0.5).floor().clamp(min=0), (centers + reach + 0.5).floor().clamp(max=before)
    place = torch.arange(before)
    inside = (distance > -0.5) & (distance <= 0.5) & (place >= first) & (place < last)
    return inside.double() / inside.sum(1, keepdim=True)


def jpeg_compression(x: Images, s: Setting) -> Images:
    """Coded and decoded."""
    return jpeg(x, s.constants)
