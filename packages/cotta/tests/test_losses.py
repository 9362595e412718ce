"""The consistency loss."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from offprints.cotta import consistency_loss


def logits(seed: int, *shape: int) -> Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(0, 1000))
def test_at_least_the_entropy_and_equal_for_equal_predictions(seed: int) -> None:
    s, t = logits(seed, 5, 4), logits(seed + 1, 5, 4)
    entropy = -(t.softmax(1) * t.log_softmax(1)).sum(1)
    assert (consistency_loss(s, t, reduction="none") > entropy).all()
    torch.testing.assert_close(consistency_loss(t + 2, t, reduction="none"), entropy)


@given(st.integers(0, 1000))
def test_gradient(seed: int) -> None:
    s, t = logits(seed, 5, 4).requires_grad_(), logits(seed + 1, 5, 4).requires_grad_()
    consistency_loss(s, t).backward()
    torch.testing.assert_close(s.grad, (s.softmax(1) - t.softmax(1)).detach() / 5)
    assert t.grad is None


def test_symmetric_in_its_values() -> None:
    s, t = logits(0, 5, 4, 2), logits(1, 5, 4, 2)
    forth, back = (consistency_loss(a, b, symmetric=True, reduction="none") for a, b in ((s, t), (t, s)))
    torch.testing.assert_close(forth, back)
    halves = [0.5 * consistency_loss(a, b, reduction="none") for a, b in ((s, t), (t, s))]
    torch.testing.assert_close(forth, halves[0] + halves[1])
    assert forth.shape == (5, 2)
