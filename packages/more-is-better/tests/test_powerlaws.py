"""Closed forms of power-law tasks."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offprints.more_is_better import critical_noise, optimal_fitting_ratio, powerlaw_spectrum, powerlaw_test_mse


@given(st.floats(1.05, 4), st.floats(0.02, 0.98), st.floats(0, 20))
def test_the_optimal_ratio_is_the_minimum(alpha: float, place: float, noise: float) -> None:
    beta = 1 + 2 * alpha * place
    ratio = optimal_fitting_ratio(alpha, beta, noise_rel=noise)
    grid = torch.linspace(0, 0.999, 4001, dtype=torch.float64)
    errors = powerlaw_test_mse(grid, alpha, beta, noise_rel=noise)
    assert float(powerlaw_test_mse(ratio, alpha, beta, noise_rel=noise)) <= float(errors.min()) * (1 + 1e-12)
    assert (ratio == 0) == (noise <= (beta - alpha) / (alpha * (alpha - 1)))


def test_no_hole_at_beta_alpha_plus_one() -> None:
    ratios = torch.tensor([0.0, 0.3], dtype=torch.float64)
    at = powerlaw_test_mse(ratios, 1.5, 2.5, noise_rel=0.5)
    for near in (2.5 - 1e-9, 2.5 + 1e-9):
        torch.testing.assert_close(powerlaw_test_mse(ratios, 1.5, near, noise_rel=0.5), at, rtol=1e-8, atol=0)


def test_the_ends_of_beta() -> None:
    """The published form where it is well conditioned, just inside of either end."""
    for alpha, beta in ((1.5, 1 + 1e-6), (1.5, 4 - 1e-6), (30.0, 1.5)):
        a = math.pi / alpha
        expected = math.pi**beta * (alpha - beta + 1) * math.sin(a) / math.sin(a * (beta - 1))
        expected *= (alpha * math.sin(a)) ** -beta
        assert float(powerlaw_test_mse(0.0, alpha, beta)) == pytest.approx(expected, rel=1e-8)


def test_papers_exponents() -> None:
    """CIFAR-10, SVHN, MNIST with the convolutional kernel of depth 10."""
    ratios = [optimal_fitting_ratio(*pair) for pair in ((1.17, 1.14), (1.22, 1.20), (1.12, 1.36))]
    assert ratios == pytest.approx([0.024, 0.0057, 0.0], abs=5e-4)
    assert critical_noise(1.12, 1.36) == pytest.approx((1.36 - 1.12) / (1.12 * 0.12))
    assert critical_noise(1.17, 1.14) == 0


def test_derivative_and_type() -> None:
    ratio = torch.tensor([0.1, 0.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r: powerlaw_test_mse(r, 1.3, 1.2, noise_rel=2.0), ratio)
    assert powerlaw_test_mse(0.25, 1.3, 1.2).dtype == torch.float64
    assert powerlaw_test_mse(torch.tensor([0.25]), 1.3, 1.2).shape == (1,)
    eigvals, coeffs = powerlaw_spectrum(5, 1.3, 1.2, dtype=torch.float32)
    assert eigvals.dtype == coeffs.dtype == torch.float32
    torch.testing.assert_close(coeffs.square(), torch.arange(1.0, 6).pow(-1.2))


def test_scaling_with_n() -> None:
    one, ten = (float(powerlaw_test_mse(0.2, 1.3, 1.6, n=n)) for n in (1, 10))
    assert ten == pytest.approx(one * 10**-0.6)


def test_the_optimal_ratio_is_always_one_that_the_error_takes() -> None:
    """However much noise there is, the ratio stays below 1."""
    for noise in (1e10, 1e30, 1e300):
        ratio = optimal_fitting_ratio(1.5, 1.4, noise_rel=noise)
        assert 1 - 1e-6 < ratio < 1
        assert float(powerlaw_test_mse(ratio, 1.5, 1.4)) > 0
