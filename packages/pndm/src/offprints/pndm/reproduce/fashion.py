"""A small noise-predicting U-Net of Fashion-MNIST, and what the methods make of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offprints.pndm.reproduce.digits import METHODS, energy_v_statistic, sample, steps_for
from offprints.pndm.reproduce.figures import NAMES, draw_distances, draw_rows
from offprints.pndm.schedules import AlphaSchedule
from offprints.shared.datasets import vision_dataset
from offprints.shared.device import make_generator
from offprints.shared.experiment import Part, Run


@dataclass(frozen=True, kw_only=True)
class FashionSettings:
    """The network of Fashion-MNIST.

    Attributes:
        steps: Of the training; 0 leaves this part out.
        batch_size: Images a step.
        lr: Learning rate at the start; it falls to 0 along a cosine.
        width: Channels of the first level; the two below have twice as many.
        samples: Drawn with every method, from the same noise.
        reference_steps: Of the DDIM run that all are compared with.
        evaluations: Of the network, that a method may spend.
        every: Steps between checkpoints.
        download: Fetch the data if they are missing.
    """

    steps: int = 0
    batch_size: int = 64
    lr: float = 1e-3
    width: int = 24
    samples: int = 64
    reference_steps: int = 1000
    evaluations: tuple[int, ...] = (20, 50, 100)
    every: int = 250
    download: bool = False


class Block(nn.Module):
    """Two convolutions with the time added between them, and a way around."""

    def __init__(self, inner: int, outer: int, time: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(4, inner), nn.SiLU(), nn.Conv2d(inner, outer, 3, padding=1))
        self.shift = nn.Linear(time, outer)
        self.second = nn.Sequential(nn.GroupNorm(4, outer), nn.SiLU(), nn.Conv2d(outer, outer, 3, padding=1))
        self.around = nn.Conv2d(inner, outer, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """``[B, inner, H, W]`` and the time's embedding to ``[B, outer, H, W]``."""
        return self.around(x) + self.second(self.first(x) + self.shift(time)[:, :, None, None])


class SmallUNet(nn.Module):
    """Three levels, 28, 14 and 7 pixels wide."""

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        time, wide = 4 * width, 2 * width
        self.register_buffer("frequencies", 10_000 ** (-torch.arange(32) / 32))
        self.time = nn.Sequential(nn.Linear(64, time), nn.SiLU(), nn.Linear(time, time), nn.SiLU())
        self.enter = nn.Conv2d(1, width, 3, padding=1)
        self.down = nn.ModuleList([Block(width, width, time), Block(width, wide, time)])
        self.middle = nn.ModuleList([Block(wide, wide, time), Block(wide, wide, time)])
        self.up = nn.ModuleList([Block(2 * wide, wide, time), Block(wide + width, width, time)])
        self.leave = nn.Sequential(nn.GroupNorm(4, width), nn.SiLU(), nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """``[B, 1, 28, 28]`` images, ``[B]`` times in training steps to noise."""
        angles = t.unsqueeze(1) * self.frequencies
        time = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        x, kept = self.enter(x), []
        for block in self.down:
            x = block(x, time)
            kept.append(x)
            x = F.avg_pool2d(x, 2)
        for block in self.middle:
            x = block(x, time)
        for block in self.up:
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0), kept.pop()], 1), time)
        out: Tensor = self.leave(x)
        return out


def images(split: str, download: bool) -> Tensor:
    """All images of a split, ``[N, 1, 28, 28]`` in [-1, 1]."""
    data: Any = vision_dataset("fashion_mnist", split, download=download)
    return data.data.unsqueeze(1).float() / 127.5 - 1


