"""The fast code equals the paper's algorithms as the paper writes them."""

from __future__ import annotations

import numpy as np
import pytest

from offprints.dis_vs_gen import GaussianNaiveBayes, LogisticRegression
from offprints.dis_vs_gen import reference as plain

GENERATOR = np.random.default_rng(1)
Y = GENERATOR.integers(0, 4, 80)
X = GENERATOR.normal(size=(80, 5)) * [1, 2, 0.5, 3, 1] + np.eye(4, 5)[Y] * 2


def test_naive_bayes() -> None:
    log_prior, mean, variance = plain.naive_bayes_fit(X, Y)
    fast = GaussianNaiveBayes().fit(X, Y)
    np.testing.assert_allclose(fast.theta_, mean, rtol=1e-12)
    np.testing.assert_allclose(fast.var_, variance, rtol=1e-12)
    scores = np.array([plain.naive_bayes_scores(x, log_prior, mean, variance) for x in X])
    np.testing.assert_allclose(fast.decision_function(X), scores, rtol=1e-11)
    assert fast.predict(X).tolist() == scores.argmax(1).tolist()
    weight, bias = plain.naive_bayes_linear(log_prior, mean, variance)
    np.testing.assert_allclose(fast.coef_, weight, rtol=1e-12)
    np.testing.assert_allclose(fast.intercept_, bias, rtol=1e-12)


@pytest.mark.parametrize("C", [0.1, 1.0])
def test_logistic_regression(C: float) -> None:
    weight, bias = plain.logistic_fit(X, Y, C=C, tol=1e-9)
    fast = LogisticRegression(C=C, tol=1e-9).fit(X, Y)
    np.testing.assert_allclose(fast.coef_, weight, atol=1e-6)
    np.testing.assert_allclose(fast.intercept_ - fast.intercept_.mean(), bias - bias.mean(), atol=1e-6)
    ours = plain.logistic_objective(fast.coef_, fast.intercept_, X, Y, C)
    assert ours == pytest.approx(plain.logistic_objective(weight, bias, X, Y, C), abs=1e-12)
