"""Training of small networks on images of identities, and what is measured of their feature spaces."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from offprints.shared.datasets import tensor_batches
from offprints.shared.device import local_seed, make_generator, map_batches
from offprints.unpg._geometry import directions
from offprints.unpg.gap import similarity_gap
from offprints.unpg.heads import ArcFaceHead, CosFaceHead, MagFaceHead, MarginHead
from offprints.unpg.losses import MarginLoss, UNPGLoss
from offprints.unpg.pairs import pair_similarities
from offprints.unpg.reproduce.data import Source, load
from offprints.unpg.verification import tar_at_far

HeadName = Literal["cosface", "arcface", "magface"]
HEADS: dict[str, type[MarginHead]] = {"cosface": CosFaceHead, "arcface": ArcFaceHead, "magface": MagFaceHead}
BINS = 100  # of the histograms, from -1 to 1


@dataclass(frozen=True, kw_only=True)
class Training:
    """One network.

    Attributes:
        source: The images.
        head: Which margin.
        unified: Whether the pairs of the batch are negatives too.
        whisker: Of their filter.
        scale: Of the cosines.
        margin: Of CosFace and ArcFace.
        width: Channels of the convolutions.
        embedding: Width of the embeddings.
        epochs: Passes over the training images.
        batch_size: Images a step.
        lr: Learning rate of SGD at the start; it falls along a cosine.
        evaluated: Images of the known identities whose pairs are measured; all novel ones are, up to as many.
        far: False accept rate on the known identities.
        novel_far: The same on the novel ones, where there are fewer pairs.
        quantile: Of the gap.
        root: Folder of the data; default: `OFFPRINTS_DATA`.
        download: Whether to fetch it.
        device: Where.
    """

    source: Source
    head: HeadName
    unified: bool
    whisker: float
    scale: float
    margin: float
    width: int
    embedding: int
    epochs: int
    batch_size: int
    lr: float
    evaluated: int
    far: float
    novel_far: float
    quantile: float
    root: Path | None
    download: bool
    device: str


def make_head(name: HeadName, features: int, classes: int, scale: float, margin: float) -> MarginHead:
    """A head; MagFace has margins of its own."""
    options = {} if name == "magface" else {"margin": margin}
    return HEADS[name](features, classes, scale=scale, **options)


def network(side: int, width: int, embedding: int) -> nn.Sequential:
    """Three convolutions with BN and PReLU, each after the first on half the side, a linear layer, BN."""
    layers: list[nn.Module] = []
    channels = 1
    for number in range(3):
        layers += [] if number == 0 else [nn.MaxPool2d(2)]
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.PReLU(width)]
        channels = width
    features = width * (side // 4) ** 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, embedding), nn.BatchNorm1d(embedding))


def train(training: Training, seed: int) -> dict[str, Any]:
    """One unit: SGD with momentum on every parameter, the metrics at the end, the gap after every epoch."""
    data = load(training.source, training.root, training.download)
    images, labels = data.images.to(training.device), data.labels.to(training.device)
    draws = make_generator(seed)
    shown = torch.randperm(len(images), generator=draws)[: training.evaluated].to(images.device)
    unseen = torch.randperm(len(data.novel_images), generator=draws)[: training.evaluated]
    novel = data.novel_images[unseen].to(images.device), data.novel_labels[unseen].to(images.device)
    with local_seed(seed):
        model = network(images.shape[-1], training.width, training.embedding).to(training.device)
        classes = int(labels.max()) + 1
        head = make_head(training.head, training.embedding, classes, training.scale, training.margin)
        loss_of = UNPGLoss(head, whisker=training.whisker) if training.unified else MarginLoss(head)
        loss_of = loss_of.to(training.device)
    parameters = [*model.parameters(), *loss_of.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=training.lr, momentum=0.9, weight_decay=5e-4)
    steps = training.epochs * math.ceil(len(images) / training.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    history: dict[str, list[float]] = {"epoch": [], "loss": [], "gap": []}
    for epoch in range(training.epochs):
        losses = []
        for x, y in tensor_batches(images, labels, batch_size=training.batch_size, generator=draws):
            loss = loss_of(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        features = map_batches(model, images[shown], batch_size=512)
        gap = similarity_gap(features, labels[shown], quantile=training.quantile).gap
        for key, value in (("epoch", epoch + 1), ("loss", torch.stack(losses).mean().item()), ("gap", gap)):
            history[key].append(value)
    found = measured(features, labels[shown], training.far, training.quantile)
    of_novel = measured(map_batches(model, novel[0], batch_size=512), novel[1], training.novel_far, training.quantile)
    histograms = similarities(features, labels[shown], head)
    return {**found, **{f"novel {key}": value for key, value in of_novel.items()}, **histograms, "history": history}


def measured(features: Tensor, labels: Tensor, far: float, quantile: float) -> dict[str, float]:
    """TAR at a FAR over all pairs, the gap and its ends."""
    positive, negative = pair_similarities(features, labels)
    scores = torch.cat([positive, negative])
    same = torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))]).bool()
    gap = similarity_gap(features, labels, quantile=quantile)
    return {
        "tar": float(tar_at_far(scores, same, far=far)[0]),
        "gap": gap.gap,
        "inf_positive": gap.inf_positive,
        "sup_negative": gap.sup_negative,
    }


def similarities(features: Tensor, labels: Tensor, head: MarginHead) -> dict[str, list[float]]:
    """Histograms, as densities: positive pairs, negatives of the class weights (CLPG), of the pairs (MLPG), of both."""
    positive, negative = pair_similarities(features, labels)
    with torch.no_grad():
        cosine = directions(features) @ directions(head.weight).T
        others = torch.ones_like(cosine, dtype=torch.bool).scatter(1, labels[:, None], value=False)
    kinds = {
        "positive": positive,
        "clpg": cosine[others],
        "mlpg": negative,
        "all": torch.cat([cosine[others], negative]),
    }
    return {
        f"histogram {name}": (values.float().cpu().histc(BINS, -1, 1) / len(values) * BINS / 2).tolist()
        for name, values in kinds.items()
    }
