"""The package keeps the form that all of them have; the README's example runs."""

from offprints.shared.testing import check_package

PUBLIC = """
teacher_knowledge Knowledge WADLoss WADOutput nt_xent polynomial_decay select_reliable mismatch_split MismatchSplit
rectify_labels error_decomposition ErrorDecomposition SimCLRTeacher WADTrainer WADClassifier
"""


def test_package() -> None:
    check_package("wad", public=PUBLIC.split())


def test_readme(readme_example) -> None:
    names = readme_example()
    assert names["accuracy"] > 0.8
    assert names["suspects"].shape == (100,)
    unknown = names["is_unknown"]
    assert unknown[names["suspects"]].mean() > unknown[names["pool"]].mean() + 0.2
