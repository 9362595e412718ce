"""AEF-OCL: online analytic exemplar-free continual learning of imbalanced streams (arXiv 2405.17779)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from offprints.aef_ocl.buffer import RandomBuffer
from offprints.aef_ocl.clad import CladC
from offprints.aef_ocl.joint import ridge_solution
from offprints.aef_ocl.metrics import average_mean_class_accuracy, mean_class_accuracy
from offprints.aef_ocl.pseudo_features import PseudoFeatureGenerator
from offprints.aef_ocl.ridge import RecursiveRidge
from offprints.aef_ocl.streams import long_tailed_stream
from offprints.shared.lazy import attach as _attach

if TYPE_CHECKING:
    from offprints.aef_ocl.classifier import AEFOCLClassifier
    from offprints.shared.estimators import NotFittedError

__all__ = [
    "AEFOCLClassifier",
    "CladC",
    "NotFittedError",
    "PseudoFeatureGenerator",
    "RandomBuffer",
    "RecursiveRidge",
    "average_mean_class_accuracy",
    "long_tailed_stream",
    "mean_class_accuracy",
    "ridge_solution",
]

# What stands on scikit-learn, which takes as long to import as torch, is loaded when it is asked for.
__getattr__, __dir__ = _attach(
    __name__, {"AEFOCLClassifier": "offprints.aef_ocl.classifier", "NotFittedError": "offprints.shared.estimators"}
)
