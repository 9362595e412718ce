"""Learning curves, the simulation, the bound, the features of a model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_wine
from sklearn.linear_model import LogisticRegression as Reference
from sklearn.preprocessing import MinMaxScaler as ReferenceScaler
from torch import Tensor, nn

from offprints.dis_vs_gen import (
    GaussianNaiveBayes,
    LearningCurve,
    LogisticRegression,
    MinMaxScaler,
    assumption_statistics,
    crossover,
    extract_features,
    gaussian_mixture,
    learning_curve,
    logistic_h_consistency_bound,
    samples_to_bayes,
)
from offprints.dis_vs_gen._harness import draw_subset
from offprints.dis_vs_gen.simulation import bayes_error


def wine() -> tuple[np.ndarray, ...]:
    X, y = load_wine(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    X, y = X[order], y[order].astype(np.int64)
    return X[:120], y[:120], X[120:], y[120:]


class Single(GaussianNaiveBayes):
    """A subclass is trained one by one."""


class SingleRegression(LogisticRegression):
    """As well."""


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize(("batched", "single"), [(GaussianNaiveBayes, Single), (LogisticRegression, SingleRegression)])
def test_all_repeats_at_once_are_single_fits(batched: type, single: type, scale: bool) -> None:
    X, y, X_test, y_test = wine()
    if not scale:
        X, X_test = X / 1000, X_test / 1000
    for rows in (slice(None), y < 2):
        sizes = [6, 20, int(np.sum(np.ones(120)[rows]))]
        curves = [
            learning_curve(make, X[rows], y[rows], X_test, y_test, sizes, repeats=7, scale=scale, seed=3)
            for make in (batched, single)
        ]
        assert curves[0].errors.shape == (7, 3)
        torch.testing.assert_close(curves[0].errors, curves[1].errors, rtol=0, atol=1e-12)


def test_other_estimators_see_the_same_subsets() -> None:
    X, y, X_test, y_test = wine()
    ours, theirs = (
        learning_curve(lambda make=make: make(C=1.0, tol=1e-8), X, y, X_test, y_test, [6, 40], repeats=6)
        for make in (LogisticRegression, Reference)
    )
    torch.testing.assert_close(ours.errors, theirs.errors, rtol=0, atol=1e-12)
    as_tensors = (torch.from_numpy(value) for value in (X, y, X_test, y_test))
    again = learning_curve(lambda: LogisticRegression(tol=1e-8), *as_tensors, [40, 6], repeats=6)
    assert torch.equal(again.errors.flip(1), ours.errors)


class Unknowing:
    """Predicts a label that the data do not have."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> Unknowing:
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        return np.full(len(X), 7)


def test_a_predicted_label_that_the_data_do_not_have_is_wrong() -> None:
    X, y, X_test, y_test = wine()
    assert (learning_curve(Unknowing, X, y, X_test, y_test, [6], repeats=2).errors == 1).all()


