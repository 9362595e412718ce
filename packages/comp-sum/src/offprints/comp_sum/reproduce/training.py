"""One training, by any of the losses, and one evaluation: what every preset is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offprints.comp_sum.adversarial import nu_ramp
from offprints.comp_sum.evaluation import robust_accuracy
from offprints.comp_sum.losses import comp_sum_loss
from offprints.comp_sum.reproduce.networks import Architecture, network
from offprints.comp_sum.training import adv_comp_sum_loss, trades_loss
from offprints.shared.datasets import tensor_batches
from offprints.shared.device import autocast, local_seed, make_generator
from offprints.shared.experiment import Part

Method = Literal["comp-sum", "TRADES", "adv-comp-sum"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training. `strength` is beta of TRADES and nu of adv-comp-sum; it grows over the share `ramp` of the steps."""

    method: Method = "comp-sum"
    tau: float = 1.0
    strength: float = 0.0
    ramp: float = 0.5
    architecture: Architecture = "mlp"
    epochs: int = 30
    batch_size: int = 130
    lr: float = 0.1
    weight_decay: float = 5e-4
    schedule: Literal["one cycle", "cosine"] = "one cycle"
    clip_gradient: float = 5.0
    augment: bool = False
    eps: float = 0.15
    step_size: float = 0.04
    steps: int = 5


@dataclass(frozen=True, kw_only=True)
class Probe:
    """An evaluation by projected gradient descent."""

    eps: float = 0.15
    step_size: float = 0.02
    steps: int = 40


def batch_loss(model: nn.Module, x: Tensor, y: Tensor, recipe: Recipe, strength: float) -> Tensor:
    """The loss of one batch, attack included."""
    ball: dict[str, Any] = {"eps": recipe.eps, "step_size": recipe.step_size, "steps": recipe.steps}
    if recipe.method == "TRADES":
        return trades_loss(model, x, y, beta=strength, **ball)
    if recipe.method == "adv-comp-sum":
        return adv_comp_sum_loss(model, x, y, tau=recipe.tau, nu=strength, **ball)
    return comp_sum_loss(model(x), y, tau=recipe.tau)


def augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures mirrored at random and moved by up to four pixels."""
    padded = F.pad(x, (4, 4, 4, 4))
    mirrored = torch.rand(len(x), generator=generator) < 0.5
    rows, columns = torch.randint(9, (2, len(x)), generator=generator)
    side = torch.arange(x.shape[-1])
    over = torch.where(mirrored[:, None], side.flip(0), side)
    down = (rows[:, None] + side)[:, None, :, None].to(x.device)
    across = (columns[:, None] + over)[:, None, None, :].to(x.device)
    samples = torch.arange(len(x), device=x.device)[:, None, None, None]
    return padded[samples, torch.arange(x.shape[1], device=x.device)[:, None, None], down, across]


def train(
    x: Tensor, y: Tensor, recipe: Recipe, *, seed: int, num_classes: int = 10, part: Part | None = None
) -> nn.Module:
    """A network trained on inputs in [0, 1]; as a part of a run it goes on from the last finished epoch."""
    precision = "float32" if part is None else part.precision
    with local_seed(seed):
        model = network(recipe.architecture, num_classes).to(x.device)
        optimizer = torch.optim.SGD(
            model.parameters(), recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay, nesterov=True
        )
        total = recipe.epochs * (len(y) // recipe.batch_size)
        rate: torch.optim.lr_scheduler.LRScheduler
        if recipe.schedule == "cosine":
            rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
        else:
            rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=total)
        parts = {"model": model, "optimizer": optimizer, "rate": rate}
        begin = 0
        if part is not None and (found := part.restore()) is not None:
            begin, state = found
            for name, stored in state.items():
                parts[name].load_state_dict(stored)  # type: ignore[attr-defined]
        step = begin * (total // recipe.epochs)
        for epoch in range(begin, recipe.epochs):
            generator = make_generator(10_000 * seed + epoch)
            for inputs, labels in tensor_batches(
                x, y, batch_size=recipe.batch_size, generator=generator, drop_last=True
            ):
                inputs = augmented(inputs, generator) if recipe.augment else inputs
                strength = nu_ramp(step, total, nu=recipe.strength, fraction=recipe.ramp)
                with autocast(precision, x.device):
                    loss = batch_loss(model, inputs, labels, recipe, strength)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_gradient)
                optimizer.step()
                rate.step()
                step += 1
            if part is not None:
                part.log(epoch + 1, loss=float(loss.detach()))
                part.checkpoint(epoch + 1, {name: value.state_dict() for name, value in parts.items()})  # type: ignore[attr-defined]
    return model.eval()


def measured(model: nn.Module, x: Tensor, y: Tensor, probe: Probe, seed: int) -> list[float]:
    """Clean and robust accuracy."""
    ball: dict[str, Any] = {"eps": probe.eps, "step_size": probe.step_size, "steps": probe.steps}
    return list(robust_accuracy(model, x, y, generator=make_generator(seed), **ball))
