"""The medium preset: Fashion-MNIST, features of a network trained without labels on the spot, and raw pixels.

The raw pixels of CIFAR-10 stand beside them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offprints.protogcd import estimate_num_classes, info_nce
from offprints.protogcd.reproduce import figures, photos
from offprints.protogcd.reproduce.training import (
    HARD,
    KMEANS,
    NO_ENTROPY,
    OURS,
    SIMGCD,
    TrainingSettings,
    kmeans,
    partly_labeled,
    scaled,
    train,
)
from offprints.shared.datasets import vision_dataset
from offprints.shared.device import make_generator, map_batches
from offprints.shared.experiment import Part, Run

OLD, CLASSES = 5, 10
FEATURES, PIXELS, PHOTOS = "features", "pixels", "CIFAR-10, pixels"
CLOTHES = ((FEATURES, (KMEANS, OURS, HARD, NO_ENTROPY, SIMGCD)), (PIXELS, (KMEANS, OURS)))
METHODS = (*CLOTHES, (PHOTOS, photos.METHODS))
# Set before any run: half of what the quick preset shows.
BAR = 0.04


@dataclass(frozen=True, kw_only=True)
class MediumSettings:
    """Fashion-MNIST and CIFAR-10.

    Attributes:
        splits: Draws of images, old classes and labels; 0 leaves this preset out.
        images: Images of a draw, that the network has not seen.
        photos: Images of CIFAR-10 of a draw.
        network_images: The network is trained on the first so many images.
        network_steps: Steps of its training.
        batch_size: Images of such a step, each seen twice.
        width: Channels of its first layer.
        dim: Features.
        lr: Of its training, Adam.
        every: Steps between checkpoints.
        max_classes: Largest candidate of the class count.
        training: Of every method.
    """

    splits: int = 0
    images: int = 5000
    photos: int = 2000
    network_images: int = 30_000
    network_steps: int = 600
    batch_size: int = 128
    width: int = 16
    dim: int = 64
    lr: float = 2e-3
    every: int = 100
    max_classes: int = 16
    training: TrainingSettings = field(default_factory=TrainingSettings)


def clothing(data: Path | None, download: bool) -> tuple[Tensor, Tensor]:
    """The training images `(N, 1, 28, 28)` in [0, 1] and their classes."""
    found: Any = vision_dataset("fashion_mnist", "train", download=download, root=data)
    return found.data.unsqueeze(1).float() / 255, found.targets


def network(width: int, dim: int) -> nn.Sequential:
    """Four convolutions, and the mean over the positions: `(N, 1, 28, 28)` to `(N, dim)`."""
    channels = (1, width, 2 * width, 2 * width, dim)
    layers: list[nn.Module] = []
    for place, (inner, outer) in enumerate(itertools.pairwise(channels)):
        layers += [nn.Conv2d(inner, outer, 3, 2 if place < 2 else 1, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def view(images: Tensor) -> Tensor:
    """Random crops, flips, contrast and noise, one draw an image."""
    n = len(images)
    zoom = 0.55 + 0.45 * torch.rand(n)
    place = torch.zeros(n, 2, 3)
    place[:, 0, 0] = torch.where(torch.rand(n) < 0.5, -zoom, zoom)
    place[:, 1, 1] = zoom
    place[:, :, 2] = (2 * torch.rand(n, 2) - 1) * (1 - zoom)[:, None]
    cropped = F.grid_sample(images, F.affine_grid(place, list(images.shape), align_corners=False), align_corners=False)
    return (0.6 + 0.8 * torch.rand(n, 1, 1, 1)) * cropped + 0.05 * torch.randn_like(images)


def train_network(settings: MediumSettings, data: Path | None, download: bool, part: Part) -> dict[str, Any]:
    """Weights of a network whose features of two views of an image agree, and of different images do not."""
    images = clothing(data, download)[0][: settings.network_images]
    body = network(settings.width, settings.dim)
    model = nn.Sequential(body, nn.Linear(settings.dim, settings.dim), nn.ReLU(), nn.Linear(settings.dim, 32))
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.network_steps)
    held: dict[str, Any] = {"model": model, "optimizer": optimizer, "rate": rate}
    first, last = 0, float("nan")
    if (found := part.restore()) is not None:
        first, state = found
        for name, holder in held.items():
            holder.load_state_dict(state[name])
        last = state["loss"]
    for step in part.progress(range(first, settings.network_steps)):
        chosen = images[torch.randint(len(images), (settings.batch_size,))]
        loss = info_nce(model(view(torch.cat([chosen, chosen]))), temperature=0.2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        if (step + 1) % settings.every == 0:
            last = float(loss.detach())
            part.log(step + 1, loss=last)
            part.checkpoint(step + 1, {**{name: holder.state_dict() for name, holder in held.items()}, "loss": last})
    return {"weights": dict(body.state_dict()), "loss": last}


def draw(
    settings: MediumSettings, data: Path | None, download: bool, weights: Mapping[str, Tensor], seed: int
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Features and pixels of images that the network has not seen, their classes, and the labels that are known."""
    images, labels = (part[settings.network_images :] for part in clothing(data, download))
    generator = make_generator(seed)
    chosen = torch.randperm(len(images), generator=generator)[: settings.images]
    images, true = images[chosen], torch.randperm(CLASSES, generator=generator)[labels[chosen]]
    given = partly_labeled(true, OLD, seed)
    body = network(settings.width, settings.dim)
    body.load_state_dict(dict(weights))
    return {FEATURES: scaled(map_batches(body, images, batch_size=500)), PIXELS: scaled(images.flatten(1))}, true, given


