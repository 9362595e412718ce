"""Equal to the official implementation, to independent roots and to neural_tangents: golden data."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from offprints.more_is_better import (
    krr_risk,
    myrtle_kernel,
    optimal_fitting_ratio,
    optimal_ridge,
    powerlaw_test_mse,
    relu_nngp,
    relu_ntk,
    rf_risk,
    ridge_path,
)

Golden = Callable[[str], dict[str, Tensor]]


def close(actual: Tensor, expected: Tensor, rtol: float) -> None:
    torch.testing.assert_close(actual, expected.to(torch.float64), rtol=rtol, atol=0)


def test_random_features(golden: Golden) -> None:
    data = golden("golden")
    n, k, ridge = data["points_n_k_ridge"].double().unbind(1)
    risk = rf_risk(data["eigvals"], data["coeffs"], n, k, ridge, noise_var=float(data["noise_var"]))
    found = torch.stack([risk.test_mse, risk.train_mse, risk.kappa, risk.gamma], 1)
    close(found, data["exact_test_train_kappa_gamma"], 1e-8)
    close(found[:, [0, 3]], data["official_test_kappa_gamma"][:, [0, 2]], 3e-5)
    loose = (ridge < 2e-6) & (k <= n)  # where the official bisection stops early
    close(found[~loose, 2], data["official_test_kappa_gamma"][~loose, 1], 3e-5)
    close(found[loose, 2], data["official_test_kappa_gamma"][loose, 1], 2e-4)


def test_kernel_regression(golden: Golden) -> None:
    data = golden("golden")
    n, ridge = data["krr_points_n_ridge"].double().unbind(1)
    risk = krr_risk(data["eigvals"], data["coeffs"], n, ridge, noise_var=float(data["noise_var"]))
    close(torch.stack([risk.test_mse, risk.train_mse, risk.kappa], 1), data["krr_exact_test_train_kappa"], 1e-10)
    found = torch.stack([risk.test_mse, risk.train_mse, risk.kappa, risk.overfitting_coeff], 1)
    close(found, data["krr_official_test_train_kappa_coeff"], 3e-5)


def test_optimal_ridge(golden: Golden) -> None:
    data = golden("golden")
    n, k, ridge, error = data["optimal_n_k_ridge_test"].tolist()
    found = optimal_ridge(data["eigvals"], data["coeffs"], n, k, noise_var=float(data["noise_var"]))
    assert found == pytest.approx((ridge, error), rel=1e-6)


def test_power_laws(golden: Golden) -> None:
    data = golden("golden")
    rows = zip(data["pl_alpha_beta_noise_n"].tolist(), data["pl_test_mse"], data["pl_optimal_ratio"], strict=True)
    for (alpha, beta, noise, n), errors, ratio in rows:
        found = powerlaw_test_mse(data["pl_fitting_ratios"].double(), alpha, beta, noise_rel=noise, n=n)
        close(found, errors, 1e-12)
        assert optimal_fitting_ratio(alpha, beta, noise_rel=noise) == pytest.approx(float(ratio), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_fully_connected(golden: Golden, depth: int) -> None:
    data = golden("golden")
    X, others = data["fc_X"].double(), data["fc_X2"].double()
    close(relu_nngp(X, depth=depth), data[f"fc{depth}_nngp"], 1e-6)
    close(relu_ntk(X, depth=depth), data[f"fc{depth}_ntk"], 1e-6)
    close(relu_ntk(X, others, depth=depth), data[f"fc{depth}_ntk_cross"], 1e-6)


@pytest.mark.parametrize("kind", ["nngp", "ntk"])
@pytest.mark.parametrize("depth", [5, 10])
def test_myrtle(golden: Golden, depth: int, kind: str) -> None:
    data = golden("golden")
    images = data["img_nhwc"].double().permute(0, 3, 1, 2)
    close(myrtle_kernel(images, depth=depth, kind=kind), data[f"myrtle{depth}_{kind}"], 1e-7)
    single = myrtle_kernel(images.float(), depth=depth, kind=kind)
    assert single.dtype == torch.float32
    close(single.double(), data[f"myrtle{depth}_{kind}"], 1e-5)


def test_regression(golden: Golden) -> None:
    data = golden("golden")
    features = data["rf_features"][:, data["rf_keep"].long()].double()
    kernel = (data["rf_features"].shape[1] / features.shape[1]) * features @ features.T
    y = data["rf_y"].double()
    for ridges in (data["rf_ridges"].double(), data["rf_ridges"].double().repeat(2)):  # by Cholesky; by eigenvalues
        train, test = ridge_path(kernel[:50, :50], kernel[50:, :50], y[:50], y[50:], ridges)
        close(train[:3], data["rf_official_train"], 1e-7)
        close(test[-3:], data["rf_official_test"], 1e-7)
