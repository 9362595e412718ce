"""Eigensystems, exponents and ridge paths of kernel matrices."""

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge

from offprints.more_is_better import (
    critical_noise,
    estimate_exponents,
    kernel_eigensystem,
    krr_risk,
    optimal_fitting_ratio,
    powerlaw_spectrum,
    relu_ntk,
    ridge_path,
)
from offprints.more_is_better import exponents as module

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(120, 5, generator=GENERATOR, dtype=torch.float64)
Y = torch.stack([X[:, 0].abs(), X[:, 1]], 1)
K = relu_ntk(X)


def test_eigensystem() -> None:
    """Columns, not rows, are put in order (trap 5)."""
    system = kernel_eigensystem(K, Y)
    n = len(K)
    assert (system.eigvals.diff() <= 0).all()
    torch.testing.assert_close(system.eigvecs.T @ system.eigvecs, n * torch.eye(n, dtype=torch.float64))
    torch.testing.assert_close(K @ system.eigvecs / n, system.eigvecs * system.eigvals)
    torch.testing.assert_close(system.eigvecs @ system.coeffs, Y)
    torch.testing.assert_close(kernel_eigensystem(K, Y[:, 0]).coeffs, system.coeffs[:, :1])
    flat = kernel_eigensystem(X @ X.T, Y)  # of rank 5: rounding below 0 is clamped (trap 8)
    assert (flat.eigvals >= 0).all()
    assert krr_risk(flat.eigvals, flat.coeffs, 40).test_mse.isfinite()


@pytest.mark.filterwarnings("error")
def test_an_eigensystem_that_is_differentiated_warns_of_nothing() -> None:
    """The eigenvalues' sum is the trace of K / n, whose gradient is known."""
    kernel = K[:20, :20].clone().requires_grad_()
    (slope,) = torch.autograd.grad(kernel_eigensystem(kernel, Y[:20]).eigvals.sum(), kernel)
    torch.testing.assert_close(slope, torch.eye(20, dtype=torch.float64) / 20)


def test_exponents_of_a_known_power_law() -> None:
    """Gaussian data of exact exponents: the proxies are what the theory says of the same finite spectrum."""
    modes, n = 4000, 700
    eigvals, coeffs = powerlaw_spectrum(modes, 1.5, 1.6)
    x = torch.randn(n, modes, generator=GENERATOR, dtype=torch.float64)
    sizes = [30, 60, 120, 240, 480]
    found = estimate_exponents(
        (x * eigvals) @ x.T, x @ coeffs, sizes=sizes, n_test=200, generator=torch.Generator().manual_seed(1)
    )
    risk = krr_risk(eigvals, coeffs, torch.tensor(sizes))
    torch.testing.assert_close(found.kappa, risk.kappa, rtol=0.06, atol=0)
    torch.testing.assert_close(found.test_mse, risk.test_mse, rtol=0.2, atol=0)
    assert found.alpha == pytest.approx(1.5, abs=0.12)
    assert found.beta == pytest.approx(1.6, abs=0.12)
    assert optimal_fitting_ratio(found.alpha, found.beta, noise_rel=0.5 * critical_noise(1.5, 1.6)) < 0.05


def test_one_factor_equals_size_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"sizes": [80, 10, 30], "n_test": 20, "trials": 2}
    fast = estimate_exponents(K, Y, **options, generator=torch.Generator().manual_seed(3))
    monkeypatch.setattr(module, "_by_cholesky", lambda *_: None)
    slow = estimate_exponents(K, Y, **options, generator=torch.Generator().manual_seed(3))
    assert fast.sizes.tolist() == [10, 30, 80]
    torch.testing.assert_close(fast.kappa, slow.kappa, rtol=1e-9, atol=0)
    torch.testing.assert_close(fast.test_mse, slow.test_mse, rtol=1e-9, atol=0)


