"""The experiment of the paper: its parts one by one, trainings on digits, its own training on latents of images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from offprints.lct.latents import impulse_statistics
from offprints.lct.reproduce import figures, studies
from offprints.lct.reproduce.digits import DigitSettings, contaminate, pixel_digits, standardized_digits, train
from offprints.lct.reproduce.generator import LatentSettings, on_latents
from offprints.lct.reproduce.medium import MediumSettings, reproduce_medium
from offprints.lct.reproduce.metrics import collapse
from offprints.lct.reproduce.pictures import PAPER
from offprints.lct.reproduce.recipes import RECIPES, Recipe, RecipeName
from offprints.shared.experiment import Experiment, Run

Part = Literal[
    "location", "impulses", "coupling", "schedules", "contaminated", "digits", "ablation", "fashion", "latents"
]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which parts to run, in which size.

    Attributes:
        parts: "location" to "schedules" need no training; "contaminated" and
            "digits" train on digits; "ablation" trains on contaminated digits with each part of the paper off in turn;
            "fashion" trains on latents of Fashion-MNIST; "latents" is the paper's training.
        recipes: of the parts "ablation" and "latents".
        draws: of the noise, in the part "coupling".
        digits: trainings on digits.
        medium: training on latents of Fashion-MNIST.
        data: folder of Fashion-MNIST's folder; default: ``OFFPRINTS_DATA``.
        latents: training on latents of images.
    """

    parts: tuple[Part, ...] = (
        "location",
        "impulses",
        "coupling",
        "schedules",
        "contaminated",
        "digits",
    )
    recipes: tuple[RecipeName, ...] = tuple(RECIPES)
    draws: int = 30
    digits: DigitSettings = field(default_factory=DigitSettings)
    medium: MediumSettings = field(default_factory=MediumSettings)
    data: Path | None = None
    latents: LatentSettings = field(default_factory=LatentSettings)


def _plain(robust: Literal["squared", "pseudo_huber", "cauchy"]) -> Recipe:
    """A loss alone: of the other parts only the normalization is on."""
    return Recipe(robust=robust, diffusion=False, coupling="none", adaptive=False)


CONTAMINATED = {
    "squared": _plain("squared"),
    "Pseudo-Huber": _plain("pseudo_huber"),
    "Cauchy": _plain("cauchy"),
}
DIGITS = {
    "Pseudo-Huber": _plain("pseudo_huber"),
    "Cauchy": _plain("cauchy"),
    "Cauchy, OT": Recipe(adaptive=False, diffusion=False),
    "Cauchy, OT, diffusion": Recipe(adaptive=False),
}


def reproduce(config: Config, run: Run) -> None:
    """Carry out the parts that ``config`` asks for."""
    jobs: dict[str, Any] = {}
    training = partial(train, settings=config.digits, device=str(run.device))
    (seed,) = run.seeds(1)
    if "contaminated" in config.parts:
        jobs |= {
            f"contaminated/{name}": partial(training, recipe, seed=seed, contaminated=True)
            for name, recipe in CONTAMINATED.items()
        }
    if "digits" in config.parts:
        jobs |= {
            f"digits/{name}": partial(training, recipe, seed=seed, contaminated=False)
            for name, recipe in DIGITS.items()
        }
    if "ablation" in config.parts:
        jobs |= {
            f"ablation/{name}": partial(training, RECIPES[name], seed=seed, contaminated=True)
            for name in config.recipes
        }
    if "location" in config.parts:
        jobs["location"] = partial(studies.locations, seed)
    if "coupling" in config.parts:
        jobs["coupling"] = partial(studies.gradient_noise, seed, draws=config.draws)
    done = run.units(jobs) if jobs else {}

    if "location" in config.parts:
        report_location(run, done["location"])
    if "impulses" in config.parts:
        report_impulses(run, seed)
    if "coupling" in config.parts:
        report_coupling(run, done["coupling"], seed)
    if "schedules" in config.parts:
        figures.schedules(run)
    for part, report in (
        ("contaminated", report_contaminated),
        ("digits", report_digits),
        ("ablation", report_ablation),
    ):
        results = {key.partition("/")[2]: value for key, value in done.items() if key.startswith(f"{part}/")}
        if results:
            report(run, results, seed)
    if "fashion" in config.parts:
        reproduce_medium(config.medium, config.data, run)
    if "latents" in config.parts:
        report_latents(run, config, on_latents(run, config.latents, {name: RECIPES[name] for name in config.recipes}))


