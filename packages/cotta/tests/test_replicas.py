"""Replicas of one model in several processes stay one model, whatever the gate of each decides."""

from __future__ import annotations

from typing import Any

import torch
from packages.cotta.tests.models import batches, golden_net
from torch import nn

from offprints.cotta import CoTTA


def adapt(rank: int, seed: int | None) -> dict[str, Any]:
    """A stream of its own for each process; the gates open on one, on both, on none."""
    model = nn.parallel.DistributedDataParallel(golden_net())
    adapted = CoTTA(model, seed=seed, num_augmentations=2 + rank, ema_decay=0.9, restore_probability=0.2)
    opened, skipped = [], []
    for i, x in enumerate(batches(6, seed=10 + rank)):
        adapted.confidence_threshold = 1.0 if i in ((2, 4), (2, 3))[rank] else 0.0
        adapted(x)
        opened.append(adapted.last_augmented)
        skipped.append(adapted.last_skipped)
    weights = {name: value.detach() for name, value in adapted.model.module.named_parameters()}
    weights |= {f"teacher.{name}": value for name, value in adapted.teacher.named_parameters()}
    return {"weights": weights, "opened": opened, "skipped": skipped}


def test_replicas_stay_together(two_processes: Any) -> None:
    for seed in (0, None):
        first, second = two_processes(adapt, seed)
        assert first["opened"] == [False, False, True, False, True, False]
        assert second["opened"] == [False, False, True, True, False, False]
        assert first["skipped"] == second["skipped"] == [True, True, False, False, False, False]
        for name, value in first["weights"].items():
            assert torch.equal(value, second["weights"][name]), name
        assert not torch.equal(first["weights"]["fc.weight"], golden_net().fc.weight)
