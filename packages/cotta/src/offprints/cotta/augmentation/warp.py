"""The geometry of a view in one sampling.

The official pipeline pads by half the side, turns, shifts and scales the padded image, blurs and crops. Here padding,
affine map and crop are one sampling of the unpadded image with border padding, on a grid with the blur's two pixels of
margin; the flip is part of the grid.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

MARGIN = 2  # of the 5x5 blur


def warp(
    views: Float[Tensor, "V B C H W"],
    angle: Float[Tensor, " V"],
    scale: Float[Tensor, " V"],
    translate: Int[Tensor, "V 2"],
    flip: Bool[Tensor, " V"],
    blur_sigma: Float[Tensor, " V"],
) -> Float[Tensor, "V B C H W"]:
    """Padding, affine map, blur, crop and flip of the official pipeline."""
    count, batch, channels, height, width = views.shape
    drawn = torch.stack([angle.double().deg2rad(), scale.double(), *translate.double().unbind(1), flip.double()])
    grid, coverage = sampling(drawn, height, width, views.device)
    # All images of a view share a grid: as channels, so that its weights are computed once.
    images = views.reshape(count, batch * channels, height, width)
    grid = grid.to(images)
    sampled = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    if coverage is not None:
        sampled *= coverage.to(sampled).unsqueeze(1)
    taps = torch.arange(3, dtype=torch.float64) / blur_sigma.double().unsqueeze(1)
    weights = torch.exp(-0.5 * taps.square())
    weights = weights / (weights[:, :1] + 2 * weights[:, 1:].sum(1, keepdim=True))
    center, near, far = weights.to(sampled).view(count, 3, 1, 1, 1).unbind(1)
    for axis in (-1, -2):
        size = sampled.shape[axis] - 2 * MARGIN
        parts = [sampled.narrow(axis, i, size) for i in range(5)]
        blurred = center * parts[2]
        blurred.addcmul_(near, parts[1] + parts[3])
        sampled = blurred.addcmul_(far, parts[0] + parts[4])
    return sampled.view(views.shape)


def sampling(
    drawn: Float[Tensor, "5 V"], height: int, width: int, device: torch.device
) -> tuple[Float[Tensor, "V h w 2"], Float[Tensor, "V h w"] | None]:
    """The grid of every view, with the blur's margin, and how much of the padded image each point covers.

    torchvision fills with zeros outside the padded image and weighs the already weighted border pixels by their
    coverage once more, hence its square. It is None where it is 1 everywhere.
    """
    wide = torch.float32 if device.type == "mps" else torch.float64
    angle, scale, shift_x, shift_y, flip = drawn.to(wide).to(device).view(5, -1, 1, 1)
    u = torch.arange(-MARGIN, width + MARGIN, dtype=wide, device=device) - (width - 1) / 2
    v = torch.arange(-MARGIN, height + MARGIN, dtype=wide, device=device) - (height - 1) / 2
    dx, dy = (1 - 2 * flip) * u - shift_x, v.view(-1, 1) - shift_y
    cos, sin = angle.cos() / scale, angle.sin() / scale
    x, y = cos * dx + sin * dy, cos * dy - sin * dx
    grid = torch.stack([2 * x / width, 2 * y / height], -1)
    half_x, half_y = (width + 2 * (width // 2) - 1) / 2, (height + 2 * (height // 2) - 1) / 2
    if inside(drawn, height, width, half_x, half_y):
        return grid, None
    covered = (half_x + 1 - x.abs()).clamp(0, 1) * (half_y + 1 - y.abs()).clamp(0, 1)
    return grid, covered.square()


def inside(drawn: Float[Tensor, "5 V"], height: int, width: int, half_x: float, half_y: float) -> bool:
    """Whether no view leaves the padded image: from the corners of the grids, without a look at the device."""
    angle, scale, shift_x, shift_y, _ = drawn
    cos, sin = angle.cos().abs(), angle.sin().abs()
    reach_x, reach_y = (width - 1) / 2 + MARGIN + shift_x.abs(), (height - 1) / 2 + MARGIN + shift_y.abs()
    far_x, far_y = (cos * reach_x + sin * reach_y) / scale, (cos * reach_y + sin * reach_x) / scale
    return bool(((far_x <= half_x) & (far_y <= half_y)).all())
