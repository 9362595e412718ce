"""The loss: its values, its reference, its properties. REPLACE."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from offprints.protogcd import PseudoHuberLoss, pseudo_huber_loss
from offprints.protogcd.reference import pseudo_huber
from offprints.shared.testing import check_loss


def inputs(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return 3 * torch.randn(7, 4, generator=generator), torch.randn(7, 4, generator=generator)


@pytest.mark.parametrize("loss", [pseudo_huber_loss, partial(pseudo_huber_loss, scale=0.3), PseudoHuberLoss(scale=2.0)])
def test_conformance(loss) -> None:
    check_loss(loss, inputs)


def test_values() -> None:
    ours = pseudo_huber_loss(torch.tensor([1.0, -1.0, 0.0, 100.0]), torch.zeros(4), reduction="none")
    expected = torch.tensor([0.4142135624, 0.4142135624, 0.0, 99.0049998750])
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_equals_the_reference(scale: float) -> None:
    preds, targets = (x.flatten().double() for x in inputs(torch.Generator().manual_seed(0)))
    ours = pseudo_huber_loss(preds, targets, scale=scale)
    assert ours.item() == pytest.approx(pseudo_huber(preds.tolist(), targets.tolist(), scale), rel=1e-12)


@given(st.floats(-1e3, 1e3), st.floats(0.01, 10.0))
def test_lies_below_both_of_its_limits(residual: float, scale: float) -> None:
    """At most half of the square, and at most the absolute value in units of the scale."""
    value = pseudo_huber_loss(torch.tensor([residual]).double(), torch.zeros(1).double(), scale=scale).item()
    assert -1e-12 <= value <= min(residual**2 / 2, scale * abs(residual)) + 1e-9
