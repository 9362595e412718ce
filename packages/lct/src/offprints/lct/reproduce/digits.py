"""Consistency training on handwritten digits as 64-dimensional latents."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from offprints.lct.conversion import replace_norms
from offprints.lct.latents import LatentNormalizer
from offprints.lct.model import LatentConsistencyModel
from offprints.lct.reproduce.metrics import energy_distance, frechet_distance
from offprints.lct.reproduce.recipes import Recipe
from offprints.lct.sampling import TWO_STEP_SIGMAS, consistency_sample
from offprints.lct.schedules import karras_sigmas
from offprints.shared.datasets import digits, tensor_batches


@dataclass(frozen=True, kw_only=True)
class DigitSettings:
    """Size of the trainings on digits.

    Attributes:
        steps: of each training.
        batch_size: samples in a step.
        width, blocks: of the residual MLP.
        learning_rate: of RAdam.
        final_scales: s1; a fine grid needs far more steps.
        ema: decay of the weights that sample.
        scored: samples, and digits that they are compared with.
    """

    steps: int = 800
    batch_size: int = 128
    width: int = 128
    blocks: int = 2
    learning_rate: float = 2e-3
    final_scales: int = 20
    ema: float = 0.995
    scored: int = 1797


class ResidualMLP(nn.Module):
    """F(x, t) for vectors ``[B, d]``."""

    frequencies: Tensor

    def __init__(self, dim: int, width: int, blocks: int, *, frequencies: int = 16) -> None:
        super().__init__()
        # Harmonics of the range of t = 0.25 ln sigma, about -1.6 to 1.1.
        self.register_buffer("frequencies", torch.pi / 3.2 * torch.arange(1, frequencies + 1))
        self.embed = nn.Sequential(nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width))
        self.enter = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(blocks)
        )
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, dim))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t[:, None] * self.frequencies
        time = self.embed(torch.cat([angles.sin(), angles.cos()], 1))
        h = self.enter(x)
        for block in self.blocks:
            h = h + block(h + time)
        output: Tensor = self.leave(h)
        return output


def standardized_digits() -> Tensor:
    """Digits as latents: per-position standardization, the paper's, to a standard deviation of 0.5."""
    pixels = digits(value_range=(-1.0, 1.0))[0]
    normalizer = LatentNormalizer(pixels.shape[1:])
    normalizer.update(pixels)
    return normalizer(pixels)


def pixel_digits() -> Tensor:
    """Digits in the pixel scale, one factor for all positions, to a standard deviation of 0.5."""
    pixels = digits(value_range=(-1.0, 1.0))[0]
    return pixels * (0.5 / pixels.std())


def contaminate(x: Tensor, *, seed: int, samples: float = 0.4, entries: float = 0.025, scale: float = 20.0) -> Tensor:
    """Impulses N(0, scale^2) added to a random share of the entries of a random share of the samples."""
    g = torch.Generator().manual_seed(seed)
    hit = (torch.rand(len(x), 1, generator=g) < samples) & (torch.rand(x.shape, generator=g) < entries)
    return x + torch.where(hit, scale * torch.randn(x.shape, generator=g), 0.0)


def train(
    recipe: Recipe,
    *,
    settings: DigitSettings,
    seed: int,
    contaminated: bool,
    device: str = "cpu",
) -> dict[str, Any]:
    """Train on standardized, or on contaminated pixel digits; score samples against the clean set."""
    clean = (pixel_digits() if contaminated else standardized_digits()).to(device)
    data = contaminate(clean.cpu(), seed=seed).to(device) if contaminated else clean
    return fit(recipe, data, clean, settings=settings, seed=seed)


def fit(recipe: Recipe, data: Tensor, clean: Tensor, *, settings: DigitSettings, seed: int) -> dict[str, Any]:
    """Train on ``data`` ``[N, d]``; score as many samples as there are in the clean set against it."""
    torch.manual_seed(seed)
    dim = clean.shape[1]
    network: nn.Module = ResidualMLP(dim, settings.width, settings.blocks)
    if recipe.norm == "non_scaling":
        network = replace_norms(network, torch.zeros(2, dim), torch.zeros(2))
    model = LatentConsistencyModel(network).to(data.device)
    average = copy.deepcopy(model)
    weights, averages = list(model.parameters()), [p.detach() for p in average.parameters()]
    optimizer = torch.optim.RAdam(weights, lr=settings.learning_rate, foreach=True)
    # c as at the dimension for which the paper's constants are made: at 64 it would rise after the first stage.
    loss_fn = recipe.loss(total_steps=settings.steps, final_scales=settings.final_scales, dim=4096)
    generator = torch.Generator().manual_seed(seed + 1)
    curve: list[float] = []
    step = 0
    while step < settings.steps:
        for (x,) in tensor_batches(data, batch_size=settings.batch_size, generator=generator, drop_last=True):
            out = loss_fn(model, x, step=step, generator=generator)
            optimizer.zero_grad(set_to_none=True)
            out.loss.backward()
            optimizer.step()
            torch._foreach_lerp_(averages, [p.detach() for p in weights], 1 - settings.ema)
            curve.append(float(out.loss.detach()))
            step += 1
            if step == settings.steps:
                break
    return score(average, clean[: settings.scored], seed=seed) | {"curve": curve[:: max(1, len(curve) // 100)]}


@torch.no_grad()
def score(model: nn.Module, clean: Tensor, *, seed: int) -> dict[str, Any]:
    """Distances of one- and two-step samples from the clean set, denoising errors at small noise, some samples."""
    model.eval()
    g = torch.Generator().manual_seed(seed + 2)
    noise = torch.randn(clean.shape, generator=g).to(clean.device)
    result: dict[str, Any] = {}
    # The control of the second step: one that begins at the highest level again.
    for name, sigmas in (("one", (80.0,)), ("two", TWO_STEP_SIGMAS), ("again", (80.0, 79.9))):
        samples = consistency_sample(model, noise, sigmas=sigmas, generator=g)
        result[f"energy_{name}"] = energy_distance(samples, clean)
        result[f"frechet_{name}"] = frechet_distance(samples, clean)
        result[f"samples_{name}"] = samples[:32].cpu()
    grid = karras_sigmas(81)
    z = torch.randn(clean.shape, generator=g).to(clean.device)
    for place in (15, 20):
        sigma = float(grid[place])
        error = (model(clean + sigma * z, sigma) - clean).square().mean() / min(sigma**2, 0.25)
        result[f"denoising_{place}"] = float(error)
    return result
