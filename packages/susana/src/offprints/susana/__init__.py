"""SuSana Distancia is all you need: Enforcing class separability in metric learning via two novel distance-based loss
functions for few-shot image classification (arXiv 2305.09062)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from offprints.shared.lazy import attach as _attach
from offprints.susana.datasets import CUB, MiniImageNet, OmniglotFewShot
from offprints.susana.distances import pairwise_distance
from offprints.susana.episode_loss import FewShotLoss, FewShotLossOutput
from offprints.susana.episodes import Episode, EpisodeCollate, EpisodeSampler
from offprints.susana.evaluation import FewShotResult, evaluate_episodes, mean_confidence_interval
from offprints.susana.first_generation import original_icnn_score
from offprints.susana.icnn import ICNNComponents, ICNNLoss, icnn_components, icnn_loss, icnn_score
from offprints.susana.networks import PrototypicalNetwork, conv4, resnet12
from offprints.susana.proto_triplet import ProtoTripletLoss, proto_triplet_loss
from offprints.susana.prototypes import compute_prototypes, prototypical_logits

if TYPE_CHECKING:
    from offprints.susana.classifier import PrototypicalClassifier

__all__ = [  # noqa: RUF022 - in order of importance
    "icnn_loss",
    "ICNNLoss",
    "proto_triplet_loss",
    "ProtoTripletLoss",
    "FewShotLoss",
    "FewShotLossOutput",
    "icnn_score",
    "icnn_components",
    "ICNNComponents",
    "original_icnn_score",
    "PrototypicalNetwork",
    "PrototypicalClassifier",
    "compute_prototypes",
    "prototypical_logits",
    "pairwise_distance",
    "EpisodeSampler",
    "EpisodeCollate",
    "Episode",
    "evaluate_episodes",
    "FewShotResult",
    "mean_confidence_interval",
    "conv4",
    "resnet12",
    "MiniImageNet",
    "CUB",
    "OmniglotFewShot",
]

# What stands on scikit-learn, which takes as long to import as torch, is loaded when it is asked for.
__getattr__, __dir__ = _attach(__name__, {"PrototypicalClassifier": "offprints.susana.classifier"})
