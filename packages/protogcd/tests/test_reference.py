"""The fast code equals the plain one, in float64, on other numbers than the official ones."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from offprints.protogcd import (
    ProtoGCDLoss,
    dapl_loss,
    dapl_pseudo_labels,
    entropy_regularization,
    info_nce,
    prototype_separation,
    ratio_schedule,
    reference,
    supervised_contrastive,
)


def batch(seed: int = 0, size: int = 9, classes: int = 5):
    generator = torch.Generator().manual_seed(seed)
    rows = lambda n, d: torch.randn(n, d, generator=generator, dtype=torch.float64)  # noqa: E731
    logits, prototypes = rows(2 * size, classes).tanh(), torch.nn.functional.normalize(rows(classes, 7))
    labels, labeled = torch.arange(size) % 3, torch.arange(size) % 4 != 0
    return logits, rows(2 * size, 6), prototypes, labels, labeled


@pytest.mark.parametrize("ratio", [0.0, 0.37, 0.5, 1.0])
def test_pseudo_labels(ratio: float) -> None:
    logits = batch()[0]
    assert_close(dapl_pseudo_labels(logits, ratio=ratio), reference.pseudo_labels(logits, ratio, 0.05))
    assert_close(dapl_loss(logits, ratio=ratio), reference.dapl(logits, ratio, 0.1, 0.05))


def test_terms() -> None:
    logits, projections, prototypes, labels, _ = batch(1)
    assert_close(entropy_regularization(logits, temperature=0.3), reference.entropy(logits, 0.3))
    assert_close(prototype_separation(prototypes, temperature=0.2), reference.separation(prototypes, 0.2))
    assert_close(info_nce(projections, temperature=0.5), reference.info_nce(projections, 0.5))
    twice = labels.repeat(2)
    ours = supervised_contrastive(projections, twice, temperature=0.2)
    assert_close(ours, reference.supervised_contrastive(projections, twice.tolist(), 0.2))


@pytest.mark.parametrize("seed", range(3))
def test_objective_and_its_gradients(seed: int) -> None:
    inputs = [x.requires_grad_() if x.is_floating_point() else x for x in batch(seed)]
    output = ProtoGCDLoss(total_epochs=10, ramp_epochs=5)(*inputs, epoch=2)
    expected = reference.total(*inputs, output.ratio)
    assert output.ratio == 0.5 == reference.ratio(2, 0, 5, 0.0, 1.0)
    assert_close(output.loss, expected)
    for ours, plain in zip(
        torch.autograd.grad(output.loss, inputs[:3]), torch.autograd.grad(expected, inputs[:3]), strict=True
    ):
        assert_close(ours, plain)


def test_schedule() -> None:
    for wait, ramp, initial, final in ((0, 6, 0.2, 1.0), (3, 4, 0.0, 0.5), (2, 1, 0.3, 0.9), (2, 0, 0.3, 0.9)):
        for epoch in range(14):
            ours = ratio_schedule(epoch, total_epochs=10, wait=wait, ramp=ramp, initial=initial, final=final)
            assert ours == pytest.approx(reference.ratio(epoch, wait, ramp, initial, final), abs=1e-15)
