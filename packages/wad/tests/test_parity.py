"""The outputs of the official implementation, of which nothing was used."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from offprints.wad import (
    WADLoss,
    WADTrainer,
    mismatch_split,
    nt_xent,
    polynomial_decay,
    select_reliable,
    teacher_knowledge,
)


def test_knowledge(golden) -> None:
    data = golden("wad")
    for chunk_size in (8192, 7):
        known = teacher_knowledge(
            data["z_unlabeled"], data["z_labeled"], data["y_labeled"], num_classes=5, chunk_size=chunk_size
        )
        assert_close(known.scores, data["scores"], atol=2e-6, rtol=0)
        assert_close(known.weights, data["weights"], atol=2e-6, rtol=0)
        assert torch.equal(known.pseudo_labels, data["pseudo"].long())


def test_student_loss(golden) -> None:
    data = golden("wad")
    output = WADLoss()(data["logits_x"], data["labels_x"], data["logits_u"], data["pseudo"], data["weights"])
    assert_close(output.loss.double(), data["student_loss"].double(), atol=1e-5, rtol=0)


def test_nt_xent(golden) -> None:
    data = golden("wad")
    found = nt_xent(data["ntxent_in"][:12], data["ntxent_in"][12:])
    assert_close(found.double(), data["ntxent"].double(), atol=1e-5, rtol=0)


def test_decay_and_selection(golden) -> None:
    data = golden("wad")
    alpha, split = float(data["alpha_split"][0]), int(data["alpha_split"][1])
    for r in range(1, 7):
        share = polynomial_decay(r, alpha, split)
        assert share == pytest.approx(float(data["alphas"][r - 1]), abs=1e-15)
        chosen = select_reliable(data["logits_u"], data["pseudo"], fraction=share)
        assert torch.equal(chosen.sort().values, data[f"selected_{r}"].long())


class _Lookup(torch.nn.Module):
    """A student that answers from a table and cannot learn: samples are row numbers."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = table
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.table[rows[:, 0].long()] * self.scale


def test_first_round_of_a_training(golden) -> None:
    """The trainer's own first selection is the official one."""
    data = golden("wad")
    student = _Lookup(torch.cat([data["logits_u"], torch.zeros(30, 5)]))
    rows = torch.arange(150.0)[:, None]
    trainer = WADTrainer(student, (data["z_labeled"], data["z_unlabeled"]), steps_per_round=1, lr=1e-12, seed=0)
    trainer.fit(rows[120:], data["y_labeled"], rows[:120])
    assert torch.equal(trainer.selected_[1].sort().values, data["selected_1"].long())
    assert torch.equal(trainer.knowledge_[0]["pseudo_labels"], data["pseudo"].long())
    assert_close(trainer.knowledge_[0]["weights"], data["weights"], atol=2e-6, rtol=0)


def test_unknown_counts(golden) -> None:
    """Two of the eight official counts have one sample more, by the rounding of `0.8 * T / (1 - 0.8)`."""
    mismatches = (0.2, 0.4, 0.6, 0.8) * 2
    for (known, official), mismatch in zip(golden("wad")["unknown_counts"].tolist(), mismatches, strict=True):
        labels = np.repeat([0, 1, 2], [known // 2 + 5, known - known // 2 + 5, 40_000])
        split = mismatch_split(labels, target_classes=[0, 1], num_labeled=10, mismatch=mismatch, seed=0)
        unknown = int((~split.is_target_unlabeled).sum())
        assert int(split.is_target_unlabeled.sum()) == known
        assert unknown == official - (mismatch == 0.8)
        assert unknown == math.ceil(round(mismatch * known / (1 - mismatch), 6))
