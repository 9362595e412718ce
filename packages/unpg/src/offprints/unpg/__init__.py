"""UNPG: margin losses for recognition, unified with the negative pairs of the batch (arXiv 2203.11593)."""

from offprints.unpg.backbones import iresnet
from offprints.unpg.gap import SimilarityGap, similarity_gap
from offprints.unpg.heads import ArcFaceHead, CosFaceHead, HeadOutput, MagFaceHead, MarginHead
from offprints.unpg.losses import MarginLoss, UNPGLoss, unified_cross_entropy
from offprints.unpg.pairs import PairSimilarities, iqr_bounds, iqr_filter, pair_similarities
from offprints.unpg.sharding import ShardedMarginHead
from offprints.unpg.verification import VerificationResult, tar_at_far, template_features, verification_accuracy

__all__ = [  # noqa: RUF022 - in order of importance
    "UNPGLoss",
    "MarginLoss",
    "CosFaceHead",
    "ArcFaceHead",
    "MagFaceHead",
    "MarginHead",
    "HeadOutput",
    "ShardedMarginHead",
    "unified_cross_entropy",
    "pair_similarities",
    "PairSimilarities",
    "iqr_filter",
    "iqr_bounds",
    "similarity_gap",
    "SimilarityGap",
    "verification_accuracy",
    "VerificationResult",
    "tar_at_far",
    "template_features",
    "iresnet",
]
