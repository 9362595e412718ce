"""FedLD: heterogeneity in federated learning by loss decomposition (arXiv 2408.12300)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from offprints.fedld.aggregator import PrincipalGradientAggregator
from offprints.fedld.decomposition import loss_decomposition
from offprints.fedld.losses import MarginControlLoss, margin_control_loss
from offprints.fedld.partition import FeatureShift, dirichlet_partition, shard_partition
from offprints.fedld.principal import principal_aggregate, principal_coefficients
from offprints.fedld.simulation import FederatedResult, simulate
from offprints.fedld.states import AggregationReport
from offprints.fedld.training import LocalConfig, train_client
from offprints.shared.lazy import attach as _attach

if TYPE_CHECKING:
    from offprints.fedld.flower import FedLDStrategy, client_app, server_app

__all__ = [  # noqa: RUF022 - in order of importance
    "margin_control_loss",
    "MarginControlLoss",
    "principal_aggregate",
    "principal_coefficients",
    "PrincipalGradientAggregator",
    "AggregationReport",
    "loss_decomposition",
    "simulate",
    "FederatedResult",
    "train_client",
    "LocalConfig",
    "dirichlet_partition",
    "shard_partition",
    "FeatureShift",
    "FedLDStrategy",
    "client_app",
    "server_app",
]

# What stands on Flower, an extra, is loaded when it is asked for.
_FLOWER = "offprints.fedld.flower"
__getattr__, __dir__ = _attach(__name__, {"FedLDStrategy": _FLOWER, "client_app": _FLOWER, "server_app": _FLOWER})