def report_location(run: Run, found: Mapping[str, float]) -> None:
    """Robust location."""
    cauchy, huber, squared = (abs(found[name]) for name in ("cauchy", "pseudo_huber", "squared"))
    where = "a fifth of 400 values at 300, the rest N(0, 0.1^2)"
    run.check("location", f"{where}: distance of the Cauchy location from the inliers' center", cauchy, "<", 0.03)
    run.report_value("location-huber", "the same of Pseudo-Huber", huber)
    run.report_value("location-squared", "the same of the mean", squared)
    figures.losses(run, found)


def report_impulses(run: Run, seed: int) -> None:
    """Box plots of digits in three scales."""
    pixels = pixel_digits()
    data = {"Pixels": pixels, "Standardized": standardized_digits(), "Contaminated": contaminate(pixels, seed=seed)}
    statistics: dict[str, dict[str, Any]] = {name: impulse_statistics(values) for name, values in data.items()}
    shares = {name: found["outer_fraction"] for name, found in statistics.items()}
    control = "one factor for all positions"
    run.claim(
        "impulses-latents",
        "digits after the latents' per-position standardization: share of values beyond the outer fences",
        shares["Standardized"],
        ">",
        0.002,
        control=shares["Pixels"],
        control_name=control,
    )
    run.claim(
        "impulses-kurtosis",
        "and their excess kurtosis",
        statistics["Standardized"]["excess_kurtosis"],
        ">",
        20,
        control=statistics["Pixels"]["excess_kurtosis"],
        control_name=control,
    )
    names = ("inner_fraction", "outer_fraction", "excess_kurtosis", "max_abs")
    run.table(
        "Impulsive outliers",
        [{"data": name} | {key: found[key] for key in names} for name, found in statistics.items()],
    )
    figures.impulses(run, data, statistics)


def report_coupling(run: Run, found: Mapping[str, Any], seed: int) -> None:
    """Optimal transport in the plane, and the noise of a class."""
    ratios = [ot / none for ot, none in zip(found["ratios_ot"], found["ratios_none"], strict=True)]
    run.claim(
        "coupling-gradient",
        "four modes in the plane, middle interval of 10: variance of the gradient with OT coupling over that without",
        ratios[4],
        "<",
        0.4,
        control=found["ratios_shuffled"][4] / found["ratios_none"][4],
        control_name="pairs shuffled",
    )
    run.check(
        "coupling-cost",
        "mean squared distance of coupled pairs over that of independent ones",
        found["cost_ot"] / found["cost_none"],
        "<=",
        1,
    )
    means = studies.class_noise(seed)
    where = "two classes at d = 64: mean of the noise paired with one, along the line between them, coupled"
    run.check("coupling-labels", f"{where} within classes (that of the draw)", abs(means["within"]), "<", 0.3)
    run.report_value("coupling-across", f"{where} across classes", means["across"])
    figures.coupling(run, found)


def report_contaminated(run: Run, results: Mapping[str, Mapping[str, Any]], seed: int) -> None:
    """The mechanism of the paper: training on impulsive data."""
    frechet = {name: result["frechet_one"] for name, result in results.items()}
    what = "trained on digits with impulses: Fréchet distance of one-step samples from the clean digits, Cauchy over"
    run.claim(
        "robust-training",
        f"{what} Pseudo-Huber",
        frechet["Cauchy"] / frechet["Pseudo-Huber"],
        "<",
        0.7,
        control=frechet["squared"] / frechet["Pseudo-Huber"],
        control_name="squared loss in place of Cauchy",
    )
    run.report_value("robust-training-squared", f"{what} squared", frechet["Cauchy"] / frechet["squared"])
    run.report_value(
        "robust-training-energy",
        "the same in energy distance, Cauchy over Pseudo-Huber",
        results["Cauchy"]["energy_one"] / results["Pseudo-Huber"]["energy_one"],
    )
    clean = pixel_digits()
    _table(run, "Trained on contaminated digits, scored against clean ones", results, clean)
    figures.contaminated(run, clean, contaminate(clean, seed=seed), results)
    figures.scores(run, "contaminated-scores", "Trained on impulsive data", results, clean)


