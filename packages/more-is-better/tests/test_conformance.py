"""The conformance suites, scikit-learn's own among them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from offprints.more_is_better import (
    KernelRidgeRegressor,
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
from offprints.shared.testing import check_arguments, check_estimator

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 4)).astype(np.float32)
Y = (np.abs(X[:, 0]) + X[:, 1]).astype(np.float32)
UNIT = "an infinite ridge or width has infinite constants"


@pytest.mark.parametrize(
    "estimator",
    [
        RandomFeatureRegressor(30, random_state=0),
        RandomFeatureRegressor(60, ridge=0.1, random_state=0),
        KernelRidgeRegressor(relu_ntk, ridge=0.1),
    ],
    ids=["primal", "dual", "kernel"],
)
def test_estimators(estimator: Any) -> None:
    refused = {"check_do_not_raise_errors_in_init_or_set_params": "impossible parameters are refused at once"}
    check_estimator(estimator, (X, Y), expected_failed_checks=refused, rtol=1e-4)


def test_outputs_widths_and_the_kernel_of_the_limit() -> None:
    """Primal and dual are one solution; many features are the kernel's; outputs keep their axis."""
    many = np.stack([Y, -2 * Y], 1).astype(np.float64)
    x = X.astype(np.float64)
    for width in (30, 60):
        model = RandomFeatureRegressor(width, ridge=0.05, random_state=3).fit(x, many)
        F = np.maximum(x @ model.weight_.numpy().T, 0) / width**0.5
        expected = F @ np.linalg.solve(F.T @ F + 0.05 * np.eye(width), F.T @ many)
        np.testing.assert_allclose(model.predict(x), expected, rtol=1e-7)
        assert model.coef_.shape == (width, 2)
        assert model.predict(torch.from_numpy(x)).shape == (40, 2)
    kernel = KernelRidgeRegressor(relu_nngp, ridge=0.05).fit(x, Y)
    wide = RandomFeatureRegressor(100_000, ridge=0.05, random_state=0).fit(x, Y)
    np.testing.assert_allclose(wide.predict(x), kernel.predict(x), atol=0.02)
    assert kernel.predict(x).shape == (40,)
    assert kernel.score(x, Y) == pytest.approx(1 - ((kernel.predict(x) - Y) ** 2).sum() / ((Y - Y.mean()) ** 2).sum())
    interpolating = RandomFeatureRegressor(200, ridge=0, random_state=0).fit(x, Y)
    np.testing.assert_allclose(interpolating.predict(x), Y, atol=1e-8)


def test_images_and_a_kernel_of_ones_own() -> None:
    images = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model = KernelRidgeRegressor(myrtle_kernel, ridge=1e-4).fit(images, images.mean((1, 2, 3)))
    assert model.predict(images[:3]).shape == (3,)
    with pytest.raises(ValueError, match="X must hold points of shape"):
        model.predict(images[:, :, :4])
    with pytest.raises(ValueError, match=r"kernel\(X\) must have shape"):
        KernelRidgeRegressor(lambda a, b: torch.ones(3, 3)).fit(X, Y)
    with pytest.raises(ValueError, match=r"kernel\(X\) must be symmetric"):
        KernelRidgeRegressor(lambda a, b: torch.arange(1600.0).view(40, 40)).fit(X, Y)


def test_a_kernel_that_changes_its_inputs_changes_nobodys() -> None:
    """The user's points, before and after, and the model's own keep their values."""

    def hostile(a: Tensor, b: Tensor | None = None) -> Tensor:
        result = relu_ntk(a, b)
        for given in (a, b):
            if given is not None:
                given.mul_(2)
        return result

    for kind in (np.asarray, torch.from_numpy):
        x, y = kind(X.copy()), Y.copy()
        model = KernelRidgeRegressor(hostile, ridge=0.1).fit(x, y)
        expected = np.asarray(KernelRidgeRegressor(relu_ntk, ridge=0.1).fit(x, y).predict(x))
        for _ in range(2):
            np.testing.assert_allclose(np.asarray(model.predict(x)), expected, rtol=1e-5)
        np.testing.assert_array_equal(np.asarray(x), X)


def test_features_that_overflow_are_refused() -> None:
    """By name, and a refused fit leaves the earlier one."""
    x, y = X.astype(np.float64), Y.astype(np.float64)
    for width in (20, 60):
        model = RandomFeatureRegressor(width, ridge=0.1, random_state=0).fit(x, y)
        before = model.predict(x)
        for scale in (1e200, 1e307):
            with pytest.raises(ValueError, match="X must not be so large"):
                model.fit(scale * x[:, :3], y)
            np.testing.assert_array_equal(model.predict(x), before)
        with pytest.raises(ValueError, match="X must not be so large"):
            model.predict(1e308 * np.sign(x))


