"""Equal to the official implementation, to scikit-learn and to closed forms: golden data."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from offprints.dis_vs_gen import (
    GaussianNaiveBayes,
    LogisticRegression,
    assumption_statistics,
    bayes_error_two_gaussians,
)
from offprints.dis_vs_gen.simulation import bayes_error

Golden = Callable[[str], dict[str, Tensor]]


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    scale = float(expected.abs().max())
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * scale)


def test_naive_bayes(golden: Golden) -> None:
    data = golden("golden")
    model = GaussianNaiveBayes().fit(data["X"], data["y"])
    close(model.theta_, data["nb_mean"])
    close(model.class_var_, data["nb_class_var"])
    close(model.var_, data["nb_shared_var"])
    close(model.class_prior_, data["nb_prior"])
    close(model.log_likelihood(data["X_test"]), data["nb_loglik"])
    close(model.predict_proba(data["X_test"]), data["nb_proba"])
    assert torch.equal(model.predict(data["X_test"]), data["nb_pred"].long())
    assert model.score(data["X_test"], data["y_test"].long()) == pytest.approx(float(data["nb_score"]), abs=1e-12)
    scores = data["X_test"] @ model.coef_.T + model.intercept_
    joint = data["nb_loglik"] + data["nb_prior"].log()
    close(scores - scores[:, :1], joint - joint[:, :1])


def test_streaming(golden: Golden) -> None:
    data = golden("golden")
    model = GaussianNaiveBayes()
    for chunk in (data["chunk1"].long(), data["chunk2"].long()):
        model.partial_fit(data["X"][chunk], data["y"][chunk], classes=data["y"].unique())
    close(model.theta_, data["nb2_mean"])
    close(model.class_var_, data["nb2_class_var"], 1e-8)  # the official merge adds its epsilon to each batch
    close(model.class_prior_, data["nb2_prior"])
    assert torch.equal(model.predict(data["X_test"]), data["nb2_pred"].long())


def test_variance_per_class(golden: Golden) -> None:
    data = golden("golden")
    model = GaussianNaiveBayes(shared_variance=False, var_smoothing=0.0).fit(data["X"], data["y"])
    close(model.decision_function(data["X_test"]), data["sk_class_var_loglik"])


def test_logistic_regression(golden: Golden) -> None:
    data = golden("golden")
    for i, C in enumerate(data["lr_C"].tolist()):
        for prefix, y in (("lr", data["y"]), ("lrb", (data["y"] > 0).long())):
            model = LogisticRegression(C=C).fit(data["X"], y)
            close(model.predict_proba(data["X_test"]), data[f"{prefix}{i}_proba"], 2e-4)
            close(model.coef_, data[f"{prefix}{i}_coef"], 2e-3)
            close(model.intercept_, data[f"{prefix}{i}_intercept"], 2e-3)
        exact = LogisticRegression(C=C, tol=1e-9).fit(data["X"], data["y"])
        close(exact.coef_, data[f"lr{i}_coef"], 1e-5)
        score = exact.score(data["X_test"], data["y_test"].long())
        assert score == pytest.approx(float(data[f"lr{i}_score"]), abs=1e-12)


def test_assumption_statistics(golden: Golden) -> None:
    data = golden("golden")
    statistics = assumption_statistics(data["X"], data["y"])
    close(statistics.alpha, data["stat_alpha"])
    close(statistics.beta, data["stat_beta"])
    close(statistics.variance, data["nb_shared_var"])


def test_bayes_errors(golden: Golden) -> None:
    data = golden("golden")
    for n, expected in zip(data["bayes_n"].long().tolist(), data["bayes_error"].tolist(), strict=True):
        variance = torch.ones(n, dtype=torch.float64)
        variance[: n // 2] = n
        ones = torch.ones_like(variance)
        assert bayes_error_two_gaussians(-ones, ones, variance) == pytest.approx(expected, rel=1e-9)
        assert bayes_error(n, 2) == pytest.approx(expected, rel=1e-9)
    mean0, mean1 = data["bg_mu"]
    assert bayes_error_two_gaussians(mean0, mean1, data["bg_var"]) == pytest.approx(float(data["bayes_general"]))
