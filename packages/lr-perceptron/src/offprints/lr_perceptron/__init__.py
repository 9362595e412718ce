"""From Logistic Regression to the Perceptron Algorithm: Exploring Gradient Descent with Large Step Sizes (arXiv
2412.08424)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from offprints.lr_perceptron.datasets import loss_divergence_dataset, worst_case_dataset
from offprints.lr_perceptron.losses import (
    NormalizedLogisticLoss,
    logistic_gradient,
    logistic_loss,
    normalized_logistic_loss,
)
from offprints.lr_perceptron.rules import METHODS
from offprints.lr_perceptron.separation import SeparationResult, separate
from offprints.lr_perceptron.sweeps import SweepResult, sweep
from offprints.lr_perceptron.theory import is_separable, iteration_bound, margin, radius
from offprints.shared.lazy import attach as _attach

if TYPE_CHECKING:
    from offprints.lr_perceptron.classifiers import (
        BatchPerceptronClassifier,
        LogisticGDClassifier,
        PerceptronClassifier,
    )

__all__ = [  # noqa: RUF022 - in order of importance
    "separate",
    "SeparationResult",
    "sweep",
    "SweepResult",
    "METHODS",
    "normalized_logistic_loss",
    "NormalizedLogisticLoss",
    "LogisticGDClassifier",
    "BatchPerceptronClassifier",
    "PerceptronClassifier",
    "margin",
    "radius",
    "is_separable",
    "iteration_bound",
    "logistic_loss",
    "logistic_gradient",
    "worst_case_dataset",
    "loss_divergence_dataset",
]

# What stands on scikit-learn, which takes as long to import as torch, is loaded when it is asked for.
__getattr__, __dir__ = _attach(
    __name__,
    {
        "LogisticGDClassifier": "offprints.lr_perceptron.classifiers",
        "BatchPerceptronClassifier": "offprints.lr_perceptron.classifiers",
        "PerceptronClassifier": "offprints.lr_perceptron.classifiers",
    },
)
