"""A small experiment that uses everything a run offers, and fails in the ways that it is asked to."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from offprints.shared.distributed import rank
from offprints.shared.experiment import Experiment, Part, Run
from offprints.shared.extras import MissingData, require


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the trial."""

    steps: int = 12
    """Steps of training."""
    learning_rate: float = 0.05
    """Step size of gradient descent with momentum."""
    widths: tuple[int, ...] = (4, 6, 8)
    """One unit each."""
    parts: tuple[str, ...] = ()
    """Long trainings after the one, each under its key."""
    workers: int = 1
    pause: float = 0.0
    """Seconds that each unit takes."""
    hidden: int = 8
    figure: bool = False
    threshold: float = 10.0
    trace: Path | None = None
    """Where to note what was computed."""
    fail: Literal["", "unit", "function", "rank 1", "nan", "extra", "data", "interrupt", "exit", "unit exit"] = ""


def note(config: Config, text: str) -> None:
    if config.trace is not None:
        with open(config.trace, "a") as file:
            file.write(f"{text}\n")


def unit(config: Config, width: int) -> dict[str, Any]:
    note(config, f"unit {width} in {os.getpid()}")
    if config.fail == "unit" and width == 6:
        raise ArithmeticError("six is too many")
    if config.fail == "unit exit":
        sys.exit(0)
    time.sleep(config.pause)
    product = torch.randn(200, 50 * width) @ torch.randn(50 * width, 10)
    return {"mean": product.mean().item(), "rows": product[:2], "threads": torch.get_num_threads()}


def train(config: Config, part: Part) -> dict[str, Any]:
    """A walk of six steps that shows whether the random streams go on."""
    place, first = torch.randn(3), 0
    if (found := part.restore()) is not None:
        first, place = found
    note(config, f"part {part.key} from {first}")
    for step in part.progress(range(first, 6)):
        place = place + torch.randn(3)
        part.log(step + 1, length=place.norm())
        if (step + 1) % 2 == 0:
            part.checkpoint(step + 1, place)
    return {"place": place, "draw": torch.rand(()).item()}


def reproduce(config: Config, run: Run) -> None:
    run.log(0, loss=1.5)
    units = run.units({f"width/{width}": partial(unit, config, width) for width in config.widths}, config.workers)
    model = nn.Sequential(nn.Linear(8, config.hidden), nn.Dropout(0.3), nn.Linear(config.hidden, 1))
    momenta = [torch.zeros_like(parameter) for parameter in model.parameters()]
    inputs, targets = torch.randn(32, 8), torch.randn(32, 1)
    start, average = 0, torch.zeros((), dtype=torch.bfloat16)
    if (found := run.restore()) is not None:
        start, state = found
        model.load_state_dict(state["model"])
        momenta, average = state["momenta"], state["average"]
    note(config, f"start {start}")
    loss = torch.zeros(())
    for step in run.progress(range(start, config.steps), description="training"):
        loss = (model(inputs) - targets).square().mean()
        with torch.no_grad():
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            for parameter, momentum, gradient in zip(model.parameters(), momenta, gradients, strict=True):
                momentum.mul_(0.9).add_(gradient)
                parameter.sub_(config.learning_rate * momentum)
        average = average * 0.5 + loss.detach().bfloat16() * 0.5
        run.log(step + 1, loss=loss)
        if (step + 1) % 3 == 0:
            state = {"model": model.state_dict(), "momenta": momenta, "average": average}
            run.checkpoint(step + 1, state)
            note(config, f"checkpoint {step + 1}")
    parts = {key: run.part(key).once(partial(train, config)) for key in config.parts}
    if parts:
        run.log(config.steps + 1, parts=len(parts))
    for key, result in parts.items():
        run.claim(f"part {key}", "the walk of a part", result["place"].sum() + result["draw"], "<", 1e9)
    if config.fail == "function" or (config.fail == "rank 1" and rank() == 1):
        raise ArithmeticError("the function fails")
    if config.fail == "extra":
        require("no_such_module", package="offprints-trial", extra="trial")
    if config.fail == "data":
        raise MissingData("no pictures in /data; get them from example.org")
    if config.fail == "exit":
        sys.exit(0)
    if config.fail == "interrupt":
        raise KeyboardInterrupt
    weight = sum(parameter.double().sum().item() for parameter in model.parameters())
    run.claim("average", "the loss falls", average, "<", config.threshold, paper_value=0.1)
    run.claim("weight", "the weights stay finite", float("nan") if config.fail == "nan" else weight, "<", 1e9)
    run.claim("mean", "the units' means", sum(result["mean"] for result in units.values()), "<", 10, spread=0.5)
    run.claim("rows", "the units' rows", sum(result["rows"].sum() for result in units.values()), ">", -1e9)
    run.claim("draw", "the global stream goes on", torch.rand(()), "<=", 1)
    run.claim("threads", "units have one thread", max(result["threads"] for result in units.values()), "==", 1)
    run.report_value("seeds", "seeds tried", run.seeds(3)[-1], paper_value="5")
    run.table("widths", [{"width": key, **result, "rows": None} for key, result in units.items()])
    if config.figure:
        with run.figure("line", ncols=2) as (_, axes):
            axes[0].plot([1, 2, 3])


experiment = Experiment(
    name="trial",
    title="A trial of the command line",
    arxiv="2400.00001",
    config=Config,
    presets={"smoke": Config(threshold=-1.0, figure=True), "quick": Config(), "paper": Config(steps=1000)},
    function=reproduce,
)
