"""Neural Collapse in Deep Linear Networks: From Balanced to Imbalanced Data (arXiv 2301.00437)."""

from offprints.neural_collapse.closed_form import GOFSolution, collapse_threshold, gof_solution, minimum_class_count
from offprints.neural_collapse.cross_entropy import ce_etf_solution
from offprints.neural_collapse.frames import simplex_etf
from offprints.neural_collapse.heads import LinearHead, separate_decay
from offprints.neural_collapse.metrics import NCMetrics, nc_metrics, nc_metrics_from_statistics
from offprints.neural_collapse.probe import NCProbe
from offprints.neural_collapse.statistics import FeatureStatistics
from offprints.neural_collapse.unconstrained import DeepLinearUFM, UFMState, global_minimizer

__all__ = [  # noqa: RUF022 - in order of importance
    "NCProbe",
    "NCMetrics",
    "nc_metrics",
    "FeatureStatistics",
    "nc_metrics_from_statistics",
    "gof_solution",
    "GOFSolution",
    "minimum_class_count",
    "collapse_threshold",
    "ce_etf_solution",
    "global_minimizer",
    "UFMState",
    "DeepLinearUFM",
    "simplex_etf",
    "LinearHead",
    "separate_decay",
]
