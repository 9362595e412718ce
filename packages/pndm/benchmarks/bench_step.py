"""What a sampler costs outside of the network: whole runs of 50 steps with a network that costs nothing, one thread.

Beside diffusers' own scheduler in the loop of its pipelines, and beside a plain rendering of the official code's loop
(its arithmetic, its table lookups and its history), written for this benchmark.
"""

from __future__ import annotations

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
SCHEDULE = AlphaSchedule.linear(final="first", interpolation="floor")


def loop(scheduler: Any, noise: Tensor, eps: Tensor) -> Tensor:
    scheduler.set_timesteps(STEPS)
    x = noise
    for t in scheduler.timesteps:
        x = scheduler.step(eps, t, x).prev_sample
    return x


def sample(method: Any, noise: Tensor, eps: Tensor) -> Tensor:
    return pndm_sample(lambda x, t: eps, noise, schedule=SCHEDULE, num_steps=STEPS, method=method)


def phi(x: Tensor, t: Tensor, t_next: Tensor, e: Tensor, table: Tensor) -> Tensor:
    a = table[t.long() + 1].view(-1, 1, 1, 1)
    b = table[t_next.long() + 1].view(-1, 1, 1, 1)
    of_e = 1 / (a.sqrt() * (((1 - b) * a).sqrt() + ((1 - a) * b).sqrt()))
    return x + (b - a) * (1 / (a.sqrt() * (a.sqrt() + b.sqrt())) * x - of_e * e)


def official(table: Tensor, noise: Tensor, eps: Tensor) -> Tensor:
    x, past = noise, []
    times = [*range(1000 - 1000 // STEPS, -1, -1000 // STEPS), -1]
    ones = torch.ones(len(noise))
    for now, then in pairwise(times):
        t, t_next = ones * now, ones * then
        past.append(eps)
        if len(past) > 3:
            e = 1 / 24 * (55 * past[-1] - 59 * past[-2] + 37 * past[-3] - 9 * past[-4])
        else:
            half = (t + t_next) / 2
            for end in (half, half, t_next):
                phi(x, t, end, eps, table)
            e = 1 / 6 * (eps + 2 * eps + 2 * eps + eps)
        x = phi(x, t, t_next, e, table)
    return x


def agree(ours: Tensor, theirs: Tensor) -> None:
    # The official code reads its table one entry later.
    torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05 * float(ours.abs().max()))


def main() -> None:
    table = AlphaSchedule.linear().alpha_bar(torch.arange(1000)).float()
    cases = []
    for shape in ((64, 3, 32, 32), (4, 4, 64, 64)):
        generator = torch.Generator().manual_seed(0)
        noise, eps = torch.randn(2, *shape, generator=generator)
        for method, skip in (("plms", True), ("f-pndm", False)):
            peers = {"diffusers": partial(loop, diffusers.PNDMScheduler(skip_prk_steps=skip), noise, eps)}
            name = f"{method} {list(shape)}, {STEPS} steps"
            ours = partial(loop, PNDMScheduler(method=method), noise, eps)
            cases.append(Case(f"PNDMScheduler {name}", ours, peers, agree))
            if method == "f-pndm":
                peers = peers | {"official loop": partial(official, table, noise, eps)}
            cases.append(Case(f"pndm_sample {name}", partial(sample, method, noise, eps), peers, agree))
    compare(cases, Path(__file__).parent / "results" / "step.json", rounds=15, seconds=0.05, threads=1)


if __name__ == "__main__":
    main()
