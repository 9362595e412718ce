"""The package keeps the form that all of them have; the README's example runs."""

from offprints.shared.testing import check_package

PUBLIC = """
separate SeparationResult sweep SweepResult METHODS normalized_logistic_loss NormalizedLogisticLoss
LogisticGDClassifier BatchPerceptronClassifier PerceptronClassifier margin radius is_separable iteration_bound
logistic_loss logistic_gradient worst_case_dataset loss_divergence_dataset
"""


def test_package() -> None:
    check_package("lr-perceptron", public=PUBLIC.split())


def test_readme(readme_example) -> None:
    names = readme_example()
    assert names["result"].separated
    assert names["result"].n_iter <= names["bound"]
    assert names["probe"].separated_
    assert names["probe"].score(names["features"], names["labels"]) == 1
    assert names["losses"][-1] < names["losses"][0]
