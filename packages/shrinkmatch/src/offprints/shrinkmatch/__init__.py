"""ShrinkMatch: shrinking class space for enhanced certainty in semi-supervised learning (arXiv 2308.06777)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from offprints.shared.lazy import attach as _attach
from offprints.shrinkmatch.alignment import DistributionAlignment
from offprints.shrinkmatch.averaging import StudentEMA
from offprints.shrinkmatch.class_space import ShrunkSpace, shrink_class_space
from offprints.shrinkmatch.losses import ShrinkLoss, shrink_loss
from offprints.shrinkmatch.model import AuxHead, ShrinkMatchModel
from offprints.shrinkmatch.objective import ShrinkMatchLoss, ShrinkMatchOutput
from offprints.shrinkmatch.schedule import cosine_factor
from offprints.shrinkmatch.split import split_labels
from offprints.shrinkmatch.transforms import strong_transform, weak_transform
from offprints.shrinkmatch.wide_resnet import wide_resnet

if TYPE_CHECKING:
    from offprints.shrinkmatch.classifier import ShrinkMatchClassifier

__all__ = [  # noqa: RUF022 - in order of importance
    "shrink_loss",
    "ShrinkLoss",
    "ShrinkMatchLoss",
    "ShrinkMatchOutput",
    "ShrinkMatchModel",
    "AuxHead",
    "ShrinkMatchClassifier",
    "shrink_class_space",
    "ShrunkSpace",
    "DistributionAlignment",
    "StudentEMA",
    "weak_transform",
    "strong_transform",
    "wide_resnet",
    "cosine_factor",
    "split_labels",
]

# What stands on scikit-learn, which takes as long to import as torch, is loaded when it is asked for.
__getattr__, __dir__ = _attach(__name__, {"ShrinkMatchClassifier": "offprints.shrinkmatch.classifier"})
