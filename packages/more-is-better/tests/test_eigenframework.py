"""The batched solve: both equations, limits, edges, invariances, and derivatives on every path."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offprints.more_is_better import (
    finite_pool_correction,
    implicit_constants,
    krr_risk,
    optimal_ridge,
    powerlaw_spectrum,
    powerlaw_test_mse,
    rf_risk,
)

FORWARD = pytest.mark.filterwarnings("ignore::FutureWarning")  # torch compiles its forward mode by what is deprecated
NAMES = ("test_mse", "train_mse", "kappa", "gamma", "overfitting_coeff")
SPECTRUM, TARGET = powerlaw_spectrum(400, 1.5, 1.5)
SMALL = torch.tensor([0.9, 0.7, 0.35, 0.3, 0.2, 0.1, 0.05], dtype=torch.float64)
COEFFS = torch.tensor([0.5, -1.0, 0.3, 0.0, 0.8, -0.2, 0.4], dtype=torch.float64)


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def everything(*args: object, **kwargs: float) -> tuple[Tensor, ...]:
    risk = rf_risk(*args, **kwargs)  # type: ignore[arg-type]
    return tuple(getattr(risk, name) for name in NAMES)


@given(
    st.lists(st.floats(-12, 3), min_size=2, max_size=30),
    st.floats(0.5, 40),
    st.one_of(st.just(math.inf), st.floats(0.5, 1e4)),
    st.floats(-12, 4),
)
@settings(max_examples=40)
def test_both_equations(logs: list[float], n: float, k: float, log_ridge: float) -> None:
    eigvals, ridge = 10.0 ** doubles(*logs), 10.0**log_ridge
    kappa, gamma = implicit_constants(eigvals, n, k, ridge)
    z = (eigvals / (eigvals + gamma)).sum()
    if float(kappa) > 0:
        # The residual in units of its terms: ridge / kappa is a large number's difference where kappa is tiny.
        assert float(z + ridge / kappa) == pytest.approx(n, rel=1e-8)
    if k < math.inf:
        assert float(z + k * kappa / gamma) == pytest.approx(k, rel=1e-8)
    else:
        assert kappa == gamma


def test_mixed_finite_and_infinite_widths_and_shapes() -> None:
    n, k = torch.tensor([[20], [60]]), doubles(10, 60, math.inf)
    risk = rf_risk(SPECTRUM, TARGET, n, k, 0.1, noise_var=0.3)
    assert risk.test_mse.shape == (2, 3)
    assert risk.test_mse.dtype == torch.float64
    for i in range(2):
        for j in range(3):
            alone = rf_risk(SPECTRUM, TARGET, float(n[i]), float(k[j]), 0.1, noise_var=0.3)
            for name in NAMES:
                assert getattr(alone, name).shape == ()
                assert float(getattr(alone, name)) == pytest.approx(float(getattr(risk, name)[i, j]), rel=1e-12)


def test_infinite_width_is_the_limit() -> None:
    wide = everything(SPECTRUM, TARGET, 50, 1e12, doubles(0, 1e-3, 1), noise_var=0.3)
    kernel = krr_risk(SPECTRUM, TARGET, 50, doubles(0, 1e-3, 1), noise_var=0.3)
    for found, name in zip(wide, NAMES, strict=True):
        torch.testing.assert_close(found, getattr(kernel, name), rtol=1e-8, atol=1e-15)


@pytest.mark.parametrize(("n", "k"), [(3, 5), (5, 3), (9, 3), (9, 12), (12, 9), (3, math.inf), (9, math.inf), (9, 9)])
def test_no_ridge_is_the_limit(n: float, k: float) -> None:
    limit = everything(SMALL, COEFFS, n, k, 1e-13, noise_var=0.3)
    exact = everything(SMALL, COEFFS, n, k, 0.0, noise_var=0.3)
    for found, expected in zip(limit, exact, strict=True):
        assert float(found) == pytest.approx(float(expected), rel=1e-8, abs=1e-10)


def test_enough_samples_and_features_without_a_ridge() -> None:
    """min(n, k) >= number of modes: only the noise and what has no eigenvalue is left (trap 11)."""
    eigvals, coeffs = torch.cat([SMALL, doubles(0, 0)]), torch.cat([COEFFS, doubles(2, 1)])
    for n, k in ((9.0, 8.0), (9.0, math.inf), (8.0, 7.0), (10.0, 10.0)):
        risk = rf_risk(eigvals, coeffs, n, k, noise_var=0.3)
        test = (0.3 + 5) * n / (n - 7)
        assert float(risk.gamma) == float(risk.kappa) == 0
        assert float(risk.test_mse) == pytest.approx(test, rel=1e-12)
        assert float(risk.train_mse) == pytest.approx(((n - 7) / n) ** 2 * test, rel=1e-12)
    assert float(rf_risk(SMALL, COEFFS, 7, 9).test_mse) == 0  # infinitely amplified nothing
    assert float(rf_risk(SMALL, 0 * COEFFS, 4, 4).test_mse) == 0


@pytest.mark.parametrize(("n", "k"), [(4, 4), (7, 7), (7, 9), (7, math.inf)])
def test_divergence_is_infinite_and_never_nan(n: float, k: float) -> None:
    risk = rf_risk(SMALL, COEFFS, n, k, noise_var=0.3)
    assert float(risk.test_mse) == float(risk.overfitting_coeff) == math.inf
    assert float(risk.train_mse) == float(risk.kappa) == 0
    near = rf_risk(SMALL, COEFFS, n, k, 1e-14, noise_var=0.3)
    assert float(near.test_mse) > 1e3


def test_an_infinite_ridge_predicts_nothing() -> None:
    test, train, kappa, gamma, coeff = everything(SMALL, COEFFS, 5, doubles(3, math.inf), math.inf, noise_var=0.3)
    expected = float(COEFFS.square().sum()) + 0.3
    assert test.tolist() == pytest.approx([expected] * 2)
    assert train.tolist() == pytest.approx([expected] * 2)
    assert kappa.tolist() == gamma.tolist() == [math.inf] * 2
    assert coeff.tolist() == [1, 1]
    limit = everything(SMALL, COEFFS, 5, doubles(3, math.inf), 1e9, noise_var=0.3)
    torch.testing.assert_close(limit[0], test, rtol=1e-7, atol=0)


def test_near_interpolation_nothing_cancels() -> None:
    """n near k and tiny ridges: kappa = gamma (k - z) / k, where k - z is far below rounding of z (trap 2)."""
    for n, k in ((50.0, 50.0), (50.0, 50.0 + 1e-9), (60.0, 50.0), (50.0, 60.0)):
        for ridge in (1e-6, 1e-12, 1e-18):
            kappa, gamma = implicit_constants(SPECTRUM, n, k, ridge)
            # (n - z)(k - z) = k ridge / gamma with n - z = ridge / kappa and k - z = k kappa / gamma, identically;
            # their difference is what does not hold by itself.
            apart = float(ridge / kappa - k * kappa / gamma)
            assert apart == pytest.approx(n - k, rel=1e-9, abs=1e-9 * float(ridge / kappa))


@given(st.floats(1, 100), st.floats(1, 100), st.floats(-6, 2), st.floats(-20, 20))
@settings(max_examples=20)
def test_invariances(n: float, k: float, log_ridge: float, log_scale: float) -> None:
    ridge, scale = 10.0**log_ridge, 10.0**log_scale
    one = rf_risk(SPECTRUM, TARGET, n, k, ridge, noise_var=0.1)
    scaled = rf_risk(scale * SPECTRUM, TARGET, n, k, scale * ridge, noise_var=0.1)
    assert float(scaled.test_mse) == pytest.approx(float(one.test_mse), rel=1e-9)
    assert float(scaled.gamma) == pytest.approx(scale * float(one.gamma), rel=1e-9)
    exchanged = implicit_constants(SPECTRUM, k, n, ridge * k / n)[1]
    assert float(exchanged) == pytest.approx(float(one.gamma), rel=1e-9)
    assert float(one.test_mse) >= 0.1
    assert 0 <= float(one.train_mse) <= float(one.test_mse)


def test_order_multiplicity_and_outputs() -> None:
    order = torch.randperm(len(SMALL), generator=torch.Generator().manual_seed(0))
    base = everything(SMALL, COEFFS, 4, 6, 0.1)
    for other in (
        everything(SMALL[order], COEFFS[order], 4, 6, 0.1),
        everything(SMALL, torch.stack([0.6 * COEFFS, 0.8 * COEFFS], 1), 4, 6, 0.1),
        everything(SMALL.repeat(2)[::2], COEFFS.repeat(2)[::2] * 0 + COEFFS[[0, 2, 4, 6, 1, 3, 5]], 4, 6, 0.1),
    ):
        for found, expected in zip(other, base, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    # A mode of multiplicity m is m modes: a long spectrum of two levels against the formula by hand.
    levels = torch.cat([doubles(1.0).expand(700), doubles(0.01).expand(1300)])
    gamma = float(implicit_constants(levels, 900, math.inf, 2.0)[1])
    assert 700 / (1 + gamma) + 13 / (0.01 + gamma) + 2 / gamma == pytest.approx(900, rel=1e-12)


def test_long_spectra_are_solved_as_short_ones() -> None:
    """Beyond 1024 modes the first approximation comes from a compressed spectrum; the root is that of the whole."""
    eigvals = powerlaw_spectrum(5000, 1.3, 1.5)[0]
    for n, k, ridge in ((30, 4000, 1e-9), (4999.5, math.inf, 0.0), (2000, 2000, 1e-3), (6000, 7000, 1e-12)):
        kappa, gamma = implicit_constants(eigvals, n, k, ridge)
        z = float((eigvals / (eigvals + gamma)).sum())
        lost = ridge / float(kappa) if ridge else max(n - k, 0)
        assert z + lost == pytest.approx(n, rel=1e-10)


def test_power_law_against_the_framework() -> None:
    alpha, beta, n = 1.5, 1.5, 500
    eigvals, coeffs = powerlaw_spectrum(10**6, alpha, beta)
    ridgeless = float(krr_risk(eigvals, coeffs, n).test_mse)
    risk = krr_risk(eigvals, coeffs, n, doubles(0, 1e-3, 0.05), noise_var=ridgeless)
    closed = powerlaw_test_mse(risk.train_mse / risk.test_mse, alpha, beta, noise_rel=1.0, n=n)
    torch.testing.assert_close(risk.test_mse, closed, rtol=0.03, atol=0)
    kappa = (math.pi / (alpha * math.sin(math.pi / alpha)) / n) ** alpha
    assert float(risk.kappa[0]) == pytest.approx(kappa, rel=0.02)


def test_theorem_1() -> None:
    task = powerlaw_spectrum(100, 1.5, 1.5)
    errors = [optimal_ridge(*task, 40, k, noise_var=0.4)[1] for k in (5, 20, 40, 80, 1e3, math.inf)]
    assert all(np.diff(errors) < 0)
    errors = [optimal_ridge(*task, n, 40, noise_var=0.4)[1] for n in (5, 20, 40, 80, 1e3)]
    assert all(np.diff(errors) < 0)


@pytest.mark.parametrize(("n", "k", "noise"), [(20, 60, 0.3), (60, 20, 1e-3), (40, 40, 0.0), (500, 600, 1e-9)])
def test_the_optimal_ridge_is_a_minimum(n: float, k: float, noise: float) -> None:
    ridge, error = optimal_ridge(SPECTRUM, TARGET, n, k, noise_var=noise)
    around = rf_risk(SPECTRUM, TARGET, n, k, ridge * doubles(0.5, 0.99, 1, 1.01, 2), noise_var=noise).test_mse
    assert float(around[2]) == pytest.approx(error, rel=1e-13)
    assert (around >= error * (1 - 1e-13)).all()
    log = doubles(math.log(ridge)).requires_grad_()
    (slope,) = torch.autograd.grad(rf_risk(SPECTRUM, TARGET, n, k, log.exp(), noise_var=noise).test_mse.sum(), log)
    assert float(slope) == pytest.approx(0, abs=1e-9 * error)


def test_optimal_ridges_at_the_ends() -> None:
    assert optimal_ridge(SPECTRUM, TARGET, 40) == (0.0, float(krr_risk(SPECTRUM, TARGET, 40).test_mse))
    assert optimal_ridge(SMALL, COEFFS, 20) == (0.0, 0.0)
    nothing = optimal_ridge(torch.cat([SMALL, doubles(0)]), torch.cat([0 * COEFFS, doubles(1)]), 5, noise_var=0.5)
    assert nothing == (math.inf, 1.5)
    assert float(krr_risk(SMALL, 0 * COEFFS, 5, nothing[0], noise_var=0.5).test_mse) == 0.5
    much = optimal_ridge(SMALL, COEFFS, 5, noise_var=1e12)
    assert much[1] == pytest.approx(1e12, rel=1e-9)


def test_finite_pool_correction() -> None:
    found = finite_pool_correction(doubles(0.5, 1.0), doubles(0.1, 0.0), torch.tensor([200, 500]), 1000)
    torch.testing.assert_close(found, doubles(0.6, 2.0))


@pytest.mark.parametrize("ridge", [1e-40, 1e-30, 1e-20, 1e-9, 1e-3, 1.0])
def test_as_many_samples_or_features_as_modes(ridge: float) -> None:
    """n = modes and a tiny ridge: n - z is the sum of gamma / (lambda + gamma), far below rounding of z."""
    eigvals, coeffs = torch.ones(20, dtype=torch.float64), torch.ones(20, dtype=torch.float64)
    kernel = (ridge + math.sqrt(ridge**2 + 80 * ridge)) / 40  # M gamma^2 = ridge (1 + gamma)
    square = wide = 0.0
    for _ in range(200):  # M gamma^3 = ridge (1 + gamma)^2 and, at k = 40, M gamma^2 (k - z) = k ridge (1 + gamma)
        square = (ridge * (1 + square) ** 2 / 20) ** (1 / 3)
        wide = math.sqrt(40 * ridge * (1 + wide) / 20 / (40 - 20 / (1 + wide)))
    risk = rf_risk(eigvals, coeffs, doubles(20, 20, 20), doubles(math.inf, 20, 40), ridge, noise_var=0.3)
    assert risk.gamma.tolist() == pytest.approx([kernel, square, wide], rel=1e-12)
    # In kernel regression all is the same gamma: 1 / (1 - q / n), and the unlearned share is gamma / (1 + gamma).
    coeff = (1 + kernel) ** 2 / (kernel * (2 + kernel))
    assert float(risk.overfitting_coeff[0]) == pytest.approx(coeff, rel=1e-12)
    assert float(risk.test_mse[0]) == pytest.approx(coeff * (20 * (kernel / (1 + kernel)) ** 2 + 0.3), rel=1e-12)
    exchanged = rf_risk(eigvals, coeffs, 40, 20, 2 * ridge).gamma  # gamma(n, k, ridge) = gamma(k, n, ridge k / n)
    assert float(exchanged) == pytest.approx(float(risk.gamma[2]), rel=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e200, 1e300])
def test_no_unit_of_the_kernel_is_too_small_or_too_large(scale: float) -> None:
    n, k, ridge = doubles(5, 3, 9, 7), doubles(6, math.inf, 12, 9), doubles(0.1, 0.0, 1e-6, 0.1)
    one, scaled = (everything(s * SMALL, COEFFS, n, k, s * ridge, noise_var=0.3) for s in (1.0, scale))
    for name, found, expected in zip(NAMES, scaled, one, strict=True):
        unit = scale if name in ("kappa", "gamma") else 1.0
        torch.testing.assert_close(found / unit, expected, rtol=1e-12, atol=0)
    for constant, expected in zip(implicit_constants(scale * SMALL, n, k, scale * ridge), one[2:4], strict=True):
        torch.testing.assert_close(constant / scale, expected, rtol=1e-12, atol=0)
    best = optimal_ridge(SMALL, COEFFS, 5, 6, noise_var=0.3)
    found_best = optimal_ridge(scale * SMALL, COEFFS, 5, 6, noise_var=0.3)
    assert (found_best[0] / scale, found_best[1]) == pytest.approx(best, rel=1e-9)


def test_a_huge_ridge_is_as_good_as_an_infinite_one() -> None:
    ridge = doubles(1e90, 1e150, 1e308).requires_grad_()
    test, train, kappa, gamma, coeff = everything(SMALL, COEFFS, 5, doubles(3, math.inf, 20), ridge, noise_var=0.3)
    expected = [float(COEFFS.square().sum()) + 0.3] * 3
    assert test.tolist() == pytest.approx(expected)
    assert train.tolist() == pytest.approx(expected)
    assert coeff.tolist() == pytest.approx([1] * 3)
    assert kappa.tolist() == pytest.approx((ridge / 5).tolist())
    assert gamma.tolist() == pytest.approx((ridge / 5).tolist())
    (slope,) = torch.autograd.grad(kappa.sum(), ridge)
    assert slope.tolist() == pytest.approx([0.2] * 3)


# Derivatives


@FORWARD
def test_derivatives_of_first_and_second_order() -> None:
    points = [doubles(*x).requires_grad_() for x in ((3, 3, 9, 9, 4), (5, 2, 5, 12, 4), (0.1, 0.2, 0.3, 0.4, 0.05))]
    inputs = (SMALL.clone().requires_grad_(), COEFFS.clone().requires_grad_(), *points)

    def errors(*args: Tensor) -> tuple[Tensor, ...]:
        return everything(*args, noise_var=0.3)

    assert torch.autograd.gradcheck(errors, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(errors, inputs, atol=1e-4, fast_mode=True)


@pytest.mark.parametrize("k", [doubles(5, 3, 9, 20), torch.full((4,), math.inf).double()])
def test_derivatives_without_a_ridge(k: Tensor) -> None:
    def errors(eigvals: Tensor, coeffs: Tensor, n: Tensor) -> tuple[Tensor, ...]:
        return everything(eigvals, coeffs, n, k, 0.0)

    inputs = (SMALL.clone().requires_grad_(), COEFFS.clone().requires_grad_(), doubles(3, 5, 12, 9.5).requires_grad_())
    assert torch.autograd.gradcheck(errors, inputs)
    assert torch.autograd.gradgradcheck(errors, inputs, atol=1e-4, fast_mode=True)


@pytest.mark.parametrize(("n", "k"), [(3, 5), (5, 3), (9, 12), (9, math.inf), (3, math.inf)])
def test_the_slope_at_no_ridge(n: float, k: float) -> None:
    """One-sided: against differences of second order."""
    ridge, step = doubles(0).requires_grad_(), 1e-7
    values = everything(SMALL, COEFFS, n, k, ridge, noise_var=0.3)
    slopes = [float(torch.autograd.grad(x.sum(), ridge, retain_graph=True)[0]) for x in values]
    zero, one, two = (everything(SMALL, COEFFS, n, k, i * step, noise_var=0.3) for i in range(3))
    expected = [float(4 * b - c - 3 * a) / (2 * step) for a, b, c in zip(zero, one, two, strict=True)]
    assert slopes == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_the_gradient_where_there_is_none_is_not_nan() -> None:
    eigvals = torch.cat([SMALL, doubles(0, 0)]).requires_grad_()
    coeffs, ridge = torch.ones(9, dtype=torch.float64, requires_grad=True), doubles(0).requires_grad_()
    for n, k in ((4, 4), (7, 7), (7, 9), (9, 7), (8, 8), (12, math.inf), (7, math.inf)):
        for value in everything(eigvals, coeffs, n, k, ridge, noise_var=0.1):
            for part in torch.autograd.grad(
                value.sum(), (eigvals, coeffs, ridge), allow_unused=True, retain_graph=True
            ):
                assert part is None or not part.isnan().any()


@FORWARD
def test_torch_func() -> None:
    def error(ridge: Tensor, eigvals: Tensor = SMALL) -> Tensor:
        return rf_risk(eigvals, COEFFS, 3.0, doubles(5, math.inf), ridge, noise_var=0.3).test_mse.sum()

    ridge, step = doubles(0.2).sum(), 1e-4
    slope = float(error(ridge + step) - error(ridge - step)) / (2 * step)
    bend = float(error(ridge + step) - 2 * error(ridge) + error(ridge - step)) / step**2
    assert float(torch.func.grad(error)(ridge)) == pytest.approx(slope, rel=1e-6)
    assert float(torch.func.jacfwd(error)(ridge)) == pytest.approx(slope, rel=1e-6)
    assert float(torch.func.hessian(error)(ridge)) == pytest.approx(bend, rel=1e-5)
    assert float(torch.func.jacrev(torch.func.jacrev(error))(ridge)) == pytest.approx(bend, rel=1e-5)
    with pytest.raises(RuntimeError, match="forward mode inside forward mode"):
        torch.func.jacfwd(torch.func.jacfwd(error))(ridge)
    ridges = doubles(0.1, 0.2, 0)
    torch.testing.assert_close(torch.vmap(error)(ridges), torch.stack([error(r) for r in ridges]))
    slopes = torch.vmap(torch.func.grad(error))(ridges)
    torch.testing.assert_close(slopes, torch.stack([torch.func.grad(error)(r) for r in ridges]))
    spectra = torch.stack([SMALL, 2 * SMALL, SMALL.square()])
    found = torch.vmap(error, (None, 0))(ridge, spectra)
    torch.testing.assert_close(found, torch.stack([error(ridge, spectrum) for spectrum in spectra]))
    jacobian = torch.func.jacrev(error, argnums=1)(ridge, SMALL)
    torch.testing.assert_close(jacobian, torch.func.jacfwd(error, argnums=1)(ridge, SMALL))


@pytest.mark.filterwarnings("ignore::UserWarning")  # dynamo looks at .grad of what is between two graphs
def test_compiled() -> None:
    def error(ridge: Tensor) -> Tensor:
        return (2 * rf_risk(SMALL, COEFFS, 3.0, doubles(5, math.inf), ridge.exp(), noise_var=0.3).test_mse).sum()

    ridge = doubles(-1.0).requires_grad_()
    compiled = torch.compile(error, backend="aot_eager")
    torch.testing.assert_close(compiled(ridge), error(ridge))
    found, expected = (torch.autograd.grad(f(ridge), ridge)[0] for f in (compiled, error))
    torch.testing.assert_close(found, expected)


def test_types_and_layouts() -> None:
    expected = rf_risk(SMALL.float().double(), COEFFS.float().double(), 4, 6, 0.5).test_mse
    strided = torch.stack([SMALL, SMALL], 1)[:, 0]
    assert not strided.is_contiguous()
    assert torch.equal(rf_risk(SMALL.float(), COEFFS.float(), np.int64(4), np.float32(6), 0.5).test_mse, expected)
    assert torch.equal(rf_risk(strided, COEFFS, 4, 6, 0.5).test_mse, rf_risk(SMALL, COEFFS, 4, 6, 0.5).test_mse)
    half = rf_risk(SMALL.half(), COEFFS, 4, 6, 0.5)
    assert half.test_mse.dtype == torch.float64
    assert torch.equal(half.test_mse, rf_risk(SMALL.half().double(), COEFFS, 4, 6, 0.5).test_mse)
    whole = rf_risk(SMALL, COEFFS, torch.tensor([4, 5]), torch.tensor(6, dtype=torch.uint8), 0.5)
    assert whole.test_mse.shape == (2,)


def test_monte_carlo() -> None:
    """Random features on Gaussian data in the eigenbasis, in the primal."""
    generator = torch.Generator().manual_seed(0)
    eigvals, target = powerlaw_spectrum(300, 1.5, 1.5)
    n, k, ridge, noise, errors = 40, 90, 0.05, 0.3, []
    for _ in range(60):
        x = torch.randn(n, 300, generator=generator, dtype=torch.float64)
        y = x @ target + noise**0.5 * torch.randn(n, generator=generator, dtype=torch.float64)
        projection = eigvals.sqrt()[:, None] * torch.randn(300, k, generator=generator, dtype=torch.float64) / k**0.5
        F = x @ projection
        coef = torch.linalg.solve(F.T @ F + ridge * torch.eye(k, dtype=torch.float64), F.T @ y)
        test = (projection @ coef - target).square().sum() + noise
        errors.append(torch.stack([test, (F @ coef - y).square().mean()]))
    risk = rf_risk(eigvals, target, n, k, ridge, noise_var=noise)
    found = torch.stack(errors).mean(0)
    torch.testing.assert_close(found, torch.stack([risk.test_mse, risk.train_mse]), rtol=0.06, atol=0)
