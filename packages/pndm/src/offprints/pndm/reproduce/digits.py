"""A small noise-predicting network of handwritten digits, and what the methods make of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offprints.pndm.plans import Method, num_model_calls
from offprints.pndm.sampling import pndm_sample
from offprints.pndm.schedules import AlphaSchedule
from offprints.pndm.transfers import transfer
from offprints.shared.datasets import digits
from offprints.shared.device import local_seed, make_generator

METHODS: tuple[Method, ...] = ("ddim", "s-pndm", "f-pndm", "plms", "fon")


@dataclass(frozen=True, kw_only=True)
class DigitSettings:
    """The network of the digits.

    Attributes:
        steps: Of the training; 0 leaves this part out.
        batch_size: Images a step.
        lr: Learning rate at the start; it falls to 0 along a cosine.
        width: Of the layers.
        samples: Drawn with every method, from the same noise.
        reference_steps: Of the DDIM run that all are compared with.
        evaluations: Of the network, that a method may spend.
        path_steps: Steps of the trajectories that are drawn.
    """

    steps: int = 1000
    batch_size: int = 128
    lr: float = 2e-3
    width: int = 128
    samples: int = 256
    reference_steps: int = 1000
    evaluations: tuple[int, ...] = (20, 50, 100)
    path_steps: tuple[int, int] = (10, 20)


class EpsilonMLP(nn.Module):
    """Residual layers on 64 pixels and a Fourier embedding of the time."""

    frequencies: Tensor

    def __init__(self, width: int, depth: int = 3) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.exp(-np.log(10_000) * torch.arange(32) / 32))
        self.time = nn.Sequential(nn.Linear(64, width), nn.SiLU())
        self.enter = nn.Linear(64, width)
        self.shifts = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.layers = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(depth)
        )
        self.leave = nn.Linear(width, 64)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """``[B, 64]`` images, ``[B]`` times in training steps to ``[B, 64]`` noise."""
        angles = t.unsqueeze(1) * self.frequencies
        time = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        hidden = self.enter(x)
        for shift, layer in zip(self.shifts, self.layers, strict=True):
            hidden = hidden + layer(hidden + shift(time))
        return self.leave(F.silu(hidden))


def train(settings: DigitSettings, seed: int, device: str) -> dict[str, Any]:
    """Weights of a network trained on all 1797 digits, and the loss of the last tenth of the training."""
    images = digits(value_range=(-1.0, 1.0))[0].to(device)
    schedule = AlphaSchedule.linear()
    levels = schedule.alpha_bar(torch.arange(1000)).float().to(device).unsqueeze(1)
    with local_seed(seed):
        net = EpsilonMLP(settings.width).to(device)
    generator = make_generator(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=settings.lr)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    average = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995))
    losses = []
    for _ in range(settings.steps):
        rows = torch.randint(len(images), (settings.batch_size,), generator=generator).to(device)
        t = torch.randint(1000, (settings.batch_size,), generator=generator).to(device)
        noise = torch.randn(settings.batch_size, 64, generator=generator).to(device)
        noisy = levels[t].sqrt() * images[rows] + (1 - levels[t]).sqrt() * noise
        loss = (net(noisy, t.float()) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        average.update_parameters(net)
        losses.append(loss.detach())
    tail = losses[-max(1, len(losses) // 10) :]
    return {"weights": dict(average.module.state_dict()), "loss": float(torch.stack(tail).mean())}


def network(settings: DigitSettings, weights: Mapping[str, Tensor], device: str) -> EpsilonMLP:
    """The network with these weights, not to be trained."""
    net = EpsilonMLP(settings.width).to(device)
    net.load_state_dict(weights)
    return net.eval().requires_grad_(False)


def steps_for(evaluations: int, method: Method) -> int:
    """The most steps that `method` can take with so many evaluations."""
    return max(n for n in range(1, evaluations + 1) if num_model_calls(n, method) <= evaluations)


def grid(num_steps: int) -> np.ndarray:
    """Equal steps from the last training time to 0, and from there to clean data."""
    return np.append(np.linspace(999, 0, num_steps), -1.0)


def sample(net: nn.Module, noise: Tensor, num_steps: int, method: Method) -> Tensor:
    """Digits with this many steps of a method."""
    times = grid(num_steps)
    return pndm_sample(net, noise, schedule=AlphaSchedule.linear(), times=times, method=method)


def draw(settings: DigitSettings, trained: dict[str, Any], seed: int, device: str) -> dict[str, Any]:
    """Samples of the reference and of every method and number of evaluations, from the same noise."""
    net = network(settings, trained["weights"], device)
    noise = torch.randn(settings.samples, 64, generator=make_generator(seed)).to(device)
    drawn = {"reference": sample(net, noise, settings.reference_steps, "ddim")}
    for evaluations in settings.evaluations:
        for method in METHODS:
            drawn[f"{method} {evaluations}"] = sample(net, noise, steps_for(evaluations, method), method)
        # Negative controls: the steps of F-PNDM and of PLMS with the newest prediction alone, no gradient part.
        for method in ("f-pndm", "plms"):
            drawn[f"{method} off {evaluations}"] = sample(net, noise, steps_for(evaluations, method), "ddim")
    return {name: images.cpu() for name, images in drawn.items()}


def paths(settings: DigitSettings, trained: dict[str, Any], seed: int, device: str) -> dict[str, Any]:
    """Norm of the sample and of its change per training step along the way, for the reference and with few steps."""
    net = network(settings, trained["weights"], device)
    noise = torch.randn(min(settings.samples, 128), 64, generator=make_generator(seed)).to(device)
    schedule = AlphaSchedule.linear()

    def along(num_steps: int, method: Method, points: int) -> tuple[Tensor, Tensor]:
        times = grid(num_steps)
        trajectory = pndm_sample(net, noise, schedule=schedule, times=times, method=method, return_trajectory=True)
        norms, slopes = [], []
        for i in np.unique(np.linspace(0, num_steps - 1, points).astype(int)):
            x, t = trajectory[i], float(times[i])
            eps = net(x, torch.full((len(x),), t, device=x.device))
            moved = transfer(x, eps, schedule.alpha_bar(t), schedule.alpha_bar(t - 1))
            norms.append(x.norm(dim=1))
            slopes.append((moved - x).norm(dim=1))
        return torch.stack(norms).cpu(), torch.stack(slopes).cpu()

    norms, slopes = along(settings.reference_steps, "ddim", 100)
    low, high = slopes.quantile(torch.tensor([0.05, 0.95]), dim=1)
    found: dict[str, Any] = {
        "reference": {"norm": norms.mean(1).tolist(), "slope_low": low.tolist(), "slope_high": high.tolist()}
    }
    for n in settings.path_steps:
        for method in ("fon", "s-pndm", "f-pndm"):
            norms, slopes = along(n, method, n)
            found[f"{method} {n}"] = {"norm": norms.mean(1).tolist(), "slope": slopes.mean(1).tolist()}
    return found


def energy_v_statistic(x: Tensor, y: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| over all pairs, those of a point with itself too; 0 for equal sets."""
    x, y = x.double(), y.double()
    return float(2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean())
