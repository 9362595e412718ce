"""More is better in modern machine learning: the risk of random-feature and kernel regression (arXiv 2311.14646)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from offprints.more_is_better.convolutional import myrtle_kernel
from offprints.more_is_better.eigenframework import (
    Number,
    RiskEstimate,
    finite_pool_correction,
    implicit_constants,
    krr_risk,
    rf_risk,
)
from offprints.more_is_better.exponents import PowerlawExponents, estimate_exponents
from offprints.more_is_better.kernels import relu_nngp, relu_ntk
from offprints.more_is_better.powerlaws import (
    critical_noise,
    optimal_fitting_ratio,
    powerlaw_spectrum,
    powerlaw_test_mse,
)
from offprints.more_is_better.regression import ridge_path
from offprints.more_is_better.ridge import optimal_ridge
from offprints.more_is_better.spectra import Eigensystem, kernel_eigensystem
from offprints.shared.lazy import attach as _attach

if TYPE_CHECKING:
    from offprints.more_is_better.estimators import KernelRidgeRegressor, RandomFeatureRegressor
    from offprints.shared.estimators import NotFittedError

__all__ = [
    "Eigensystem",
    "KernelRidgeRegressor",
    "NotFittedError",
    "Number",
    "PowerlawExponents",
    "RandomFeatureRegressor",
    "RiskEstimate",
    "critical_noise",
    "estimate_exponents",
    "finite_pool_correction",
    "implicit_constants",
    "kernel_eigensystem",
    "krr_risk",
    "myrtle_kernel",
    "optimal_fitting_ratio",
    "optimal_ridge",
    "powerlaw_spectrum",
    "powerlaw_test_mse",
    "relu_nngp",
    "relu_ntk",
    "rf_risk",
    "ridge_path",
]

# What stands on scikit-learn, which takes as long to import as torch, is loaded when it is asked for.
__getattr__, __dir__ = _attach(
    __name__,
    {
        "RandomFeatureRegressor": "offprints.more_is_better.estimators",
        "KernelRidgeRegressor": "offprints.more_is_better.estimators",
        "NotFittedError": "offprints.shared.estimators",
    },
)
