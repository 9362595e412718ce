"""Revisiting discriminative vs. generative classifiers: theory and implications (arXiv 2302.02334)."""

from offprints.dis_vs_gen.assumptions import AssumptionStatistics, assumption_statistics
from offprints.dis_vs_gen.bounds import logistic_h_consistency_bound
from offprints.dis_vs_gen.curves import LearningCurve, crossover, learning_curve
from offprints.dis_vs_gen.features import extract_features
from offprints.dis_vs_gen.logistic import LogisticRegression
from offprints.dis_vs_gen.naive_bayes import GaussianNaiveBayes
from offprints.dis_vs_gen.scaling import MinMaxScaler
from offprints.dis_vs_gen.simulation import bayes_error_two_gaussians, gaussian_mixture, samples_to_bayes
from offprints.shared.estimators import NotFittedError

__all__ = [
    "AssumptionStatistics",
    "GaussianNaiveBayes",
    "LearningCurve",
    "LogisticRegression",
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
