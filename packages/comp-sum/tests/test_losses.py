"""The family: its reference, its invariants, its accuracy past the saturation of the softmax, special points."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from offprints.comp_sum import comp_sum_loss, phi, reference
from offprints.comp_sum._rows import BLOCK_ELEMENTS, differentiable_losses

TAUS = (0.0, 0.3, 1.0, 1.5, 2.0, 7.0)
scores = st.lists(st.floats(-20, 20), min_size=2, max_size=6)


def draws(rows: int, classes: int, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    z = scale * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    return z, torch.randint(classes, (rows,), generator=generator)


@given(scores, st.sampled_from(TAUS))
def test_equals_the_reference_and_its_invariants(h: list[float], tau: float) -> None:
    z, y = torch.tensor([h], dtype=torch.float64), torch.tensor([len(h) - 1])
    value = comp_sum_loss(z, y, tau=tau).item()
    assert value == pytest.approx(reference.comp_sum_loss(h, len(h) - 1, tau), rel=1e-9, abs=1e-12)
    assert comp_sum_loss(z + 5, y, tau=tau).item() == pytest.approx(value, rel=1e-12)
    assert value >= comp_sum_loss(z, y, tau=tau + 0.25).item() * (1 - 1e-14)
    assert value >= 0
    if tau > 1:
        assert value <= 1 / (tau - 1) * (1 + 1e-15)


def test_logistic_loss_is_cross_entropy() -> None:
    z, y = draws(40, 7)
    for reduction in ("mean", "sum", "none"):
        torch.testing.assert_close(comp_sum_loss(z, y, reduction=reduction), F.cross_entropy(z, y, reduction=reduction))


@pytest.mark.parametrize("distance", [1e-15, 1e-12, 1e-8, 1e-6])
def test_near_the_logistic_loss(distance: float) -> None:
    """Phi_tau = s + (1 - tau) s^2 / 2 + ...: the raw formula has lost everything at 1e-15."""
    z, y = draws(40, 7)
    s = comp_sum_loss(z, y, reduction="none")
    for tau in (1 - distance, 1 + distance):
        expected = s + (1 - tau) * s**2 / 2 + (1 - tau) ** 2 * s**3 / 6
        torch.testing.assert_close(comp_sum_loss(z, y, tau=tau, reduction="none"), expected, rtol=1e-11, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tau", [0.5, 1.0, 1.5, 2.0])
def test_past_saturation(tau: float, dtype: torch.dtype) -> None:
    """u = 9 e^-m, exactly: there the loss is u, the gradient -u at the label and u / 9 elsewhere."""
    margins = torch.tensor([30.0, 50.0, 80.0], dtype=dtype)
    z = torch.zeros(3, 10, dtype=dtype)
    z[:, 4] = margins
    z.requires_grad_()
    losses = comp_sum_loss(z, torch.full((3,), 4), tau=tau, reduction="none")
    u = 9 * torch.exp(-margins)
    tolerance = 2e-6 if dtype == torch.float32 else 1e-11  # the next term is tau u / 2, below 1e-12
    torch.testing.assert_close(losses, u, rtol=tolerance, atol=0)
    (gradient,) = torch.autograd.grad(losses.sum(), z)
    torch.testing.assert_close(gradient[:, 4], -u, rtol=tolerance, atol=0)
    torch.testing.assert_close(gradient[:, 0], u / 9, rtol=tolerance, atol=0)
    assert (F.cross_entropy(z, torch.full((3,), 4), reduction="none") == 0)[1:].all()


@pytest.mark.parametrize("tau", [0.5, 1.0, 1.5, 2.0])
def test_a_label_far_behind(tau: float) -> None:
    """u = e^200 is beyond float32: the logarithms of the rows whose softmax is 0 come from the scores."""
    z = torch.tensor([[0.0, 200.0, 0.0], [0.0, 1.0, 2.0]], requires_grad=True)
    losses = comp_sum_loss(z, torch.tensor([0, 0]), tau=tau, reduction="none")
    exact = differentiable_losses(z.detach().double(), torch.tensor([0, 0]), tau)
    torch.testing.assert_close(losses.double(), exact.where(exact < 3e38, torch.inf), rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(losses.sum(), z)
    assert gradient.isfinite().all()
    if tau < 1:  # e^100 is beyond float32 too: its largest number, and not infinity times the 0 of the third class
        assert gradient[0].tolist() == [-torch.finfo().max, torch.finfo().max, 0]
    if tau == 1:
        torch.testing.assert_close(gradient[0], torch.tensor([-1.0, 1.0, 0.0]))


@pytest.mark.parametrize("tau", TAUS)
def test_every_path_gives_the_same(tau: float) -> None:
    """In blocks, by ratios, by probabilities, and through the differentiable formula."""
    rows = 3 * BLOCK_ELEMENTS // 1000 + 5
    z, y = draws(rows, 1000)
    exact = z.clone().requires_grad_()
    expected = differentiable_losses(exact, y, tau)
    (gradient,) = torch.autograd.grad(expected.mean(), exact)
    for values, tolerance in ((z, 1e-11), (z.float(), 3e-5)):
        leaf = values.clone().requires_grad_()
        losses = comp_sum_loss(leaf, y, tau=tau, reduction="none")
        torch.testing.assert_close(losses.double(), expected.detach(), rtol=tolerance, atol=0)
        (found,) = torch.autograd.grad(losses.mean(), leaf)
        torch.testing.assert_close(found.double(), gradient, rtol=tolerance, atol=1e-30)


def test_backward_twice_and_in_another_order() -> None:
    z, y = draws(6, 4)
    leaf = z.clone().requires_grad_()
    loss = comp_sum_loss(leaf, y, tau=1.5)
    first = torch.autograd.grad(loss, leaf, retain_graph=True)[0]
    second = torch.autograd.grad(loss, leaf, retain_graph=True, create_graph=True)[0]
    batched = torch.autograd.grad(loss, leaf, torch.tensor([1.0, 2.0]).double(), is_grads_batched=True)[0]
    torch.testing.assert_close(second, first)
    torch.testing.assert_close(batched, torch.stack([first, 2 * first]))


def test_infinities() -> None:
    inf, y = math.inf, torch.tensor([0])
    for tau in (1.0, 1.5, 2.0, 3.0):
        masked = torch.tensor([[-inf, 1.0, 0.0]], requires_grad=True)
        loss = comp_sum_loss(masked, y, tau=tau)
        assert loss.item() == pytest.approx(inf if tau == 1 else 1 / (tau - 1))
        assert torch.autograd.grad(loss, masked)[0].isfinite().all()
        alone = torch.tensor([[1.0, -inf, -inf]], requires_grad=True)
        loss = comp_sum_loss(alone, y, tau=tau)
        assert loss.item() == 0
        assert torch.equal(torch.autograd.grad(loss, alone)[0], torch.zeros(1, 3))
        for bad in ([inf, 0.0, 0.0], [0.0, inf, 0.0], [math.nan, 0.0, 0.0], [0.0, math.nan, 0.0]):
            assert comp_sum_loss(torch.tensor([bad]), y, tau=tau).isnan()


def test_other_kinds_of_tensors() -> None:
    z, y = draws(6, 4)
    expected = comp_sum_loss(z, y, tau=1.3)
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert comp_sum_loss(z, y.to(dtype), tau=1.3) == expected
    torch.testing.assert_close(comp_sum_loss(z.T.contiguous().T, y, tau=1.3), expected)
    half = comp_sum_loss(z.bfloat16().requires_grad_(), y, tau=1.3)
    assert half.dtype == torch.float32
    with torch.inference_mode():
        assert comp_sum_loss(z, y, tau=1.3) == expected


@given(st.floats(0, 1e6), st.sampled_from(TAUS))
def test_phi(u: float, tau: float) -> None:
    found = phi(torch.tensor([u], dtype=torch.float64), tau).item()
    assert found == pytest.approx(reference.phi(u, tau), rel=1e-9, abs=1e-15)
    assert phi(torch.tensor([math.inf]), 2.0).item() == 1.0
