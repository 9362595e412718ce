"""The package keeps the form that all of them have; the README's example runs."""

from offprints.shared.testing import check_package

PUBLIC = """
expmap0 logmap0 expmap logmap mobius_add project clip_features conformal_factor distance distance0 pairwise_distance
gyroplane_logits ToPoincare GyroplaneClassifier PseudoNegativeSampler hyp_pc_loss HypPCLoss hyp_ce_loss HypCELoss
HypOCOutput HypOCHead HypOCLossOutput HypOCLoss SpoofMetrics spoof_metrics HypOCDetector vgg_face NotFittedError
"""


def test_package() -> None:
    check_package("hyp-oc", public=PUBLIC.split())


def test_readme(readme_example) -> None:
    names = readme_example()
    assert names["metrics"].auc > 0.95
    assert float(names["loss"].detach()) > 0
