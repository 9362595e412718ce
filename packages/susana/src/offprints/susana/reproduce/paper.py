"""The paper's own settings on its own data: pretraining, training with the best kept by validation, the test."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from offprints.shared.datasets import data_root
from offprints.shared.experiment import Run
from offprints.shared.experiment.part import Part
from offprints.shared.extras import require
from offprints.susana import (
    CUB,
    EpisodeSampler,
    FewShotLoss,
    MiniImageNet,
    PrototypicalNetwork,
    conv4,
    evaluate_episodes,
    resnet12,
)
from offprints.susana.reproduce.figures import draw_accuracies
from offprints.susana.reproduce.training import best_of, loaded, pretrain, terms_of, train_on_episodes

# Snell et al. 2017, Conv4 on miniImageNet, 5-way.
BASELINE = {("mini_imagenet", "conv4", 1): 49.42, ("mini_imagenet", "conv4", 5): 68.20}


@dataclass(frozen=True, kw_only=True)
class PaperSettings:
    """Settings of the `paper` preset; without data sets it is not run.

    Attributes:
        datasets: mini_imagenet, cub: folders of these names with pictures and split files.
        transfer: Folders of other sets in the same layout whose test classes are tried too, as cub, dogs, cars.
        backbones: conv4, resnet12.
        channels: Widths of ResNet12; the authors' are 64, 128, 256, 512.
        shots: Shots of training and test.
        train_ways: Ways in training for each of the shots.
        epochs: Epochs of episodes.
        episodes: Episodes of an epoch.
        validation: Validation episodes after an epoch.
        test: Test episodes.
        pretraining: Epochs of ordinary classification before.
        size: Side of the images.
        workers: Processes that read images.
    """

    datasets: tuple[Literal["mini_imagenet", "cub"], ...] = ()
    transfer: tuple[str, ...] = ()
    backbones: tuple[Literal["conv4", "resnet12"], ...] = ("conv4", "resnet12")
    channels: tuple[int, ...] = (64, 160, 320, 640)
    shots: tuple[int, ...] = (1, 5)
    train_ways: tuple[int, ...] = (30, 20)
    epochs: int = 200
    episodes: int = 100
    validation: int = 500
    test: int = 1000
    pretraining: int = 100
    size: int = 84
    workers: int = 8


def transform_of(size: int, *, training: bool) -> Any:
    """The field's preparation of images: crops and flips in training, the center otherwise."""
    transforms = require("torchvision.transforms.v2", package="susana", extra="vision")
    steps = (
        [transforms.RandomResizedCrop(size, antialias=True), transforms.RandomHorizontalFlip()]
        if training
        else [transforms.Resize(round(size * 92 / 84), antialias=True), transforms.CenterCrop(size)]
    )
    scale = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    return transforms.Compose([transforms.ToImage(), *steps, transforms.ToDtype(torch.float32, scale=True), scale])


def open_split(name: str, split: Any, settings: PaperSettings, data: Path | None, *, training: bool = False) -> Any:
    """A split of a data set by its folder's name."""
    kind = CUB if name == "cub" else MiniImageNet
    root = (data if data is not None else data_root()) / name
    return kind(root, split, transform=transform_of(settings.size, training=training))


def new_backbone(name: str, settings: PaperSettings) -> nn.Module:
    """Conv4 or ResNet12."""
    return conv4() if name == "conv4" else resnet12(channels=settings.channels)


def optimizer_of(name: str, parameters: Any) -> torch.optim.Optimizer:
    """The authors' optimizers: Adam for Conv4, SGD for ResNet12."""
    if name == "conv4":
        return torch.optim.Adam(parameters, lr=1e-4)
    return torch.optim.SGD(parameters, lr=1e-4, momentum=0.9, nesterov=True, weight_decay=5e-4)


