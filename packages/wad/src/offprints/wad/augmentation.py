"""Random views of images, of a whole batch at once and another draw for each image."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

GRAY = (0.299, 0.587, 0.114)
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
JITTER, HUE, JITTER_SHARE, GRAY_SHARE = 0.4, 0.1, 0.8, 0.2

Images = Float[Tensor, "batch channels height width"]


class SimCLRAugmentation(nn.Module):
    """One random view of every image: crop, flip, color jitter, gray; step 1 of the method.

    A crop of 8 to 100 % of the area, of a ratio between 3/4 and 4/3, enlarged to the old size; a flip with probability
    0.5; with probability 0.8 brightness, contrast and saturation changed by up to 40 % and the hue by up to a tenth of
    the circle; gray with probability 0.2. Images that have not three channels have no saturation, hue and gray. Draws
    come from torch's global stream on the CPU, so that they are the same on every device.
    """

    def forward(self, images: Images) -> Images:
        """Views of images in [0, 1], in [0, 1]."""
        views = _changed_colors(_cropped(images))
        if images.shape[1] == 3:
            gray = _uniform(views, 0, 1) < GRAY_SHARE
            views = torch.where(gray, _gray(views), views)
        return views


def _uniform(images: Images, low: float, high: float) -> Float[Tensor, "batch 1 1 1"]:
    return (low + (high - low) * torch.rand(len(images), 1, 1, 1, dtype=torch.float32, device="cpu")).to(images)


def _cropped(images: Images) -> Images:
    area = _uniform(images, *SCALE)
    root = _uniform(images, *(math.log(ratio) / 2 for ratio in RATIO)).exp()
    width, height = (area.sqrt() * root).clamp(max=1), (area.sqrt() / root).clamp(max=1)
    flip = 1 - 2 * (_uniform(images, 0, 1) < 0.5).to(images)
    places = images.new_zeros(len(images), 2, 3)
    places[:, 0, 0], places[:, 1, 1] = (width * flip).flatten(), height.flatten()
    places[:, 0, 2] = (_uniform(images, -1, 1) * (1 - width)).flatten()
    places[:, 1, 2] = (_uniform(images, -1, 1) * (1 - height)).flatten()
    grid = F.affine_grid(places, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _changed_colors(images: Images) -> Images:
    color = images.shape[1] == 3
    changed = (images * _uniform(images, 1 - JITTER, 1 + JITTER)).clamp(0, 1)
    mean = (_gray(changed) if color else changed).mean((1, 2, 3), keepdim=True)
    changed = _blended(changed, mean, _uniform(images, 1 - JITTER, 1 + JITTER))
    if color:
        changed = _blended(changed, _gray(changed), _uniform(images, 1 - JITTER, 1 + JITTER))
        changed = _turned(changed, _uniform(images, -HUE, HUE))
    return torch.where(_uniform(images, 0, 1) < JITTER_SHARE, changed, images)


def _blended(images: Images, other: Tensor, factor: Tensor) -> Images:
    return (other + factor * (images - other)).clamp(0, 1)


def _gray(images: Images) -> Images:
    return (images * images.new_tensor(GRAY)[:, None, None]).sum(1, keepdim=True).expand_as(images)


def _turned(images: Images, turn: Float[Tensor, "batch 1 1 1"]) -> Images:
    """The hue moved by a share of the circle; value and saturation stay."""
    value, chroma = images.amax(1, keepdim=True), images.amax(1, keepdim=True) - images.amin(1, keepdim=True)
    red, green, blue = images.split(1, dim=1)
    spread = chroma.where(chroma > 0, 1)
    hue = torch.where(
        value == red,
        (green - blue) / spread,
        torch.where(value == green, 2 + (blue - red) / spread, 4 + (red - green) / spread),
    )
    # The channels are the value less a part of the chroma, each a third of the circle from the next.
    place = (images.new_tensor([5.0, 3.0, 1.0])[:, None, None] + hue + 6 * turn) % 6
    return value - chroma * torch.minimum(place, 4 - place).clamp(0, 1)