def test_exponents_against_the_definition() -> None:
    found = estimate_exponents(
        K, Y[:, 0], sizes=(20, 50), trials=1, n_test=30, generator=torch.Generator().manual_seed(2)
    )
    order = torch.randperm(120, generator=torch.Generator().manual_seed(2))
    test, train = order[:30], order[30:80]
    for place, size in enumerate((20, 50)):
        inner = K[train[:size]][:, train[:size]]
        dual = torch.linalg.solve(inner, Y[train[:size], 0])
        error = (K[test][:, train[:size]] @ dual - Y[test, 0]).square().mean()
        assert float(found.test_mse[place]) == pytest.approx(float(error), rel=1e-9)
        assert float(found.kappa[place]) == pytest.approx(1 / float(torch.linalg.inv(inner).trace()), rel=1e-9)
    step = np.log(50 / 20)
    assert found.alpha == pytest.approx(float((found.kappa[0] / found.kappa[1]).log()) / step)
    assert found.beta == pytest.approx(1 + float((found.test_mse[0] / found.test_mse[1]).log()) / step)


def test_repeated_points_do_not_decide() -> None:
    """A kernel that is singular in rounding: the pseudo-inverse, in the unit of the kernel."""
    rows = torch.cat([X, X[:15]])
    repeated = relu_ntk(rows)
    targets = torch.cat([Y, Y[:15]])
    for scale in (1.0, 1e-9):
        found = estimate_exponents(scale * repeated, targets, trials=3, generator=torch.Generator().manual_seed(0))
        assert found.kappa.isfinite().all()
        assert 0.5 < found.alpha < 3
        assert float(found.kappa[0]) > 1e-6 * scale


def test_sizes_beyond_a_finite_rank_have_no_power_law() -> None:
    with pytest.raises(ValueError, match="K must have a kappa that falls"):
        estimate_exponents(X @ X.T, Y, trials=2, generator=torch.Generator().manual_seed(0))


def test_the_global_stream_is_used_without_a_generator() -> None:
    torch.manual_seed(5)
    one = estimate_exponents(K, Y, trials=1)
    torch.manual_seed(5)
    assert torch.equal(estimate_exponents(K, Y, trials=1).test_mse, one.test_mse)
    assert not torch.equal(estimate_exponents(K, Y, trials=1).test_mse, one.test_mse)


def test_ridge_path_is_scikit_learns() -> None:
    """alpha of KernelRidge is the ridge: not times n (trap 4). Any order; both ways to solve."""
    blocks = K[:80, :80], K[80:, :80], Y[:80], Y[80:]
    ridges = torch.tensor([1.0, 1e-3, 30.0, 0.1], dtype=torch.float64)
    train, test = ridge_path(*blocks, ridges)
    for i, ridge in enumerate(ridges.tolist()):
        model = KernelRidge(alpha=ridge, kernel="precomputed").fit(blocks[0], blocks[2])
        for K_, y, found in ((blocks[0], blocks[2], train), (blocks[1], blocks[3], test)):
            expected = ((model.predict(K_) - y.numpy()) ** 2).sum(1).mean()
            assert float(found[i]) == pytest.approx(expected, rel=1e-8)
    few = ridge_path(*blocks, ridges[:3])
    torch.testing.assert_close(few[0], train[:3], rtol=1e-9, atol=0)
    torch.testing.assert_close(few[1], test[:3], rtol=1e-9, atol=0)


def test_no_ridge_is_the_minimum_norm() -> None:
    features, y = X[:, :3], Y[:, :1]
    linear = features @ features.T
    train, test = ridge_path(linear[:80, :80], linear[80:, :80], y[:80], y[80:], torch.tensor([0.0]))
    coef = torch.linalg.lstsq(features[:80], y[:80]).solution
    assert float(train) == pytest.approx(float((features[:80] @ coef - y[:80]).square().mean()), rel=1e-9)
    assert float(test) == pytest.approx(float((features[80:] @ coef - y[80:]).square().mean()), rel=1e-9)
    exact = ridge_path(K[:80, :80], K[80:, :80], y[:80], y[80:], torch.tensor([0.0]))
    assert float(exact[0]) < 1e-20