def report_digits(run: Run, results: Mapping[str, Mapping[str, Any]], seed: int) -> None:
    """Trainings on standardized digits."""
    cauchy, coupled, full = (results[name] for name in ("Cauchy", "Cauchy, OT", "Cauchy, OT, diffusion"))
    run.claim(
        "early-denoising",
        "denoising error at an early level with the diffusion loss over that without",
        full["denoising_15"] / coupled["denoising_15"],
        "<",
        0.93,
        control=coupled["denoising_15"] / cauchy["denoising_15"],
        control_name="OT coupling alone",
    )
    run.claim(
        "two-steps",
        "energy distance of two-step samples over that of one-step samples, Cauchy alone",
        cauchy["energy_two"] / cauchy["energy_one"],
        "<",
        0.8,
        control=cauchy["energy_again"] / cauchy["energy_one"],
        control_name="second step from the highest level",
    )
    run.report_value(
        "digits-cauchy",
        "standardized digits, one-step energy distance, Cauchy over Pseudo-Huber",
        cauchy["energy_one"] / results["Pseudo-Huber"]["energy_one"],
    )
    run.report_value(
        "digits-full",
        "standardized digits, one-step energy distance, with OT and diffusion loss over Cauchy alone",
        full["energy_one"] / cauchy["energy_one"],
    )
    clean = standardized_digits()
    _table(run, "Trained on standardized digits", results, clean)
    figures.scores(run, "digits-scores", "Trained on standardized digits", results, clean)


def report_ablation(run: Run, results: Mapping[str, Mapping[str, Any]], seed: int) -> None:
    """Each part off in turn: shown, no bar."""
    clean = pixel_digits()
    for name, result in results.items():
        run.report_value(
            f"ablation-{name}", f"contaminated digits, one-step Fréchet distance: {name}", result["frechet_one"]
        )
    _table(run, "Each part off in turn, trained on contaminated digits", results, clean)
    figures.scores(run, "ablation-scores", "Each part off in turn", results, clean)


def _table(run: Run, name: str, results: Mapping[str, Mapping[str, Any]], clean: torch.Tensor) -> None:
    columns = ("energy_one", "frechet_one", "energy_two", "frechet_two", "denoising_15", "denoising_20")
    rows: list[dict[str, Any]] = [
        {"training": key} | {column: result[column] for column in columns} for key, result in results.items()
    ]
    energy, variance = collapse(clean)
    rows.append(
        {
            "training": "collapse to the mean",
            "energy_one": energy,
            "frechet_one": variance,
            "energy_two": energy,
            "frechet_two": variance,
            "reference": True,
        }
    )
    run.table(name, rows)


def report_latents(run: Run, config: Config, results: Mapping[RecipeName, Mapping[str, Any]]) -> None:
    """FID and recall beside the paper's."""
    paper = PAPER[config.latents.dataset]
    sheets: list[tuple[str, torch.Tensor]] = []
    for name, result in results.items():
        sheets += [
            (f"{name}, {steps} step{'s' * (steps == 'two')}", result[f"sheet_{steps}"]) for steps in ("one", "two")
        ]
    figures.grids(run, sheets)
    scored = {name: result for name, result in results.items() if "fid_one" in result}
    if not scored:
        return
    keys = ("fid_one", "recall_one", "fid_two", "recall_two")
    run.table(
        f"{config.latents.dataset} 256",
        [{"recipe": name} | {key: r[key] for key in keys} for name, r in scored.items()],
    )
    if "full" not in scored:
        return
    for steps, (fid, recalled) in (("one", paper.one), ("two", paper.two)):
        found = scored["full"]
        run.claim(
            f"fid-{steps}", f"FID of {steps}-step samples", found[f"fid_{steps}"], "<=", 1.1 * fid, paper_value=fid
        )
        run.report_value(
            f"recall-{steps}", f"recall of {steps}-step samples", found[f"recall_{steps}"], paper_value=recalled
        )
    for name in scored:
        if name != "full":
            ratio = scored["full"]["fid_one"] / scored[name]["fid_one"]
            run.report_value(f"ablation-{name}", f"one-step FID of the full recipe over that of {name}", ratio)


experiment = Experiment(
    name="lct",
    title="Improved Training Technique for Latent Consistency Models",
    arxiv="2502.01441",
    config=Config,
    presets={
        "smoke": Config(draws=3, digits=DigitSettings(steps=20, width=16, scored=200)),
        "quick": Config(),
        "medium": Config(parts=("fashion",)),
        "ablation": Config(parts=("ablation",)),
        "paper": Config(parts=("latents",), recipes=("full", "baseline")),
    },
    function=reproduce,
)
