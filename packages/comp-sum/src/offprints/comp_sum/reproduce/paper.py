"""The paper's own experiments: the family on clean data and adversarial training, on CIFAR and SVHN.

The figures that stand beside the measured ones are those of the paper as far as they could be found.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from offprints.comp_sum.evaluation import autoattack_accuracy
from offprints.comp_sum.reproduce.data import pictures
from offprints.comp_sum.reproduce.networks import Architecture
from offprints.comp_sum.reproduce.training import Method, Probe, Recipe, measured, train
from offprints.shared.experiment import Part, Run

PaperSet = Literal["cifar10", "cifar100", "svhn"]
CLASSES = {"cifar10": 10, "cifar100": 100, "svhn": 10}
CLEAN = {
    "cifar10": {0.0: 0.874, 0.5: 0.903, 1.0: 0.926, 1.5: 0.920, 2.0: 0.904},
    "cifar100": {0.0: 0.579, 0.5: 0.655, 1.0: 0.709, 1.5: 0.699, 2.0: 0.090},
}


@dataclass(frozen=True, kw_only=True)
class PaperSettings:
    """The paper's experiments.

    Attributes:
        datasets: Sets; none leaves all of this out.
        clean: Network of the comparison on clean data; the paper's is resnet34.
        clean_epochs: Of its training; the paper's are 200.
        taus: Members of the family.
        adversarial: Network of adversarial training; the paper's are wrn28-10, wrn34-20 and wrn70-16.
        adversarial_epochs: Of its training.
        batch_size: Of adversarial training.
        beta: Strength of TRADES.
        nu: Strength of adv-comp-sum.
        autoattack: Evaluate by AutoAttack too (extra ``autoattack``).
        images: Training and test images, at most; 0 for all.
    """

    datasets: tuple[PaperSet, ...] = ()
    clean: Architecture = "resnet18"
    clean_epochs: int = 100
    clean_batch_size: int = 1024
    taus: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0)
    adversarial: Architecture = "resnet18"
    adversarial_epochs: int = 100
    batch_size: int = 128
    beta: float = 6.0
    nu: float = 0.5
    autoattack: bool = False
    images: int = 0


def network_unit(
    dataset: PaperSet, recipe: Recipe, settings: PaperSettings, folder: Path | None, download: bool, part: Part
) -> dict[str, Any]:
    """One network: its clean and robust accuracy on the test data."""

    def on_device(split: str) -> tuple[Tensor, Tensor]:
        x, y = pictures(dataset, split, folder, download)
        limit = settings.images or len(y)
        return x[:limit].to(part.device), y[:limit].to(part.device)

    x, y = on_device("train")
    model = train(x, y, recipe, seed=part.seed, num_classes=CLASSES[dataset], part=part)
    x, y = on_device("test")
    if recipe.method == "comp-sum" and recipe.eps == 0:
        with torch.no_grad():
            right = [model(a).argmax(1) == b for a, b in zip(x.split(500), y.split(500), strict=True)]
        return {"clean": float(torch.cat(right).double().mean())}
    probe = Probe(eps=recipe.eps, step_size=recipe.eps / 4)
    clean, robust = measured(model, x, y, probe, part.seed)
    found = {"clean": clean, "robust": robust}
    if settings.autoattack:
        found["autoattack"] = autoattack_accuracy(model, x, y, eps=recipe.eps)
    return found


def reproduce_paper(settings: PaperSettings, folder: Path | None, download: bool, run: Run) -> None:
    """Train and evaluate every network, and record the claims."""
    clean = Recipe(
        architecture=settings.clean,
        epochs=settings.clean_epochs,
        batch_size=settings.clean_batch_size,
        weight_decay=1e-4,
        schedule="cosine",
        augment=True,
        eps=0.0,
    )
    attacked = replace(
        clean,
        architecture=settings.adversarial,
        epochs=settings.adversarial_epochs,
        batch_size=settings.batch_size,
        weight_decay=5e-4,
        eps=8 / 255,
        step_size=2 / 255,
        steps=10,
    )
    methods: dict[Method, float] = {"TRADES": settings.beta, "adv-comp-sum": settings.nu, "comp-sum": 0.0}
    for dataset in settings.datasets:
        work = partial(_network, dataset, settings, folder, download, run)
        by_tau = {tau: work(f"tau={tau:g}", replace(clean, tau=tau))["clean"] for tau in settings.taus}
        rows = [{"tau": tau, "clean": value, "paper": CLEAN.get(dataset, {}).get(tau)} for tau, value in by_tau.items()]
        run.table(f"{dataset}: the family without an attack", rows)
        if {0.0, 1.0, 1.5} <= by_tau.keys():
            run.claim(
                f"{dataset}-logistic",
                f"{dataset}: clean accuracy of tau = 1 less that of tau = 0",
                by_tau[1.0] - by_tau[0.0],
                ">=",
                0.02,
                paper_value=round(CLEAN[dataset][1.0] - CLEAN[dataset][0.0], 3) if dataset in CLEAN else None,
                control=by_tau[1.0] - by_tau[1.5],
                control_name="tau = 1.5 in the place of tau = 0",
            )
        found = {
            method: work(method, replace(attacked, method=method, strength=strength))
            for method, strength in methods.items()
        }
        run.table(f"{dataset}: adversarial training", [{"method": name, **values} for name, values in found.items()])
        kind = "autoattack" if settings.autoattack else "robust"
        run.claim(
            f"{dataset}-robust",
            f"{dataset}: accuracy under {'AutoAttack' if settings.autoattack else 'PGD-40'}, adv-comp-sum less TRADES",
            found["adv-comp-sum"][kind] - found["TRADES"][kind],
            ">",
            0,
            paper_value="0.006 to 0.007" if dataset == "cifar10" else None,
            control=found["comp-sum"][kind] - found["TRADES"][kind],
            control_name="no attack in the place of adv-comp-sum",
        )
        run.report_value(
            f"{dataset}-clean",
            f"{dataset}: clean accuracy, adv-comp-sum less TRADES",
            found["adv-comp-sum"]["clean"] - found["TRADES"]["clean"],
        )


def _network(
    dataset: PaperSet,
    settings: PaperSettings,
    folder: Path | None,
    download: bool,
    run: Run,
    name: str,
    recipe: Recipe,
) -> dict[str, Any]:
    part = run.part(f"{dataset} {name}")
    return part.once(partial(network_unit, dataset, recipe, settings, folder, download))
