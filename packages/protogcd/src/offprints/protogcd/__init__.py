"""ProtoGCD: unified and unbiased prototype learning for generalized category discovery (arXiv 2504.03755)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from offprints.protogcd.accuracy import GCDAccuracy, gcd_accuracy
from offprints.protogcd.backbone import dino_backbone
from offprints.protogcd.class_count import ClassCountEstimate, estimate_num_classes
from offprints.protogcd.contrastive import info_nce, supervised_contrastive
from offprints.protogcd.head import PrototypeHead
from offprints.protogcd.objective import ProtoGCDLoss, ProtoGCDOutput
from offprints.protogcd.outliers import ood_measures, ood_score
from offprints.protogcd.pseudo_labels import dapl_loss, dapl_pseudo_labels, ratio_schedule
from offprints.protogcd.regularization import entropy_regularization, prototype_separation
from offprints.protogcd.splits import GCDSplit, balanced_sampler, gcd_split
from offprints.shared.lazy import attach as _attach

if TYPE_CHECKING:
    from offprints.protogcd.clusterer import ProtoGCDClusterer

__all__ = [  # noqa: RUF022 - in order of importance
    "ProtoGCDClusterer",
    "ProtoGCDLoss",
    "ProtoGCDOutput",
    "PrototypeHead",
    "dapl_loss",
    "dapl_pseudo_labels",
    "ratio_schedule",
    "entropy_regularization",
    "prototype_separation",
    "info_nce",
    "supervised_contrastive",
    "gcd_accuracy",
    "GCDAccuracy",
    "gcd_split",
    "GCDSplit",
    "balanced_sampler",
    "estimate_num_classes",
    "ClassCountEstimate",
    "ood_score",
    "ood_measures",
    "dino_backbone",
]


# The clusterer stands on scikit-learn, which takes as long to import as torch.
__getattr__, __dir__ = _attach(__name__, {"ProtoGCDClusterer": "offprints.protogcd.clusterer"})
