"""The networks of the paper's CIFAR experiments, with the parameter names of RobustBench's checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offprints.shared.extras import MissingData
from offprints.shared.usage import UsageError


class Normalized(nn.Module):
    """A network behind the normalization of its inputs, which are in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Any:
        """What the network returns."""
        return self.model((x - self.mean) / self.std)


class WideBlock(nn.Module):
    """Two pre-activated convolutions and a shortcut."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.convShortcut = None if before == width else nn.Conv2d(before, width, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps."""
        activated = F.relu(self.bn1(x), inplace=True)
        shortcut = x if self.convShortcut is None else self.convShortcut(activated)
        return shortcut + self.conv2(F.relu(self.bn2(self.conv1(activated)), inplace=True))


class WideStage(nn.Module):
    """Blocks of one width."""

    def __init__(self, count: int, before: int, width: int, stride: int) -> None:
        super().__init__()
        blocks = [WideBlock(width if i else before, width, 1 if i else stride) for i in range(count)]
        self.layer = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps."""
        return self.layer(x)


class WideResNet(nn.Module):
    """Zagoruyko and Komodakis, 2016; RobustBench's ``Standard`` is of depth 28 and factor 10."""

    def __init__(self, depth: int = 28, widen_factor: int = 10, num_classes: int = 10) -> None:
        super().__init__()
        widths = [16, *(width * widen_factor for width in (16, 32, 64))]
        count = (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = WideStage(count, widths[0], widths[1], 1)
        self.block2 = WideStage(count, widths[1], widths[2], 2)
        self.block3 = WideStage(count, widths[2], widths[3], 2)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images in [0, 1]; this network has no normalization."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(x)).mean((2, 3)))


class ResNeXtBlock(nn.Module):
    """A bottleneck with grouped convolution."""

    def __init__(self, before: int, planes: int, cardinality: int, base_width: int, stride: int) -> None:
        super().__init__()
        inner = planes * base_width // 64 * cardinality
        self.conv_reduce = nn.Conv2d(before, inner, 1, bias=False)
        self.bn_reduce = nn.BatchNorm2d(inner)
        self.conv_conv = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=cardinality, bias=False)
        self.bn = nn.BatchNorm2d(inner)
        self.conv_expand = nn.Conv2d(inner, 4 * planes, 1, bias=False)
        self.bn_expand = nn.BatchNorm2d(4 * planes)
        self.downsample = None
        if stride != 1 or before != 4 * planes:
            shortcut = nn.Conv2d(before, 4 * planes, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * planes))

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn_reduce(self.conv_reduce(x)))
        x = F.relu(self.bn(self.conv_conv(x)))
        return F.relu(shortcut + self.bn_expand(self.conv_expand(x)))


class ResNeXt(nn.Module):
    """Xie et al., 2017, for CIFAR; RobustBench's ``Hendrycks2020AugMix_ResNeXt`` is 29 layers deep, 4 x 32d."""

    def __init__(self, depth: int = 29, cardinality: int = 4, base_width: int = 32, num_classes: int = 100) -> None:
        super().__init__()
        self.conv_1_3x3 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn_1 = nn.BatchNorm2d(64)
        before, stages = 64, []
        for planes, stride in ((64, 1), (128, 2), (256, 2)):
            blocks = []
            for i in range((depth - 2) // 9):
                blocks.append(ResNeXtBlock(before, planes, cardinality, base_width, 1 if i else stride))
                before = 4 * planes
            stages.append(nn.Sequential(*blocks))
        self.stage_1, self.stage_2, self.stage_3 = stages
        self.classifier = nn.Linear(before, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of normalized images."""
        x = F.relu(self.bn_1(self.conv_1_3x3(x)))
        return self.classifier(self.stage_3(self.stage_2(self.stage_1(x))).mean((2, 3)))


def load_weights(model: nn.Module, file: Path, where: str) -> nn.Module:
    """Load a checkpoint: a state dict, or one under ``state_dict``, with or without ``module.`` before the names.

    Raises:
        MissingData: the file is missing; ``where`` says where to get it.
        UsageError: it holds other parameters.
    """
    if not file.is_file():
        raise MissingData(f"{file} does not exist; {where}")
    content = torch.load(file, map_location="cpu", weights_only=True)
    state = content.get("state_dict", content)
    state = {name.removeprefix("module.").removeprefix("model."): value for name, value in state.items()}
    state = {name: value for name, value in state.items() if name not in ("mu", "sigma")}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UsageError(f"{file} does not hold the weights of {type(model).__name__}: {error}") from error
    return model.eval()
