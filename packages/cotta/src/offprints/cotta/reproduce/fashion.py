"""Fashion-MNIST and a small residual network: the medium experiment's images and model."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from offprints.shared.datasets import vision_dataset


def clothing() -> tuple[Float[Tensor, "N 1 32 32"], Int[Tensor, " N"]]:
    """All 70,000 gray images, padded to 32x32, training images first.

    Raises:
        MissingData: the data set is not under `OFFPRINTS_DATA`.
    """
    parts = [vision_dataset("fashion_mnist", split) for split in ("train", "test")]
    images = torch.cat([part.data for part in parts]).unsqueeze(1).float() / 255  # type: ignore[attr-defined]
    labels = torch.cat([part.targets for part in parts])  # type: ignore[attr-defined]
    return F.pad(images, (2, 2, 2, 2)), labels


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))
        self.shortcut = nn.Identity() if before == width and stride == 1 else shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps."""
        return F.relu(self.shortcut(x) + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class SmallResNet(nn.Module):
    """Eight layers, 16 to 64 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2))
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of gray images in [0, 1]."""
        return self.classifier(self.blocks(self.stem(x - 0.5)).mean((2, 3)))
