"""The U-Net of the paper's experiments, in the layout of Dhariwal and Nichol (2021)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(min(32, max(1, channels // 4)), channels), channels)


def _zero(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Attention(nn.Module):
    """Self-attention over positions, heads of 64 channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(1, channels // 64)
        self.norm = _group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, 3, self.heads, c // self.heads, h * w).transpose(-1, -2).unbind(1)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(-1, -2).reshape(b, c, h, w))


class Block(nn.Module):
    """Residual block modulated by the noise level, at the same, half or double resolution."""

    def __init__(
        self, inputs: int, outputs: int, embedding: int, *, attention: bool = False, resample: str = "", dropout: float
    ) -> None:
        super().__init__()
        self.resample = resample
        self.norm1 = _group_norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * outputs)
        self.norm2 = _group_norm(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _zero(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        self.attention = Attention(outputs) if attention else nn.Identity()

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2, mode="nearest") if self.resample == "up" else x

    def forward(self, x: Float[Tensor, "b inputs h w"], embedding: Float[Tensor, "b e"]) -> Tensor:
        y = self.conv1(self._resampled(F.silu(self.norm1(x))))
        scale, shift = self.modulation(embedding)[..., None, None].chunk(2, 1)
        y = self.conv2(self.dropout(F.silu(self.norm2(y) * (1 + scale) + shift)))
        return self.attention(self.skip(self._resampled(x)) + y)


class UNet(nn.Module):
    """F(x, t) for latents ``[B, C, S, S]`` and ``t`` ``[B]`` (250 ln sigma: sinusoidal embedding).

    Args:
        in_channels: C.
        size: S, a multiple of 2 to the power of ``len(multipliers) - 1``.
        channels: Of the first level; level l has ``channels * multipliers[l]``.
        multipliers: See there.
        blocks: Residual blocks of a level.
        attention: Resolutions with attention.
        dropout: In every block.
    """

    def __init__(
        self,
        in_channels: int = 4,
        size: int = 32,
        *,
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 2, 3, 4),
        blocks: int = 4,
        attention: tuple[int, ...] = (16, 8),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.channels = channels
        embedding = 4 * channels
        self.embed = nn.Sequential(
            nn.Linear(channels, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU()
        )
        self.enter = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        widths, skips = channels, [channels]
        for level, multiplier in enumerate(multipliers):
            if level > 0:
                self.down.append(Block(widths, widths, embedding, resample="down", dropout=dropout))
                skips.append(widths)
            for _ in range(blocks):
                at = size >> level in attention
                self.down.append(Block(widths, channels * multiplier, embedding, attention=at, dropout=dropout))
                widths = channels * multiplier
                skips.append(widths)
        self.middle = nn.ModuleList(
            Block(widths, widths, embedding, attention=first, dropout=dropout) for first in (True, False)
        )
        for level, multiplier in reversed(list(enumerate(multipliers))):
            if level < len(multipliers) - 1:
                self.up.append(Block(widths, widths, embedding, resample="up", dropout=dropout))
            for _ in range(blocks + 1):
                at = size >> level in attention
                block = Block(widths + skips.pop(), channels * multiplier, embedding, attention=at, dropout=dropout)
                self.up.append(block)
                widths = channels * multiplier
        self.leave = nn.Sequential(_group_norm(widths), nn.SiLU(), _zero(nn.Conv2d(widths, in_channels, 3, padding=1)))

    def forward(self, x: Float[Tensor, "b c s s"], t: Float[Tensor, " b"]) -> Float[Tensor, "b c s s"]:
        half = self.channels // 2
        frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=x.device, dtype=torch.float32) / half)
        angles = t.float()[:, None] * frequencies
        embedding = self.embed(torch.cat([angles.cos(), angles.sin()], 1).to(x.dtype))
        x = self.enter(x)
        skips = [x]
        for block in self.down:
            x = block(x, embedding)
            skips.append(x)
        for block in self.middle:
            x = block(x, embedding)
        for block in self.up:
            if block.resample != "up":
                x = torch.cat([x, skips.pop()], 1)
            x = block(x, embedding)
        return self.leave(x)
