"""The fast code equals the paper's algorithm, written plainly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from offprints.shrinkmatch import (
    DistributionAlignment,
    ShrinkMatchLoss,
    cosine_factor,
    reference,
    shrink_class_space,
    shrink_loss,
)


def draw(batch: int, classes: int, *, seed: int = 0, sharpness: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return sharpness * torch.randn(batch, classes, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("classes", [2, 3, 4, 10, 37])
@pytest.mark.parametrize("threshold", [0.6, 0.95, 1.0])
def test_shrunk_space_and_loss(classes: int, threshold: float) -> None:
    weak, strong = draw(50, classes), draw(50, classes, seed=1)
    probs = weak.softmax(1)
    space = shrink_class_space(probs, threshold=threshold)
    losses = shrink_loss(strong, probs, threshold=threshold, reduction="none")
    for i, p in enumerate(probs.tolist()):
        kept, first_kept, confidence = reference.shrunk_space(p, threshold)
        assert sorted(kept) == space.kept[i].nonzero().squeeze(1).tolist()
        assert first_kept == space.first_kept[i]
        assert confidence == pytest.approx(space.confidence[i].item(), rel=1e-12)
        uncertain = max(p) < threshold
        assert uncertain == space.uncertain[i]
        expected = reference.shrink_loss(strong[i].tolist(), p, threshold) if uncertain else 0.0
        assert losses[i].item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_three_steps_of_the_whole_loss() -> None:
    criterion = ShrinkMatchLoss(num_classes=6, threshold=0.8, unlabeled_weight=2.0).double()
    queue: list[list[float]] = []
    ratio: float | None = None
    labels = torch.tensor([1, 5, 0])
    for step in range(3):
        logits = [draw(rows, 6, seed=10 * step + n) for n, rows in enumerate((3, 20, 20, 20))]
        out = criterion(logits[0], labels, *logits[1:])
        expected, ratio = reference.shrinkmatch(
            logits[0].tolist(), labels.tolist(), *(z.tolist() for z in logits[1:]), queue, ratio, 0.8, 2.0
        )
        assert out.loss.item() == pytest.approx(expected, rel=1e-9)
        assert out.certain_ratio.item() == pytest.approx(ratio, rel=1e-9)
        assert 0 < out.mask_ratio < 1
        assert out.shrink > 0


@pytest.mark.parametrize("length", [1, 3, 32])
def test_alignment_forgets_after_its_length(length: int) -> None:
    alignment = DistributionAlignment(5, length=length).double()
    queue: list[list[float]] = []
    for step in range(7):
        probs = draw(8, 5, seed=step).softmax(1)
        expected = torch.tensor(reference.align(probs.tolist(), queue, length), dtype=torch.float64)
        assert_close(alignment(probs), expected, rtol=1e-12, atol=1e-15)
        assert len(queue) == min(step + 1, length)


def test_schedule_with_warmup() -> None:
    assert [cosine_factor(step, 10, cycles=0.5, warmup=4) for step in (0, 1, 4, 7, 10)] == pytest.approx(
        [0.0, 0.25, 1.0, 0.5**0.5, 0.0], abs=1e-12
    )
    assert cosine_factor(10, 10, cycles=0.7) == 0.0  # never negative
