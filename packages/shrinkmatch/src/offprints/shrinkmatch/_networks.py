"""The classifier's default backbones; each begins by standardizing what it gets."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH = 128


class Centered(nn.Module):
    """``(x - mean) / std``, with moments that are stored."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        """A batch of samples."""
        return (x - self.mean) / self.std


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and scatter of each feature ``(D,)`` or channel ``(C, 1, 1)``; a scatter of 0 counts as 1."""
    axes = (0,) if x.ndim == 2 else (0, 2, 3)
    wide = x.double() if x.device.type != "mps" else x
    std, mean = torch.std_mean(wide, dim=axes, correction=0)
    mean, std = mean.float(), std.float()
    std = torch.where(std > 1e-6 * mean.abs(), std, 1.0)
    return (mean, std) if x.ndim == 2 else (mean[:, None, None], std[:, None, None])


def perceptron(mean: Tensor, std: Tensor) -> nn.Module:
    """Two hidden layers for features ``(N, D)``."""
    return nn.Sequential(
        Centered(mean, std), nn.Linear(len(mean), WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()
    )


def convolutions(mean: Tensor, std: Tensor) -> nn.Module:
    """Three convolutions and the mean over the positions, for images ``(N, C, H, W)`` of any size."""

    def layer(inner: int, outer: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.LeakyReLU(0.1)]

    layers = [*layer(len(mean), WIDTH // 4, 1), *layer(WIDTH // 4, WIDTH // 2, 2), *layer(WIDTH // 2, WIDTH, 2)]
    return nn.Sequential(Centered(mean, std), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
