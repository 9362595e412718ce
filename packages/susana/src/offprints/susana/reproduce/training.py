"""Training on episodes, ordinary classification before it, and what is measured afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from offprints.shared.device import autocast, make_generator, map_batches
from offprints.susana import (
    EpisodeCollate,
    EpisodeSampler,
    FewShotLoss,
    compute_prototypes,
    icnn_score,
    prototypical_logits,
)
from offprints.susana.episodes import Episode
from offprints.susana.reproduce.data import Images

Report = Callable[[int, dict[str, float]], None]


def terms_of(name: str) -> tuple[str, ...]:
    """The terms of a combination written as "cross_entropy+support_icnn"."""
    return tuple(name.split("+"))


def episodes(images: Images, sampler: EpisodeSampler) -> Iterator[Episode]:
    """Episodes of images in memory."""
    numbers = torch.arange(sampler.n_way, device=images.x.device)
    support_labels = numbers.repeat_interleave(sampler.n_shot)
    query_labels = numbers.repeat_interleave(sampler.n_query)
    n_support = len(support_labels)
    for indices in sampler:
        chosen = torch.tensor(indices)
        x, y = images.x[chosen.to(images.x.device)], images.y[chosen]
        yield Episode(x[:n_support], support_labels, x[n_support:], query_labels, y[: n_support : sampler.n_shot])


def loaded(dataset: Dataset[Any], sampler: EpisodeSampler, *, workers: int, device: torch.device) -> Iterator[Episode]:
    """Episodes of files."""
    collate = EpisodeCollate(n_way=sampler.n_way, n_shot=sampler.n_shot, n_query=sampler.n_query)
    loader: Iterable[Episode] = DataLoader(
        dataset, batch_sampler=sampler, collate_fn=collate, num_workers=workers, pin_memory=device.type == "cuda"
    )
    for episode in loader:
        yield Episode(*(part.to(device, non_blocking=True) for part in episode))


def train_on_episodes(
    backbone: nn.Module,
    loss: FewShotLoss,
    stream: Iterable[Episode],
    optimizer: torch.optim.Optimizer,
    *,
    precision: Any = "float32",
) -> float:
    """Train a backbone on episodes, support and query as one batch; the mean loss."""
    backbone.train()
    total, count = torch.zeros(()), 0
    for episode in stream:
        with autocast(precision, episode.support.device):
            features = backbone(torch.cat([episode.support, episode.query]))
        support, query = features.split([len(episode.support), len(episode.query)])
        value = loss(support, episode.support_labels, query, episode.query_labels).loss
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        total, count = total.to(value.device) + value.detach(), count + 1
    return float(total) / max(count, 1)


def pretrain(
    backbone: nn.Module,
    batches: Callable[[int], Iterable[tuple[Tensor, Tensor]]],
    *,
    num_classes: int,
    epochs: int,
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    milestones: tuple[int, ...] = (),
    report: Report | None = None,
) -> None:
    """Train a backbone by ordinary classification of the base classes; the linear head is dropped.

    Args:
        backbone: Trained in place.
        batches: Of an epoch, pairs of images and classes on the backbone's device.
        num_classes: Number of base classes.
        epochs: How often `batches` is asked.
        optimizer: Makes the optimizer of backbone and head.
        milestones: Epochs after which the learning rate is divided by 10.
        report: Told each epoch's mean loss.
    """
    head: nn.Linear | None = None
    stepper: torch.optim.Optimizer | None = None
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None
    backbone.train()
    for epoch in range(epochs):
        total, count = 0.0, 0
        for x, y in batches(epoch):
            features = backbone(x)
            if head is None:  # made when the number of features is known
                head = nn.Linear(features.shape[1], num_classes).to(features.device)
                stepper = optimizer([*backbone.parameters(), *head.parameters()])
                schedule = torch.optim.lr_scheduler.MultiStepLR(stepper, list(milestones), gamma=0.1)
            assert stepper is not None
            value = F.cross_entropy(head(features), y)
            stepper.zero_grad(set_to_none=True)
            value.backward()
            stepper.step()
            total, count = total + float(value.detach()), count + 1
        if schedule is not None:
            schedule.step()
        if report is not None:
            report(epoch, {"pretraining_loss": total / max(count, 1)})


def best_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a model's state."""
    return copy.deepcopy(model.state_dict())


def embedded(backbone: nn.Module, images: Images) -> Images:
    """The features of images, of each once: in evaluation mode they do not depend on the episode."""
    return Images(map_batches(backbone, images.x, batch_size=256), images.y)


def examine(stream: Iterable[Episode], seed: int, *, controls: bool = False) -> dict[str, Tensor]:
    """Of every episode of features: the accuracy, and the ICNN score of the queries among themselves.

    With `controls` also the scores of the queries among the supports, with the nearest kept (the default here) and
    dropped (the authors'), and all three with the labels of the queries shuffled.
    """
    generator = make_generator(seed)
    rows: dict[str, list[Tensor]] = {}
    for episode in stream:
        support, query = episode.support, episode.query
        y, ys = episode.query_labels, episode.support_labels
        prototypes = compute_prototypes(support, ys, n_way=len(episode.class_ids))
        logits = prototypical_logits(query, prototypes)
        found = {"accuracy": (logits.argmax(1) == y).float().mean(), "among queries": icnn_score(query, y)}
        if controls:
            shuffled = y[torch.randperm(len(y), generator=generator).to(y.device)]
            found["among queries, shuffled"] = icnn_score(query, shuffled)
            for how, drop in (("kept", False), ("dropped", True)):
                for name, labels in ((how, y), (f"{how}, shuffled", shuffled)):
                    found[name] = icnn_score(query, labels, target=support, target_labels=ys, drop_nearest=drop)
        for name, value in found.items():
            rows.setdefault(name, []).append(value.float().cpu())
    return {name: torch.stack(values) for name, values in rows.items()}
