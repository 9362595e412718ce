"""Fashion-MNIST at ten clients: every method, with batch norm in the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from offprints.fedld import LocalConfig, PrincipalGradientAggregator, dirichlet_partition, simulate
from offprints.fedld.reproduce import figures
from offprints.fedld.reproduce.digits import TERMS
from offprints.shared.datasets import vision_dataset
from offprints.shared.device import local_seed
from offprints.shared.experiment import Run

METHODS: dict[str, dict[str, Any]] = {
    "FedAvg": {"method": "fedavg"},
    "FedProx": {"method": "fedprox"},
    "FedBN": {"method": "fedbn"},
    "FedGH": {"method": "fedgh"},
    "FedLD": {"method": "fedld", "penalty": 0.1},
    "each alone": {"method": "local"},
    "margin 0.1": {"method": "fedavg", "penalty": 0.1},
    "margin 1.0": {"method": "fedavg", "penalty": 1.0},
    "FedLD, projection": {"method": "fedld", "penalty": 0.1, "server": {"rule": "projection"}},
    "other batches": {"method": "fedavg", "draws": 500_000},
}
PERSONAL = ("FedBN", "each alone")  # evaluated with the clients' own models
# Set before any run of the whole preset, as in the quick one.
BAR = 0.5


@dataclass(frozen=True, kw_only=True)
class MediumSettings:
    """Fashion-MNIST.

    Attributes:
        alphas: Of the Dirichlet partitions; none leaves this part out.
        clients: Number of clients.
        rounds: Rounds of each run.
        images: The first so many training images.
        test_images: The first so many test images.
        hidden: Units of the hidden layer.
        batch_size, lr: Of local training, one epoch a round.
        eval_every: Rounds from one evaluation to the next.
    """

    alphas: tuple[float, ...] = ()
    clients: int = 10
    rounds: int = 30
    images: int = 60_000
    test_images: int = 10_000
    hidden: int = 64
    batch_size: int = 50
    lr: float = 0.05
    eval_every: int = 5


def clothing(data: Path | None, download: bool, split: str, count: int) -> tuple[Tensor, Tensor]:
    """The first images, flat, with a mean near 0, and their labels."""
    found: Any = vision_dataset("fashion_mnist", split, download=download, root=data)
    return found.data[:count].flatten(1).float() / 255 - 0.3, found.targets[:count]


def train(
    seed: int, alpha: float, method: str, settings: MediumSettings, data: Path | None, download: bool, device: str
) -> dict[str, Any]:
    """One method on one partition."""
    images, labels = clothing(data, download, "train", settings.images)
    parts = dirichlet_partition(labels, settings.clients, alpha=alpha, min_size=20, seed=seed)
    with local_seed(seed):
        model = nn.Sequential(
            nn.Linear(784, settings.hidden), nn.BatchNorm1d(settings.hidden), nn.ReLU(), nn.Linear(settings.hidden, 10)
        )
    options = dict(METHODS[method])
    penalty, server, draws = options.pop("penalty", 0.0), options.pop("server", None), options.pop("draws", 0)
    result = simulate(
        model,
        [(images[part], labels[part]) for part in parts],
        rounds=settings.rounds,
        config=LocalConfig(lr=settings.lr, batch_size=settings.batch_size, penalty=penalty),
        eval_data=clothing(data, download, "test", settings.test_images),
        aggregator=None if server is None else PrincipalGradientAggregator(**server),
        eval_every=settings.eval_every,
        device=device,
        seed=seed + draws,
        **options,
    )
    evaluated = [entry for entry in result.history if "accuracy" in entry]
    history = {term: [entry[term] for entry in evaluated] for term in TERMS}
    return {
        "history": history,
        "step": [entry["step"] for entry in evaluated],
        "histogram": [torch.bincount(labels[part], minlength=10).tolist() for part in parts],
    } | {term: float(np.mean(values[-2:])) for term, values in history.items()}


def reproduce_medium(settings: MediumSettings, data: Path | None, download: bool, run: Run) -> None:
    """Every method on every partition in one table; margin control at 1.0 is the claim."""
    seed = run.seeds(1)[0]
    clothing(data, download, "train", 1)  # missing data is told before any worker starts
    done = run.units(
        {
            f"{method} alpha {alpha:g}": partial(train, seed, alpha, method, settings, data, download, str(run.device))
            for alpha in settings.alphas
            for method in METHODS
        }
    )
    for alpha in settings.alphas:
        results: Mapping[str, Mapping[str, Any]] = {method: done[f"{method} alpha {alpha:g}"] for method in METHODS}
        plain = results["FedAvg"]
        told = f"Fashion-MNIST, {settings.clients} clients, alpha {alpha:g}"
        run.claim(
            f"margin-accuracy-{alpha:g}",
            f"{told}: FedAvg with margin control at 1 minus FedAvg, accuracy in points",
            100 * (results["margin 1.0"]["accuracy"] - plain["accuracy"]),
            ">=",
            BAR,
            control=100 * (results["other batches"]["accuracy"] - plain["accuracy"]),
            control_name="no margin term, other batches",
        )
        for method, of_method in results.items():
            run.report_value(
                f"accuracy-{method.lower().replace(', ', '-').replace(' ', '-')}-{alpha:g}",
                f"{told}: {method}, accuracy in percent{' of the own models' if method in PERSONAL else ''}",
                100 * of_method["accuracy"],
            )
        run.table(
            f"{told}, means of the last evaluations",
            [
                {"method": method, "reference": method in ("FedAvg", "each alone", "other batches")}
                | {("global loss" if term == "loss" else term): of_method[term] for term in TERMS}
                for method, of_method in results.items()
            ],
        )
        figures.draw_accuracy(run, {m: [r] for m, r in results.items()}, f"accuracy_{alpha:g}", plain["step"])
        figures.draw_clients(run, f"clients_{alpha:g}", plain["histogram"])
