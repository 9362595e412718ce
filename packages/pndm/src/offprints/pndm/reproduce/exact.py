"""Errors of the methods where the noise prediction is exact: a mixture of three Gaussians in the plane."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from offprints.pndm.mixtures import GaussianMixtureEps
from offprints.pndm.plans import Method, num_model_calls
from offprints.pndm.sampling import pndm_sample
from offprints.pndm.schedules import AlphaSchedule
from offprints.shared.device import make_generator

START, END = 1.0, 0.02
SMOOTH: tuple[Method, ...] = ("ddim", "s-pndm", "f-pndm", "plms", "f-pndm-sigma")


def random_mixture(seed: int, schedule: AlphaSchedule) -> GaussianMixtureEps:
    """Three components around the origin that overlap: places, widths and weights drawn."""
    draws = np.random.default_rng(seed)
    angles = 2 * np.pi * (np.arange(3) / 3 + draws.uniform())
    means = np.stack([np.cos(angles), np.sin(angles)], 1) * draws.uniform(0.8, 1.2, (3, 1))
    return GaussianMixtureEps(means, draws.uniform(0.3, 0.6, 3), draws.dirichlet([4, 4, 4]), schedule)


def solve_reference(model: GaussianMixtureEps, noise: Tensor, start: float, end: float) -> Tensor:
    """The solution from time `start` to `end` by an adaptive method of order 8 (DOP853, rtol 1e-11).

    In y = x / sqrt(a) as a function of the noise-to-signal ratio, where dy equals the noise prediction.
    """
    from scipy.integrate import solve_ivp

    schedule = model.schedule
    levels = schedule.alpha_bar(torch.tensor([start, end], dtype=torch.float64))
    ratios = ((1 - levels) / levels).sqrt().tolist()

    def slope(ratio: float, y: np.ndarray) -> np.ndarray:
        level = 1 / (1 + torch.tensor([ratio], dtype=torch.float64) ** 2)
        time = schedule._time_of(level).clamp(min=end, max=start).expand(len(noise))
        return model(torch.from_numpy(y.reshape(noise.shape)) * level.sqrt(), time).numpy().ravel()

    first = (noise / levels[0].sqrt()).numpy().ravel()
    found: Any = solve_ivp(slope, ratios, first, method="DOP853", rtol=1e-11, atol=1e-12)
    return torch.from_numpy(found.y[:, -1].reshape(noise.shape)) * levels[1].sqrt()


def errors(seed: int, samples: int, steps: tuple[int, ...], equal_cost: int) -> dict[str, Any]:
    """RMS distances to the solution, by method, on equally spaced times of the continuous schedule.

    ``"fon"``, which needs a table, is on a table of 1000 steps, beside f-pndm on the same.
    """
    noise = torch.randn(samples, 2, generator=make_generator(seed), dtype=torch.float64)
    found: dict[str, Any] = {}

    def measure(name: str, schedule: AlphaSchedule, start: float, end: float, methods: tuple[Method, ...]) -> None:
        model = random_mixture(seed, schedule)
        reference = solve_reference(model, noise, start, end)

        def error(method: Method, n: int) -> float:
            times = np.linspace(start, end, n + 1)
            out = pndm_sample(model, noise, schedule=schedule, times=times, method=method)
            return float((out - reference).square().sum(1).mean().sqrt())

        found[name] = {method: [error(method, n) for n in steps] for method in methods}
        if name == "continuous":
            budget = {
                method: max(n for n in range(1, 99) if num_model_calls(n, method) <= equal_cost) for method in methods
            }
            found["equal cost"] = {method: error(method, n) for method, n in budget.items()}
            # Negative control: the steps of F-PNDM with the newest prediction alone, no gradient part.
            found["no gradient part"] = error("ddim", budget["f-pndm"])

    measure("continuous", AlphaSchedule.continuous_linear(), START, END, SMOOTH)
    measure("table", AlphaSchedule.linear(), 999.0, 0.0, ("f-pndm", "fon"))
    return found
