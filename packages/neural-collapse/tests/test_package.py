"""The package keeps the form that all of them have; the README's example runs."""

import pytest

from offprints.shared.testing import check_package

PUBLIC = """
collapse_threshold GOFSolution gof_solution minimum_class_count ce_etf_solution UFMState global_minimizer DeepLinearUFM
simplex_etf NCMetrics nc_metrics FeatureStatistics nc_metrics_from_statistics NCProbe LinearHead separate_decay
"""


def test_package() -> None:
    check_package("neural-collapse", public=PUBLIC.split())


def test_readme(readme_example) -> None:
    names = readme_example()
    assert 0 < names["metrics"].nc1 < 2
    assert names["probe"].statistics.counts.sum() == 600
    assert names["smallest"] == pytest.approx(4 * 600**1.5 * 1e-3**1.5)
