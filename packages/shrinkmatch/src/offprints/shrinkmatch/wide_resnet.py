"""Wide residual networks without their classifier, as FixMatch and its successors use them (step 9)."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from offprints.shared.validation import check_number, check_tensor


class Block(nn.Module):
    """Two convolutions, each after batch normalization and LeakyReLU, beside a shortcut.

    With `activate_first` the shortcut begins after the first activation too, in the network's first block alone.
    """

    def __init__(
        self, inner: int, outer: int, stride: int, *, slope: float, momentum: float, activate_first: bool
    ) -> None:
        super().__init__()
        self.activate_first = activate_first
        self.enter = nn.Sequential(nn.BatchNorm2d(inner, momentum=momentum), nn.LeakyReLU(slope))
        self.body = nn.Sequential(
            nn.Conv2d(inner, outer, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outer, momentum=momentum),
            nn.LeakyReLU(slope),
            nn.Conv2d(outer, outer, 3, 1, 1, bias=False),
        )
        same = inner == outer and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inner, outer, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inner, H, W)`` to ``(N, outer, H / stride, W / stride)``."""
        entered = self.enter(x)
        found: Tensor = self.shortcut(entered if self.activate_first else x) + self.body(entered)
        return found


class WideResNet(nn.Module):
    """What `wide_resnet` makes, with widths and strides of one's own.

    Attributes:
        out_dim: Features.
    """

    def __init__(
        self,
        widths: Sequence[int],
        blocks: int,
        *,
        slope: float = 0.1,
        in_channels: int = 3,
        bn_momentum: float = 0.001,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        layers: list[nn.Module] = [nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)]
        inner = 16
        for group, width in enumerate(widths):
            for number in range(blocks):
                stride = 2 if group and not number else 1
                first = not group and not number
                layers.append(Block(inner, width, stride, slope=slope, momentum=bn_momentum, activate_first=first))
                inner = width
        layers += [nn.BatchNorm2d(inner, momentum=bn_momentum), nn.LeakyReLU(slope)]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.out_dim = inner
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        """Features ``(N, out_dim)`` of images of any size.

        Raises:
            TypeError: not a floating tensor.
            ValueError: not ``(N, in_channels, H, W)``, or empty.
        """
        check_tensor(images, "images", shape=(None, self.in_channels, None, None), finite=False)
        features: Tensor = self.layers(images.to(next(self.parameters()).dtype))
        return features


def wide_resnet(
    depth: int = 28, widen: int = 2, *, slope: float = 0.1, in_channels: int = 3, bn_momentum: float = 0.001
) -> WideResNet:
    """A wide residual network from images to features: WRN-28-2 by default.

    Three groups of ``(depth - 4)/6`` blocks, ``16 widen``, ``32 widen`` and ``64 widen`` channels wide, then the mean
    over the positions. Pre-activation as in FixMatch: in the first block the shortcut begins after the activation.

    Args:
        depth: 10, 16, 22, 28, ...
        widen: Factor of the widths.
        slope: Of LeakyReLU.
        in_channels: 1 for gray images.
        bn_momentum: Of batch normalization's running moments. The paper's 0.001 is for a million steps: they are those
            of the last thousand batches. Take 0.1 for short trainings.

    Returns:
        A module ``(N, in_channels, H, W)`` to ``(N, out_dim)`` with the attribute ``out_dim = 64 widen``.

    Raises:
        TypeError: a number of the wrong kind.
        ValueError: ``depth`` is not ``6 n + 4``, a number out of range.

    Example:
        >>> network = wide_resnet(10, 1, in_channels=1)
        >>> network(torch.randn(2, 1, 28, 28)).shape, network.out_dim
        (torch.Size([2, 64]), 64)
    """
    depth = check_number(depth, "depth", low=10, high=10_000, integer=True)  # more is a slip and never ends
    if (depth - 4) % 6:
        raise ValueError(f"depth must be 6 n + 4, as 10, 16, 22 or 28, got {depth}")
    widen = check_number(widen, "widen", low=1, high=1024, integer=True)
    slope = check_number(slope, "slope", low=0)
    in_channels = check_number(in_channels, "in_channels", low=1, integer=True)
    bn_momentum = check_number(bn_momentum, "bn_momentum", low=0, high=1)
    widths = [16 * widen, 32 * widen, 64 * widen]
    return WideResNet(widths, (depth - 4) // 6, slope=slope, in_channels=in_channels, bn_momentum=bn_momentum)
