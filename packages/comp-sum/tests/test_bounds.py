"""The calculator: exactness, inverses, the theorem on random distributions, and the conditional minima."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offprints.comp_sum import (
    comp_sum_loss,
    conditional_risk_minimum,
    h_consistency_bound,
    inverse_transform,
    minimizability_gap,
    reference,
    transform,
)
from offprints.comp_sum.reproduce.theory import random_regrets

TAUS = (0.0, 0.2, 0.7, 1.0, 1.3, 1.8, 2.0, 3.5)
BETAS = torch.tensor([0.0, 1e-8, 1e-4, 0.03, 0.3, 0.6, 0.9, 0.999, 1 - 1e-9, 1.0], dtype=torch.float64)


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("classes", [2, 5, 1000])
def test_transform(tau: float, classes: int) -> None:
    found = transform(BETAS, tau, classes)
    for beta, value in zip(BETAS[3:].tolist(), found[3:].tolist(), strict=True):
        assert value == pytest.approx(reference.transform(beta, tau, classes), rel=1e-11)
    if tau < 2:  # where the plain formula has canceled, the first term of the series
        scale = 2**tau if tau <= 1 else 2 * classes ** (tau - 1)
        torch.testing.assert_close(found[1:3], BETAS[1:3] ** 2 / (scale * (2 - tau)), rtol=1e-6, atol=0)
    assert found[0] == 0
    assert (found.diff() > 0).all()
    grid = transform(torch.linspace(0, 1, 101, dtype=torch.float64), tau, classes)
    assert (grid.diff().diff() >= -1e-15).all()  # convex


@pytest.mark.parametrize(
    ("tau", "values"),
    [
        (1e-9, (0.99995527825501631, 0.99999858541579508, 0.99999997854028157)),
        (0.3, (0.89214149810249509, 0.89214956280223785, 0.89214970287427222)),
        (0.9, (0.71773459182300697, 0.71773462529571619, 0.71773462536289829)),
        (1.5, (0.47829262265970398, 0.47829262347538406, 0.47829262347620036)),
        (1.999, (0.33357086341534287, 0.33357086374881138, 0.33357086374914510)),
    ],
)
def test_transform_near_the_end(tau: float, values: tuple[float, ...]) -> None:
    """Against 60 digits at 1 - 1e-9, 1 - 1e-12 and the last number below 1, three classes."""
    beta = torch.tensor([1 - 1e-9, 1 - 1e-12, 1 - 2.0**-53 * 2], dtype=torch.float64)
    expected = torch.tensor(values, dtype=torch.float64)
    torch.testing.assert_close(transform(beta, tau, 3), expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(inverse_transform(expected, tau, 3), beta, rtol=1e-14, atol=0)


@pytest.mark.parametrize("tau", [1 - 1e-7, 1 - 1e-12, 1 + 1e-12, 1 + 1e-7, 2 - 1e-3, 2 - 1e-9])
def test_transform_is_continuous_in_tau(tau: float) -> None:
    at = 1.0 if tau < 1.5 else 2.0
    torch.testing.assert_close(
        transform(BETAS, tau, 2),
        transform(BETAS, at, 2),
        rtol=3e-3 if tau < 1.9995 and at == 2 else 1e-6,
        atol=1e-3 if at == 2 else 0,
    )


@pytest.mark.parametrize("tau", [*TAUS, 1 - 1e-9, 1 + 1e-9, 1.999])
@pytest.mark.parametrize("classes", [2, 5, 1000])
def test_inverse(tau: float, classes: int) -> None:
    t = transform(BETAS[:-2], tau, classes)
    torch.testing.assert_close(inverse_transform(t, tau, classes), BETAS[:-2], rtol=1e-10, atol=0)
    most = transform(1.0, tau, classes)
    assert inverse_transform(most, tau, classes) == 1
    assert inverse_transform(10 * most, tau, classes) == 1
    if tau in TAUS:
        for value in t[3:].tolist():
            assert inverse_transform(value, tau, classes).item() == pytest.approx(
                reference.inverse_transform(value, tau, classes), rel=1e-9
            )


@pytest.mark.parametrize("tau", [0.5, 1.0, 1.5, 3.0])
def test_simple_bounds_lie_above(tau: float) -> None:
    t = torch.logspace(-12, 0, 49, dtype=torch.float64)
    above = (
        (2**tau * (2 - tau) * t).sqrt()
        if tau < 1
        else (2 * 5 ** (tau - 1) * t).sqrt()
        if tau < 2
        else (tau - 1) * 25 * t
    )
    assert (inverse_transform(t, tau, 5) <= above * (1 + 1e-12)).all()


def test_extreme_settings() -> None:
    assert transform(1.0, 500.0, 10).item() == pytest.approx(0, abs=1e-300)
    assert inverse_transform(0.0, 1e4, 10) == 0  # T(1) is no number of float64 any more
    assert inverse_transform(1e-300, 1e4, 10) == 1
    assert transform(torch.tensor([[0.5]]), 1.5, 3).shape == (1, 1)
    assert transform(0.5, 1.5, 3).shape == ()


@pytest.mark.parametrize("tau", TAUS)
def test_theorem(tau: float) -> None:
    for classes in (2, 3, 10):
        surrogate, zero_one = random_regrets(tau, 2000, classes, 3)
        assert (surrogate >= transform(zero_one, tau, classes) - 1e-12).all()
        assert surrogate.min() >= -1e-12  # no scores are better than the best ones


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.5, 2.0])
def test_bound_is_attained_with_two_classes(tau: float) -> None:
    """p = (1 + beta, 1 - beta) / 2 and equal scores: the error's regret is beta, and no scores that err cost less."""
    for beta in (0.1, 0.6, 0.95):
        p = torch.tensor([(1 + beta) / 2, (1 - beta) / 2], dtype=torch.float64)
        losses = comp_sum_loss(torch.zeros(2, 2).double(), torch.tensor([0, 1]), tau=tau, reduction="none")
        regret = (p * losses).sum() - conditional_risk_minimum(p, tau)
        assert regret.item() == pytest.approx(transform(beta, tau, 2).item(), rel=1e-10)


