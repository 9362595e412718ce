"""The estimators: the functions' results, one-vs-rest, streams, labels of every kind."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from offprints.lr_perceptron import (
    BatchPerceptronClassifier,
    LogisticGDClassifier,
    PerceptronClassifier,
    separate,
)
from offprints.lr_perceptron.reproduce.digits import digit_pair

MAKERS = {
    "lr_gd": lambda **options: LogisticGDClassifier(step_size=10.0, **options),
    "normalized_lr_gd": lambda **options: LogisticGDClassifier(step_size=10.0, normalized=True, **options),
    "batch_perceptron": BatchPerceptronClassifier,
    "normalized_batch_perceptron": lambda **options: BatchPerceptronClassifier(normalized=True, **options),
    "perceptron": PerceptronClassifier,
}
GENERATOR = np.random.default_rng(0)
LABELS = np.arange(90) % 3
FEATURES = GENERATOR.normal(size=(90, 5)) + 5 * np.eye(3, 5)[LABELS]


@pytest.mark.parametrize("method", MAKERS)
def test_two_classes_are_one_descent(method: str) -> None:
    X, y = digit_pair((3, 5))
    expected = separate(X, y, method=method, step_size=10.0)
    model = MAKERS[method]().fit(X[:, :-1], torch.where(y > 0, 5, 3))
    assert model.n_iter_ == expected.n_iter
    assert model.separated_
    torch.testing.assert_close(torch.cat([model.coef_[0], model.intercept_]), expected.theta)
    assert model.score(X[:, :-1], torch.where(y > 0, 5, 3)) == 1
    bare = MAKERS[method](fit_intercept=False).fit(X.numpy(), np.where(y > 0, 5, 3))
    assert isinstance(bare.coef_, np.ndarray)
    assert bare.intercept_.tolist() == [0]
    np.testing.assert_allclose(bare.coef_[0], expected.theta)


@pytest.mark.parametrize("method", MAKERS)
def test_one_against_the_rest(method: str) -> None:
    model = MAKERS[method]().fit(FEATURES, LABELS)
    assert model.coef_.shape == (3, 5)
    ones = torch.from_numpy(np.c_[FEATURES, np.ones(90)])
    counts = []
    for number in range(3):
        y = torch.from_numpy(np.where(number == LABELS, 1.0, -1.0))
        alone = separate(ones, y, method=method, step_size=10.0)
        counts.append(alone.n_iter)
        learned = np.append(model.coef_[number], model.intercept_[number])
        np.testing.assert_allclose(learned, alone.theta, rtol=1e-7, atol=1e-7)
    assert model.n_iter_ == max(counts)
    scores = model.decision_function(FEATURES)
    np.testing.assert_allclose(scores, FEATURES @ model.coef_.T + model.intercept_)
    np.testing.assert_array_equal(model.predict(FEATURES), scores.argmax(1))
    assert model.score(FEATURES, LABELS) == 1


@pytest.mark.parametrize("method", MAKERS)
def test_a_stream_of_the_whole_set_is_the_fit(method: str) -> None:
    expected = MAKERS[method]().fit(FEATURES, LABELS == 1)
    model = MAKERS[method]()
    for update in range(expected.n_iter_):
        assert update == 0 or not model.separated_
        model.partial_fit(FEATURES, LABELS == 1)
    assert model.separated_
    assert model.n_iter_ == expected.n_iter_
    np.testing.assert_allclose(model.coef_, expected.coef_, rtol=1e-9, atol=1e-9)


def test_batches_that_lack_classes() -> None:
    model = BatchPerceptronClassifier(normalized=True)
    model.partial_fit(FEATURES[LABELS < 2][:10], LABELS[LABELS < 2][:10], classes=[2, 1, 0])
    assert model.classes_.tolist() == [0, 1, 2]
    model.partial_fit(FEATURES[LABELS == 2], LABELS[LABELS == 2], classes=model.classes_)
    assert model.n_iter_ == 2
    apart = FEATURES[LABELS == 2][:1]
    model.coef_[:2], model.coef_[2] = -apart, apart  # no sample of this batch is misclassified
    before, model.intercept_ = model.coef_.copy(), np.zeros(3)
    model.partial_fit(apart, [2])
    np.testing.assert_array_equal(model.coef_, before)
    assert model.n_iter_ == 3


def test_the_intercept_is_not_lost_in_a_stream() -> None:
    model = LogisticGDClassifier(max_iter=20).fit(FEATURES, LABELS == 1)
    before, intercept = model.decision_function(FEATURES), model.intercept_.copy()
    model.set_params(fit_intercept=False)
    with pytest.raises(ValueError, match="fit_intercept must stay True"):
        model.partial_fit(FEATURES, LABELS == 1)
    np.testing.assert_array_equal(model.decision_function(FEATURES), before)
    np.testing.assert_array_equal(model.intercept_, intercept)
    # From none to one: it begins at 0.
    bare = LogisticGDClassifier(fit_intercept=False, max_iter=20).fit(FEATURES, LABELS == 1)
    coef, signs = bare.coef_[0].copy(), np.where(LABELS == 1, 1.0, -1.0)
    weights = signs / (1 + np.exp(signs * (FEATURES @ coef))) / 90
    bare.set_params(fit_intercept=True).partial_fit(FEATURES, LABELS == 1)
    np.testing.assert_allclose(bare.coef_[0], coef + weights @ FEATURES)
    np.testing.assert_allclose(bare.intercept_, weights.sum())


def test_first_step_of_the_batch_perceptron_is_that_of_the_first_call() -> None:
    model = BatchPerceptronClassifier(fit_intercept=False)
    signs = np.where(LABELS == 1, 1.0, -1.0)
    model.partial_fit(FEATURES, LABELS == 1)
    np.testing.assert_allclose(model.coef_[0], (FEATURES * signs[:, None]).mean(0) / 2)
    theta = model.coef_[0].copy()
    wrong = signs * (FEATURES @ theta) <= 0
    model.partial_fit(FEATURES, LABELS == 1)
    np.testing.assert_allclose(model.coef_[0], theta + (FEATURES * (signs * wrong)[:, None]).mean(0))


def test_probabilities() -> None:
    model = LogisticGDClassifier(max_iter=20).fit(FEATURES, LABELS)
    one = 1 / (1 + np.exp(-model.decision_function(FEATURES)))
    np.testing.assert_allclose(model.predict_proba(FEATURES), one / one.sum(1, keepdims=True))
    two = LogisticGDClassifier(max_iter=20).fit(FEATURES, LABELS == 0)
    one = 1 / (1 + np.exp(-two.decision_function(FEATURES)))
    np.testing.assert_allclose(two.predict_proba(FEATURES)[:, 1], one)
    assert not hasattr(PerceptronClassifier(), "predict_proba")


@pytest.mark.parametrize(
    "names",
    [[-7, 3, 9], ["a", "bb", "a long one"], [2**63, 2**63 + 1, 2**63 + 3]],
    ids=["integers", "words", "unsigned"],
)
def test_labels_keep_their_type(names: list) -> None:
    named = np.array(names)
    expected = PerceptronClassifier().fit(FEATURES, LABELS).predict(FEATURES)
    order = np.argsort(named)
    model = PerceptronClassifier().fit(FEATURES, named[order][LABELS])
    assert model.classes_.dtype == named.dtype
    np.testing.assert_array_equal(model.predict(FEATURES), named[order][expected])


def test_not_separated_warns() -> None:
    X, y = np.ones((4, 2)), np.array([0, 1, 0, 1])
    with pytest.warns(ConvergenceWarning, match="max_iter=7"):
        model = LogisticGDClassifier(max_iter=7).fit(X, y)
    assert not model.separated_
    assert model.n_iter_ == 7


def test_in_scikit_learns_pipeline_and_search() -> None:
    X, y = load_iris(return_X_y=True)
    X, y = X[:100], y[:100]
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticGDClassifier()),
        {"logisticgdclassifier__step_size": [0.1, 100.0], "logisticgdclassifier__normalized": [False, True]},
        cv=3,
    ).fit(X, y)
    assert search.best_score_ == 1
    assert search.best_estimator_[-1].separated_


def test_stored_and_loaded_elsewhere(tmp_path: Path) -> None:
    """In a process that has not imported the package."""
    model = LogisticGDClassifier(step_size=10.0).fit(torch.from_numpy(FEATURES), torch.from_numpy(LABELS))
    (tmp_path / "model.pickle").write_bytes(pickle.dumps((model, FEATURES)))
    code = "import pickle, sys; model, X = pickle.load(open(sys.argv[1], 'rb')); print(model.predict(X).tolist())"
    answer = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model.pickle")], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == str(model.predict(FEATURES).tolist())
    again = copy.deepcopy(model).partial_fit(torch.from_numpy(FEATURES), torch.from_numpy(LABELS))
    assert again.n_iter_ == model.n_iter_ + 1
