"""The paper's own experiment: VGG-Face and the head on licensed data sets, within one or with one left out."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from offprints.hyp_oc import HypOCHead, HypOCLoss, PseudoNegativeSampler, spoof_metrics
from offprints.hyp_oc.reproduce.figures import draw_roc, draw_scores
from offprints.hyp_oc.vgg import MEAN, SIDE, VGGFace, load_weights
from offprints.shared.datasets import data_root
from offprints.shared.device import autocast, evaluating, make_generator
from offprints.shared.experiment import Run
from offprints.shared.extras import MissingData, require, require_folder

LAYOUT = "<folder>/<name>/train.csv and test.csv, columns path,label (live 0); paths from the CSV's folder"


@dataclass(frozen=True, kw_only=True)
class PaperSettings:
    """The paper's settings; batch 8 and 60 epochs are those of ROSE-Youtu.

    Attributes:
        train: Folders of the data sets whose live images are trained on; with none this part is left out.
        test: Folder of the data set that is tested on; one of `train` tests within it.
        development: Folder whose test images give the threshold; "" takes the paper's, at the test set's own EER.
        weights: VGG-Face's state dict; None trains random weights.
        trainable: Layers of the encoder that are trained.
        hidden: Widths of the head.
        batch_size: Live images a step, even: 8 for ROSE-Youtu, CASIA and MSU, 32 for the others.
        epochs: 60 for ROSE-Youtu, OULU, OCI, OMI and OCM; 30 for Replay; 300 for CASIA and MSU; 100 for ICM.
        lr: Adam's learning rate.
        weight_decay: Adam's.
        max_grad_norm: Of the head's gradient.
        reference_normalization: Subtract the means, which are on the scale of 255, from images on the scale of 1, as
            the official code does.
        width: Channels of the encoder's first block; 64 is VGG-16.
        features: Width of fc6.
        workers: Processes that read images.
    """

    train: tuple[str, ...] = ()
    test: str = ""
    development: str = ""
    weights: Path | None = None
    trainable: tuple[str, ...] = ("conv5", "fc6")
    hidden: tuple[int, ...] = (8192, 1000, 512, 128)
    batch_size: int = 8
    epochs: int = 60
    lr: float = 1e-6
    weight_decay: float = 1e-6
    max_grad_norm: float = 3.0
    reference_normalization: bool = False
    width: int = 64
    features: int = 4096
    workers: int = 4


class FaceImages(Dataset[tuple[Tensor, int]]):
    """Images named in a CSV of `path,label`, as the encoder takes them.

    Args:
        table: The CSV file.
        reference_normalization: As in `PaperSettings`.

    Raises:
        MissingData: no such file.
        ValueError: a row without a path, a label other than 0 (live) and 1; no rows.
    """

    def __init__(self, table: Path, *, reference_normalization: bool = False) -> None:
        if not table.is_file():
            raise MissingData(f"{table} is not there; expected: {LAYOUT}")
        with table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if not rows or not {"path", "label"} <= rows[0].keys():
            raise ValueError(f"{table} must have the columns path,label and a row for each image")
        for line, row in enumerate(rows, 2):
            if row["label"] not in ("0", "1") or not row["path"]:
                raise ValueError(f"{table}, line {line}: must be a path and 0 (live) or 1, got {row}")
        self.paths = [table.parent / row["path"] for row in rows]
        self.labels = [int(row["label"]) for row in rows]
        self.scale = 1.0 if reference_normalization else 255.0

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = require("PIL.Image", package="hyp-oc", extra="claims")
        with image.open(self.paths[index]) as opened:
            small = opened.convert("RGB").resize((SIDE, SIDE), image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(small, dtype=np.float32)).permute(2, 0, 1) / 255
        return self.scale * pixels - torch.tensor(MEAN)[:, None, None], self.labels[index]

    def live(self) -> Subset[tuple[Tensor, int]]:
        """The live images alone."""
        return Subset(self, [place for place, label in enumerate(self.labels) if label == 0])


def load(names: Sequence[str], file: str, root: Path, settings: PaperSettings) -> list[FaceImages]:
    """A table of each data set."""
    folders = [require_folder(root / name, LAYOUT) for name in names]
    reference = settings.reference_normalization
    return [FaceImages(folder / file, reference_normalization=reference) for folder in folders]


def spoof_scores(encoder: nn.Module, head: HypOCHead, images: Dataset[Any], batch_size: int, run: Run) -> Tensor:
    """`softmax(logits)[:, 1]` of every image."""
    found = []
    with evaluating(encoder, head):
        for x, _ in DataLoader(images, batch_size=batch_size):
            with autocast(run.precision, run.device):
                features = encoder(x.to(run.device))
            found.append(head(features).logits.softmax(1)[:, 1].cpu())
    return torch.cat(found)


def batches(images: Dataset[Any], settings: PaperSettings, seed: int) -> Iterator[Tensor]:
    """One epoch of live images, in an order that depends on the seed alone."""
    loader = DataLoader(
        images,
        batch_size=settings.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=settings.workers,
        generator=make_generator(seed),
    )
    for x, _ in loader:
        yield x


def reproduce_paper(settings: PaperSettings, data: Path | None, run: Run) -> None:
    """Train on live images, keep the epoch with the best HTER on the test set as the official code does, report."""
    root = data_root() if data is None else data
    live: Dataset[Any] = ConcatDataset([table.live() for table in load(settings.train, "train.csv", root, settings)])
    (test,) = load([settings.test], "test.csv", root, settings)
    development = load([settings.development], "test.csv", root, settings)[0] if settings.development else None
    encoder = VGGFace(width=settings.width, out_features=settings.features)
    encoder.freeze_but(settings.trainable)
    if settings.weights is not None:
        load_weights(encoder, settings.weights)
    head = HypOCHead(settings.features, settings.hidden)
    criterion = HypOCLoss(head, PseudoNegativeSampler(settings.features))
    for part in (encoder, criterion):
        part.to(run.device)
    trained = [p for p in encoder.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(
        [{"params": trained}, {"params": list(head.parameters())}], lr=settings.lr, weight_decay=settings.weight_decay
    )
    parts: dict[str, Any] = {"encoder": encoder, "criterion": criterion, "optimizer": optimizer}
    labels, start = torch.tensor(test.labels), 0
    best: dict[str, Any] = {"hter": 2.0, "epoch": 0, "scores": torch.zeros(len(test)), "threshold": 0.5}
    if (found := run.restore()) is not None:
        start, state = found
        for name, part in parts.items():
            part.load_state_dict(state[name])
        best = state["best"]
    for epoch in run.progress(range(start, settings.epochs), settings.epochs - start, "epochs"):
        criterion.sampler.reset()
        losses = [
            train_step(x.to(run.device), encoder, criterion, optimizer, settings, run)
            for x in batches(live, settings, run.seed * 10_000 + epoch)
        ]
        if not losses:
            raise ValueError(f"train must hold at least {settings.batch_size} live images, a batch")
        scores = spoof_scores(encoder, head, test, settings.batch_size, run)
        threshold = None
        if development is not None:
            of_development = spoof_scores(encoder, head, development, settings.batch_size, run)
            threshold = spoof_metrics(of_development, development.labels, grid=10_000).threshold
        metrics = spoof_metrics(scores, labels, threshold=threshold, grid=10_000)
        run.log(epoch, loss=float(torch.stack(losses).mean()), hter=metrics.hter, auc=metrics.auc)
        if metrics.hter < best["hter"]:
            best = {"hter": metrics.hter, "epoch": epoch, "scores": scores, "threshold": metrics.threshold}
        run.checkpoint(epoch + 1, {**{name: part.state_dict() for name, part in parts.items()}, "best": best})
    metrics = spoof_metrics(best["scores"].cpu(), labels, threshold=best["threshold"])
    name = f"{', '.join(settings.train)} to {settings.test}"
    for key in ("hter", "auc", "eer", "apcer", "bpcer"):
        run.report_value(key, f"{name}: {key.upper()} at the best epoch", getattr(metrics, key))
    run.table(f"{name}, epoch {best['epoch']}", [metrics._asdict()])
    shown = {"auc": metrics.auc, "scores": best["scores"].cpu(), "labels": labels}
    draw_scores(run, {name: shown}, "attacks")
    draw_roc(run, {name: [shown]})


def train_step(
    images: Tensor,
    encoder: nn.Module,
    criterion: HypOCLoss,
    optimizer: torch.optim.Optimizer,
    settings: PaperSettings,
    run: Run,
) -> Tensor:
    """One batch of live images; the gradient of the head alone is clipped."""
    with autocast(run.precision, run.device):
        features = encoder(images)
    loss = criterion(features.float()).loss
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(criterion.head.parameters(), settings.max_grad_norm)
    optimizer.step()
    return loss.detach()
