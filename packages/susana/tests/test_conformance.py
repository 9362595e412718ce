"""The conformance suites on every public object."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from offprints.shared.testing import check_arguments, check_estimator, check_loss, check_module
from offprints.susana import (
    EpisodeCollate,
    EpisodeSampler,
    FewShotLoss,
    ICNNLoss,
    ProtoTripletLoss,
    PrototypicalClassifier,
    PrototypicalNetwork,
    compute_prototypes,
    conv4,
    icnn_components,
    icnn_loss,
    icnn_score,
    mean_confidence_interval,
    original_icnn_score,
    pairwise_distance,
    proto_triplet_loss,
    prototypical_logits,
    resnet12,
)


def alone(g: torch.Generator) -> tuple[Tensor, Tensor]:
    y = torch.arange(14) % 3
    return torch.randn(14, 4, generator=g) + y[:, None], y


def among(g: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, y = alone(g)
    return x, y, torch.randn(9, 4, generator=g), torch.arange(9) % 3


def separated(g: torch.Generator) -> tuple[Tensor, Tensor]:
    """No window reaches another class."""
    y = torch.arange(14) % 2
    return torch.randn(14, 4, generator=g) + 100 * y[:, None], y


def scattered(g: torch.Generator) -> tuple[Tensor, Tensor]:
    """No row has a neighbor of its class."""
    return torch.randn(14, 4, generator=g), torch.arange(14)


def coinciding(g: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.zeros(14, 4), torch.arange(14) % 3


@pytest.mark.parametrize("loss", [icnn_loss, ICNNLoss(k=3, window=6, include_omega=True)], ids=["function", "module"])
def test_icnn_loss(loss) -> None:
    special = {"separated": separated, "coinciding": coinciding} if loss is icnn_loss else {"scattered": scattered}
    check_loss(loss, alone, special=special)


def test_icnn_loss_among_references() -> None:
    check_loss(ICNNLoss(), among)


def queries(g: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    p = torch.randn(3, 4, generator=g)
    return torch.randn(7, 4, generator=g), torch.arange(7) % 3, p, torch.tensor([2, 0, 1])


def one_point(g: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.zeros(7, 4), torch.arange(7) % 3, torch.zeros(3, 4), torch.tensor([2, 0, 1])


@pytest.mark.parametrize("loss", [proto_triplet_loss, ProtoTripletLoss(margin=1.0)], ids=["function", "module"])
def test_proto_triplet_loss(loss) -> None:
    check_loss(loss, queries, special={"one point": one_point})


def episode(g: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    ys, yq = torch.arange(6) % 3, torch.arange(10) % 3
    return torch.randn(6, 4, generator=g) + ys[:, None], ys, torch.randn(10, 4, generator=g) + yq[:, None], yq


ALL = ("cross_entropy", "support_icnn", "query_icnn", "full_icnn", "proto_triplet")


@pytest.mark.parametrize(
    "loss",
    [
        FewShotLoss(ALL, n_way=3),
        FewShotLoss(ALL, weights=[1.0, 0.5, 2.0, 0.1, 3.0], n_way=3, query_reference="prototypes", metric="euclidean"),
        FewShotLoss(("cross_entropy", "query_icnn"), n_way=3, metric="cosine"),
    ],
    ids=["mean", "weighted", "cosine"],
)
def test_few_shot_loss(loss) -> None:
    check_loss(loss, episode)


@pytest.mark.parametrize("fn", [icnn_components, icnn_score], ids=["components", "score"])
def test_score_arguments(fn) -> None:
    check_arguments(fn, lambda g: dict(zip(("features", "labels", "target", "target_labels"), among(g), strict=True)))
    check_arguments(fn, alone)


def test_arguments() -> None:
    check_arguments(original_icnn_score, alone)
    check_arguments(compute_prototypes, alone)
    check_arguments(pairwise_distance, lambda g: (torch.randn(5, 4, generator=g), torch.randn(3, 4, generator=g)))
    for metric in ("sqeuclidean", "euclidean", "cosine"):
        logits = partial(prototypical_logits, metric=metric)
        check_arguments(logits, lambda g: (torch.randn(5, 4, generator=g), torch.randn(3, 4, generator=g)))
    for settings in (ICNNLoss, ProtoTripletLoss, FewShotLoss, conv4):
        check_arguments(settings, lambda g: {})
    memory = {"channels: huge inside": "memory"}
    check_arguments(resnet12, lambda g: {"channels": (2, 3, 4, 5)}, skip=memory)
    check_arguments(mean_confidence_interval, lambda g: ([0.1, 0.5, 0.6],))
    counts = {"n_way": 2, "n_shot": 1, "n_query": 2}
    check_arguments(EpisodeSampler, lambda g: {"labels": torch.arange(12) % 3, **counts, "n_episodes": 3})
    check_arguments(EpisodeCollate, lambda g: dict(counts))


def images(g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    return torch.rand(4, 3, 16, 16, generator=g), torch.arange(4) % 2, torch.rand(3, 3, 16, 16, generator=g)


def test_modules() -> None:
    check_module(PrototypicalNetwork(conv4(hidden=3)), images)
    check_module(PrototypicalNetwork(nn.Flatten(), metric="cosine"), images)
    for backbone in (conv4(hidden=3), conv4(hidden=2, pool="flatten"), resnet12(channels=(2, 3, 4, 5))):
        check_module(backbone, lambda g: images(g)[:1], skip={"arguments": "torch's own layers check their input"})


X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
Y = np.arange(60) % 3 * 5 - 4


@pytest.mark.parametrize("metric", ["sqeuclidean", "cosine"])
def test_classifier(metric: str) -> None:
    checks = {} if metric == "sqeuclidean" else None  # scikit-learn's own, once
    data = (X + 0.3 * Y[:, None].astype(np.float32), Y)
    check_estimator(PrototypicalClassifier(metric=metric), data, expected_failed_checks=checks)  # type: ignore[arg-type]
