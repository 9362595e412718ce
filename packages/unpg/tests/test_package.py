"""The package keeps the form that all of them have; the README's example runs."""

from offprints.shared.testing import check_package

PUBLIC = """
PairSimilarities pair_similarities iqr_bounds iqr_filter unified_cross_entropy HeadOutput MarginHead CosFaceHead
ArcFaceHead MagFaceHead MarginLoss UNPGLoss ShardedMarginHead VerificationResult verification_accuracy tar_at_far
SimilarityGap similarity_gap template_features iresnet
"""


def test_package() -> None:
    check_package("unpg", public=PUBLIC.split())


def test_readme(readme_example) -> None:
    names = readme_example()
    assert names["losses"][-1] < names["losses"][0]
    assert -2 < names["gap"].gap < 2
    assert 0.5 <= names["result"].accuracy <= 1
    assert ((names["tar"] >= 0) & (names["tar"] <= 1)).all()
