"""The experiment: the family on clean data, the bounds, and adversarial training beside TRADES."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from offprints.comp_sum.reproduce.data import Source, splits
from offprints.comp_sum.reproduce.figures import draw_frontiers, draw_taus
from offprints.comp_sum.reproduce.paper import PaperSettings, reproduce_paper
from offprints.comp_sum.reproduce.theory import bounds, saturation
from offprints.comp_sum.reproduce.training import Method, Probe, Recipe, measured, train
from offprints.shared.experiment import Experiment, Run

TAUS = (0.0, 0.5, 1.0, 1.5, 2.0)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the experiment.

    Attributes:
        data: The set.
        sizes: Training and validation inputs.
        taus: Members of the family that are compared on clean data.
        networks: Networks of each member.
        splits: Splits on which both methods are trained at every strength.
        betas: Strengths of TRADES.
        nus: Strengths of adv-comp-sum.
        ramp_nu: Strength at which the ramp is compared with none.
        recipe: The trainings.
        probe: The attack that measures.
        draws: Random distributions and scores for the bound.
        folder: Where the data is; default: ``OFFPRINTS_DATA``.
        download: Fetch what is missing.
        paper: The paper's own experiments; with any data set, these are all that is run.
    """

    data: Source = "digits"
    sizes: tuple[int, int] = (1100, 350)
    taus: tuple[float, ...] = TAUS
    networks: int = 2
    splits: int = 2
    betas: tuple[float, ...] = (1.0, 3.0, 6.0)
    nus: tuple[float, ...] = (0.2, 0.4, 0.7)
    ramp_nu: float = 1.0
    recipe: Recipe = field(default_factory=Recipe)
    probe: Probe = field(default_factory=Probe)
    draws: int = 4000
    folder: Path | None = None
    download: bool = False
    paper: PaperSettings = field(default_factory=PaperSettings)


def reproduce(config: Config, run: Run) -> None:
    """Record the claims."""
    if config.paper.datasets:
        reproduce_paper(config.paper, config.folder, config.download, run)
        return
    bounds(run, config.taus, config.draws)
    saturation(run)
    trainings(config, run)


def unit(config: Config, recipe: Recipe, seed: int, device: str) -> dict[str, Any]:
    """One network: clean and robust accuracy on validation and test data."""
    options: dict[str, Any] = {"seed": seed, "data": config.folder, "download": config.download}
    (x, y), *others = splits(config.data, config.sizes, **options)
    model = train(x.to(device), y.to(device), recipe, seed=seed)
    validation, test = (measured(model, a.to(device), b.to(device), config.probe, seed) for a, b in others)
    return {"validation": validation, "test": test}


def trainings(config: Config, run: Run) -> None:
    """All networks of a small preset, and what they show."""
    seeds = run.seeds(max(config.networks, config.splits))
    grid: dict[str, Any] = {}

    def plan(key: str, recipe: Recipe, seed: int) -> None:
        grid[f"{key} {seed}"] = partial(unit, config, recipe, seed, str(run.device))

    strengths: dict[Method, tuple[float, ...]] = {"TRADES": config.betas, "adv-comp-sum": config.nus}
    for seed in seeds[: config.networks]:
        for tau in config.taus:
            plan(f"tau={tau:g}", replace(config.recipe, tau=tau), seed)
    for seed in seeds[: config.splits]:
        for method, tried in strengths.items():
            for strength in tried:
                plan(f"{method} {strength:g}", replace(config.recipe, method=method, strength=strength), seed)
        for name, ramp in (("ramp", config.recipe.ramp), ("no ramp", 0.0)):
            plan(name, replace(config.recipe, method="adv-comp-sum", strength=config.ramp_nu, ramp=ramp), seed)
    # A second process takes longer to start than trainings of one or two epochs.
    found = run.units(grid, workers=1 if config.recipe.epochs <= 2 else 2)

    def accuracy(key: str, part: str, count: int) -> np.ndarray:
        """``[networks, 2]``: clean and robust."""
        return np.array([found[f"{key} {seed}"][part] for seed in seeds[:count]])

    clean = {tau: accuracy(f"tau={tau:g}", "test", config.networks) for tau in config.taus}
    family(config, run, clean)
    kept = [accuracy(name, "test", config.splits)[:, 0].mean() for name in ("ramp", "no ramp")]
    run.claim(
        "ramp-prevents-collapse",
        f"adv-comp-sum with nu = {config.ramp_nu:g}, ramped over the first half: clean accuracy",
        kept[0],
        ">=",
        0.8,
        control=kept[1],
        control_name="full strength from the first step on",
    )
    values = {
        name: np.stack(
            [
                np.stack([accuracy(f"{name} {strength:g}", part, config.splits) for strength in strengths[name]])
                for part in ("validation", "test")
            ]
        )
        for name in strengths
    }
    frontiers(config, run, values, strengths, clean.get(1.0))


