"""SP²OT: Semantic-regularized progressive partial optimal transport for imbalanced clustering (arXiv 2404.03446)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from offprints.shared.lazy import attach as _attach
from offprints.sp2ot.bank import LogitBank
from offprints.sp2ot.graph import knn_similarity
from offprints.sp2ot.head import CosineHead
from offprints.sp2ot.longtail import long_tailed_counts, long_tailed_indices
from offprints.sp2ot.losses import SP2OTLoss, SP2OTOutput
from offprints.sp2ot.objective import TransportValue, transport_value
from offprints.sp2ot.schedule import rho_schedule
from offprints.sp2ot.scores import cluster_scores
from offprints.sp2ot.semantic import SemanticTransportResult, semantic_partial_ot
from offprints.sp2ot.transport import TransportResult, partial_ot

if TYPE_CHECKING:
    from offprints.sp2ot.clusterer import SP2OTClusterer

__all__ = [
    "CosineHead",
    "LogitBank",
    "SP2OTClusterer",
    "SP2OTLoss",
    "SP2OTOutput",
    "SemanticTransportResult",
    "TransportResult",
    "TransportValue",
    "cluster_scores",
    "knn_similarity",
    "long_tailed_counts",
    "long_tailed_indices",
    "partial_ot",
    "rho_schedule",
    "semantic_partial_ot",
    "transport_value",
]

# What stands on scikit-learn, which takes as long to import as torch, is loaded when it is asked for.
__getattr__, __dir__ = _attach(__name__, {"SP2OTClusterer": "offprints.sp2ot.clusterer"})
