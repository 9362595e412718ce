"""The package keeps the form that all of them have; the README's example runs."""

from offprints.shared.testing import check_package

PUBLIC = """
AEFOCLClassifier RecursiveRidge RandomBuffer PseudoFeatureGenerator ridge_solution mean_class_accuracy
average_mean_class_accuracy CladC long_tailed_stream NotFittedError
"""


def test_package() -> None:
    check_package("aef-ocl", public=PUBLIC.split())


def test_readme(readme_example) -> None:
    names = readme_example()
    assert names["accuracy"] > 0.8
    assert names["total"].ridge_.n_samples_seen_ == 900
