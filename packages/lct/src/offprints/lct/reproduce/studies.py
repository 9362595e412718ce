"""What needs no training: robust location, and the variance of the gradient with and without coupling."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from offprints.lct.coupling import ot_couple
from offprints.lct.losses import ROBUST
from offprints.lct.model import LatentConsistencyModel
from offprints.lct.training import LatentConsistencyLoss


def location(name: str, values: Tensor, c: float) -> float:
    """The point of least mean loss to the values: the best of a fine grid, refined."""

    def objective(theta: float) -> float:
        squares = (values - theta).square()
        return float(squares.mean() if name == "squared" else ROBUST[name].rho(squares, c).mean())

    low, high = float(values.min()), float(values.max())
    grid = np.linspace(low, high, 1 + 4 * int(high - low + 1))
    best = int(np.argmin([objective(theta) for theta in grid]))
    bounds = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    return float(minimize_scalar(objective, bounds=bounds, method="bounded", options={"xatol": 1e-9}).x)


def locations(seed: int, *, c: float = 0.1) -> dict[str, Any]:
    """Locations of 320 values of N(0, 0.1^2) and 80 at 300 under each loss."""
    g = torch.Generator().manual_seed(seed)
    values = torch.cat([0.1 * torch.randn(320, generator=g, dtype=torch.float64), torch.full((80,), 300.0).double()])
    return {name: location(name, values, c) for name in ("squared", "pseudo_huber", "cauchy", "geman_mcclure")}


def four_modes(n: int, *, generator: torch.Generator) -> Tensor:
    """Points ``[n, 2]`` of four tight clusters at the corners of a square, standard deviation about 0.5."""
    corners = torch.randint(2, (n, 2), generator=generator) - 0.5
    return corners + 0.02 * torch.randn(n, 2, generator=generator)


class PlaneNetwork(nn.Module):
    """An untrained network of the plane."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.leave = nn.Linear(width, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.leave(self.layers(torch.cat([x, t[:, None]], 1)))


def gradient_noise(seed: int, *, draws: int = 30, batch: int = 128) -> dict[str, Any]:
    """Variance of the gradient over draws of the noise, over the squared norm of its mean, for both couplings.

    One batch of four modes and one untrained network; at each interval of the grid of 11 levels.
    """
    torch.manual_seed(seed)
    model = LatentConsistencyModel(PlaneNetwork())
    g = torch.Generator().manual_seed(seed)
    x = four_modes(batch, generator=g)
    noises = [torch.randn(batch, 2, generator=g) for _ in range(draws)]
    parameters = list(model.parameters())
    result: dict[str, Any] = {"x": x, "noise": noises[0], "paired": ot_couple(x, noises[0])}
    shuffle = torch.randperm(batch, generator=g)
    for coupling, pair in (("none", lambda x, z: z), ("ot", ot_couple), ("shuffled", lambda x, z: z[shuffle])):
        coupled = [pair(x, noise) for noise in noises]
        result[f"cost_{coupling}"] = float(torch.stack([(x - z).square().sum(1).mean() for z in coupled]).mean())
        loss = LatentConsistencyLoss(
            total_steps=10, final_scales=10, c=0.0346, coupling="none", diffusion_weight=0.0, validate=False
        )
        ratios = []
        for i in range(10):
            indices = torch.full((batch,), i)
            losses = (loss(model, x, step=0, noise=z, indices=indices).loss for z in coupled)
            gradients = torch.stack(
                [torch.cat([part.flatten() for part in torch.autograd.grad(value, parameters)]) for value in losses]
            ).double()
            center = gradients.mean(0)
            ratios.append(float((gradients - center).square().sum(1).mean() / center.square().sum()))
        result[f"ratios_{coupling}"] = ratios
    return result


def class_noise(seed: int, *, batch: int = 512, dim: int = 64) -> dict[str, float]:
    """Mean of the noise paired with a class, along the line between two classes: coupled across and within them.

    Standard normal noise has mean 0. The classes are at -0.5 and 0.5 in each of ``dim`` coordinates.
    """
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(batch) % 2
    x = 0.1 * torch.randn(batch, dim, generator=g) + (labels[:, None] - 0.5)
    noise = torch.randn(batch, dim, generator=g)
    pairs = {"across": ot_couple(x, noise), "within": ot_couple(x, noise, labels=labels)}
    return {name: float(paired[labels == 1].sum(1).mean() / dim**0.5) for name, paired in pairs.items()}
