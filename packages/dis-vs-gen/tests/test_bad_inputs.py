"""Every bad input of the specification: the right error, naming the argument."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor, nn

from offprints.dis_vs_gen import (
    GaussianNaiveBayes,
    LearningCurve,
    LogisticRegression,
    MinMaxScaler,
    NotFittedError,
    assumption_statistics,
    bayes_error_two_gaussians,
    crossover,
    extract_features,
    gaussian_mixture,
    learning_curve,
    logistic_h_consistency_bound,
    samples_to_bayes,
)
from offprints.shared.testing import check_errors

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3
NAN = torch.cat([X[:11], torch.full((1, 3), torch.nan)])
INF = torch.cat([X[:11], torch.full((1, 3), torch.inf)])


@pytest.mark.parametrize("fit", [GaussianNaiveBayes().fit, LogisticRegression().fit, assumption_statistics])
def test_fit(fit: Any) -> None:
    check_errors(
        [
            (lambda: fit(X[0], Y), ValueError, "X"),
            (lambda: fit(X[None], Y), ValueError, "X"),
            (lambda: fit(X[:0], Y[:0]), ValueError, "X"),
            (lambda: fit(X[:, :0], Y), ValueError, "X"),
            (lambda: fit(NAN, Y), ValueError, "X"),
            (lambda: fit(INF.numpy(), Y.numpy()), ValueError, "X"),
            (lambda: fit(X, Y[:11]), ValueError, "y"),
            (lambda: fit(X, Y[:, None]), ValueError, "y"),
            (lambda: fit(X, torch.zeros_like(Y)), ValueError, "y must hold at least 2 classes"),
            (lambda: fit(X.to(torch.complex64), Y), TypeError, "X"),
            (lambda: fit(sparse.coo_array(X.numpy()) if fit is assumption_statistics else {}, Y), TypeError, "X"),
            (lambda: fit(X, Y + 0.5), ValueError, "y must hold classes"),
            (lambda: fit(X.numpy(), Y.numpy() * 0.5), ValueError, "Unknown label type"),
            (lambda: fit(X.numpy(), np.array([object()] * 12)), TypeError, "y"),
            (lambda: fit(X.numpy(), np.array([None, 1, 2] * 4)), TypeError, "y"),
            (lambda: fit(X.numpy(), np.where(Y.numpy() == 0, np.nan, 1.0)), ValueError, "y must be finite"),
            (lambda: fit(X, Y.to(torch.complex64)), TypeError, "y"),
        ]
    )


@pytest.mark.parametrize("make", [GaussianNaiveBayes, LogisticRegression])
def test_not_fitted(make: Any) -> None:
    model = make()
    methods = ["predict", "predict_proba", "predict_log_proba", "decision_function"]
    cases: list[Any] = [
        (lambda method=method: getattr(model, method)(X), NotFittedError, "not fitted") for method in methods
    ]
    cases += [(lambda: model.score(X, Y), NotFittedError, "not fitted"), (model.to_linear, NotFittedError, "fit")]
    cases += [(lambda: MinMaxScaler().transform(X), NotFittedError, "not fitted")]
    if make is GaussianNaiveBayes:
        attributes = ["class_count_", "class_prior_", "theta_", "class_var_", "var_", "coef_", "intercept_"]
        cases += [(lambda name=name: getattr(model, name), NotFittedError, "fit") for name in attributes]
        cases += [(lambda: model.log_likelihood(X), NotFittedError, "not fitted")]
    check_errors(cases)
    learned = ["classes_", "coef_", "intercept_", "n_features_in_"]
    check_errors([(lambda name=name: getattr(model, name), NotFittedError, "fit") for name in learned])
    fitted = make().fit(X, Y)
    check_errors(
        [
            (lambda: fitted.predict(X[:, :2]), ValueError, "features"),
            (lambda: fitted.predict(NAN), ValueError, "X"),
            (lambda: fitted.score(X, Y[:3]), ValueError, "y"),
        ]
    )


def test_partial_fit() -> None:
    model = GaussianNaiveBayes().partial_fit(X, Y, classes=[0, 1, 2])
    before = model.theta_
    check_errors(
        [
            (lambda: GaussianNaiveBayes().partial_fit(X, Y), ValueError, "classes"),
            (lambda: GaussianNaiveBayes().partial_fit(X, Y, classes=[0]), ValueError, "classes"),
            (lambda: GaussianNaiveBayes().partial_fit(X, Y, classes=[0.5, 1.0, 2.0]), ValueError, "classes"),
            (lambda: GaussianNaiveBayes().partial_fit(X, Y, classes=["a", "b"]), ValueError, "y must hold"),
            (lambda: GaussianNaiveBayes().partial_fit(X, Y, classes=[0, 1]), ValueError, "y"),
            (lambda: model.partial_fit(X, Y + 1), ValueError, "y must hold labels among"),
            (lambda: model.partial_fit(X, Y, classes=[0, 1, 3]), ValueError, "classes"),
            (lambda: model.partial_fit(X[:, :2], Y), ValueError, "features"),
            (lambda: model.partial_fit(NAN, Y), ValueError, "X"),
            (lambda: model.merge(LogisticRegression()), TypeError, "other"),  # type: ignore[arg-type]
            (lambda: model.merge(GaussianNaiveBayes().fit(X[:, :2], Y)), ValueError, "other"),
        ]
    )
    assert torch.equal(model.theta_, before)


def test_parameters() -> None:
    def priors(*values: float) -> GaussianNaiveBayes:
        return GaussianNaiveBayes(priors=torch.tensor(values, dtype=torch.float64))

    merged = priors(0.2, 0.3, 0.5).fit(X, Y)
    constant = torch.ones(12, 3)
    check_errors(
        [
            (lambda: GaussianNaiveBayes(var_smoothing=-1e-9).fit(X, Y), ValueError, "var_smoothing"),
            (
                lambda: GaussianNaiveBayes(var_smoothing=-1.0).partial_fit(X, Y, classes=[0, 1, 2]),
                ValueError,
                "var_smoothing",
            ),
            (lambda: GaussianNaiveBayes(shared_variance="yes").fit(X, Y), TypeError, "shared_variance"),  # type: ignore[arg-type]
            (lambda: priors(0.7, -0.1, 0.4).fit(X, Y), ValueError, "priors"),
            (lambda: priors(0.3, 0.3, 0.41).fit(X, Y), ValueError, "priors"),
            (lambda: priors(0.3, 0.3, 0.400002).fit(X, Y), ValueError, "priors"),
            (lambda: priors(0.5, 0.5).fit(X, Y), ValueError, "priors"),
            (lambda: merged.merge(GaussianNaiveBayes().fit(X, Y + 1)), ValueError, "priors"),
            (lambda: GaussianNaiveBayes(priors=[1, 0]).fit(X, Y), TypeError, "priors"),  # type: ignore[arg-type]
            (lambda: GaussianNaiveBayes(var_smoothing=0.0).fit(constant, Y), ValueError, "var_smoothing"),
            (
                lambda: priors(1.0, 0.0).partial_fit(X, torch.ones(12).long(), classes=[0, 1]).predict(X),
                ValueError,
                "priors",
            ),
            (lambda: LogisticRegression(C=0.0).fit(X, Y), ValueError, "C"),
            (lambda: LogisticRegression(C=-1.0).fit(X, Y), ValueError, "C"),
            (lambda: LogisticRegression(max_iter=0).fit(X, Y), ValueError, "max_iter"),
            (lambda: LogisticRegression(tol=0.0).fit(X, Y), ValueError, "tol"),
            (lambda: LogisticRegression(fit_intercept=1).fit(X, Y), TypeError, "fit_intercept"),  # type: ignore[arg-type]
        ]
    )


def test_curves() -> None:
    def curve(sizes: Any, **options: Any) -> LearningCurve:
        return learning_curve(GaussianNaiveBayes, X, Y, X, Y, sizes, **options)

    good = LearningCurve(sizes=[3], errors=torch.zeros(1, 1))
    check_errors(
        [
            (lambda: curve([2]), ValueError, "sizes"),
            (lambda: curve([6, 13]), ValueError, "sizes"),
            (lambda: curve([]), ValueError, "sizes"),
            (lambda: curve([4.5]), TypeError, "sizes"),
            (lambda: curve([6], repeats=0), ValueError, "repeats"),
            (lambda: curve([6], seed=-1), ValueError, "seed"),
            (lambda: learning_curve(GaussianNaiveBayes, X, Y, X[:, :2], Y, [6]), ValueError, "features"),
            (lambda: learning_curve(GaussianNaiveBayes, X, Y, NAN, Y, [6]), ValueError, "X_test"),
            (lambda: learning_curve(GaussianNaiveBayes, X, Y, X, Y[:3], [6]), ValueError, "y_test"),
            (lambda: learning_curve(GaussianNaiveBayes, X, Y + 0.5, X, Y, [6]), ValueError, "y"),
            (lambda: crossover(good, LearningCurve(sizes=[4], errors=torch.zeros(1, 1))), ValueError, "sizes"),
            (lambda: crossover(good, [0.1]), TypeError, "b must"),  # type: ignore[arg-type]
        ]
    )


def test_simulation_and_bound() -> None:
    mean, variance = torch.zeros(3), torch.ones(3)
    check_errors(
        [
            (lambda: gaussian_mixture(1, 2, 10), ValueError, "n_features"),
            (lambda: gaussian_mixture(4, 1, 10), ValueError, "n_classes"),
            (lambda: gaussian_mixture(4, 2, 0), ValueError, "n_samples"),
            (lambda: gaussian_mixture(4, 2, 10, mode="medium"), ValueError, "mode"),
            (lambda: gaussian_mixture(4, 2, 10, dtype=torch.int64), TypeError, "dtype"),
            (lambda: samples_to_bayes(GaussianNaiveBayes, 1), ValueError, "n_features"),
            (lambda: samples_to_bayes(GaussianNaiveBayes, 4, n_classes=1), ValueError, "n_classes"),
            (lambda: samples_to_bayes(GaussianNaiveBayes, 4, margin=0.0), ValueError, "margin"),
            (lambda: samples_to_bayes(GaussianNaiveBayes, 4, repeats=0), ValueError, "repeats"),
            (lambda: samples_to_bayes(GaussianNaiveBayes, 4, n_test=0), ValueError, "n_test"),
            (lambda: samples_to_bayes(GaussianNaiveBayes, 4, max_samples=3), ValueError, "max_samples"),
            (lambda: bayes_error_two_gaussians(mean, mean, -variance), ValueError, "variance"),
            (lambda: bayes_error_two_gaussians(mean, mean[:2], variance), ValueError, "mean1"),
            (lambda: logistic_h_consistency_bound(-0.1), ValueError, "excess"),
            (lambda: logistic_h_consistency_bound(torch.tensor([0.1, -0.1])), ValueError, "excess"),
            (lambda: logistic_h_consistency_bound(float("nan")), ValueError, "excess"),
            (lambda: logistic_h_consistency_bound(0.1, gap=-1.0), ValueError, "gap"),
            (lambda: logistic_h_consistency_bound(0.1, zero_one_gap=-1.0), ValueError, "zero_one_gap"),
            (lambda: logistic_h_consistency_bound(torch.tensor([1])), TypeError, "excess"),
            (lambda: assumption_statistics(X, Y, var_smoothing=-1.0), ValueError, "var_smoothing"),
        ]
    )


class Skipping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def test_features() -> None:
    model, loader = Skipping(), [(X, Y)]
    broken = Skipping()
    nn.init.constant_(broken.used.bias, torch.nan)
    check_errors(
        [
            (lambda: extract_features(model, loader, layer="fc"), ValueError, "layer"),
            (lambda: extract_features(model, loader, layer=""), ValueError, "layer"),
            (lambda: extract_features(model, loader, layer="unused"), ValueError, "layer"),
            (lambda: extract_features(model, []), ValueError, "loader"),
            (lambda: extract_features(broken, loader), ValueError, "finite"),
            (lambda: extract_features(model, [(X, Y.float())]), TypeError, "labels"),
            (lambda: extract_features(model, [(X, Y[:3])]), ValueError, "labels"),
            (lambda: extract_features(nn.LSTM(3, 2), loader), TypeError, "feature"),
            (lambda: extract_features(model, loader, device="no such device"), ValueError, "device"),
        ]
    )
    assert np.all([not part._forward_pre_hooks for part in model.modules()])
