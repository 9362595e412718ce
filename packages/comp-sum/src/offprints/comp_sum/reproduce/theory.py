"""The theory of the paper, checked on random distributions, and where the gradients of the losses end."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from offprints.comp_sum.bounds import transform
from offprints.comp_sum.gaps import conditional_risk_minimum
from offprints.comp_sum.losses import comp_sum_loss
from offprints.comp_sum.reproduce.figures import draw_bounds, draw_family
from offprints.shared.device import make_generator
from offprints.shared.experiment import Run


def random_regrets(tau: float, draws: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Conditional regrets of l_tau and of the error, of random scores for random distributions of the label."""
    generator = make_generator(seed)
    sharp = 4 * torch.rand(draws, 1, generator=generator, dtype=torch.float64)
    p = torch.softmax(sharp * torch.randn(draws, classes, generator=generator, dtype=torch.float64), 1)
    # From scores that are nearly the best ones, whose regrets are small, to others.
    blur = 3 * torch.rand(draws, 1, generator=generator, dtype=torch.float64) ** 2
    h = p.log() + blur * torch.randn(draws, classes, generator=generator, dtype=torch.float64)
    rows = torch.arange(classes).repeat(draws)
    losses = comp_sum_loss(h.repeat_interleave(classes, 0), rows, tau=tau, reduction="none").view(draws, classes)
    surrogate = (p * losses).sum(1) - conditional_risk_minimum(p, tau)
    return surrogate, p.amax(1) - p.gather(1, h.argmax(1, keepdim=True)).squeeze(1)


def bounds(run: Run, taus: tuple[float, ...], draws: int) -> None:
    """The bound holds for random distributions and scores: a theorem, checked."""
    classes, shown, worst = 5, {}, -np.inf
    for tau in (*taus, 3.0):
        surrogate, zero_one = random_regrets(tau, draws, classes, run.seed)
        worst = max(worst, float((transform(zero_one, tau, classes) - surrogate).max()))
        if tau in (0.0, 1.0, 1.5):
            shown[tau] = (surrogate, zero_one)
    run.check(
        "bound-holds",
        f"{draws} random distributions and scores for each of {len(taus) + 1} losses: largest excess of "
        "T(regret of the error) over the regret of the surrogate",
        worst,
        "<=",
        1e-9,
    )
    draw_bounds(run, (*taus, 3.0), shown, classes)


def saturation(run: Run) -> None:
    """Where the gradient ends."""
    margins = torch.linspace(0, 110, 441)
    logits = torch.zeros(len(margins), 10)
    logits[:, 0] = margins
    target = torch.zeros(len(margins), dtype=torch.int64)
    losses: dict[str, Any] = {f"tau = {tau:g}": partial(comp_sum_loss, tau=tau) for tau in (0.5, 1.0, 1.5, 2.0)}
    found = {}
    for name, loss in {**losses, "F.cross_entropy of torch": F.cross_entropy}.items():
        leaf = logits.clone().requires_grad_()
        found[name] = torch.autograd.grad(loss(leaf, target, reduction="sum"), leaf)[0][:, 0].abs()
    end = {
        name: float(margins[values == 0][0]) if bool((values == 0).any()) else 110.0 for name, values in found.items()
    }
    run.claim(
        "gradient-lives",
        "float32, ten classes: smallest margin at which the label's score has no gradient, least of four values of tau",
        min(value for name, value in end.items() if "torch" not in name),
        ">=",
        80,
        control=end["F.cross_entropy of torch"],
        control_name="log-softmax of torch",
    )
    draw_family(run, margins, found)
