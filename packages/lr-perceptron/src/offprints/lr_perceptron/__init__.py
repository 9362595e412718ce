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


def __getattr__(name: str) -> object:
    """The estimators come with their first use: scikit-learn takes as long to import as torch."""
    if name in ("LogisticGDClassifier", "BatchPerceptronClassifier", "PerceptronClassifier"):
        from offprints.lr_perceptron import classifiers

        found: object = getattr(classifiers, name)
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
