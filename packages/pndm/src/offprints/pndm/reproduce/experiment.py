"""The experiment: orders of convergence on exact scores, few evaluations of a small trained network, FID."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from offprints.pndm.reproduce import digits, exact, figures
from offprints.pndm.reproduce.digits import DigitSettings
from offprints.pndm.reproduce.fashion import FashionSettings, reproduce_fashion
from offprints.pndm.reproduce.paper import PaperSettings, reproduce_paper
from offprints.shared import datasets
from offprints.shared.experiment import Experiment, Run

# What a trained network must show, set from the seeds 11 to 14: about two to four times the largest measured there.
DIGIT_BARS = {("f-pndm", 50): 0.2, ("plms", 20): 0.5, ("plms", 50): 0.15}
NO_GRADIENT_PART = "the same steps with the newest prediction alone (no gradient part)"
# The order of a method, how near, and its negative control: the method without what makes the order.
ORDERS: dict[str, tuple[int, float, str, str]] = {
    "s-pndm": (2, 0.2, "ddim", NO_GRADIENT_PART),
    "f-pndm": (2, 0.3, "ddim", NO_GRADIENT_PART),
    "f-pndm-sigma": (4, 0.5, "f-pndm", "the weights of equal steps in time"),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the experiment.

    Attributes:
        fid: Measure FID of pretrained networks, with the settings of `paper`, instead of the two small experiments.
        samples: Of the mixture.
        grid: Numbers of steps.
        equal_cost: Evaluations at which the methods are compared.
        digits: The small trained network.
        fashion: A network trained on Fashion-MNIST, instead of the two small experiments if its `steps` are not 0.
        paper: The pretrained networks.
    """

    fid: bool = False
    samples: int = 256
    grid: tuple[int, ...] = (10, 20, 40, 80, 160, 320)
    equal_cost: int = 50
    digits: DigitSettings = field(default_factory=DigitSettings)
    fashion: FashionSettings = field(default_factory=FashionSettings)
    paper: PaperSettings = field(default_factory=PaperSettings)


def reproduce(config: Config, run: Run) -> None:
    """Measure and record the claims."""
    if config.fid:
        reproduce_paper(config.paper, run)
        return
    if config.fashion.steps > 0:
        reproduce_fashion(config.fashion, run)
        return
    errors = partial(exact.errors, run.seed, config.samples, config.grid, config.equal_cost)
    jobs: dict[str, Callable[[], dict[str, Any]]] = {"exact": errors}
    if config.digits.steps > 0:
        jobs["digits"] = partial(digits.train, config.digits, run.seed, str(run.device))
    done = run.units(jobs)
    convergence(config, run, done["exact"])
    if config.digits.steps > 0:
        few_evaluations(config.digits, run, done["digits"])


def convergence(config: Config, run: Run, found: Mapping[str, Any]) -> None:
    """Orders, and errors at equal cost, where the scores are exact."""
    errors, table = found["continuous"], found["table"]
    coarse, fine = config.grid[-2:]

    def order_of(method: str) -> float:
        return math.log(errors[method][-2] / errors[method][-1]) / math.log(fine / coarse)

    run.check(
        "order-ddim",
        f"DDIM is Euler's method: distance of its order of convergence, {coarse} to {fine} steps, from 1",
        abs(order_of("ddim") - 1),
        "<=",
        0.2,
    )
    for method, (order, near, off, off_name) in ORDERS.items():
        run.claim(
            f"order-{method}",
            f"{figures.NAMES[method]}: distance of its order of convergence, {coarse} to {fine} steps, from {order}",
            abs(order_of(method) - order),
            "<=",
            near,
            paper_value={"s-pndm": "order 2", "f-pndm": "order 2"}.get(method),
            control=abs(order_of(off) - order),
            control_name=off_name,
        )

    # A pseudo Runge-Kutta start costs nine evaluations: compared from 40 steps on.
    def above_s_pndm(method: str) -> float:
        pairs = zip(config.grid, errors[method], errors["s-pndm"], strict=True)
        return max((own / other for n, own, other in pairs if n >= 40), default=math.nan)

    run.claim(
        "fourth-below-second",
        "error of F-PNDM over that of S-PNDM, largest from 40 steps on",
        above_s_pndm("f-pndm"),
        "<=",
        0.5,
        control=above_s_pndm("ddim"),
        control_name=NO_GRADIENT_PART,
    )
    cost = found["equal cost"]
    run.claim(
        "equal-cost",
        f"error of F-PNDM over that of DDIM, {config.equal_cost} evaluations each",
        cost["f-pndm"] / cost["ddim"],
        "<=",
        0.15,
        control=found["no gradient part"] / cost["ddim"],
        control_name=NO_GRADIENT_PART,
    )
    run.report_value(
        "plms-equal-cost",
        f"error of PLMS over that of DDIM, {config.equal_cost} evaluations each",
        cost["plms"] / cost["ddim"],
    )
    run.report_value(
        "fon-bias",
        f"error of the classical method (FON) over that of F-PNDM on a table of 1000 steps, {fine} steps",
        table["fon"][-1] / table["f-pndm"][-1],
    )
    run.table(
        "errors with exact scores",
        [
            {"method": figures.NAMES[method], **{f"{n} steps": v for n, v in zip(config.grid, values, strict=True)}}
            for method, values in errors.items()
        ],
    )
    figures.draw_errors(run, {"continuous": errors, "table": table}, config.grid)


