"""The package keeps the form that all of them have; the README's example runs."""

from offprints.shared.testing import check_package

PUBLIC = """
RiskEstimate Number rf_risk krr_risk implicit_constants optimal_ridge estimate_exponents PowerlawExponents
optimal_fitting_ratio critical_noise powerlaw_test_mse powerlaw_spectrum kernel_eigensystem Eigensystem
finite_pool_correction relu_nngp relu_ntk myrtle_kernel ridge_path RandomFeatureRegressor KernelRidgeRegressor
NotFittedError
"""


def test_package() -> None:
    check_package("more-is-better", public=PUBLIC.split())


def test_readme(readme_example) -> None:
    names = readme_example()
    assert names["errors"].shape == (3, 20)
    assert names["best"][0] > 0
    assert names["ratio"] == 0.0