@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0, 1.4, 1.9])
def test_conditional_minimum_is_one(tau: float) -> None:
    """It equals the risk of the scores log(p) / (2 - tau), and is at most that of any others."""
    p = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    least = conditional_risk_minimum(p, tau).item()

    def risk(h: torch.Tensor) -> float:
        return reference.conditional_risk(p.tolist(), h.tolist(), tau)

    assert risk(p.log() / (2 - tau)) == pytest.approx(least, rel=1e-12)
    generator = torch.Generator().manual_seed(0)
    assert all(risk(3 * torch.randn(4, generator=generator)) >= least for _ in range(50))


def test_conditional_minimum_at_special_points() -> None:
    p = torch.tensor([[0.6, 0.4, 0.0], [1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)
    for tau in (0.0, 0.5, 1.0, 1.5, 1.999, 2.0, 3.0):
        found = conditional_risk_minimum(p, tau)
        assert found[1].item() == pytest.approx(0, abs=1e-15)
        if tau < 2:
            assert found[2].item() == pytest.approx(reference.phi(2.0, tau))
    for tau in (1 - 1e-13, 1 + 1e-13):
        torch.testing.assert_close(
            conditional_risk_minimum(p, tau), conditional_risk_minimum(p, 1.0), rtol=1e-9, atol=1e-15
        )
    torch.testing.assert_close(
        conditional_risk_minimum(p, 2 - 1e-12), conditional_risk_minimum(p, 2.0), rtol=1e-9, atol=1e-12
    )


def test_gaps_and_the_bound() -> None:
    p = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    assert minimizability_gap(0.5, p, 2.0, weights=torch.tensor([1.0, 3.0])) == pytest.approx(0.5 - 0.175)
    best = float(conditional_risk_minimum(p, 1.0).mean())
    gap = minimizability_gap(best, p, 1.0)
    assert gap == pytest.approx(0, abs=1e-15)
    # What the package computes is accepted by it, a rounding below 0 too.
    bound = h_consistency_bound(0.0, tau=1.0, num_classes=2, surrogate_gap=gap - 1e-12)
    assert bound == 0
    gamma = inverse_transform(0.3, 1.5, 4)
    assert h_consistency_bound(
        0.1, tau=1.5, num_classes=4, surrogate_gap=0.2, zero_one_gap=0.05
    ).item() == pytest.approx(float(gamma) - 0.05)
    assert h_consistency_bound(torch.tensor([0.0, 0.1]), tau=1.5, num_classes=4, zero_one_gap=0.9).tolist() == [0, 0]


@given(st.floats(0, 1), st.floats(0, 4), st.integers(2, 50))
def test_gamma_of_transform(beta: float, tau: float, classes: int) -> None:
    t = transform(beta, tau, classes)
    assert 0 <= t.item() < math.inf
    if t.item() > 1e-290:
        assert inverse_transform(t, tau, classes).item() == pytest.approx(beta, rel=1e-7)
