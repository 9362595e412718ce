"""The package keeps the form that all of them have; the README's example runs."""

from offprints.shared.testing import check_package

PUBLIC = """
pairwise_distance compute_prototypes prototypical_logits proto_triplet_loss ProtoTripletLoss ICNNComponents
icnn_components icnn_score icnn_loss ICNNLoss original_icnn_score FewShotLossOutput FewShotLoss EpisodeSampler Episode
EpisodeCollate PrototypicalNetwork PrototypicalClassifier conv4 resnet12 mean_confidence_interval FewShotResult
evaluate_episodes MiniImageNet CUB OmniglotFewShot
"""


def test_package() -> None:
    check_package("susana", public=PUBLIC.split())


def test_readme(readme_example) -> None:
    names = readme_example()
    assert names["after"] > names["before"] + 0.05
    assert names["accuracy"] > 0.8
