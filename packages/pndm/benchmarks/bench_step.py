"""What a sampler costs outside of the network: whole runs of 50 steps with a network that costs nothing, one thread.

Beside diffusers' own scheduler in the loop of its pipelines, and beside a plain rendering of the official code's loop
(its arithmetic, its table lookups and its history), written for this benchmark. That all do the same work is shown
first, with a network that is not linear: one that predicts a constant could not tell PLMS from DDIM.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

from offprints.pndm import AlphaSchedule, pndm_sample
from offprints.pndm.diffusers import PNDMScheduler
from offprints.shared.benchmark import Case, compare

STEPS = 50
SHAPES = ((64, 3, 32, 32), (4, 4, 64, 64))
METHODS = (("plms", True), ("f-pndm", False))
THEIRS = AlphaSchedule.linear(final="first", interpolation="floor")
OFFICIAL = AlphaSchedule.linear(offset=1, interpolation="floor")
Network = Callable[[Tensor, Any], Tensor]


def loop(scheduler: Any, noise: Tensor, network: Network) -> Tensor:
    scheduler.set_timesteps(STEPS)
    x = noise
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x).prev_sample
    return x


def sample(method: Any, noise: Tensor, network: Network, schedule: AlphaSchedule = THEIRS) -> Tensor:
    return pndm_sample(network, noise, schedule=schedule, num_steps=STEPS, method=method)


def phi(x: Tensor, t: Tensor, t_next: Tensor, e: Tensor, table: Tensor) -> Tensor:
    a = table[t.long() + 1].view(-1, 1, 1, 1)
    b = table[t_next.long() + 1].view(-1, 1, 1, 1)
    of_e = 1 / (a.sqrt() * (((1 - b) * a).sqrt() + ((1 - a) * b).sqrt()))
    return x + (b - a) * (1 / (a.sqrt() * (a.sqrt() + b.sqrt())) * x - of_e * e)


def official(table: Tensor, noise: Tensor, network: Network) -> Tensor:
    x, past = noise, []
    times = [*range(1000 - 1000 // STEPS, -1, -1000 // STEPS), -1]
    ones = torch.ones(len(noise))
    for now, then in pairwise(times):
        t, t_next = ones * now, ones * then
        past.append(network(x, t))
        if len(past) > 3:
            e = 1 / 24 * (55 * past[-1] - 59 * past[-2] + 37 * past[-3] - 9 * past[-4])
        else:
            half, k1 = (t + t_next) / 2, past[-1]
            k2 = network(phi(x, t, half, k1, table), half)
            k3 = network(phi(x, t, half, k2, table), half)
            k4 = network(phi(x, t, t_next, k3, table), t_next)
            e = 1 / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        x = phi(x, t, t_next, e, table)
    return x


def nonlinear(x: Tensor, t: Any) -> Tensor:
    wave = torch.sin(torch.as_tensor(t, dtype=x.dtype) / 150).reshape(-1, 1, 1, 1)
    return 0.6 * torch.tanh(x) + 0.3 * x.roll(1, -1) + wave


def agree(ours: Tensor, theirs: Tensor, tolerance: float = 1e-3) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))


def show_agreement(table: Tensor) -> None:
    """All contenders make the same samples with a nonlinear network, and DDIM makes others."""
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for method, skip in METHODS:
        theirs = loop(diffusers.PNDMScheduler(skip_prk_steps=skip), noise, nonlinear)
        agree(loop(PNDMScheduler(method=method), noise, nonlinear), theirs)  # type: ignore[arg-type]
        agree(sample(method, noise, nonlinear), theirs)
        other = sample("ddim", noise, nonlinear)
        if float((other - theirs).abs().max()) < 0.01 * float(theirs.abs().max()):
            raise AssertionError(f"the network cannot tell {method} from DDIM")
    agree(sample("f-pndm", noise, nonlinear, OFFICIAL), official(table, noise, nonlinear))


def main() -> None:
    table = AlphaSchedule.linear().alpha_bar(torch.arange(1000)).float()
    show_agreement(table)
    cases = []
    for shape in SHAPES:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(shape, generator=generator)
        eps = torch.randn(shape, generator=generator)

        def constant(x: Tensor, t: Any, eps: Tensor = eps) -> Tensor:
            return eps

        for method, skip in METHODS:
            peers = {"diffusers": partial(loop, diffusers.PNDMScheduler(skip_prk_steps=skip), noise, constant)}
            name = f"{method} {list(shape)}, {STEPS} steps"
            ours = partial(loop, PNDMScheduler(method=method), noise, constant)  # type: ignore[arg-type]
            cases.append(Case(f"PNDMScheduler {name}", ours, peers))
            if method == "f-pndm":
                peers = peers | {"official loop": partial(official, table, noise, constant)}
            cases.append(Case(f"pndm_sample {name}", partial(sample, method, noise, constant), peers))
    compare(cases, Path(__file__).parent / "results" / "step.json", rounds=15, seconds=0.05, threads=1)


if __name__ == "__main__":
    main()
