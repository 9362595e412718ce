"""What surrounds a call does not change it: autocast, a refused call before, models and batches that share memory."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.model_selection import StratifiedKFold
from torch import nn

from offprints.dis_vs_gen import (
    GaussianNaiveBayes,
    LearningCurve,
    LogisticRegression,
    LogisticRegressionCV,
    MinMaxScaler,
    assumption_statistics,
    bayes_error_two_gaussians,
    crossover,
    extract_features,
    gaussian_mixture,
    learning_curve,
    logistic_h_consistency_bound,
    samples_to_bayes,
)

GENERATOR = np.random.default_rng(0)
Y = np.arange(90) % 3
X = (GENERATOR.normal(size=(90, 5)) + GENERATOR.normal(size=(3, 5))[Y]).astype(np.float32)


def everything() -> list[np.ndarray]:
    naive = GaussianNaiveBayes().fit(X, Y)
    logistic = LogisticRegression().fit(X, Y)
    curves = [learning_curve(make, X, Y, X, Y, [9, 30]).errors for make in (GaussianNaiveBayes, LogisticRegression)]
    return [
        naive.predict_proba(X),
        naive.predict(X),
        logistic.coef_,
        logistic.predict_proba(X),
        LogisticRegressionCV(Cs=[0.1, 1.0], cv=3).fit(X, Y).scores_,
        *map(np.asarray, curves),
        assumption_statistics(X, Y).alpha.numpy(),
    ]


def test_autocast_changes_nothing() -> None:
    expected = everything()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = everything()
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "estimator", [GaussianNaiveBayes(), LogisticRegression(), LogisticRegressionCV(Cs=[1.0], cv=3)]
)
def test_refused_fit_leaves_the_old_one(estimator) -> None:
    before = estimator.fit(X, Y).predict_proba(X)
    with pytest.raises(ValueError, match="y must have length"):
        estimator.fit(X[:, :2], Y[:5])
    with pytest.raises(ValueError, match="at least 2 classes"):
        estimator.fit(X[:, :2], np.zeros(90, int))
    assert estimator.n_features_in_ == 5
    np.testing.assert_array_equal(estimator.predict_proba(X), before)


def test_refused_scaler_and_batch_leave_the_old_one() -> None:
    scaler = MinMaxScaler().fit(X)
    with pytest.raises(ValueError, match="NaN"):
        scaler.fit(np.full((3, 2), np.nan))
    assert scaler.transform(X).max() == pytest.approx(1, abs=1e-6)
    naive = GaussianNaiveBayes()
    with pytest.raises(ValueError, match="sample_weight"):
        naive.partial_fit(X, Y, classes=[0, 1, 2], sample_weight=np.zeros(90))
    assert not hasattr(naive, "n_features_in_")


def test_batch_or_merge_that_overflows_changes_nothing() -> None:
    near, far = (X.astype(float) + shift for shift in (1e154, -1e154))
    naive = GaussianNaiveBayes().fit(near, Y)
    before = naive.theta_.copy(), naive.class_count_.copy()
    with pytest.raises(ValueError, match="X must have magnitudes"):
        naive.partial_fit(far, Y)
    with pytest.raises(ValueError, match="X must have magnitudes"):
        naive.merge(GaussianNaiveBayes().fit(far, Y))
    np.testing.assert_array_equal(naive.theta_, before[0])
    np.testing.assert_array_equal(naive.class_count_, before[1])


@pytest.mark.parametrize("classes", [{2, 0, 1}, range(3), (0, 1, 2), torch.tensor([2, 1, 0]), np.array([1, 0, 2])])
def test_classes_in_any_container(classes) -> None:
    naive = GaussianNaiveBayes().partial_fit(X[:1], Y[:1], classes=classes).partial_fit(X[1:], Y[1:])
    assert naive.classes_.tolist() == [0, 1, 2]
    np.testing.assert_allclose(naive.var_, GaussianNaiveBayes().fit(X, Y).var_)


@pytest.mark.parametrize(
    ("classes", "error"), [(3, TypeError), ("abc", TypeError), ([], ValueError), ([0, 1, 1], ValueError)]
)
def test_other_classes_are_refused(classes, error) -> None:
    with pytest.raises(error, match=r"classes|y must"):
        GaussianNaiveBayes().partial_fit(X, Y, classes=classes)


def test_strings_of_varying_width() -> None:
    labels = np.array(["a", "bb", "a long one"], dtype=np.dtypes.StringDType())[Y]
    naive = GaussianNaiveBayes().fit(X, labels)
    assert naive.classes_.tolist() == ["a", "a long one", "bb"]
    np.testing.assert_array_equal(
        naive.predict(X), labels.astype(object)[0:3][GaussianNaiveBayes().fit(X, Y).predict(X)]
    )


@pytest.mark.parametrize("bad", [X + 1j, np.full((90, 5), "a")])
def test_features_that_are_no_real_numbers_are_named(bad) -> None:
    for estimator in (GaussianNaiveBayes(), LogisticRegression()):
        with pytest.raises((TypeError, ValueError), match=r"^X"):
            estimator.fit(bad, Y)


# Learning curves


def test_batched_regressions_refuse_what_single_ones_do() -> None:
    with pytest.raises(ValueError, match="C must"):
        learning_curve(lambda: LogisticRegression(C=-1.0), X, Y, X, Y, [9])
    with pytest.raises(ValueError, match="tol must"):
        learning_curve(lambda: LogisticRegression(tol=0.0), X, Y, X, Y, [9])


@pytest.mark.parametrize("factor", [2.0**90, 2.0**-30])
def test_curves_of_features_of_unusual_size_are_those_of_single_fits(factor: float) -> None:
    data = X * np.float32(factor)
    C = 1 / factor**2  # the same problem in another unit
    curve = learning_curve(lambda: LogisticRegression(C=C), data, Y, data, Y, [90], repeats=1, scale=False)
    expected = 1 - LogisticRegression().fit(X, Y).score(X, Y)
    assert float(curve.errors) == pytest.approx(expected, abs=1e-9)


def test_crossover_of_sizes_in_any_order() -> None:
    few = LearningCurve(sizes=[30, 10, 20], errors=torch.tensor([[0.1, 0.1, 0.1]]))
    many = LearningCurve(sizes=[30, 10, 20], errors=torch.tensor([[0.05, 0.3, 0.08]]))
    assert crossover(few, many) == 20
    assert crossover(many, few) is None


# Features


class Doubling(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(2)


def test_model_that_changes_its_input_leaves_the_batches() -> None:
    x = torch.from_numpy(X).clone()
    for batch in ((x, torch.from_numpy(Y)), {"x": x, "labels": torch.from_numpy(Y)}):
        features, _ = extract_features(Doubling(), [batch])
        np.testing.assert_array_equal(x, X)
        np.testing.assert_array_equal(features, 2 * X)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.layer(x))


def test_layer_that_runs_twice_shows_its_last_input() -> None:
    model, x = Twice(), torch.from_numpy(X)
    features, _ = extract_features(model, [(x, torch.from_numpy(Y))], layer="layer")
    torch.testing.assert_close(features, model.layer(x).detach())


# Simulation and bound


def test_means_beyond_the_type_are_refused() -> None:
    assert bool(gaussian_mixture(2, 16, 32, dtype=torch.float16)[0].isfinite().all())
    for n_classes, dtype in ((30, torch.float16), (200, torch.float32), (2000, torch.float64)):
        with pytest.raises(ValueError, match="n_classes"):
            gaussian_mixture(2, n_classes, n_classes, dtype=dtype)


def test_exact_bound_has_its_derivatives() -> None:
    t = torch.tensor([1e-4, 0.02, 0.3, 0.6, 0.69], dtype=torch.float64, requires_grad=True)
    b = logistic_h_consistency_bound(t, exact=True)
    (slope,) = torch.autograd.grad(b.sum(), t, create_graph=True)
    torch.testing.assert_close(slope, 1 / b.detach().atanh())
    (bend,) = torch.autograd.grad(slope.sum(), t)
    inside = b.detach()
    torch.testing.assert_close(bend, -1 / ((1 - inside.square()) * inside.atanh() ** 3))
    beyond = torch.tensor([0.8], dtype=torch.float64, requires_grad=True)
    (flat,) = torch.autograd.grad(logistic_h_consistency_bound(beyond, exact=True).sum(), beyond)
    assert flat.tolist() == [0]


def test_sample_weights_count_in_the_folds() -> None:
    weight = GENERATOR.uniform(0.1, 2, 90)
    found = LogisticRegressionCV(Cs=[0.01, 1.0], cv=3).fit(X, Y, sample_weight=weight).scores_
    for row, (train, test) in zip(found, StratifiedKFold(3).split(X, Y), strict=True):
        for score, C in zip(row, (0.01, 1.0), strict=True):
            single = LogisticRegression(C=C).fit(X[train], Y[train], sample_weight=weight[train])
            assert score == pytest.approx(single.score(X[test], Y[test], sample_weight=weight[test]), abs=1e-9)
    with pytest.raises(ValueError, match="sample_weight"):
        LogisticRegressionCV(Cs=[1.0], cv=3).fit(X, Y, sample_weight=np.r_[np.zeros(30), np.ones(60)])


# Arguments


@pytest.mark.parametrize("dtype", [torch.int64, "float32", None])
def test_layers_have_a_floating_type(dtype) -> None:
    for estimator in (GaussianNaiveBayes(), LogisticRegression()):
        with pytest.raises(TypeError, match="dtype must"):
            estimator.fit(X, Y).to_linear(dtype)


@pytest.mark.parametrize(
    ("weights", "error"),
    [
        ({0: "a"}, TypeError),
        ({0: np.inf}, ValueError),
        ({1: -1.0}, ValueError),
        (dict.fromkeys(range(3), 0.0), ValueError),
    ],
)
def test_class_weights_are_checked(weights, error) -> None:
    with pytest.raises(error, match="class_weight"):
        LogisticRegression(class_weight=weights).fit(X, Y)


def test_arguments_of_extract_features() -> None:
    x, y, model = torch.from_numpy(X), torch.from_numpy(Y), nn.Linear(5, 2)
    with pytest.raises(TypeError, match="model must"):
        extract_features(lambda x: x, [(x, y)])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="loader must"):
        extract_features(model, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="labels must have one axis"):
        extract_features(model, [(x, y[:, None])])


def test_makers_and_sizes_are_named() -> None:
    for sizes in (12, None):
        with pytest.raises(TypeError, match="sizes must"):
            learning_curve(GaussianNaiveBayes, X, Y, X, Y, sizes)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="make_estimator must"):
        learning_curve(GaussianNaiveBayes(), X, Y, X, Y, [9])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="make_estimator must"):
        samples_to_bayes(GaussianNaiveBayes(), 20)  # type: ignore[arg-type]
    assert learning_curve(GaussianNaiveBayes, X, Y, X, Y, torch.tensor([9, 30])).sizes == [9, 30]


def test_exact_bound_of_the_smallest_regrets() -> None:
    t = torch.tensor([1e-300, 1e-30, 1e-20, 1e-14, 1e-8, 1e-4], dtype=torch.float64)
    # b^2 / 2 + b^4 / 12 = t
    expected = (2 * t / (1 + t / 3)).sqrt()
    torch.testing.assert_close(logistic_h_consistency_bound(t, exact=True), expected, rtol=1e-8, atol=0)
    b = torch.tensor([0.049, 0.051, 0.5, 0.99], dtype=torch.float64)
    deficit = (torch.xlogy(1 + b, 1 + b) + torch.xlogy(1 - b, 1 - b)) / 2
    torch.testing.assert_close(logistic_h_consistency_bound(deficit, exact=True), b, rtol=1e-12, atol=0)


def test_bayes_error_far_in_the_tail() -> None:
    ones = torch.ones(100, dtype=torch.float64)
    found = bayes_error_two_gaussians(-ones, ones, torch.cat([100 * ones[:50], ones[:50]]))
    assert found == pytest.approx(math.erfc(math.sqrt(50.5 / 2)) / 2, rel=1e-12)


@pytest.mark.parametrize("exact", [False, True])
def test_slope_of_the_bound_where_it_begins_and_where_it_is_clipped(exact: bool) -> None:
    t = torch.tensor([0.0, 0.001, 0.9], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(logistic_h_consistency_bound(t, exact=exact).sum(), t)
    assert slope[0] == math.inf
    assert slope[2] == 0
    clipped = logistic_h_consistency_bound(t, zero_one_gap=0.1, exact=exact)
    assert clipped[:2].tolist() == [0, 0]
    assert torch.autograd.grad(clipped[:2].sum(), t)[0].tolist() == [0, 0, 0]


def test_other_arguments_are_named() -> None:
    with pytest.raises(TypeError, match="generator must"):
        gaussian_mixture(2, 2, 3, generator=5)  # type: ignore[arg-type]
    for values in (None, 1.5):
        with pytest.raises(TypeError, match="Cs must"):
            LogisticRegressionCV(Cs=values).fit(X, Y)  # type: ignore[arg-type]
