"""Every bad input of the specification: the right error, naming the argument."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from offprints.more_is_better import (
    KernelRidgeRegressor,
    NotFittedError,
    RandomFeatureRegressor,
    critical_noise,
    estimate_exponents,
    finite_pool_correction,
    implicit_constants,
    kernel_eigensystem,
    krr_risk,
    myrtle_kernel,
    optimal_fitting_ratio,
    optimal_ridge,
    powerlaw_spectrum,
    powerlaw_test_mse,
    relu_nngp,
    relu_ntk,
    rf_risk,
    ridge_path,
)
from offprints.shared.testing import check_errors

E, V = torch.rand(5) + 0.1, torch.randn(5, 2)
NAN, INF = float("nan"), math.inf


@pytest.mark.parametrize("function", [rf_risk, krr_risk, optimal_ridge, implicit_constants])
def test_spectra_and_points(function: Any) -> None:
    def call(eigvals: Any = E, coeffs: Any = V, n: Any = 3, **more: Any) -> Any:
        return function(eigvals, n, **more) if function is implicit_constants else function(eigvals, coeffs, n, **more)

    cases: list[Any] = [
        (lambda: call(E[None]), ValueError, "eigvals"),
        (lambda: call(E[:0]), ValueError, "eigvals"),
        (lambda: call(-E), ValueError, "eigvals must not be negative"),
        (lambda: call(E * NAN), ValueError, "eigvals"),
        (lambda: call(E / 0), ValueError, "eigvals"),
        (lambda: call((10 * E).long()), TypeError, "eigvals"),
        (lambda: call(E.numpy()), TypeError, "eigvals"),
        (lambda: call(n=0), ValueError, "n must"),
        (lambda: call(n=-2.0), ValueError, "n must"),
        (lambda: call(n=NAN), ValueError, "n must"),
        (lambda: call(n=INF), ValueError, "n must"),
        (lambda: call(n=True), TypeError, "n must"),
        (lambda: call(n="3"), TypeError, "n must"),
    ]
    if function is not implicit_constants:
        cases += [
            (lambda: call(coeffs=V[:4]), ValueError, "coeffs"),
            (lambda: call(coeffs=V * NAN), ValueError, "coeffs"),
            (lambda: call(coeffs=V / 0), ValueError, "coeffs"),
            (lambda: call(coeffs=V.long()), TypeError, "coeffs"),
            (lambda: call(noise_var=-1.0), ValueError, "noise_var"),
            (lambda: call(noise_var=NAN), ValueError, "noise_var"),
        ]
    if function is not krr_risk:
        cases += [(lambda: call(k=0), ValueError, "k must"), (lambda: call(k=NAN), ValueError, "k must")]
    if function is not optimal_ridge:
        cases += [
            (lambda: call(ridge=-1e-9), ValueError, "ridge must"),
            (lambda: call(ridge=NAN), ValueError, "ridge must"),
            (lambda: call(ridge=torch.tensor([0.1, NAN])), ValueError, "ridge must hold"),
            (lambda: call(ridge=torch.tensor([0.1, -0.1])), ValueError, "ridge must hold"),
            (lambda: call(n=torch.tensor([1, 0])), ValueError, "n must hold"),
            (lambda: call(n=torch.tensor([True])), TypeError, "n must"),
            (lambda: call(n=torch.ones(2), ridge=torch.ones(3)), ValueError, "broadcast"),
        ]
    check_errors(cases)


def test_power_laws() -> None:
    check_errors(
        [
            (lambda: powerlaw_spectrum(0, 1.5, 1.5), ValueError, "n_modes"),
            (lambda: powerlaw_spectrum(2.5, 1.5, 1.5), TypeError, "n_modes"),  # type: ignore[arg-type]
            (lambda: powerlaw_spectrum(3, 1.0, 1.5), ValueError, "alpha"),
            (lambda: powerlaw_spectrum(3, 1.5, 1.0), ValueError, "beta"),
            (lambda: powerlaw_spectrum(3, 1.5, 4.0), ValueError, "beta"),
            (lambda: powerlaw_spectrum(3, 1.5, 1.5, dtype=torch.int64), TypeError, "dtype"),
            (lambda: critical_noise(0.9, 1.5), ValueError, "alpha"),
            (lambda: optimal_fitting_ratio(1.5, 4.1), ValueError, "beta"),
            (lambda: optimal_fitting_ratio(1.5, 1.5, noise_rel=-1.0), ValueError, "noise_rel"),
            (lambda: powerlaw_test_mse(1.0, 1.5, 1.5), ValueError, "fitting_ratio"),
            (lambda: powerlaw_test_mse(-0.1, 1.5, 1.5), ValueError, "fitting_ratio"),
            (lambda: powerlaw_test_mse(torch.tensor([0.5, 1.0]), 1.5, 1.5), ValueError, "fitting_ratio"),
            (lambda: powerlaw_test_mse(0.5, 1.5, 1.5, noise_rel=-1.0), ValueError, "noise_rel"),
            (lambda: powerlaw_test_mse(0.5, 1.5, 1.5, n=0), ValueError, "n must"),
        ]
    )


def test_kernels() -> None:
    x, images = torch.randn(3, 4), torch.randn(2, 1, 8, 8)
    cases: list[Any] = []
    for kernel in (relu_nngp, relu_ntk):
        cases += [
            (lambda kernel=kernel: kernel(x.long()), TypeError, "X1"),
            (lambda kernel=kernel: kernel(x * NAN), ValueError, "X1"),
            (lambda kernel=kernel: kernel(x[0]), ValueError, "X1"),
            (lambda kernel=kernel: kernel(x, x[:, :2]), ValueError, "X2"),
            (lambda kernel=kernel: kernel(x, depth=0), ValueError, "depth"),
            (lambda kernel=kernel: kernel(x, depth=1.5), TypeError, "depth"),
        ]
    cases += [
        (lambda: myrtle_kernel(images, depth=6), ValueError, "depth"),
        (lambda: myrtle_kernel(images, kind="gp"), ValueError, "kind"),
        (lambda: myrtle_kernel(images, weight_std=0.0), ValueError, "weight_std"),
        (lambda: myrtle_kernel(images, weight_std=1e300), ValueError, "weight_std"),
        (lambda: myrtle_kernel(images, batch_size=0), ValueError, "batch_size"),
        (lambda: myrtle_kernel(images[..., :7]), ValueError, "X1"),
        (lambda: myrtle_kernel(images[..., :4, :4]), ValueError, "X1"),
        (lambda: myrtle_kernel(torch.randn(2, 1, 12, 12)), ValueError, "X1"),
        (lambda: myrtle_kernel(images.long()), TypeError, "X1"),
        (lambda: myrtle_kernel(images, images.repeat(1, 2, 1, 1)), ValueError, "X2"),
        (lambda: myrtle_kernel(images * NAN), ValueError, "X1"),
    ]
    check_errors(cases)


def test_kernel_matrices() -> None:
    x = torch.randn(12, 3, dtype=torch.float64)
    K, y, ridges = relu_ntk(x), torch.randn(12), torch.tensor([0.1])
    skew = K.clone()
    skew[0, 1] += 0.1
    blocks = (K[:8, :8], K[8:, :8], y[:8], y[8:])
    cases: list[Any] = []
    for function in (kernel_eigensystem, estimate_exponents):
        cases += [
            (lambda function=function: function(K[:, :5], y), ValueError, "K must be square"),
            (lambda function=function: function(skew, y), ValueError, "K must be symmetric"),
            (lambda function=function: function(K.long(), y), TypeError, "K"),
            (lambda function=function: function(K * NAN, y), ValueError, "K"),
            (lambda function=function: function(K, y[:5]), ValueError, "y must have length"),
            (lambda function=function: function(K, y * NAN), ValueError, "y"),
        ]
    cases += [
        (lambda: kernel_eigensystem(-K, y), ValueError, "K must be positive semidefinite"),
        (lambda: estimate_exponents(K, y, sizes=[5]), ValueError, "sizes"),
        (lambda: estimate_exponents(K, y, sizes=[5, 12]), ValueError, "sizes"),
        (lambda: estimate_exponents(K, y, sizes=[5, 10], n_test=5), ValueError, "n_test"),
        (lambda: estimate_exponents(K, y, sizes=[5, 7.5]), TypeError, "sizes"),  # type: ignore[list-item]
        (lambda: estimate_exponents(K, y, n_test=11), ValueError, "n_test"),
        (lambda: estimate_exponents(K, y, trials=0), ValueError, "trials"),
        (lambda: estimate_exponents(K, y, fit_from=100), ValueError, "fit_from"),
        (lambda: estimate_exponents(K, 0 * y), ValueError, "y must have a test error"),
        (lambda: estimate_exponents(K, y, generator=3), TypeError, "generator"),  # type: ignore[arg-type]
        (lambda: ridge_path(skew, *blocks[1:], ridges), ValueError, "K_train"),
        (lambda: ridge_path(blocks[0], K[8:, :5], *blocks[2:], ridges), ValueError, "K_test"),
        (lambda: ridge_path(*blocks[:2], y[:5], y[8:], ridges), ValueError, "y_train"),
        (lambda: ridge_path(*blocks[:3], y[:5], ridges), ValueError, "y_test"),
        (lambda: ridge_path(*blocks[:3], torch.ones(4, 2), ridges), ValueError, "y_train and y_test"),
        (lambda: ridge_path(*blocks, -ridges), ValueError, "ridges"),
        (lambda: ridge_path(*blocks, ridges * NAN), ValueError, "ridges"),
        (lambda: finite_pool_correction(E, E, 100, 100), ValueError, "n must"),
        (lambda: finite_pool_correction(E * NAN, E, 10, 100), ValueError, "test_mse"),
        (lambda: finite_pool_correction(E, E[:2], 10, 100), ValueError, "train_mse"),
        (lambda: finite_pool_correction(E, E, 10, 0), ValueError, "pool_size"),
    ]
    check_errors(cases)


def test_estimators() -> None:
    X, y = np.random.default_rng(0).normal(size=(6, 2)), np.arange(6.0)
    cases: list[Any] = [
        (lambda: RandomFeatureRegressor(0), ValueError, "n_features"),
        (lambda: RandomFeatureRegressor(3, ridge=-1.0), ValueError, "ridge"),
        (lambda: RandomFeatureRegressor(3, random_state=-1), ValueError, "random_state"),
        (lambda: RandomFeatureRegressor(3).set_params(n_features=0).fit(X, y), ValueError, "n_features"),
        (lambda: KernelRidgeRegressor("rbf"), TypeError, "kernel"),  # type: ignore[arg-type]
        (lambda: KernelRidgeRegressor(relu_ntk, ridge=NAN), ValueError, "ridge"),
    ]
    for make in (lambda: RandomFeatureRegressor(3), lambda: KernelRidgeRegressor(relu_ntk)):
        fitted = make().fit(X, y)
        cases += [
            (lambda make=make: make().predict(X), NotFittedError, "not fitted"),
            (lambda make=make: make().score(X, y), RuntimeError, "not fitted"),
            (lambda make=make: make().fit(X, y[:4]), ValueError, "y"),
            (lambda make=make: make().fit(X * NAN, y), ValueError, "X"),
            (lambda make=make: make().fit(X, y * NAN), ValueError, "y"),
            (lambda make=make: make().fit(X.astype(int), y), TypeError, "X"),
            (lambda make=make: make().fit(torch.ones(6, 2).long(), torch.ones(6)), TypeError, "X"),
            (lambda make=make: make().fit(X, ["a"] * 6), TypeError, "y"),
            (lambda fitted=fitted: fitted.predict(X[:, :1]), ValueError, "X"),
        ]
    check_errors(cases)