def method_unit(
    kind: str,
    name: str,
    settings: MediumSettings,
    data: Path | None,
    download: bool,
    weights: Mapping[str, Tensor],
    seed: int,
) -> dict[str, Any]:
    """One method on the features, or the pixels, of one draw."""
    tables, true, given = draw(settings, data, download, weights, seed)
    if name == KMEANS:
        return kmeans(tables[kind], given, true, OLD, CLASSES, seed)
    torch.manual_seed(seed)
    return train(name, tables[kind], given, true, OLD, CLASSES, settings.training)


def count_unit(
    settings: MediumSettings, data: Path | None, download: bool, weights: Mapping[str, Tensor], seed: int
) -> dict[str, Any]:
    """The curve of the class count on the features of one draw."""
    tables, _, given = draw(settings, data, download, weights, seed)
    return estimate_num_classes(tables[FEATURES], given, max_classes=settings.max_classes, seed=seed)._asdict()


def reproduce_medium(settings: MediumSettings, data: Path | None, download: bool, run: Run) -> None:
    """The method beside k-means and beside itself with parts switched off, on images that no label was used for."""
    trained = run.part("network").once(partial(train_network, settings, data, download))
    source = (settings, data, download, trained["weights"])
    seeds = run.seeds(settings.splits)
    work: dict[str, Any] = {
        f"{kind} {name} {seed}": partial(method_unit, kind, name, *source, seed)
        for kind, names in CLOTHES
        for name in names
        for seed in seeds
    }
    shown = (settings.training, settings.photos, data, download)
    work |= {
        f"{PHOTOS} {name} {seed}": partial(photos.method_unit, name, *shown, seed)
        for name in photos.METHODS
        for seed in seeds
    }
    work |= {f"count {seed}": partial(count_unit, *source, seed) for seed in seeds}
    found = run.units(work)
    units = {kind: {n: [found[f"{kind} {n} {seed}"] for seed in seeds] for n in names} for kind, names in METHODS}

    def mean(kind: str, name: str, score: str = "all") -> float:
        return float(np.mean([unit[score] for unit in units[kind][name]]))

    gains = [a["all"] - b["all"] for a, b in zip(units[FEATURES][OURS], units[FEATURES][KMEANS], strict=True)]
    run.claim(
        "fashion-kmeans",
        f"Fashion-MNIST, self-supervised features, mean of {settings.splits} draws: accuracy of all unlabeled images,"
        " minus that of k-means",
        float(np.mean(gains)),
        ">=",
        BAR,
        spread=float(np.std(gains)),
        control=mean(FEATURES, NO_ENTROPY) - mean(FEATURES, KMEANS),
        control_name="no entropy term",
    )
    told: Sequence[tuple[str, str]] = ((HARD, "all"), (HARD, "new"), (SIMGCD, "all"))
    for number, (name, score) in enumerate(told):
        value = mean(FEATURES, OURS, score) - mean(FEATURES, name, score)
        run.report_value(f"fashion-{number}", f"the same features, {score} images: ProtoGCD minus {name}", value)
    pixels = mean(PIXELS, OURS) - mean(PIXELS, KMEANS)
    run.report_value("fashion-pixels", "the same images, raw pixels: ProtoGCD minus k-means, all images", pixels)
    for number, name in enumerate((KMEANS, SIMGCD)):
        value = mean(PHOTOS, OURS) - mean(PHOTOS, name)
        run.report_value(f"photos-{number}", f"CIFAR-10, raw pixels: ProtoGCD minus {name}, all images", value)
    curves = [found[f"count {seed}"] for seed in seeds]
    counts = float(np.mean([curve["n_classes"] for curve in curves]))
    run.report_value("fashion-count", "estimated number of classes on these features (10 are there), mean", counts)
    run.report_value("fashion-loss", "contrastive loss at the end of the network's training", trained["loss"])
    run.table(
        "Fashion-MNIST and CIFAR-10, unlabeled images: means over the draws",
        [
            {"of": kind, "method": name, **{score: mean(kind, name, score) for score in ("all", "old", "new")}}
            | {"reference": name == KMEANS}
            for kind, of_kind in units.items()
            for name in of_kind
        ],
    )
    figures.draw_accuracies(run, "accuracies_fashion", units[FEATURES])
    figures.draw_count(run, curves, CLASSES)
