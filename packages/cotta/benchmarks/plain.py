"""The straightforward algorithms, written for the benchmarks after the official code (qinenergy/cotta, MIT)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as T


def view(x: Tensor) -> Tensor:
    """One view, by torchvision's functions on the padded batch."""
    low = torch.tensor([0.6, 0.7, 0.5, -0.06, 0.7, -15.0, 0.9, 0.001])
    high = torch.tensor([1.4, 1.3, 1.5, 0.06, 1.3, 15.0, 1.1, 0.5])
    *factors, angle, scale, sigma = (low + (high - low) * torch.rand(8)).tolist()
    operations = (T.adjust_brightness, T.adjust_contrast, T.adjust_saturation, T.adjust_hue, T.adjust_gamma)
    n = x.shape[-1]
    x = x.clamp(0, 1)
    for i in torch.randperm(5).tolist():
        x = operations[i](x.clamp(1e-8, 1) if i == 4 else x, factors[i])
    x = T.pad(x, [n // 2], padding_mode="edge")
    shift = ((2 * torch.rand(2) - 1) * n / 8).round().int().tolist()
    x = T.affine(x, angle, shift, scale, [0.0, 0.0], InterpolationMode.BILINEAR)
    x = T.center_crop(T.gaussian_blur(x, [5, 5], [sigma, sigma]), [n, n])
    x = x.flip(-1) if torch.rand(()) < 0.5 else x
    return (x + 0.005 * torch.randn_like(x)).clamp(0, 1)


def average(teacher: list[Tensor], student: list[Tensor], decay: float) -> None:
    """The teacher's update, tensor by tensor."""
    for t, s in zip(teacher, student, strict=True):
        t.data[:] = decay * t[:].data[:] + (1 - decay) * s[:].data[:]


def restore(params: list[Tensor], source: list[Tensor], probability: float) -> None:
    """One random number per element, tensor by tensor."""
    with torch.no_grad():
        for p, s in zip(params, source, strict=True):
            mask = (torch.rand(p.shape) < probability).float()
            p.data = s * mask + p * (1.0 - mask)


class PlainCoTTA(nn.Module):
    """The step in a loop over views; ``gate_first`` leaves out views that the gate discards, as the peer does."""

    def __init__(self, model: nn.Module, threshold: float, *, gate_first: bool) -> None:
        super().__init__()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.track_running_stats, module.running_mean, module.running_var = False, None, None
        self.model, self.threshold, self.gate_first = model.train(), threshold, gate_first
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        self.source = [p.detach().clone() for p in model.parameters()]
        self.teacher, self.anchor = copy.deepcopy(model), copy.deepcopy(model)
        for parameter in self.teacher.parameters():
            parameter.detach_()
        if gate_first:
            self.anchor.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.model(x)
        opened = bool(self.anchor(x).softmax(1).max(1)[0].mean() < self.threshold)
        target = None if self.gate_first and opened else self.teacher(x)
        if opened or not self.gate_first:
            mean = torch.stack([self.teacher(view(x)).detach() for _ in range(32)]).mean(0)
            target = mean if opened else target
        assert target is not None
        loss = -(target.softmax(1) * out.log_softmax(1)).sum(1).mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        average(list(self.teacher.parameters()), list(self.model.parameters()), 0.999)
        restore(list(self.model.parameters()), self.source, 0.01)
        return target
