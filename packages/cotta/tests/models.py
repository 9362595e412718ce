"""Small networks of the tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GoldenNet(nn.Module):
    """The network of the golden ``core_*`` data."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.bn2 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        return self.fc(x.mean((2, 3)))


def golden_net(seed: int = 0, num_classes: int = 5) -> GoldenNet:
    """One with random weights and running statistics that are not the initial ones."""
    generator = torch.Generator().manual_seed(seed)
    net = GoldenNet(num_classes)
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(0.4 * torch.randn(tensor.shape, generator=generator))
        for bn in (net.bn1, net.bn2):
            bn.weight.abs_().add_(0.5)
            bn.running_var.abs_().add_(0.5)
    return net.eval()


def batches(count: int, size: int = 6, side: int = 8, seed: int = 0) -> list[Tensor]:
    """Random images."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(size, 3, side, side, generator=generator) for _ in range(count)]