@pytest.mark.parametrize("make", [GaussianNaiveBayes, LogisticRegression])
def test_repeats_and_rows_in_parts(make: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit in memory at once goes in parts, which change nothing."""
    X, y, X_test, y_test = wine()
    whole = learning_curve(make, X, y, X_test, y_test, [20], repeats=5)
    monkeypatch.setattr("offprints.dis_vs_gen._harness.ENTRIES", 2 * 20 * X.shape[1])
    monkeypatch.setattr("offprints.shared.tables.BLOCK", 7 * X.shape[1])
    torch.testing.assert_close(learning_curve(make, X, y, X_test, y_test, [20], repeats=5).errors, whole.errors)


def test_a_feature_without_variance_needs_smoothing_in_curves_too() -> None:
    X, y, X_test, y_test = wine()
    X, X_test = (np.concatenate([data, np.ones((len(data), 1))], 1) for data in (X, X_test))
    with pytest.raises(ValueError, match="var_smoothing must be positive"):
        learning_curve(lambda: GaussianNaiveBayes(var_smoothing=0.0), X, y, X_test, y_test, [30], repeats=2)


def test_subsets() -> None:
    """Every class is there, also where a uniform draw has no hope; the draw is uniform otherwise."""
    index = np.arange(1000) % 100
    for m in (100, 130, 1000):
        rows = draw_subset(index, 100, m, (0, m, 0))
        assert len(np.unique(rows)) == m
        assert len(np.unique(index[rows])) == 100
    rare = np.array([1] + [0] * 99)
    draws = np.stack([draw_subset(rare, 2, 10, (0, 10, i)) for i in range(300)])
    assert (draws == 0).any(1).all()
    counts = np.bincount(draws.ravel(), minlength=100)[1:]
    assert counts.std() < 3 * math.sqrt(300 * 9 / 99)


def test_scaler_is_fitted_on_the_subset_alone() -> None:
    """A test set a million times as wide changes nothing about training: wrong only where it should be."""
    X, y, X_test, y_test = wine()
    plain = learning_curve(GaussianNaiveBayes, X, y, X_test, y_test, [30], repeats=3)
    wide = np.concatenate([X_test, X_test[:1] * 1e6])
    more = learning_curve(GaussianNaiveBayes, X, y, wide, np.append(y_test, 99), [30], repeats=3)
    torch.testing.assert_close(more.errors * len(wide) - 1, plain.errors * len(X_test), rtol=0, atol=1e-9)


def test_scaler_is_that_of_scikit_learn() -> None:
    X = np.random.default_rng(0).normal(size=(20, 4))
    X[:, 1] = 7.0
    ours, theirs = MinMaxScaler().fit(X), ReferenceScaler().fit(X)
    wide = 3 * X + 1
    np.testing.assert_allclose(ours.transform(wide), theirs.transform(wide), atol=1e-12)
    np.testing.assert_allclose(ours.data_range_, theirs.data_range_)
    assert ours.fit_transform(torch.from_numpy(X).half()).dtype == torch.float16


def curve(*means: float) -> LearningCurve:
    sizes = [10 * (i + 1) for i in range(len(means))]
    return LearningCurve(sizes=sizes, errors=torch.tensor([means, means], dtype=torch.float64))


def test_crossover() -> None:
    assert crossover(curve(0.3, 0.2, 0.1), curve(0.4, 0.1, 0.05)) == 20
    assert crossover(curve(0.3, 0.2, 0.1), curve(0.2, 0.3, 0.05)) == 30
    assert crossover(curve(0.3, 0.2), curve(0.2, 0.2)) is None
    assert crossover(curve(0.3, 0.2), curve(0.2, 0.1)) == 10


def test_mixture() -> None:
    generator = torch.Generator().manual_seed(0)
    X, y = gaussian_mixture(6, 3, 30_000, generator=generator, rescale=False)
    assert torch.equal(y, torch.arange(30_000) % 3)
    means = torch.stack([X[y == k].mean(0) for k in range(3)])
    expected = torch.tensor([-1.0, 1.0, 2.0], dtype=torch.float64).unsqueeze(1).expand(3, 6)
    torch.testing.assert_close(means, expected, rtol=0, atol=0.12)
    variance = (X - means[y]).square().mean(0)
    torch.testing.assert_close(variance, torch.tensor([6.0] * 3 + [1.0] * 3).double(), rtol=0.05, atol=0)
    scaled, _ = gaussian_mixture(6, 5, 10, generator=torch.Generator().manual_seed(1))
    raw, _ = gaussian_mixture(6, 5, 10, generator=torch.Generator().manual_seed(1), rescale=False)
    torch.testing.assert_close(scaled, (raw - 4) / 4)
    state = torch.get_rng_state()
    assert not torch.equal(gaussian_mixture(4, 2, 5)[0], gaussian_mixture(4, 2, 5)[0])
    torch.set_rng_state(state)


def test_hard_mixture_has_the_covariance_of_numpys_sampler() -> None:
    n = 5
    X, y = gaussian_mixture(n, 2, 60_000, mode="hard", generator=torch.Generator().manual_seed(0))
    A = 2 * np.random.RandomState(0).rand(n, n) - 1
    covariance = A.T @ A
    np.fill_diagonal(covariance, [n] * (n // 2) + [1] * (n - n // 2))
    _, singular, V = np.linalg.svd(covariance)
    centers = torch.where(y == 0, -1.0, 1.0).unsqueeze(1)
    measured = ((X - centers).T @ (X - centers) / len(X)).numpy()
    np.testing.assert_allclose(measured, (V.T * singular) @ V, atol=0.12)


@pytest.mark.parametrize(("n", "K"), [(4, 2), (10, 3), (5, 5)])
def test_bayes_error_is_that_of_the_true_rule(n: int, K: int) -> None:
    X, y = gaussian_mixture(n, K, 100_000, rescale=False, generator=torch.Generator().manual_seed(n))
    variance = torch.ones(n, dtype=torch.float64)
    variance[: n // 2] = n
    centers = torch.tensor([-1.0, *(2.0**k for k in range(K - 1))]).double().unsqueeze(1).expand(K, n)
    rule = X @ (centers / variance).T - (centers.square() / variance).sum(1) / 2
    error = float((rule.argmax(1) != y).double().mean())
    assert error == pytest.approx(bayes_error(n, K), abs=4 * math.sqrt(error / 100_000))


def test_samples_to_bayes() -> None:
    few = samples_to_bayes(GaussianNaiveBayes, 40, n_test=2000)
    many = samples_to_bayes(lambda: LogisticRegression(tol=1e-4), 40, n_test=2000)
    assert few % 4 == 0
    assert few < 20 < many
    assert samples_to_bayes(GaussianNaiveBayes, 100, n_classes=3, n_test=2000, margin=0.02) < 60
    with pytest.raises(RuntimeError, match="20 samples"):
        samples_to_bayes(lambda: LogisticRegression(tol=1e-4), 40, max_samples=20, n_test=500)


@given(st.lists(st.floats(0, 3), min_size=2, max_size=20), st.booleans())
def test_bound_is_monotone(values: list[float], exact: bool) -> None:
    bound = logistic_h_consistency_bound(torch.tensor(sorted(values)).double(), exact=exact)
    assert bool((bound.diff() >= 0).all())
    assert bool((bound >= 0).all())
    assert bool((bound <= 1).all())


def test_bound() -> None:
    t = torch.linspace(0, 0.7, 101, dtype=torch.float64)
    loose, exact = logistic_h_consistency_bound(t), logistic_h_consistency_bound(t, exact=True)
    torch.testing.assert_close(loose, (2 * t).sqrt().clamp(max=1))
    assert bool((exact <= loose + 1e-12).all())
    inside = exact[t < math.log(2)]
    deficit = ((1 + inside) * inside.log1p() + torch.special.xlog1py(1 - inside, -inside)) / 2
    torch.testing.assert_close(deficit, t[t < math.log(2)], rtol=1e-9, atol=1e-15)
    assert float(logistic_h_consistency_bound(0.1, gap=0.08, zero_one_gap=0.2)) == pytest.approx(0.4)
    assert float(logistic_h_consistency_bound(0.0, zero_one_gap=0.2)) == 0
    assert float(logistic_h_consistency_bound(1e-12, exact=True)) == pytest.approx(math.sqrt(2e-12), rel=1e-6)


def test_assumption_statistics_by_their_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.tensor([0] * 5 + [1] * 30 + [2] * 12)
    X = torch.randn(47, 4, generator=generator) + y.unsqueeze(1)
    statistics = assumption_statistics(X, y)
    likelihood = GaussianNaiveBayes().fit(X, y).log_likelihood(X)
    for k in range(3):
        difference = likelihood[y == k].unsqueeze(2) - likelihood[y == k].unsqueeze(1)
        torch.testing.assert_close(statistics.beta[k], difference.mean(0).abs() / 4)
        torch.testing.assert_close(statistics.alpha[k], difference.var(0, correction=0) / 4)


class Backbone(nn.Module):
    """A model with what makes a difference between training and evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.unused = nn.Identity()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).flatten(1))


def test_features_of_a_model() -> None:
    torch.manual_seed(0)
    model = Backbone().train()
    model.stem[3].eval()
    x, y = torch.randn(10, 1, 8, 8), torch.arange(10, dtype=torch.int32) % 2
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4)
    features, labels = extract_features(model, loader, layer="head")
    assert model.training
    assert not model.stem[3].training
    assert not model.head._forward_pre_hooks
    outputs, _ = extract_features(model, loader)
    maps, _ = extract_features(model, loader, layer="stem.3")
    half, _ = extract_features(model, loader, layer="head", device="cpu", amp=True)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(features, model.stem(x).flatten(1))
        torch.testing.assert_close(outputs, model(x))
    assert torch.equal(labels, y.long())
    assert maps.shape == (10, 3 * 36)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, features, rtol=0.05, atol=0.02)
    assert not features.requires_grad
