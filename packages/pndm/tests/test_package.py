from offprints.shared.testing import check_package


def test_package() -> None:
    check_package("pndm")


def test_readme(readme_example) -> None:
    readme_example()
