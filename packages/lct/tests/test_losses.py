"""Robust losses: identities between the three norms, bounds, numerics."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from offprints.lct import CauchyLoss, cauchy_loss, geman_mcclure_loss, pseudo_huber_loss

LOSSES = [cauchy_loss, pseudo_huber_loss, geman_mcclure_loss]
constants = st.floats(1e-3, 1e3)


def residuals(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(constants, st.integers(0, 10_000))
def test_two_logarithms(c: float, seed: int) -> None:
    r = residuals(seed, 3, 4, 5)
    zero = torch.zeros_like(r)
    for norm, m in (("mean", r.square().mean((1, 2))), ("sum", r.square().sum((1, 2)))):
        expected = torch.log(m / 2 + c**2) - 2 * math.log(c)
        assert_close(cauchy_loss(r, zero, c=c, norm=norm, reduction="none"), expected, rtol=1e-7, atol=1e-9)
    element = (torch.log(r.square() / 2 + c**2) - 2 * math.log(c)).mean((1, 2))
    assert_close(cauchy_loss(r, zero, c=c, norm="element", reduction="none"), element, rtol=1e-7, atol=1e-9)


@given(constants, st.integers(0, 10_000))
def test_sum_and_mean(c: float, seed: int) -> None:
    r = residuals(seed, 3, 4, 5)
    zero = torch.zeros_like(r)
    for loss in (cauchy_loss, geman_mcclure_loss):
        assert_close(loss(r, zero, c=c * math.sqrt(20), norm="sum"), loss(r, zero, c=c))
    assert_close(
        pseudo_huber_loss(r, zero, c=c * math.sqrt(20), norm="sum"), math.sqrt(20) * pseudo_huber_loss(r, zero, c=c)
    )


@given(constants, st.floats(-1e4, 1e4))
def test_gradient_in_one_dimension(c: float, value: float) -> None:
    for loss, slope, bound in (
        (cauchy_loss, value / (c**2 + value**2 / 2), 1 / (math.sqrt(2) * c)),
        (pseudo_huber_loss, value / math.hypot(value, c), 1.0),
        (geman_mcclure_loss, 16 * c**2 * value / (value**2 + 4 * c**2) ** 2, math.inf),
    ):
        for norm in ("mean", "sum", "element"):
            r = torch.full((1, 1), value, dtype=torch.float64, requires_grad=True)
            loss(r, torch.zeros_like(r), c=c, norm=norm).backward()
            assert float(r.grad) == pytest.approx(slope, rel=1e-9, abs=1e-12)
            assert abs(float(r.grad)) <= bound * (1 + 1e-12)


def test_limit_of_large_c() -> None:
    r = residuals(0, 6, 7)
    m = r.square().mean(1)
    zero = torch.zeros_like(r)
    c = 1e6
    assert_close(cauchy_loss(r, zero, c=c, reduction="none"), m / (2 * c**2), rtol=1e-9, atol=0)
    assert_close(pseudo_huber_loss(r, zero, c=c, reduction="none"), m / (2 * c), rtol=1e-9, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_float32_keeps_small_residuals(loss) -> None:
    small = 1e-5 * residuals(1, 4, 9)
    exact = loss(small, torch.zeros_like(small), c=0.03, reduction="none")
    single = loss(small.float(), torch.zeros(4, 9), c=0.03, reduction="none")
    assert_close(single.double(), exact, rtol=1e-5, atol=0)
    assert (single > 0).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_half_types_do_not_overflow(loss) -> None:
    r = torch.full((2, 8), 300.0, dtype=torch.float16, requires_grad=True)
    value = loss(r, torch.zeros_like(r), c=0.1)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert r.grad.dtype == torch.float16
    assert r.grad.isfinite().all()


@pytest.mark.parametrize("norm", ["mean", "sum", "element"])
def test_second_derivative(norm) -> None:
    input, target = residuals(0, 2, 3).requires_grad_(), residuals(1, 2, 3).requires_grad_()
    for loss in LOSSES:
        torch.autograd.gradgradcheck(lambda a, b, loss=loss: loss(a, b, c=0.5, norm=norm), (input, target))


def test_weights() -> None:
    r, weight = residuals(0, 4, 3), torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    zero = torch.zeros_like(r)
    each = cauchy_loss(r, zero, c=1.0, reduction="none")
    assert_close(cauchy_loss(r, zero, c=1.0, weight=weight), (each * weight).mean())
    assert_close(CauchyLoss(c=1.0, reduction="sum")(r, zero, weight), (each * weight).sum())
    assert "c=1.0" in repr(CauchyLoss(c=1.0))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("norm", ["mean", "sum", "element"])
@pytest.mark.parametrize("value", [1e-25, 1e19, 1e20, 1e25, 1e38])
def test_residuals_whose_squares_leave_float32(loss, norm, value) -> None:
    r = torch.full((2, 3), value)
    r[1] = 0.5
    r.requires_grad_()

    def call(x: torch.Tensor) -> torch.Tensor:
        return loss(x, torch.zeros_like(x), c=0.03, norm=norm, reduction="none")

    exact = r.detach().double().requires_grad_()
    expected = call(exact)
    (slope,) = torch.autograd.grad(expected.sum(), exact)
    ours = call(r)
    assert ours.dtype == torch.float32
    assert_close(ours.double(), expected, rtol=1e-5, atol=1e-40)
    assert_close(torch.autograd.grad(ours.sum(), r)[0].double(), slope, rtol=1e-4, atol=1e-40)
    rows = torch.func.vmap(lambda x: call(x[None])[0])(r.detach())
    assert_close(rows.double(), expected, rtol=1e-5, atol=1e-40)
    slopes = torch.func.vmap(torch.func.grad(lambda x: call(x[None])[0]))(r.detach())
    assert_close(slopes.double(), slope, rtol=1e-4, atol=1e-40)


def test_extreme_residuals_compiled() -> None:
    r = torch.full((2, 3), 1e20, requires_grad=True)
    compiled = torch.compile(lambda x: cauchy_loss(x, torch.zeros_like(x), c=0.03), backend="aot_eager", fullgraph=True)
    value = compiled(r)
    assert float(value.detach()) == pytest.approx(2 * math.log(1e20 / (math.sqrt(2) * 0.03)), rel=1e-6)
    assert_close(torch.autograd.grad(value, r)[0], torch.full((2, 3), 2 / 1e20 / 6), rtol=1e-5, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("norm", ["mean", "sum", "element"])
def test_a_constant_for_each_sample(loss, norm) -> None:
    r, c = residuals(0, 4, 3), torch.tensor([0.1, 0.2, 1.0, 3.0], dtype=torch.float64)
    zero = torch.zeros_like(r)
    each = [loss(r[i : i + 1], zero[:1], c=float(c[i]), norm=norm) for i in range(4)]
    assert_close(loss(r, zero, c=c, norm=norm, reduction="none"), torch.stack(each))
    for wrong in (c[:3], -c, torch.full_like(c, math.nan), c.view(2, 2)):
        with pytest.raises(ValueError, match="c must"):
            loss(r, zero, c=wrong, norm=norm)
