"""The consistency loss."""

from __future__ import annotations

import pytest
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_totals_of_half_types_are_float32(dtype: torch.dtype) -> None:
    """A sum of 20000 losses of 8 is beyond float16, and bfloat16 would stop counting."""
    s, t = torch.tensor([[8.0, 0.0]], dtype=dtype).expand(20_000, 2), torch.tensor([[-8.0, 8.0]], dtype=dtype)
    t = t.expand(20_000, 2)
    each = consistency_loss(s, t, reduction="none")
    assert each.dtype == dtype
    exact = consistency_loss(s[:1].double(), t[:1].double()).item()
    for reduction, factor in (("mean", 1), ("sum", 20_000)):
        total = consistency_loss(s, t, reduction=reduction)  # type: ignore[arg-type]
        assert total.dtype == torch.float32
        assert total.item() == pytest.approx(factor * exact, rel=1e-5)


def test_symmetric_in_its_values() -> None:
    s, t = logits(0, 5, 4, 2), logits(1, 5, 4, 2)
    forth, back = (consistency_loss(a, b, symmetric=True, reduction="none") for a, b in ((s, t), (t, s)))
    torch.testing.assert_close(forth, back)
    halves = [0.5 * consistency_loss(a, b, reduction="none") for a, b in ((s, t), (t, s))]
    torch.testing.assert_close(forth, halves[0] + halves[1])
    assert forth.shape == (5, 2)
