"""The package keeps the form that all of them have."""

from offprints.shared.testing import check_package


def test_package() -> None:
    check_package("fedld", public=["pseudo_huber_loss", "PseudoHuberLoss"])


def test_readme(readme_example) -> None:
    assert readme_example()["loss"] > 0
