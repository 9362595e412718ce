"""The package keeps the form that all of them have; the README's example runs."""

from offprints.shared.testing import check_package

PUBLIC = """
shrink_loss ShrinkLoss ShrinkMatchLoss ShrinkMatchOutput ShrinkMatchModel AuxHead ShrinkMatchClassifier
shrink_class_space ShrunkSpace DistributionAlignment StudentEMA weak_transform strong_transform wide_resnet
cosine_factor split_labels
"""


def test_package() -> None:
    check_package("shrinkmatch", public=PUBLIC.split())


def test_readme(readme_example) -> None:
    names = readme_example()
    assert names["accuracy"] > 0.9
    assert names["out"].mask_ratio > 0.5
    assert (names["predicted"].numpy() == names["truth"]).mean() > 0.85
