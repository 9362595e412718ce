"""Hyp-OC: hyperbolic one-class classification for face anti-spoofing (arXiv 2404.14406)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from offprints.hyp_oc.ball import (
    clip_features,
    conformal_factor,
    expmap,
    expmap0,
    logmap,
    logmap0,
    mobius_add,
    project,
)
from offprints.hyp_oc.distances import distance, distance0, pairwise_distance
from offprints.hyp_oc.embedding import ToPoincare
from offprints.hyp_oc.gyroplanes import GyroplaneClassifier, gyroplane_logits
from offprints.hyp_oc.head import HypOCHead, HypOCLoss, HypOCLossOutput, HypOCOutput
from offprints.hyp_oc.losses import HypCELoss, HypPCLoss, hyp_ce_loss, hyp_pc_loss
from offprints.hyp_oc.metrics import SpoofMetrics, spoof_metrics
from offprints.hyp_oc.pseudo_negatives import PseudoNegativeSampler
from offprints.hyp_oc.vgg import vgg_face
from offprints.shared.lazy import attach as _attach

if TYPE_CHECKING:
    from offprints.hyp_oc.detector import HypOCDetector
    from offprints.shared.estimators import NotFittedError

__all__ = [
    "GyroplaneClassifier",
    "HypCELoss",
    "HypOCDetector",
    "HypOCHead",
    "HypOCLoss",
    "HypOCLossOutput",
    "HypOCOutput",
    "HypPCLoss",
    "NotFittedError",
    "PseudoNegativeSampler",
    "SpoofMetrics",
    "ToPoincare",
    "clip_features",
    "conformal_factor",
    "distance",
    "distance0",
    "expmap",
    "expmap0",
    "gyroplane_logits",
    "hyp_ce_loss",
    "hyp_pc_loss",
    "logmap",
    "logmap0",
    "mobius_add",
    "pairwise_distance",
    "project",
    "spoof_metrics",
    "vgg_face",
]

# What stands on scikit-learn, which takes as long to import as torch, is loaded when it is asked for.
__getattr__, __dir__ = _attach(
    __name__,
    {
        "HypOCDetector": "offprints.hyp_oc.detector",
        "NotFittedError": "offprints.shared.estimators",
    },
)
