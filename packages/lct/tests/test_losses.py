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


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("norm", ["mean", "sum", "element"])
def test_gradient_compiled(loss, norm) -> None:
    r = residuals(0, 4, 3).requires_grad_()

    def call(x: torch.Tensor) -> torch.Tensor:
        return loss(x, torch.zeros_like(x), c=0.3, norm=norm)

    (expected,) = torch.autograd.grad(call(r), r)
    (found,) = torch.autograd.grad(torch.compile(call, backend="aot_eager")(r), r)
    assert float(expected.abs().max()) > 0.01
    assert_close(found, expected)


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


def plainly(loss, r: torch.Tensor, c: torch.Tensor, norm: str) -> torch.Tensor:
    """The formulas, in operations that torch differentiates itself."""
    m = {"mean": r.square().mean(1), "sum": r.square().sum(1), "element": r.square()}[norm]
    c = c[:, None] if norm == "element" else c
    each = {
        cauchy_loss: lambda: torch.log1p(m / (2 * c * c)),
        pseudo_huber_loss: lambda: (m + c * c).sqrt() - c,
        geman_mcclure_loss: lambda: 2 * m / (m + 4 * c * c),
    }[loss]()
    return each.mean(1) if norm == "element" else each


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # torch's own, in forward mode
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("norm", ["mean", "sum", "element"])
def test_derivatives_of_every_kind(loss, norm) -> None:
    """Forward and reverse, first and second, in the residuals and in c, at zero residuals too."""
    r, c, along = residuals(0, 3, 5), torch.tensor([0.1, 0.7, 3.0], dtype=torch.float64), residuals(1, 3, 5)
    r[1] = 0
    zero = torch.zeros_like(r)

    def ours(r: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return loss(-r, torch.zeros_like(r), c=c, norm=norm, reduction="none")

    def theirs(r: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return plainly(loss, r, c, norm)

    for transform in (
        lambda fn: torch.func.jvp(fn, (r, c), (along, c))[1],
        lambda fn: torch.func.jacrev(fn, argnums=(0, 1))(r, c),
        lambda fn: torch.func.jacfwd(fn, argnums=(0, 1))(r, c),
        lambda fn: torch.func.hessian(lambda r: fn(r, c).sum())(r),
        lambda fn: torch.func.vmap(torch.func.grad(lambda r, c: fn(r[None], c[None]).sum(), argnums=(0, 1)))(r, c),
    ):
        assert_close(transform(ours), transform(theirs))
    assert_close(
        torch.func.jvp(lambda t: loss(r, t, c=0.7, norm=norm), (zero,), (along,))[1],
        torch.func.jvp(lambda t: theirs(r - t, torch.full_like(c, 0.7)).mean(), (zero,), (along,))[1],
    )


def test_c_of_one_tensor_is_learned() -> None:
    r, c = residuals(0, 4, 3), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    for loss in LOSSES:
        (slope,) = torch.autograd.grad(loss(r, torch.zeros_like(r), c=c), c)
        (expected,) = torch.autograd.grad(plainly(loss, r, c.expand(4), "mean").mean(), c)
        assert_close(slope, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("norm", ["mean", "sum", "element"])
def test_autocast_does_not_round(dtype, norm) -> None:
    r = 1e-5 * residuals(2, 4, 33).float()
    for loss in LOSSES:
        expected = loss(r, torch.zeros_like(r), c=1e-4, norm=norm)
        with torch.autocast("cpu", dtype):
            assert_close(loss(r, torch.zeros_like(r), c=1e-4, norm=norm), expected)


@pytest.mark.parametrize("norm", ["mean", "sum", "element"])
def test_gradient_of_geman_mcclure_at_outliers(norm) -> None:
    for value, c in ((1e3, 1e-4), (1.0, 1e-9), (1e6, 1.0)):
        for dtype in (torch.float32, torch.float64):
            r = torch.full((1, 1), value, dtype=dtype, requires_grad=True)
            geman_mcclure_loss(r, torch.zeros_like(r), c=c, norm=norm).backward()
            assert float(r.grad) == pytest.approx(16 * c**2 / value**3, rel=1e-5)


@pytest.mark.parametrize("entries", [1, 2, 3, 4, 5, 7, 8, 22])
def test_one_logarithm_for_several_entries(entries: int) -> None:
    r = torch.logspace(-12, 9, 3 * entries, dtype=torch.float64).view(3, entries)
    expected = torch.log1p(r.square() / (2 * 1e-3**2)).mean(1)
    for dtype in (torch.float32, torch.float64):
        ours = cauchy_loss(r.to(dtype), torch.zeros_like(r, dtype=dtype), c=1e-3, norm="element", reduction="none")
        assert_close(ours.double(), expected, rtol=2e-6, atol=0)
    huge = torch.full((1, entries), 1e90, dtype=torch.float64)  # whose products leave even float64
    value = cauchy_loss(huge, torch.zeros_like(huge), c=1e-3, norm="element")
    assert float(value) == pytest.approx(2 * math.log(1e93) - math.log(2), rel=1e-12)