def few_evaluations(settings: DigitSettings, run: Run, trained: dict[str, Any]) -> None:
    """What the methods make of a trained network with few evaluations, beside DDIM with 1000 steps."""
    device = str(run.device)
    made = run.units(
        {
            "samples": partial(digits.draw, settings, trained, run.seed, device),
            "paths": partial(digits.paths, settings, trained, run.seed, device),
        }
    )
    drawn, reference = made["samples"], made["samples"]["reference"]
    data = datasets.digits(value_range=(-1.0, 1.0))[0]
    distances: dict[str, dict[int, float]] = {
        method: {n: float((drawn[f"{method} {n}"] - reference).square().mean()) for n in settings.evaluations}
        for method in (*digits.METHODS, "f-pndm off", "plms off")
    }

    def over_ddim(name: str, n: int) -> float:
        return distances[name][n] / distances["ddim"][n]

    for n in settings.evaluations:
        for method in ("s-pndm", "f-pndm", "plms", "fon"):
            name = f"digits-{method}-{n}"
            statement = (
                f"digits, {n} evaluations: squared distance of {figures.NAMES[method]} to DDIM with"
                f" {settings.reference_steps} steps, over that of DDIM"
            )
            bar = DIGIT_BARS.get((method, n))
            if bar is None:
                run.report_value(name, statement, over_ddim(method, n))
            else:
                off = over_ddim(f"{method} off", n)
                measured = over_ddim(method, n)
                run.claim(name, statement, measured, "<=", bar, control=off, control_name=NO_GRADIENT_PART)
    few = settings.evaluations[0]
    rows = [
        {
            "method": figures.NAMES[method],
            "evaluations": float(n),
            "squared distance": distances[method][n],
            "energy distance to the digits": digits.energy_v_statistic(drawn[f"{method} {n}"], data),
        }
        for n in settings.evaluations
        for method in digits.METHODS
    ]
    whole = {
        "method": "DDIM",
        "evaluations": float(settings.reference_steps),
        "squared distance": 0.0,
        "energy distance to the digits": digits.energy_v_statistic(reference, data),
        "reference": True,
    }
    run.table("digits", [*rows, whole])
    figures.draw_distances(run, {method: distances[method] for method in digits.METHODS})
    figures.draw_digits(run, drawn, few)
    figures.draw_manifold(run, made["paths"], settings.path_steps)


SMOKE = DigitSettings(steps=30, width=32, samples=16, reference_steps=200)

experiment = Experiment(
    name="pndm",
    title="Pseudo numerical methods for diffusion models on manifolds",
    arxiv="2202.09778",
    config=Config,
    presets={
        "smoke": Config(samples=8, grid=(10, 20, 40, 80), digits=SMOKE),
        "quick": Config(),
        "medium": Config(fashion=FashionSettings(steps=1500, batch_size=32, width=16, samples=32)),
        "paper": replace(Config(), fid=True),
    },
    function=reproduce,
)
