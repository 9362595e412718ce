"""The package keeps the form that all of them have; the README's example runs."""

from offprints.shared.testing import check_package

PUBLIC = """
ratio_schedule dapl_pseudo_labels dapl_loss entropy_regularization prototype_separation info_nce supervised_contrastive
ProtoGCDOutput ProtoGCDLoss PrototypeHead GCDAccuracy gcd_accuracy GCDSplit gcd_split balanced_sampler ood_score
ood_measures ClassCountEstimate estimate_num_classes ProtoGCDClusterer dino_backbone
"""


def test_package() -> None:
    check_package("protogcd", public=PUBLIC.split())


def test_readme(readme_example) -> None:
    names = readme_example()
    assert names["accuracy"].all > 0.8
    assert names["classes"].shape == (len(names["X"]),)
    assert float(names["output"].loss.detach()) > 0
