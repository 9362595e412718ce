"""Logistic regression: the optimum is one, however it is reached."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression as Reference
from torch import Tensor

from offprints.dis_vs_gen import LogisticRegression
from offprints.dis_vs_gen._solver import solve


def data(seed: int, n: int = 80, d: int = 5, K: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % K
    centers = torch.randn(K, d, generator=generator, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) + centers[y], y


def gradient(model: LogisticRegression, X: Tensor, y: Tensor) -> float:
    """Largest entry of the objective's gradient, by autograd."""
    weight, bias = model.coef_.clone().requires_grad_(), model.intercept_.clone().requires_grad_()
    logits = X @ weight.T + bias
    if len(weight) == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], 1)
    loss = torch.nn.functional.cross_entropy(logits, y) + weight.square().sum() / (2 * model.C * len(y))
    loss.backward()
    largest = weight.grad.abs().max()  # type: ignore[union-attr]
    return float(torch.maximum(largest, bias.grad.abs().max()) if model.fit_intercept else largest)  # type: ignore[union-attr]


@settings(max_examples=12)
@given(st.integers(0, 10**6), st.integers(2, 4), st.floats(0.01, 1000), st.booleans(), st.sampled_from([1.0, 30.0]))
def test_gradient_at_the_optimum(seed: int, K: int, C: float, intercept: bool, offset: float) -> None:
    X, y = data(seed, K=K)
    X = X + offset  # features far from 0 are centered inside
    model = LogisticRegression(C=C, fit_intercept=intercept).fit(X, y)
    assert gradient(model, X, y) <= 1.01e-6
    if not intercept:
        assert (model.intercept_ == 0).all()


@pytest.mark.parametrize("K", [2, 4])
def test_agrees_with_scikit_learn(K: int) -> None:
    X, y = data(0, n=200, d=20, K=K)
    reference = Reference(C=3.0, tol=1e-10, solver="newton-cholesky").fit(X.numpy(), y.numpy())
    for dtype, tolerance in ((torch.float64, 1e-5), (torch.float32, 1e-4)):
        model = LogisticRegression(C=3.0, tol=1e-9).fit(X.to(dtype), y)
        np.testing.assert_allclose(model.coef_.numpy(), reference.coef_, rtol=0, atol=tolerance)
        np.testing.assert_allclose(model.intercept_.numpy(), reference.intercept_, rtol=0, atol=tolerance)
        decision = model.decision_function(X).numpy()
        np.testing.assert_allclose(decision, reference.decision_function(X.numpy()), rtol=0, atol=50 * tolerance)


def test_duplicated_data_with_half_the_C() -> None:
    X, y = data(1)
    once = LogisticRegression(C=2.0, tol=1e-10).fit(X, y)
    twice = LogisticRegression(C=1.0, tol=1e-10).fit(torch.cat([X, X]), torch.cat([y, y]))
    torch.testing.assert_close(once.coef_, twice.coef_, rtol=0, atol=1e-7)


def test_batch_is_the_problems_one_by_one() -> None:
    """Problems of different difficulty leave the batch at different steps."""
    K, strengths = 4, [0.01, 1.0, 50.0, 5000.0]
    problems = [data(seed, K=K) for seed in range(4)]
    X, y = torch.stack([X for X, _ in problems]), torch.stack([y for _, y in problems])
    options = {"n_classes": K, "fit_intercept": True, "max_iter": 1000, "tol": 1e-8}
    found = solve(X, y, torch.tensor(strengths), **options)
    assert bool(found.converged.all())
    assert len(set(found.n_iter.tolist())) > 1
    for i, C in enumerate(strengths):
        alone = LogisticRegression(C=C, tol=1e-8).fit(X[i], y[i])
        scale = float(alone.coef_.abs().max())
        torch.testing.assert_close(found.weight[i], alone.coef_, rtol=0, atol=1e-4 * scale)


def test_unregularized_separable_data_end() -> None:
    X, y = data(2, K=2)
    X = X + 8 * y.unsqueeze(1)
    model = LogisticRegression(C=1e8).fit(X.float(), y)
    assert model.score(X, y) == 1
    assert bool(model.coef_.isfinite().all())


def test_float32_of_large_features_falls_back_to_float64() -> None:
    X, y = data(3)
    model = LogisticRegression().fit((1000 * X).float(), y)
    assert gradient(model, (1000 * X).float().double(), y) <= 1.01e-6


def test_no_convergence_warns() -> None:
    X, y = data(4)
    with pytest.warns(ConvergenceWarning, match="max_iter=2"):
        model = LogisticRegression(max_iter=2).fit(X, y)
    assert model.n_iter_ == 2


@pytest.mark.parametrize("K", [2, 3])
def test_linear_layer(K: int) -> None:
    X, y = data(5, K=K)
    model = LogisticRegression().fit(X, 10 - y)
    layer = model.to_linear(torch.float64)
    assert layer.weight.shape == (K, 5)
    assert torch.equal(model.classes_[layer(X).argmax(1)], model.predict(X))
    torch.testing.assert_close(layer(X).softmax(1), model.predict_proba(X))
    assert model.coef_.shape == ((1, 5) if K == 2 else (3, 5))
