"""The networks of the presets: a small one for each of the small sets, residual ones for the paper's."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

Architecture = Literal["mlp", "cnn", "resnet18", "resnet34", "wrn10-1", "wrn28-10", "wrn34-20", "wrn70-16"]


class Block(nn.Module):
    """Two convolutions beside a shortcut, normalized and activated before each convolution."""

    def __init__(self, inner: int, outer: int, stride: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.BatchNorm2d(inner), activation())
        self.body = nn.Sequential(
            nn.Conv2d(inner, outer, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outer),
            activation(),
            nn.Conv2d(outer, outer, 3, 1, 1, bias=False),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inner != outer:
            self.shortcut = nn.Conv2d(inner, outer, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        ready = self.before(x)
        straight = x if isinstance(self.shortcut, nn.Identity) else self.shortcut(ready)
        return straight + self.body(ready)


def residual(
    widths: tuple[int, ...], depths: tuple[int, ...], num_classes: int, activation: type[nn.Module], channels: int = 3
) -> nn.Sequential:
    """A residual network for 32 x 32 pictures; each stage but the first halves the resolution."""
    layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)]
    inner = widths[0]
    for stage, (width, depth) in enumerate(zip(widths[1:], depths, strict=True)):
        for number in range(depth):
            layers.append(Block(inner, width, 2 if stage and not number else 1, activation))
            inner = width
    head = [nn.BatchNorm2d(inner), activation(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inner, num_classes)]
    return nn.Sequential(*layers, *head)


def network(architecture: Architecture, num_classes: int = 10) -> nn.Sequential:
    """The network of this name, for inputs in [0, 1]."""
    if architecture == "mlp":
        return nn.Sequential(
            *(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, num_classes))
        )
    if architecture == "cnn":
        return nn.Sequential(
            *(nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(32 * 7 * 7, 100), nn.ReLU(), nn.Linear(100, num_classes)),
        )
    if architecture in ("resnet18", "resnet34"):
        depths = (2, 2, 2, 2) if architecture == "resnet18" else (3, 4, 6, 3)
        return residual((64, 64, 128, 256, 512), depths, num_classes, nn.ReLU)
    depth, factor = (int(number) for number in architecture.removeprefix("wrn").split("-"))
    widths = (16, 16 * factor, 32 * factor, 64 * factor)
    return residual(widths, ((depth - 4) // 6,) * 3, num_classes, nn.SiLU)
