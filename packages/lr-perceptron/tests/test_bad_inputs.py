"""Every bad input of the functions and the estimators: the right error, naming the argument."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

from offprints.lr_perceptron import (
    METHODS,
    BatchPerceptronClassifier,
    LogisticGDClassifier,
    NormalizedLogisticLoss,
    PerceptronClassifier,
    is_separable,
    iteration_bound,
    logistic_gradient,
    logistic_loss,
    loss_divergence_dataset,
    margin,
    normalized_logistic_loss,
    radius,
    separate,
    sweep,
    worst_case_dataset,
)
from offprints.shared.estimators import NotFittedError
from offprints.shared.testing import check_errors

X = torch.tensor([[1.0, 2.0], [2.0, -1.0], [-1.0, 0.5]])
Y = torch.tensor([1.0, 1.0, -1.0])
NAN = torch.tensor([[torch.nan, 0.0], [1.0, 1.0], [1.0, 1.0]])
THETA = torch.zeros(2)


@pytest.mark.parametrize(
    "call",
    [
        lambda X, y: separate(X, y),
        lambda X, y: sweep(X, y, [1.0]),
        margin,
        is_separable,
        lambda X, y: logistic_loss(X, y, THETA),
        lambda X, y: logistic_gradient(X, y, THETA),
    ],
)
def test_samples_and_labels(call: Any) -> None:
    check_errors(
        [
            (lambda: call(X[0], Y), ValueError, "X"),
            (lambda: call(X[None], Y), ValueError, "X"),
            (lambda: call(X[:0], Y[:0]), ValueError, "X"),
            (lambda: call(NAN, Y), ValueError, "X"),
            (lambda: call(NAN.nan_to_num(torch.inf), Y), ValueError, "X"),
            (lambda: call(X.long(), Y), TypeError, "X"),
            (lambda: call(X.numpy(), Y), TypeError, "X"),
            (lambda: call(X, Y[:2]), ValueError, "y"),
            (lambda: call(X, Y[:, None]), ValueError, "y"),
            (lambda: call(X, (Y + 1) / 2), ValueError, "y must hold -1 and +1"),
            (lambda: call(X, torch.tensor([0, 1, 1])), ValueError, "y must hold -1 and +1"),
            (lambda: call(X, Y * torch.nan), ValueError, "y"),
            (lambda: call(X, Y > 0), TypeError, "y"),
            (lambda: call(X, Y.numpy()), TypeError, "y"),
            (lambda: call(X, torch.tensor([1, 1, 255], dtype=torch.uint8)), ValueError, "y must hold -1 and +1"),
            (lambda: call(X.to_sparse(), Y), TypeError, "X must be a dense tensor"),
            (lambda: call(X.to_sparse_csr(), Y), TypeError, "X must be a dense tensor"),
            (lambda: call(X, Y.to_sparse()), TypeError, "y must be a dense tensor"),
        ]
    )


def test_separate_and_sweep() -> None:
    cases: list[Any] = []
    for size in (0, 0.0, -1.0, torch.nan, torch.inf):
        cases += [
            (lambda size=size: separate(X, Y, step_size=size), ValueError, "step_size"),
            (lambda size=size: sweep(X, Y, [1.0, size]), ValueError, "step_sizes"),
        ]
    check_errors(
        [
            *cases,
            (lambda: separate(X, Y, step_size="1"), TypeError, "step_size"),  # type: ignore[arg-type]
            (lambda: separate(X, Y, step_size=1e300), ValueError, "step_size"),
            (
                lambda: separate(100 * X.double(), Y, method="lr_gd", step_size=1e308, max_iter=9),
                ValueError,
                "step_size",
            ),
            (lambda: separate(X, Y, max_iter=-1), ValueError, "max_iter"),
            (lambda: separate(X, Y, max_iter=1.5), TypeError, "max_iter"),  # type: ignore[arg-type]
            (lambda: separate(X, Y, max_iter=True), TypeError, "max_iter"),
            (lambda: separate(X, Y, record_every=-1), ValueError, "record_every"),
            (lambda: separate(X, Y, method="gd"), ValueError, f"method must be one of {METHODS[0]!r}, {METHODS[1]!r}"),
            (lambda: separate(X, Y, theta0=torch.zeros(3)), ValueError, "theta0"),
            (lambda: separate(X, Y, theta0=torch.zeros(1, 2)), ValueError, "theta0"),
            (lambda: separate(X, Y, theta0=THETA * torch.nan), ValueError, "theta0"),
            (lambda: separate(X, Y, theta0=THETA.long()), TypeError, "theta0"),
            (lambda: separate(X, Y, theta0=[0.0, 0.0]), TypeError, "theta0"),  # type: ignore[arg-type]
            (lambda: separate(X, Y, keep_iterates=1), TypeError, "keep_iterates"),  # type: ignore[arg-type]
            (lambda: separate(X, Y, stop="no"), TypeError, "stop"),  # type: ignore[arg-type]
            (lambda: sweep(X, Y, []), ValueError, "step_sizes"),
            (lambda: sweep(X, Y, 1.0), TypeError, "step_sizes"),  # type: ignore[arg-type]
            (lambda: sweep(X, Y, torch.ones(1, 1)), ValueError, "step_sizes"),
            (lambda: sweep(X, Y, torch.ones(1, dtype=torch.bool)), TypeError, "step_sizes"),
            (lambda: separate(X, Y, theta0=THETA.to_sparse()), TypeError, "theta0 must be a dense tensor"),
            (lambda: sweep(X, Y, [1.0], method="gd"), ValueError, "method"),
            (lambda: sweep(X, Y, [1.0], max_iter=-1), ValueError, "max_iter"),
        ]
    )


def test_losses() -> None:
    scores = torch.zeros(3)
    check_errors(
        [
            (lambda: normalized_logistic_loss(scores[:, None], Y), ValueError, "scores"),
            (lambda: normalized_logistic_loss(scores[:0], Y[:0]), ValueError, "scores"),
            (lambda: normalized_logistic_loss(scores * torch.nan, Y), ValueError, "scores"),
            (lambda: normalized_logistic_loss(scores.long(), Y), TypeError, "scores"),
            (lambda: normalized_logistic_loss(scores.to_sparse(), Y), TypeError, "scores"),
            (lambda: normalized_logistic_loss(scores, Y.abs().to(torch.uint8) * 255), ValueError, "target"),
            (lambda: normalized_logistic_loss(scores, Y[:2]), ValueError, "target"),
            (lambda: NormalizedLogisticLoss()(scores, (Y + 1) / 2), ValueError, "target must hold -1 and +1"),
            (lambda: NormalizedLogisticLoss()(scores, Y > 0), TypeError, "target"),
            (lambda: logistic_loss(X, Y, torch.zeros(3)), ValueError, "theta"),
            (lambda: logistic_gradient(X, Y, THETA, normalized=1), TypeError, "normalized"),  # type: ignore[arg-type]
        ]
    )


def test_theory_and_data_sets() -> None:
    mixed = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    sizes = {"n": 5, "radius": 2.0, "margin": 0.5}
    check_errors(
        [
            (lambda: margin(mixed, Y * torch.tensor([1, -1, 1])), ValueError, "y must be separable"),
            (lambda: margin(torch.zeros(3, 2), Y), ValueError, "y must be separable"),
            (lambda: radius(X[0]), ValueError, "X"),
            (lambda: radius(X.to_sparse()), TypeError, "X"),
            (lambda: iteration_bound("gd", **sizes), ValueError, "method"),
            (lambda: iteration_bound("lr_gd", **sizes, step_size=1.0), ValueError, "step_size"),
            (lambda: iteration_bound("normalized_lr_gd", **sizes, step_size=0.0), ValueError, "step_size"),
            (lambda: iteration_bound("perceptron", n=0, radius=2.0, margin=0.5), ValueError, "n must"),
            (lambda: iteration_bound("perceptron", n=5, radius=0.0, margin=0.5), ValueError, "radius"),
            (lambda: iteration_bound("perceptron", n=5, radius=0.4, margin=0.5), ValueError, "radius"),
            (lambda: iteration_bound("perceptron", n=5, radius=2.0, margin=-0.5), ValueError, "margin"),
            (lambda: worst_case_dataset(1), ValueError, "n must"),
            (lambda: worst_case_dataset(2.0), TypeError, "n must"),  # type: ignore[arg-type]
            (lambda: worst_case_dataset(3, dtype=torch.int64), TypeError, "dtype"),
            (lambda: worst_case_dataset(3, device="no such device"), ValueError, "device"),
            (lambda: loss_divergence_dataset(dtype=torch.int64), TypeError, "dtype"),
        ]
    )


@pytest.mark.parametrize("make", [LogisticGDClassifier, BatchPerceptronClassifier, PerceptronClassifier])
def test_estimators(make: Any) -> None:
    features, labels = X.numpy(), np.array([3, 3, 1])
    fitted = make(max_iter=50).fit(features, labels)
    for train in (make().fit, make().partial_fit):
        check_errors(
            [
                (lambda train=train: train(features[0], labels), ValueError, "X"),
                (lambda train=train: train(features[:0], labels[:0]), ValueError, "X"),
                (lambda train=train: train(NAN.numpy(), labels), ValueError, "X"),
                (lambda train=train: train(labels[:, None], labels), TypeError, "X"),
                (lambda train=train: train(sparse.csr_array(features), labels), TypeError, "X"),
                (lambda train=train: train(features, labels[:2]), ValueError, "y"),
                (lambda train=train: train(features, labels[:, None]), ValueError, "y"),
                (lambda train=train: train(features, labels.astype(float)), TypeError, "y"),
                (lambda train=train: train(X, Y), TypeError, "y"),
                (lambda train=train: train(features, np.array([None, 1, 2])), TypeError, "y"),
                (lambda train=train: train(features, None), ValueError, "y"),
                (lambda train=train: train(features, np.ones(3, int)), ValueError, "at least 2 classes"),
            ]
        )
    before = fitted.coef_.copy()
    check_errors(
        [
            (lambda: make().predict(features), NotFittedError, "not fitted"),
            (lambda: make().decision_function(features), NotFittedError, "not fitted"),
            (lambda: make().score(features, labels), NotFittedError, "not fitted"),
            (lambda: fitted.predict(features[:, :1]), ValueError, "features"),
            (lambda: fitted.decision_function(NAN), ValueError, "X"),
            (lambda: fitted.score(features, labels[:2]), ValueError, "y"),
            (lambda: fitted.score(features, labels, sample_weight=[1, -1, 1]), ValueError, "sample_weight"),
            (lambda: fitted.partial_fit(features[:, :1], labels), ValueError, "features"),
            (lambda: fitted.partial_fit(features, labels + 1), ValueError, "y must hold labels among"),
            (lambda: fitted.partial_fit(features, labels, classes=[1, 2, 3]), ValueError, "classes"),
            (lambda: make().partial_fit(features, labels, classes=[1, 2]), ValueError, "y must hold labels among"),
            (lambda: make().partial_fit(features, labels, classes=3), ValueError, "classes"),
            (lambda: make(max_iter=-1).fit(features, labels), ValueError, "max_iter"),
            (lambda: make(max_iter=1.5).fit(features, labels), TypeError, "max_iter"),
            (lambda: make(fit_intercept=1).fit(features, labels), TypeError, "fit_intercept"),
        ]
    )
    np.testing.assert_array_equal(fitted.coef_, before)
    assert issubclass(NotFittedError, RuntimeError)


def test_parameters_of_estimators() -> None:
    cases: list[Any] = [
        (lambda size=size: LogisticGDClassifier(step_size=size).fit(X, [0, 0, 1]), ValueError, "step_size")
        for size in (0.0, -1.0, float("nan"), float("inf"))
    ]
    cases += [
        (lambda make=make: make(normalized="yes").fit(X, [0, 0, 1]), TypeError, "normalized")
        for make in (LogisticGDClassifier, BatchPerceptronClassifier)
    ]
    overflowing = LogisticGDClassifier(step_size=1e38, max_iter=5)
    check_errors([*cases, (lambda: overflowing.fit(100 * X, [0, 0, 1]), ValueError, "step_size")])
