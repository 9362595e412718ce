"""The residual U-Net of the paper's configuration files: MONAI's ``UNet`` in 2-D, written out in plain torch.

Every level halves the resolution with a residual unit and doubles it again with a transposed convolution followed by
one residual unit; skip connections concatenate (Kerfoot et al. 2018). Normalization is InstanceNorm without affine
parameters, the activation PReLU with one slope.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offprints.shared.validation import check_number


def convolution(in_channels: int, out_channels: int, *, stride: int = 1, transposed: bool = False) -> nn.Module:
    """3x3 convolution; with a stride it divides (transposed: multiplies) an even resolution exactly."""
    if transposed:
        return nn.ConvTranspose2d(in_channels, out_channels, 3, stride, padding=1, output_padding=stride - 1)
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1)


def normalized(layer: nn.Module, channels: int) -> nn.Sequential:
    """The layer with InstanceNorm and PReLU behind it."""
    return nn.Sequential(layer, nn.InstanceNorm2d(channels), nn.PReLU())


class ResidualUnit(nn.Module):
    """``num_units`` normalized convolutions beside a plain one (1x1 without a stride, the identity if nothing changes).

    ``head=True`` leaves the last convolution bare: these are the logits.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, num_units: int = 2, head: bool = False):
        super().__init__()
        units: list[nn.Module] = []
        for index in range(num_units):
            first = index == 0
            layer = convolution(in_channels if first else out_channels, out_channels, stride=stride if first else 1)
            units.append(layer if head and index == num_units - 1 else normalized(layer, out_channels))
        self.units = nn.Sequential(*units)
        self.residual: nn.Module = nn.Identity()
        if stride != 1:
            self.residual = convolution(in_channels, out_channels, stride=stride)
        elif in_channels != out_channels:
            self.residual = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "batch in_channels h w"]) -> Float[Tensor, "batch out_channels h2 w2"]:
        return self.units(x) + self.residual(x)


class UNet(nn.Module):
    """``[B, in_channels, H, W]`` to logits ``[B, out_channels, H, W]``; H and W divisible by the product of strides.

    ``channels`` has one entry more than ``strides``: the last level, below all strides, is the bottom of the U.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        *,
        channels: Sequence[int] = (16, 32, 64, 128, 256),
        strides: Sequence[int] = (2, 2, 2, 2),
        num_res_units: int = 2,
    ):
        super().__init__()
        if len(channels) != len(strides) + 1 or not strides:
            raise ValueError(
                f"channels must have one entry more than strides, got {len(channels)} and {len(strides)} entries"
            )
        check_number(num_res_units, "num_res_units", low=1, integer=True)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        width = in_channels
        for level, (below, stride) in enumerate(zip(channels, strides, strict=False)):
            top = level == 0
            self.down.append(ResidualUnit(width, below, stride=stride, num_units=num_res_units))
            # what comes up from the next level has that level's own width (the bottom's width at the last one)
            from_below = channels[level + 1] if level == len(strides) - 1 else below
            out = out_channels if top else width
            self.up.append(
                nn.Sequential(
                    normalized(convolution(below + from_below, out, stride=stride, transposed=True), out),
                    ResidualUnit(out, out, num_units=1, head=top),
                )
            )
            width = below
        self.bottom = ResidualUnit(width, channels[-1], num_units=num_res_units)

    def forward(self, x: Float[Tensor, "batch in_channels h w"]) -> Float[Tensor, "batch out_channels h w"]:
        skips = []
        for down in self.down:
            x = down(x)
            skips.append(x)
        x = self.bottom(x)
        for up, skip in zip(reversed(self.up), reversed(skips), strict=True):
            x = up(torch.cat((skip, x), dim=1))
        return x