def family(config: Config, run: Run, clean: Mapping[float, np.ndarray]) -> None:
    """The members of the family on clean data."""
    mean = {tau: float(values[:, 0].mean()) for tau, values in clean.items()}
    run.report_value(
        "mae-trails",
        f"{config.networks} networks, no attack: clean accuracy of tau = 1 less that of tau = 2",
        mean[1.0] - mean[2.0],
        paper_value="CIFAR-100: tau = 2 hardly trains",
    )
    run.report_value(
        "tau-spread",
        "the same: best less worst of tau = 0, 0.5, 1 and 1.5",
        max(mean[tau] for tau in mean if tau < 2) - min(mean[tau] for tau in mean if tau < 2),
        paper_value="CIFAR-10: 0.052",
    )
    rows = [
        {
            "tau": tau,
            "clean (%)": 100 * mean[tau],
            "lowest": 100 * values[:, 0].min(),
            "robust": 100 * values[:, 1].mean(),
        }
        for tau, values in clean.items()
    ]
    run.table("the family without an attack, test accuracy", rows)
    draw_taus(run, {tau: values[:, 0] for tau, values in clean.items()}, config.data)


def frontiers(
    config: Config,
    run: Run,
    values: Mapping[Any, np.ndarray],
    strengths: Mapping[Any, tuple[float, ...]],
    plain: np.ndarray | None,
) -> None:
    """Both methods at every strength; of each the strength that validation chooses.

    Of each method ``[validation and test, strengths, splits, clean and robust]``.
    """
    chosen = {name: int(of.mean(2).sum(2)[0].argmax()) for name, of in values.items()}
    rows = [
        {
            "method": name,
            "strength": strength,
            "clean (%)": 100 * of[1, index, :, 0].mean(),
            "robust (%)": 100 * of[1, index, :, 1].mean(),
            "chosen on validation": "yes" if chosen[name] == index else "",
            "reference": name == "TRADES",
        }
        for name, of in values.items()
        for index, strength in enumerate(strengths[name])
    ]
    run.table("adversarial training, test accuracy", rows)
    ours, trades = (values[name][1, chosen[name]] for name in ("adv-comp-sum", "TRADES"))
    if plain is not None:
        run.claim(
            "robust",
            f"adv-comp-sum, strength chosen on validation: accuracy under PGD-{config.probe.steps}, "
            f"eps = {config.probe.eps:g}",
            float(ours[:, 1].mean()),
            ">=",
            0.5,
            control=float(plain[:, 1].mean()),
            control_name="the same loss without an attack, tau = 1",
        )
        run.report_value("robust-price", "its price in clean accuracy", float(plain[:, 0].mean() - ours[:, 0].mean()))
    for number, kind in enumerate(("clean", "robust")):
        pairs = ours[:, number] - trades[:, number]
        error = f", standard error {pairs.std(ddof=1) / len(pairs) ** 0.5:.3f}" if len(pairs) > 1 else ""
        run.report_value(
            f"beside-trades-{kind}",
            f"adv-comp-sum less TRADES, strengths chosen on validation: {kind} accuracy, {len(pairs)} splits{error}",
            float(pairs.mean()),
            paper_value="CIFAR-10: 0.002 to 0.008" if kind == "clean" else "CIFAR-10: 0.006 to 0.007",
        )
    draw_frontiers(run, {name: of[1] for name, of in values.items()}, plain, config.data)


FASHION = Recipe(
    architecture="cnn", epochs=3, batch_size=250, lr=0.05, clip_gradient=5.0, eps=0.1, step_size=0.03, steps=5
)

experiment = Experiment(
    name="comp-sum",
    title="Cross-Entropy Loss Functions: Theoretical Analysis and Applications",
    arxiv="2304.07288",
    config=Config,
    presets={
        "smoke": Config(
            sizes=(260, 60),
            networks=1,
            splits=1,
            betas=(3.0,),
            nus=(0.4,),
            recipe=Recipe(epochs=2),
            probe=Probe(steps=5),
            draws=200,
        ),
        "quick": Config(),
        "medium": Config(
            data="fashion_mnist",
            sizes=(20_000, 1_000),
            networks=1,
            splits=1,
            betas=(1.0, 3.0, 6.0),
            nus=(0.2, 0.4, 0.7),
            recipe=FASHION,
            probe=Probe(eps=0.1, step_size=0.01),
        ),
        "paper": Config(paper=PaperSettings(datasets=("cifar10",))),
    },
    function=reproduce,
)
