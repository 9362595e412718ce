"""The losses beside F.cross_entropy, and the attack beside torchattacks and a plain loop (one thread, CPU times).

`--only losses` or `--only attacks` runs a part.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offprints.comp_sum import comp_sum_loss, pgd_attack, reference, robust_accuracy
from offprints.comp_sum._rows import differentiable_losses
from offprints.shared.benchmark import Case, compare

RESULTS = Path(__file__).parent / "results"
SHAPES = ((128, 10), (1024, 10), (1024, 1000), (256, 50000))
TAUS = (0.5, 1.0, 2.0)
Loss = Callable[[Tensor, Tensor], Tensor]


def forward_backward(loss: Loss, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    value = loss(z, y)
    (gradient,) = torch.autograd.grad(value, z)
    return value.detach(), gradient


def unfused(z: Tensor, y: Tensor, tau: float) -> Tensor:
    return differentiable_losses(z, y, tau).mean()


def time_losses() -> None:
    cases = []
    for shape in SHAPES:
        generator = torch.Generator().manual_seed(0)
        z = (3 * torch.randn(shape, generator=generator)).requires_grad_()
        y = torch.randint(shape[1], shape[:1], generator=generator)
        for tau in TAUS:
            peers = {
                "F.cross_entropy": partial(forward_backward, F.cross_entropy, z, y),
                "the same formula, torch's operations": partial(forward_backward, partial(unfused, tau=tau), z, y),
            }
            ours = partial(forward_backward, partial(comp_sum_loss, tau=tau), z, y)
            cases.append(Case(f"comp_sum_loss, tau = {tau:g}, {shape}", ours, peers))
    compare(cases, RESULTS / "losses.json", rounds=5, seconds=0.05, threads=1, clock=time.process_time)


def plain_evaluation(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> tuple[float, float]:
    """Every step for every picture."""
    loss = partial(F.cross_entropy, target=y, reduction="sum")
    x_adv = reference.attack(lambda at: loss(model(at)), x, x, 8 / 255, 2 / 255, steps)
    with torch.no_grad():
        clean, kept = model(x).argmax(1) == y, model(x_adv).argmax(1) == y
    return float(clean.double().mean()), float((clean & kept).double().mean())


def time_attacks() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torchattacks  # type: ignore[import-untyped]
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten()),
        nn.Linear(32 * 8 * 8, 10),
    ).eval()
    x = torch.rand(64, 3, 32, 32)
    y = model(x).argmax(1)
    ball = {"eps": 8 / 255, "step_size": 2 / 255}
    peer = torchattacks.PGD(model, eps=8 / 255, alpha=2 / 255, steps=10, random_start=False)
    loss = partial(F.cross_entropy, target=y)
    cases = [
        Case(
            "pgd_attack, 10 steps, small CNN, 64 pictures",
            partial(pgd_attack, model, x, y, steps=10, random_start=None, **ball),
            {
                "torchattacks": partial(peer, x, y),
                "plain loop": partial(
                    reference.attack, lambda at: loss(model(at)), x, x, 8 / 255, step_size=2 / 255, steps=10
                ),
            },
        ),
        Case(
            "robust_accuracy, 40 steps, the same untrained",
            partial(robust_accuracy, model, x, y, steps=40, random_start=None, **ball),
            {"every step for every picture": partial(plain_evaluation, model, x, y, 40)},
        ),
    ]
    compare(cases, RESULTS / "attacks.json", rounds=5, seconds=0.1, threads=1, clock=time.process_time)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("losses", "attacks"))
    only = parser.parse_args().only
    if only in (None, "losses"):
        time_losses()
    if only in (None, "attacks"):
        time_attacks()


if __name__ == "__main__":
    main()