def train(settings: FashionSettings, part: Part) -> dict[str, Any]:
    """Averaged weights of a network trained on the training images, and the loss of the last tenth."""
    data = images("train", settings.download)
    levels = AlphaSchedule.linear().alpha_bar(torch.arange(1000)).float().view(-1, 1, 1, 1)
    net = SmallUNet(settings.width).to(part.device)
    average = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995))
    optimizer = torch.optim.Adam(net.parameters(), lr=settings.lr)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    held: dict[str, Any] = {"net": net, "average": average, "optimizer": optimizer, "rate": rate}
    first, losses = 0, []
    if (found := part.restore()) is not None:
        first, state = found
        for name, holder in held.items():
            holder.load_state_dict(state[name])
        losses = list(state["losses"])
    for step in part.progress(range(first, settings.steps)):
        rows, t = torch.randint(len(data), (settings.batch_size,)), torch.randint(1000, (settings.batch_size,))
        noise = torch.randn(settings.batch_size, 1, 28, 28)
        noisy = levels[t].sqrt() * data[rows] + (1 - levels[t]).sqrt() * noise
        loss = F.mse_loss(net(noisy.to(part.device), t.float().to(part.device)), noise.to(part.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        average.update_parameters(net)
        losses.append(float(loss.detach()))
        if (step + 1) % settings.every == 0:
            part.log(step + 1, loss=sum(losses[-settings.every :]) / len(losses[-settings.every :]))
            state = {name: holder.state_dict() for name, holder in held.items()}
            part.checkpoint(step + 1, {**state, "losses": losses})
    tail = losses[-max(1, len(losses) // 10) :]
    return {"weights": dict(average.module.state_dict()), "loss": sum(tail) / len(tail)}


def draw(
    settings: FashionSettings, weights: Mapping[str, Tensor], seed: int, device: str, evaluations: int
) -> dict[str, Any]:
    """Samples of every method with so many evaluations, or of the reference with none given (0)."""
    net = SmallUNet(settings.width).to(device)
    net.load_state_dict(weights)
    net.eval().requires_grad_(False)
    noise = torch.randn(settings.samples, 1, 28, 28, generator=make_generator(seed)).to(device)
    if evaluations == 0:
        return {"DDIM": sample(net, noise, settings.reference_steps, "ddim").cpu()}
    found: dict[str, Tensor] = {}
    for method in METHODS:
        found[method] = sample(net, noise, steps_for(evaluations, method), method)
        # The negative control: as many steps, without the combination of several predictions.
        if method in ("f-pndm", "plms"):
            found[f"{method} off"] = sample(net, noise, steps_for(evaluations, method), "ddim")
    return {name: drawn.cpu() for name, drawn in found.items()}


def reproduce_fashion(settings: FashionSettings, run: Run) -> None:
    """What the methods make of a network trained on real images with few evaluations, beside DDIM with 1000 steps."""
    trained = run.part("fashion").once(partial(train, settings))
    device = str(run.device)
    work = partial(draw, settings, trained["weights"], run.seed, device)
    made = run.units({f"samples {n}": partial(work, n) for n in (0, *settings.evaluations)})
    reference = made["samples 0"]["DDIM"]
    distances: dict[str, dict[int, float]] = {
        name: {n: float((made[f"samples {n}"][name] - reference).square().mean()) for n in settings.evaluations}
        for name in (*METHODS, "f-pndm off", "plms off")
    }

    def over_ddim(name: str, n: int) -> float:
        return distances[name][n] / distances["ddim"][n]

    few, some = settings.evaluations[:2]
    for method, n, bar in (("f-pndm", some, 0.5), ("plms", few, 0.6)):
        run.claim(
            f"fashion-{method}-{n}",
            f"Fashion-MNIST, {n} evaluations: squared distance of {NAMES[method]} to DDIM with"
            f" {settings.reference_steps} steps, over that of DDIM",
            over_ddim(method, n),
            "<=",
            bar,
            control=over_ddim(f"{method} off", n),
            control_name="the same steps with the newest prediction alone (no gradient part)",
        )
    claimed = {("f-pndm", some), ("plms", few)}
    for n in settings.evaluations:
        for method in METHODS[1:]:
            if (method, n) not in claimed:
                run.report_value(
                    f"fashion-{method}-{n}",
                    f"Fashion-MNIST, {n} evaluations: squared distance of {NAMES[method]}, over that of DDIM",
                    over_ddim(method, n),
                )
    run.report_value("fashion-loss", "Fashion-MNIST: loss of the network at the end of its training", trained["loss"])
    test = images("test", settings.download)[: 10 * settings.samples].flatten(1)
    rows: list[dict[str, Any]] = [
        {
            "method": NAMES[method],
            "evaluations": float(n),
            "squared distance": distances[method][n],
            "energy distance to test images": energy_v_statistic(made[f"samples {n}"][method].flatten(1), test),
        }
        for n in settings.evaluations
        for method in METHODS
    ]
    whole = {
        "method": "DDIM",
        "evaluations": float(settings.reference_steps),
        "squared distance": 0.0,
        "energy distance to test images": energy_v_statistic(reference.flatten(1), test),
        "reference": True,
    }
    run.table("Fashion-MNIST", [*rows, whole])
    draw_distances(run, {method: distances[method] for method in METHODS}, "fashion_error", "Fashion-MNIST")
    draw_rows(
        run, "fashion", {"DDIM, 1000 steps": reference, **{NAMES[m]: made[f"samples {few}"][m] for m in METHODS}}, few
    )
