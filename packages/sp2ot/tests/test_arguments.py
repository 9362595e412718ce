"""Wrong, odd and extreme values in the place of every argument."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from offprints.shared.testing import check_arguments
from offprints.sp2ot import (
    CosineHead,
    LogitBank,
    SP2OTLoss,
    cluster_scores,
    knn_similarity,
    long_tailed_counts,
    long_tailed_indices,
    partial_ot,
    rho_schedule,
    semantic_partial_ot,
    transport_value,
)


def cost(generator: torch.Generator) -> torch.Tensor:
    return -(2 * torch.randn(8, 3, generator=generator)).log_softmax(1)


def labels(generator: torch.Generator) -> torch.Tensor:
    return torch.arange(30) % 4


@functools.wraps(knn_similarity)
def dense(*args: Any, **kwargs: Any) -> torch.Tensor:
    return knn_similarity(*args, **kwargs).to_dense()


LOSS: dict[str, Any] = {"num_clusters": 3, "total_steps": 10}
CASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "partial_ot": (
        partial_ot,
        lambda g: {
            "cost": cost(g),
            "rho": 0.4,
            "prior": torch.tensor([0.5, 0.3, 0.2]),
            "init": torch.zeros(4),
            "weights": torch.linspace(1, 2, 8),
        },
        {},
    ),
    "partial_ot of capacities": (
        partial_ot,
        lambda g: {"cost": cost(g), "rho": 0.4, "capacity": torch.tensor([0.3, 0.2, 0.1])},
        {},
    ),
    "transport_value": (
        transport_value,
        lambda g: {"cost": cost(g), "result": partial_ot(cost(g), rho=0.4), "rho": 0.4},
        dict.fromkeys(("epsilon: huge", "gamma: tiny"), "potentials of so different a problem prove no bound: -inf"),
    ),
    "semantic_partial_ot": (
        semantic_partial_ot,
        lambda g: {
            "cost": cost(g),
            "similarity": torch.rand(8, 8, generator=g),
            "rho": 0.4,
            "semantic_weight": 1.0,
            "init_plan": torch.full((8, 3), 0.4 / 24),
        },
        {},
    ),
    "rho_schedule": (rho_schedule, lambda g: (3, 10), {}),
    "knn_similarity": (dense, lambda g: {"features": torch.randn(9, 3, generator=g), "k": 3}, {}),
    "long_tailed_counts": (long_tailed_counts, lambda g: {"max_count": 50, "num_classes": 4, "ratio": 0.1}, {}),
    "long_tailed_indices": (long_tailed_indices, lambda g: {"labels": labels(g), "ratio": 0.5, "max_count": 6}, {}),
    "cluster_scores": (
        cluster_scores,
        lambda g: {"labels_true": labels(g), "labels_pred": labels(g).flip(0), "num_clusters": 4},
        {"split: 0 inside": "a group of no classes has no recall: NaN", "split: tiny inside": "the same"},
    ),
    "LogitBank": (LogitBank, lambda g: {"num_clusters": 3, "size": 4}, {}),
    "CosineHead": (CosineHead, lambda g: {"in_features": 3, "num_clusters": 4}, {}),
    "SP2OTLoss": (
        SP2OTLoss,
        lambda g: LOSS | {"similarity": torch.rand(6, 6, generator=g), "prior": torch.tensor([0.5, 0.3, 0.2])},
        {"num_clusters: huge": "it is the prior that does not fit, which is named"},
    ),
    "SP2OTLoss.forward": (
        SP2OTLoss(**LOSS, similarity=torch.eye(9), semantic_weight=0.5, bank_size=9),
        lambda g: ([torch.randn(5, 3, generator=g) for _ in range(2)], torch.arange(5)),
        {},
    ),
    "LogitBank.push": (LogitBank(3, 9).push, lambda g: (torch.randn(5, 3, generator=g), torch.arange(5)), {}),
    "CosineHead.reset_prototypes": (
        CosineHead(3, 4).reset_prototypes,
        lambda g: (torch.randn(4, 3, generator=g),),
        {},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_arguments(name: str) -> None:
    fn, inputs, skip = CASES[name]
    check_arguments(fn, inputs, skip=skip)
