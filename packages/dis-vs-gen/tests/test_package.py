"""The package keeps the form that all of them have; the README's example runs."""

from offprints.shared.testing import check_package

PUBLIC = """
GaussianNaiveBayes LogisticRegression LogisticRegressionCV MinMaxScaler NotFittedError gaussian_mixture
bayes_error_two_gaussians samples_to_bayes LearningCurve learning_curve crossover AssumptionStatistics
assumption_statistics
logistic_h_consistency_bound extract_features
"""


def test_package() -> None:
    check_package("dis-vs-gen", public=PUBLIC.split())


def test_readme(readme_example) -> None:
    names = readme_example()
    assert names["accuracy"] > 0.8