def spectrum(g: torch.Generator) -> dict[str, Any]:
    return {"eigvals": torch.rand(9, generator=g), "coeffs": torch.randn(9, 2, generator=g), "n": 5, "k": 7.0}


def test_arguments_of_the_risk() -> None:
    allowed = {"ridge: inf": UNIT}
    check_arguments(rf_risk, lambda g: spectrum(g) | {"ridge": 0.1, "noise_var": 0.1}, skip=allowed)
    check_arguments(rf_risk, lambda g: spectrum(g) | {"n": torch.tensor([5, 9]), "ridge": torch.tensor([0.1, 0.2])},
                    skip={"ridge: inf": UNIT, "n: huge": "as many samples as that are finite"})  # fmt: skip
    check_arguments(krr_risk, lambda g: {**spectrum(g), "k": 0.1} and {
        name: value for name, value in (spectrum(g) | {"ridge": 0.1, "noise_var": 0.1}).items() if name != "k"
    }, skip=allowed)  # fmt: skip
    check_arguments(implicit_constants, lambda g: {
        name: value for name, value in (spectrum(g) | {"ridge": 0.1}).items() if name != "coeffs"
    }, skip=allowed)  # fmt: skip
    check_arguments(optimal_ridge, lambda g: spectrum(g) | {"noise_var": 0.1},
                    skip={"*: zeros": "nothing can be learned: the ridge is infinite",
                          "coeffs: tiny": "a ridge of 1e60 is right"})  # fmt: skip
    check_arguments(finite_pool_correction, lambda g: (torch.rand(3, generator=g), torch.rand(3, generator=g), 20, 100),
                    skip={"*: inf": "an infinite error is one", "*: -inf": "the same"})  # fmt: skip


def test_arguments_of_power_laws() -> None:
    check_arguments(powerlaw_spectrum, lambda g: {"n_modes": 10, "alpha": 1.5, "beta": 1.5})
    check_arguments(powerlaw_test_mse, lambda g: {
        "fitting_ratio": 0.5 * torch.rand(4, generator=g), "alpha": 1.5, "beta": 1.5, "noise_rel": 0.1, "n": 10.0
    })  # fmt: skip
    check_arguments(optimal_fitting_ratio, lambda g: {"alpha": 1.5, "beta": 1.5, "noise_rel": 0.1})
    check_arguments(critical_noise, lambda g: {"alpha": 1.5, "beta": 1.5})


def gram(g: torch.Generator, n: int = 30) -> Tensor:
    return relu_ntk(torch.randn(n, 4, generator=g, dtype=torch.float64))


def test_arguments_of_kernels_and_regression() -> None:
    points = lambda g: {"X1": torch.randn(4, 3, generator=g), "X2": torch.randn(5, 3, generator=g), "depth": 2}  # noqa: E731
    slow = {"depth: huge": "that many layers take as long as they take"}
    check_arguments(relu_nngp, points, skip=slow)
    check_arguments(relu_ntk, points, skip=slow)
    check_arguments(myrtle_kernel, lambda g: {
        "X1": torch.randn(2, 1, 8, 8, generator=g), "X2": torch.randn(3, 1, 8, 8, generator=g), "depth": 5,
        "kind": "ntk", "weight_std": 1.0, "batch_size": 2,
    })  # fmt: skip
    check_arguments(kernel_eigensystem, lambda g: (gram(g), torch.randn(30, 2, generator=g)))
    check_arguments(ridge_path, lambda g: (
        gram(g)[:20, :20], gram(g)[20:, :20], torch.randn(20, 2, generator=g), torch.randn(10, 2, generator=g),
        torch.tensor([0.1, 1.0, 0.0, 3.0]),
    ))  # fmt: skip
    check_arguments(estimate_exponents, lambda g: {
        "K": gram(g), "y": torch.randn(30, 2, generator=g), "sizes": [5, 10, 20], "n_test": 5, "trials": 1,
        "fit_from": 5, "generator": torch.Generator().manual_seed(0),
    }, skip={"trials: huge": "that many trials take as long as they take", "K: zeros": "no trace"})  # fmt: skip


def test_infinite_constants() -> None:
    assert implicit_constants(torch.ones(3), 2, ridge=math.inf)[0] == math.inf
