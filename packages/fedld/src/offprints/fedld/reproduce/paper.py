"""The paper's medical images: Retina (three splits of five clients) and COVID-FL (twelve), with ResNet-50."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from offprints.fedld import AggregationReport, FederatedResult, LocalConfig, simulate
from offprints.shared.datasets import data_root
from offprints.shared.device import local_seed
from offprints.shared.experiment import Part, Run
from offprints.shared.extras import MissingData, require, require_folder

Collection = Literal["retina-1", "retina-2", "retina-3", "covid-fl"]
CLASSES = {"retina": 2, "covid-fl": 3}
METHODS: dict[str, dict[str, Any]] = {
    "FedAvg": {"method": "fedavg"},
    "FedProx": {"method": "fedprox"},
    "FedBN": {"method": "fedbn"},
    "FedGH": {"method": "fedgh"},
    "FedLD": {"method": "fedld", "penalty": 0.1},
}
LAYOUT = """\
<folder>/labels.csv                  a line for each image: its file name, its class from 0
<folder>/test.csv                    names of the test images, one a line
<folder>/split_1/client_1.csv ...    names of each client's images; retina has split_1 to split_3, covid-fl split_1
<folder>/train/, <folder>/test/      the images: what Pillow reads, or arrays [H, W, 3] of 0..255 as .npy"""


@dataclass(frozen=True, kw_only=True)
class PaperSettings:
    """The paper's settings.

    Attributes:
        collections: What to train on; none leaves this part out.
        rounds: Rounds of each method.
        epochs, batch_size, lr: Of local training.
        image_size: Side of the images.
        pretrained: Start from weights of ImageNet.
        every: Rounds from one checkpoint and evaluation to the next.
    """

    collections: tuple[Collection, ...] = ()
    rounds: int = 200
    epochs: int = 1
    batch_size: int = 50
    lr: float = 0.01
    image_size: int = 256
    pretrained: bool = True
    every: int = 10


class MedicalImages(Dataset[tuple[Tensor, Tensor]]):
    """Images of a folder by their names, resized and normalized as ImageNet's, and their classes."""

    def __init__(self, folder: Path, names: list[str], labels: Mapping[str, int], size: int) -> None:
        self.folder, self.names, self.size = folder, names, size
        self.labels = torch.tensor([labels[name] for name in names])

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        functional = require("torchvision.transforms.v2.functional", package="fedld", extra="claims")
        image = functional.resize(self._pixels(self.folder / self.names[index]), [self.size, self.size], antialias=True)
        mean, deviation = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        return functional.normalize(image.float() / 255, mean, deviation), self.labels[index]

    def _pixels(self, path: Path) -> Tensor:
        if path.suffix == ".npy":
            return torch.from_numpy(np.load(path, allow_pickle=False).astype(np.uint8)).permute(2, 0, 1)
        image = require("PIL.Image", package="fedld", extra="claims")
        return torch.from_numpy(np.array(image.open(path).convert("RGB"))).permute(2, 0, 1)


def load_collection(
    collection: Collection, root: Path | None, size: int
) -> tuple[list[MedicalImages], MedicalImages, int]:
    """The clients' images, the test images, and the number of classes."""
    name, _, split = collection.partition("-") if collection.startswith("retina") else (collection, "", "1")
    folder = require_folder((root or data_root()) / name, LAYOUT)
    labels = {row[0]: int(float(row[1])) for row in _rows(folder / "labels.csv")}
    clients = [
        MedicalImages(folder / "train", [row[0] for row in _rows(path)], labels, size)
        for path in sorted((folder / f"split_{split}").glob("client_*.csv"), key=lambda p: int(p.stem.split("_")[1]))
    ]
    if not clients:
        raise MissingData(f"{folder / f'split_{split}'} has no client_*.csv; expected:\n{LAYOUT}")
    test = MedicalImages(folder / "test", [row[0] for row in _rows(folder / "test.csv")], labels, size)
    return clients, test, CLASSES[name]


