"""AEF-OCL: online analytic exemplar-free continual learning of imbalanced streams (arXiv 2405.17779)."""

from __future__ import annotations

import importlib as _importlib
from typing import TYPE_CHECKING

from offprints.aef_ocl.buffer import RandomBuffer
from offprints.aef_ocl.clad import CladC
from offprints.aef_ocl.metrics import average_mean_class_accuracy, mean_class_accuracy
from offprints.aef_ocl.pseudo_features import PseudoFeatureGenerator
from offprints.aef_ocl.ridge import RecursiveRidge, ridge_solution
from offprints.aef_ocl.streams import long_tailed_stream

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
_LAZY = {
    "AEFOCLClassifier": "offprints.aef_ocl.classifier",
    "NotFittedError": "offprints.shared.estimators",
}


def __getattr__(name: str) -> object:
    if name in _LAZY:
        value = getattr(_importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
