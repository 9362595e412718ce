"""Outputs of the official implementation; tolerances as golden/README.md and the specification state them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from offprints.shrinkmatch import (
    DistributionAlignment,
    ShrinkMatchLoss,
    cosine_factor,
    shrink_class_space,
    shrink_loss,
)


@pytest.fixture(scope="module")
def data(golden) -> dict[str, Tensor]:
    return golden("shrink")


def near(found: Tensor, expected: Tensor) -> None:
    """1e-5 relative: the official sums are in float32."""
    assert_close(found.double(), expected.double(), rtol=1e-5, atol=0)


def test_ranks(data: dict[str, Tensor]) -> None:
    space = shrink_class_space(data["probs"], threshold=float(data["threshold"]))
    assert torch.equal(torch.where(space.uncertain, space.first_kept, -1), data["removed_end"])


def test_shrunk_loss_and_its_gradient(data: dict[str, Tensor]) -> None:
    logits = data["logits_aux"].clone().requires_grad_()
    loss = shrink_loss(logits, data["probs"], threshold=float(data["threshold"]), reduction="sum")
    loss.backward()
    near(loss.detach(), data["shrink_sum"])
    assert_close(logits.grad, data["shrink_grad"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_certain_part(data: dict[str, Tensor], kind: str) -> None:
    """Only mean(mask * CE) is compared: labeled rows and the auxiliary head are other parts."""
    criterion = ShrinkMatchLoss(num_classes=10, align=None, pseudo_label=kind)
    labels = torch.zeros(64, dtype=torch.int64)
    out = criterion(data["logits_strong"], labels, data["logits_weak"], data["logits_strong"], data["logits_aux"])
    near(out.certain, data[f"certain_{kind}"])
    near(out.shrink, data["shrink_sum"] / 64)
    near(out.supervised, F.cross_entropy(data["logits_strong"], labels))


def test_queue_alignment(data: dict[str, Tensor]) -> None:
    alignment = DistributionAlignment(10, mode="queue", length=32)
    for given, expected in zip(data["da_in"], data["da_out"], strict=True):
        assert_close(alignment(given), expected, rtol=1e-5, atol=1e-7)
    assert_close(alignment.target_free_mean, data["da_in"].mean((0, 1)), rtol=1e-5, atol=0)


def test_the_variant_for_stl10(data: dict[str, Tensor]) -> None:
    """The running mean, and hard pseudo-labels: what does not come from two distributions at once agrees."""
    criterion = ShrinkMatchLoss(num_classes=10, align="ema", pseudo_label="hard")
    labels = torch.zeros(64, dtype=torch.int64)
    for number, weak in enumerate((data["logits_weak"], 1.1 * data["logits_weak"].flip(0))):
        out = criterion(data["logits_strong"], labels, weak, data["logits_strong"], data["logits_aux"])
        certain, mask_ratio, shrink = data["stl"][3 * number : 3 * number + 3]
        near(out.certain, certain)
        near(out.mask_ratio, mask_ratio)
        near(mixed_shrink(weak, data["logits_aux"], criterion.alignment, float(data["threshold"])), shrink)
    assert_close(criterion.alignment.target_free_mean, data["stl_pmodel"], rtol=1e-5, atol=0)


def mixed_shrink(weak: Tensor, aux: Tensor, alignment: DistributionAlignment, threshold: float) -> Tensor:
    """The official variant's shrunk part: classes from the raw predictions, mask and weight from the aligned ones."""
    raw = weak.softmax(1)
    aligned = alignment.align(raw)
    space = shrink_class_space(raw, threshold=threshold)
    restricted = aux.masked_fill(~space.kept, -torch.inf)
    losses = F.cross_entropy(restricted, space.order[:, 0], reduction="none")
    largest = aligned.max(1).values
    counted = (largest < threshold) & (space.confidence >= threshold)
    return torch.where(counted, largest * losses, 0.0).sum() / len(weak)


def test_running_ratio(data: dict[str, Tensor]) -> None:
    """A batch of ten with as many certain samples as the ratio says."""
    criterion = ShrinkMatchLoss(num_classes=10, align=None)
    for ratio in data["ratio_seq"].tolist():
        weak = torch.zeros(10, 10)
        weak[: round(10 * ratio), 0] = 20.0
        out = criterion(weak, torch.zeros(10, dtype=torch.int64), weak, weak)
        assert out.mask_ratio.item() == pytest.approx(ratio)
    assert criterion.certain_ratio.item() == pytest.approx(float(data["ratio_ema"]), rel=1e-5)
    assert out.certain_ratio.item() == criterion.certain_ratio.item()


def test_schedule(data: dict[str, Tensor]) -> None:
    found = [cosine_factor(step, 1000) for step in data["lr_steps"].tolist()]
    assert found == pytest.approx(data["lr_factor"].tolist(), rel=1e-5)