def pretrained(name: str, dataset: str, settings: PaperSettings, data: Path | None, run: Run, part: Part) -> Any:
    """The state of a backbone that classifies the base classes."""
    train = open_split(dataset, "train", settings, data, training=True)
    backbone = new_backbone(name, settings).to(run.device)

    def batches(epoch: int) -> Any:
        loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
            train, batch_size=128, shuffle=True, num_workers=settings.workers, drop_last=len(train) > 128
        )
        return ((x.to(run.device), y.to(run.device)) for x, y in loader)

    pretrain(
        backbone,
        batches,
        num_classes=len(train.classes),
        epochs=settings.pretraining,
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
        milestones=(settings.pretraining // 2, 3 * settings.pretraining // 4),
        report=lambda epoch, values: part.log(epoch, **values),
    )
    return {"backbone": best_of(backbone)}


def trained(
    terms: str, name: str, dataset: str, shot: int, way: int, start: Any, config: Any, run: Run, part: Part
) -> Any:
    """Train with one combination, keep the best state by validation, and test it; resumes epoch by epoch."""
    settings: PaperSettings = config.paper
    train = open_split(dataset, "train", settings, config.data, training=True)
    val = open_split(dataset, "val", settings, config.data)
    backbone = new_backbone(name, settings).to(run.device)
    backbone.load_state_dict(start)
    network = PrototypicalNetwork(backbone)
    optimizer = optimizer_of(name, backbone.parameters())
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 20, gamma=0.5)
    loss = FewShotLoss(terms_of(terms), n_way=way)
    best, best_state, first = -1.0, best_of(backbone), 0
    if (stored := part.restore()) is not None:
        first, state = stored
        backbone.load_state_dict(state["backbone"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        best, best_state = state["best"], state["best_state"]
    common = {"n_shot": shot, "n_query": 15}
    for epoch in range(first, settings.epochs):
        sampler = EpisodeSampler(train.labels, n_way=way, n_episodes=settings.episodes, seed=run.seed, **common)
        sampler.set_epoch(epoch)
        stream = loaded(train, sampler, workers=settings.workers, device=run.device)
        value = train_on_episodes(backbone, loss, stream, optimizer, precision=run.precision)
        schedule.step()
        checker = EpisodeSampler(val.labels, n_way=5, n_episodes=settings.validation, seed=run.seed + 1, **common)
        accuracy = evaluate_episodes(network, val, checker, num_workers=settings.workers).accuracy
        part.log(epoch, loss=value, validation=accuracy)
        if accuracy > best:
            best, best_state = accuracy, best_of(backbone)
        state = {
            "backbone": backbone.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "best": best,
            "best_state": best_state,
        }
        part.checkpoint(epoch + 1, state)
    backbone.load_state_dict(best_state)
    found: dict[str, Any] = {}
    for other in (dataset, *settings.transfer):
        test = open_split(other, "test", settings, config.data)
        sampler = EpisodeSampler(test.labels, n_way=5, n_episodes=settings.test, seed=run.seed + 2, **common)
        result = evaluate_episodes(network, test, sampler, num_workers=settings.workers)
        found[other] = {"accuracy": result.accuracy, "ci": result.ci, "icnn": float(result.icnn.mean())}
    return found


def reproduce_paper(config: Any, run: Run) -> None:
    """The paper's table: every combination on every data set, backbone and shot, and across data sets."""
    settings: PaperSettings = config.paper
    for dataset in settings.datasets:
        for name in settings.backbones:
            key = f"{dataset} {name}"
            start = run.part(f"{key} pretraining").once(partial(pretrained, name, dataset, settings, config.data, run))[
                "backbone"
            ]
            for shot, way in zip(settings.shots, settings.train_ways, strict=True):
                results = {
                    terms: run.part(f"{key} {shot}-shot {terms}").once(
                        partial(trained, terms, name, dataset, shot, way, start, config, run)
                    )
                    for terms in config.terms
                }
                _report(run, dataset, name, shot, results)


def _report(run: Run, dataset: str, name: str, shot: int, results: dict[str, Any]) -> None:
    title = f"{dataset}, {name}, 5-way {shot}-shot"
    tests = list(next(iter(results.values())))
    rows: list[dict[str, Any]] = [
        {
            "terms": terms,
            **{
                f"{other}{extra}": 100 * found[other][field] if field != "icnn" else found[other][field]
                for other in tests
                for field, extra in (("accuracy", " accuracy (%)"), ("ci", " +-"), ("icnn", " ICNN score"))
            },
        }
        for terms, found in results.items()
    ]
    baseline = BASELINE.get((dataset, name, shot))
    if baseline is not None:
        rows.append({"terms": "Snell et al. 2017", f"{dataset} accuracy (%)": baseline, "reference": True})
        rows.append({"terms": "claimed: +2", f"{dataset} accuracy (%)": baseline + 2, "reference": True})
    run.table(title, rows)
    points = {terms: [(found[dataset]["accuracy"], found[dataset]["ci"])] for terms, found in results.items()}
    label = f"{dataset}-{name}-{shot}"
    draw_accuracies(run, title, points, label)
    plain = results.get("cross_entropy")
    others = [found[dataset]["accuracy"] for terms, found in results.items() if terms != "cross_entropy"]
    if plain is not None and others:
        base = plain[dataset]["accuracy"]
        run.report_value(
            f"gain-{label}",
            f"{title}: best accuracy of the losses less that of cross-entropy alone, points",
            100 * (max(others) - base),
            paper_value="about +2 (claimed)",
        )
