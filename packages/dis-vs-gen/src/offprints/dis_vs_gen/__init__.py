"""Revisiting discriminative vs. generative classifiers: theory and implications (arXiv 2302.02334)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from offprints.dis_vs_gen.assumptions import AssumptionStatistics, assumption_statistics
from offprints.dis_vs_gen.bounds import logistic_h_consistency_bound
from offprints.dis_vs_gen.curves import LearningCurve, crossover, learning_curve
from offprints.dis_vs_gen.features import extract_features
from offprints.dis_vs_gen.simulation import bayes_error_two_gaussians, gaussian_mixture, samples_to_bayes
from offprints.shared.lazy import attach as _attach

if TYPE_CHECKING:
    from offprints.dis_vs_gen.logistic import LogisticRegression
    from offprints.dis_vs_gen.naive_bayes import GaussianNaiveBayes
    from offprints.dis_vs_gen.scaling import MinMaxScaler
    from offprints.dis_vs_gen.sweep import LogisticRegressionCV
    from offprints.shared.estimators import NotFittedError

__all__ = [
    "AssumptionStatistics",
    "GaussianNaiveBayes",
    "LearningCurve",
    "LogisticRegression",
    "LogisticRegressionCV",
    "MinMaxScaler",
    "NotFittedError",
    "assumption_statistics",
    "bayes_error_two_gaussians",
    "crossover",
    "extract_features",
    "gaussian_mixture",
    "learning_curve",
    "logistic_h_consistency_bound",
    "samples_to_bayes",
]

# What stands on scikit-learn, which takes as long to import as torch, is loaded when it is asked for.
__getattr__, __dir__ = _attach(
    __name__,
    {
        "GaussianNaiveBayes": "offprints.dis_vs_gen.naive_bayes",
        "LogisticRegression": "offprints.dis_vs_gen.logistic",
        "LogisticRegressionCV": "offprints.dis_vs_gen.sweep",
        "MinMaxScaler": "offprints.dis_vs_gen.scaling",
        "NotFittedError": "offprints.shared.estimators",
    },
)
