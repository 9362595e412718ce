"""The students of the classifier: a small network of rows, the paper's of images; and the encoder of its teacher."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

BLOCK = 2**22  # entries of a block of samples, which is copied in float64


class Standardize(nn.Module):
    """Features (or channels) less their mean, divided by their standard deviation; where that is 0, by 1.

    Args:
        samples: `(N, D)` rows or `(N, C, H, W)` images whose moments are taken, all parts together.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, *samples: Float[Tensor, "samples features *space"]) -> None:
        super().__init__()
        axes = [axis for axis in range(samples[0].ndim) if axis != 1]
        rows = max(1, BLOCK // samples[0][0].numel())
        count = sum(part[:, :1].numel() for part in samples)

        def mean_of(function: Callable[[Tensor], Tensor]) -> Tensor:
            blocks = (block.double() for part in samples for block in part.split(rows))
            return torch.stack([function(block).sum(axes, keepdim=True) for block in blocks]).sum(0) / count

        mean = mean_of(lambda block: block)
        spread = mean_of(lambda block: (block - mean).square()).sqrt()
        # A spread of rounding alone, as that of a constant column of 0.1, is none.
        scale = spread.where(spread > 1e-6 * mean.abs(), 1)
        self.register_buffer("mean", mean.to(torch.float32))
        self.register_buffer("scale", scale.to(torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Standardized samples."""
        return (x - self.mean) / self.scale


def mlp(dim: int, num_classes: int) -> nn.Sequential:
    """D-128-128-K with ReLU."""
    return nn.Sequential(nn.Linear(dim, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, num_classes))


class InputTransform(nn.Module):
    """In training alone: flips with probability 0.5, a crop that is moved by up to two pixels, noise.

    The border is reflected, and the crop is one for the whole batch. Draws come from torch's global streams.

    Args:
        flip: Whether images may be mirrored.
        pixels: Largest move of the crop.
        noise: Standard deviation of the noise.
    """

    def __init__(self, *, flip: bool = True, pixels: int = 2, noise: float = 0.15) -> None:
        super().__init__()
        self.flip, self.pixels, self.noise = flip, pixels, noise

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Tensor:
        """Images of the same size; in evaluation the same images."""
        if not self.training:
            return images
        if self.flip:
            mirrored = torch.rand(len(images), 1, 1, 1, dtype=torch.float32, device="cpu") < 0.5
            images = torch.where(mirrored.to(images.device), images.flip(3), images)
        height, width = images.shape[2:]
        border = min(self.pixels, height - 1, width - 1)
        down, right = torch.randint(2 * border + 1, (2,), device="cpu").tolist()
        images = F.pad(images, (border,) * 4, mode="reflect")[:, :, down : down + height, right : right + width]
        return images + self.noise * torch.randn_like(images)


class _Block(nn.Module):
    """Two convolutions after their normalizations, beside a shortcut."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.BatchNorm2d(inner), nn.LeakyReLU(0.1))
        self.body = nn.Sequential(
            nn.Conv2d(inner, outer, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outer),
            nn.LeakyReLU(0.1),
            nn.Conv2d(outer, outer, 3, 1, 1, bias=False),
        )
        same = inner == outer and stride == 1
        self.shortcut = None if same else nn.Conv2d(inner, outer, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        return self.body(y) + (x if self.shortcut is None else self.shortcut(y))


def wide_resnet(
    channels: int, num_classes: int, *, depth: int = 28, widen: int = 2, transform: nn.Module | None = None
) -> nn.Sequential:
    """WRN-28-2 with its input transform, `(N, C, H, W)` to `(N, K)`.

    Args:
        channels: C.
        num_classes: K.
        depth: Layers, 6 n + 4.
        widen: Factor of the widths 16, 32, 64.
        transform: None: `InputTransform()`.
    """
    widths, blocks = [16 * widen, 32 * widen, 64 * widen], (depth - 4) // 6
    layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, 1, 1, bias=False)]
    inner = 16
    for stage, outer in enumerate(widths):
        for block in range(blocks):
            layers.append(_Block(inner, outer, 2 if stage > 0 and block == 0 else 1))
            inner = outer
    return nn.Sequential(
        InputTransform() if transform is None else transform,
        *layers,
        nn.BatchNorm2d(inner),
        nn.LeakyReLU(0.1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(inner, num_classes),
    )


def small_encoder(channels: int, *, width: int = 32) -> tuple[nn.Sequential, int]:
    """Four convolutions and the mean over positions, `(N, C, H, W)` to `(N, 4 width)`; and that number."""

    def layer(inner: int, outer: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]

    body = nn.Sequential(
        *layer(channels, width, 1),
        *layer(width, 2 * width, 2),
        *layer(2 * width, 4 * width, 2),
        *layer(4 * width, 4 * width, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return body, 4 * width