def _rows(path: Path) -> list[list[str]]:
    if not path.is_file():
        raise MissingData(f"{path} is not there; expected:\n{LAYOUT}")
    with path.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.reader(file) if row and row[0].strip()]


def network(classes: int, *, pretrained: bool, seed: int) -> nn.Module:
    """ResNet-50 with a new head."""
    models = require("torchvision.models", package="fedld", extra="claims")
    with local_seed(seed):
        model: nn.Module = models.resnet50(weights="IMAGENET1K_V1" if pretrained else None)
        model.fc = nn.Linear(2048, classes)
    return model


def weights_are_there(download: bool) -> None:
    """Refuse to fetch the weights of ResNet-50 unless that was asked for."""
    name = "resnet50-0676ba61.pth"
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not download and not path.is_file():
        raise MissingData(
            f"{path} is not there: fetch torchvision's weights with --download, or use --paper.no-pretrained"
        )


def train(
    collection: Collection, method: str, settings: PaperSettings, root: Path | None, part: Part
) -> dict[str, Any]:
    """One method on one collection, a checkpoint every so many rounds."""
    clients, test, classes = load_collection(collection, root, settings.image_size)
    options = dict(METHODS[method])
    config = LocalConfig(
        epochs=settings.epochs, lr=settings.lr, batch_size=settings.batch_size, penalty=options.pop("penalty", 0.0)
    )
    model = network(classes, pretrained=settings.pretrained, seed=part.seed)
    result: FederatedResult | None = None
    if (found := part.restore()) is not None:
        result = _unpacked(found[1])
    first = 0 if result is None else len(result.history)
    for number in part.progress(range(first + settings.every, settings.rounds + settings.every, settings.every)):
        rounds = min(number, settings.rounds)
        result = simulate(
            model, clients, rounds=rounds, config=config, eval_data=test, eval_every=settings.every,
            device=part.device, seed=part.seed, resume_from=result, **options,
        )  # fmt: skip
        part.log(rounds, **{k: v for k, v in result.history[-1].items() if k != "step"})
        part.checkpoint(rounds, _packed(result))
    assert result is not None
    last = result.history[-1]
    return {term: last[term] for term in ("local", "shift", "aggregation", "loss", "accuracy")}


def _packed(result: FederatedResult) -> dict[str, Any]:
    reports = [[report.accepted, [[i, why] for i, why in report.rejected.items()]] for report in result.reports]
    kept = {name: getattr(result, name) for name in ("state", "client_states", "history", "aggregator_state")}
    return {**kept, "reports": reports}


def _unpacked(state: Mapping[str, Any]) -> FederatedResult:
    reports = [AggregationReport(list(a), {int(i): why for i, why in rejected}) for a, rejected in state["reports"]]
    return FederatedResult(**{**state, "reports": reports})


def reproduce_paper(settings: PaperSettings, data: Path | None, download: bool, run: Run) -> None:
    """A table for each collection; the paper's own figures could not be read, and none is given."""
    if settings.pretrained:
        weights_are_there(download)
    for collection in settings.collections:
        load_collection(collection, data, settings.image_size)  # missing data is told before any training
    for collection in settings.collections:
        results = {
            method: run.part(f"{collection}/{method}").once(partial(train, collection, method, settings, data))
            for method in METHODS
        }
        run.claim(
            f"{collection}-accuracy",
            f"{collection}: FedLD minus FedAvg, accuracy in points",
            100 * (results["FedLD"]["accuracy"] - results["FedAvg"]["accuracy"]),
            ">",
            0,
        )
        for method, result in results.items():
            run.report_value(
                f"{collection}-{method.lower()}",
                f"{collection}: accuracy of {method} in percent",
                100 * result["accuracy"],
            )
        run.table(
            f"{collection}, last round",
            [{"method": method, "reference": method != "FedLD"} | result for method, result in results.items()],
        )
