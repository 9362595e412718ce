"""The losses, the normalization and a whole training step, forward and backward (float32, one thread).

Beside them: the two-logarithm form of the official code, written out in torch's operations; torch's own LayerNorm; and
the network alone, called as often as a training step calls it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from offprints.lct import LatentConsistencyLoss, LatentConsistencyModel, NonScalingLayerNorm, cauchy_loss
from offprints.shared.benchmark import Case, compare

RESULTS = Path(__file__).parent / "results"
C = 0.03


def two_logarithms(input: Tensor, target: Tensor, *, norm: str) -> Tensor:
    squares = (input - target) ** 2
    if norm == "mean":
        return (torch.log(0.5 * squares.mean((1, 2, 3)) + C**2) - 2 * math.log(C)).mean()
    return (torch.log(0.5 * squares + C**2) - 2 * math.log(C)).mean((1, 2, 3)).mean()


def differentiated(loss: Callable[[Tensor, Tensor], Tensor], input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    value = loss(input, target)
    return value.detach(), torch.autograd.grad(value, input)[0]


def agree(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def loss_cases() -> list[Case]:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(128, 4, 32, 32, generator=generator)
    input = (target + 0.05 * torch.randn(target.shape, generator=generator)).requires_grad_()
    return [
        Case(
            f"cauchy_loss, norm {norm}, {tuple(input.shape)}",
            partial(differentiated, partial(cauchy_loss, c=C, norm=norm), input, target),
            {"two logarithms": partial(differentiated, partial(two_logarithms, norm=norm), input, target)},
            agree,
        )
        for norm in ("mean", "element")
    ]


def norm_case() -> Case:
    x = torch.randn(16, 128, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))

    def step(norm: nn.Module) -> tuple[Tensor, Tensor]:
        y = norm(x)
        gradients = torch.autograd.grad((y * weights).sum(), [x, *norm.parameters()])
        return y.detach(), gradients[0]

    shape = (128, 32, 32)
    return Case(
        f"NonScalingLayerNorm, {tuple(x.shape)}",
        partial(step, NonScalingLayerNorm(shape)),
        {"nn.LayerNorm": partial(step, nn.LayerNorm(shape))},
        agree,
    )


class Network(nn.Module):
    """Three convolutions, far less than any network that generates: a larger one makes the loss's share smaller."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(5, channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels, 4, 3, padding=1),
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layers(torch.cat([x, t[:, None, None, None].expand_as(x[:, :1])], 1))


def step_case(channels: int) -> Case:
    torch.manual_seed(0)
    model = LatentConsistencyModel(Network(channels))
    x = 0.5 * torch.randn(128, 4, 32, 32)
    sigma = torch.full((128,), 0.5)
    parameters = list(model.parameters())
    loss = LatentConsistencyLoss(total_steps=700)

    def ours() -> None:
        torch.autograd.grad(loss(model, x, step=700).loss, parameters)

    def network() -> None:
        with torch.no_grad():
            model(x, sigma)
        torch.autograd.grad(model(x, sigma).sum(), parameters)

    return Case(f"training step, B = 128, 4 x 32 x 32, {channels} channels", ours, {"the network alone": network})


def main() -> None:
    options: dict[str, Any] = {"rounds": 15, "seconds": 0.03, "threads": 1, "clock": time.process_time}
    compare([*loss_cases(), norm_case()], RESULTS / "losses.json", **options)
    compare([step_case(16), step_case(64)], RESULTS / "step.json", **options)


if __name__ == "__main__":
    main()
