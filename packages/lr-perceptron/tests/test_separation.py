"""`separate`: the traps of the paper, its theorems, its invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offprints.lr_perceptron import (
    METHODS,
    iteration_bound,
    loss_divergence_dataset,
    margin,
    radius,
    reference,
    separate,
    worst_case_dataset,
)
from offprints.lr_perceptron.rules import convex_weights, sample_weights

GRADIENT_METHODS = METHODS[:2]
RULES = {
    "lr_gd": reference.lr_gd,
    "normalized_lr_gd": reference.normalized_lr_gd,
    "batch_perceptron": lambda gamma: reference.batch_perceptron,
    "normalized_batch_perceptron": lambda gamma: reference.normalized_batch_perceptron,
    "perceptron": lambda gamma: reference.perceptron,
}


def gaussian(seed: int, n: int = 20, d: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return X, torch.where(X @ torch.randn(d, generator=generator, dtype=torch.float64) > 0, 1.0, -1.0).double()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("step_size", [0.5, 20.0])
def test_equals_the_reference(method: str, step_size: float) -> None:
    X, y = gaussian(0)
    expected = reference.run(RULES[method](step_size), (X * y[:, None]).numpy(), 60)
    result = separate(X, y, method=method, step_size=step_size, max_iter=60, keep_iterates=True)
    assert result.n_iter == len(expected) - 1
    assert result.iterates is not None
    np.testing.assert_allclose(result.iterates, expected, rtol=1e-9, atol=1e-9)


def test_theorem_4_1() -> None:
    """At theta_1 the loss grows without bound with the step size; one update later the samples are separated."""
    X, y = loss_divergence_dataset()
    gamma = 1e4
    result = separate(X, y, method="lr_gd", step_size=gamma, record_every=1, keep_iterates=True)
    assert result.separated
    assert result.n_iter == 2
    assert result.iterates is not None
    torch.testing.assert_close(result.iterates[1], gamma * torch.tensor([0.5, 0.75]).double())
    torch.testing.assert_close(result.theta / gamma, torch.tensor([1.0, 0.25]).double())
    losses, norms = result.history["loss"], result.history["grad_norm"]
    assert float(losses[1]) == pytest.approx(gamma / 8)  # margins -gamma / 4 and 3.5 gamma
    assert float(norms[1]) == pytest.approx(math.sqrt(2) / 2)
    assert float(losses[2]) == 0


@pytest.mark.parametrize("seed", range(3))
def test_theorem_3_2(seed: int) -> None:
    X, y = gaussian(seed)
    perceptron = separate(X, y, method="batch_perceptron", keep_iterates=True)
    options = {"keep_iterates": True, "stop": False, "max_iter": perceptron.n_iter}
    descent = separate(X, y, method="lr_gd", step_size=1e6, **options)
    assert perceptron.iterates is not None
    assert descent.iterates is not None
    torch.testing.assert_close(descent.iterates / 1e6, perceptron.iterates, rtol=0, atol=1e-3)


@pytest.mark.parametrize("n", [2, 3, 10, 11, 77, 500])
def test_worst_case_in_closed_form(n: int) -> None:
    X, y = worst_case_dataset(n)
    assert separate(X, y, method="batch_perceptron").n_iter == (3 * n + 2) // 10 + 1
    assert separate(X, y, method="normalized_batch_perceptron").n_iter <= 5
    assert margin(X, y) == pytest.approx(0.5)
    assert radius(X) == pytest.approx(math.sqrt(1.25))


def test_normalized_weights_where_sigmoids_underflow() -> None:
    """The quotient of the reference is 0/0 here."""
    margins = torch.tensor([800.0, 801.0, 900.0], dtype=torch.float64)
    weights = convex_weights(margins)
    assert float(weights.sum()) == pytest.approx(1)
    torch.testing.assert_close(weights[:2], torch.tensor([1.0, math.exp(-1)]).double() / (1 + math.exp(-1)))
    X, y = gaussian(1)
    result = separate(X, y, step_size=1e5, max_iter=30, stop=False)
    assert bool(result.theta.isfinite().all())
    with pytest.raises(FloatingPointError):
        reference.run(reference.normalized_lr_gd(1e5), (X * y[:, None]).numpy(), 30, stop=False)


def test_margin_of_zero_is_misclassified() -> None:
    X, y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 1])
    result = separate(X, y, theta0=torch.tensor([1.0, 0.0]), max_iter=0, record_every=1)
    assert not result.separated
    assert result.history["n_misclassified"].tolist() == [1]
    assert separate(X, y, theta0=torch.tensor([1.0, 0.0]), method="perceptron").theta.tolist() == [1, 1]
    zeros = torch.zeros(2, 1)
    assert not separate(zeros, y, method="batch_perceptron", max_iter=5).separated


def test_first_step_of_batch_perceptron_takes_all_samples_from_any_start() -> None:
    X, y = gaussian(2)
    start = torch.full((4,), 0.3, dtype=torch.float64)
    first = separate(X, y, method="batch_perceptron", theta0=start, max_iter=1).theta
    torch.testing.assert_close(first, start + (X * y[:, None]).mean(0) / 2)
    # A start that separates needs no update: the test comes first.
    apart = separate(X, y, method="batch_perceptron").theta
    again = separate(X, y, method="batch_perceptron", theta0=apart)
    assert again.n_iter == 0
    assert torch.equal(again.theta, apart)


def test_going_on_after_separation() -> None:
    X, y = gaussian(3)
    short = separate(X, y, step_size=10.0)
    assert short.n_iter < 50
    long = separate(X, y, step_size=10.0, max_iter=50, stop=False, record_every=20)
    assert long.n_iter == 50
    assert long.separated
    assert long.history["iteration"].tolist() == [0, 20, 40]
    stopped = separate(X, y, method="batch_perceptron", stop=False)
    assert stopped.n_iter == separate(X, y, method="batch_perceptron").n_iter


def test_history_and_iterates_go_together() -> None:
    X, y = gaussian(4)
    result = separate(X, y, method="lr_gd", step_size=5.0, record_every=3, keep_iterates=True)
    assert result.iterates is not None
    assert result.iterates.shape == (result.n_iter + 1, 4)
    assert torch.equal(result.iterates[-1], result.theta)
    assert result.history["iteration"].tolist() == list(range(0, result.n_iter + 1, 3))
    assert {len(values) for values in result.history.values()} == {result.n_iter // 3 + 1}
    assert result.history["iteration"].dtype == result.history["n_misclassified"].dtype == torch.int64
    wrong = (result.iterates[::3] @ X.T * y <= 0).sum(1)
    assert torch.equal(result.history["n_misclassified"], wrong)
    assert separate(X, y).history == {}


def test_half_types_are_computed_in_float32_and_judged_as_returned() -> None:
    X, y = gaussian(5)
    for dtype in (torch.float16, torch.bfloat16):
        half = X.to(dtype)
        result = separate(half, y.to(dtype), method="batch_perceptron")
        assert result.theta.dtype == dtype
        assert result.separated == bool((half.float() @ result.theta.float() * y > 0).all())
    result = separate(X.half(), y, method="lr_gd", step_size=1e6)
    assert result.theta.dtype == torch.float32  # beyond the largest number of float16
    assert result.separated
    assert separate(X.float(), y).theta.dtype == torch.float32


def test_arguments_stay_as_they_are() -> None:
    X, y = gaussian(6)
    X.requires_grad_()
    start = torch.zeros(4, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = separate(X, y, theta0=start)
    assert not result.theta.requires_grad
    assert start.tolist() == [0, 0, 0, 0]
    assert torch.equal(result.theta, separate(X.detach(), y).theta)
    strided = torch.stack([X.detach(), X.detach()], 2)[:, :, 0]
    torch.testing.assert_close(separate(strided, y).theta, result.theta)


def test_data_that_nothing_separates() -> None:
    X, y = torch.ones(2, 1), torch.tensor([1.0, -1.0])
    for method in METHODS:
        result = separate(X, y, method=method, max_iter=20)
        assert not result.separated
        assert result.n_iter == 20


@given(st.integers(0, 1000), st.sampled_from([0.3, 7.0, 1e6]))
@settings(max_examples=12)
def test_invariances(seed: int, step_size: float) -> None:
    X, y = gaussian(seed, n=12, d=3)

    def iterates(X: Tensor, y: Tensor, method: str, step_size: float = step_size) -> Tensor:
        options = {"max_iter": 6, "stop": False, "keep_iterates": True}
        found = separate(X, y, method=method, step_size=step_size, **options).iterates
        assert found is not None
        return found

    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    for method in METHODS:
        plain = iterates(X, y, method)
        atol = 1e-7 * float(plain.abs().max())
        if method != "perceptron":  # which takes the first
            torch.testing.assert_close(iterates(X[order], y[order], method), plain, rtol=0, atol=atol)
        torch.testing.assert_close(iterates(-X, -y, method), plain, rtol=0, atol=atol)
        if method != "perceptron":
            twice = iterates(torch.cat([X, X]), torch.cat([y, y]), method)
            torch.testing.assert_close(twice, plain, rtol=0, atol=atol)
    plain = iterates(X, y, "lr_gd") @ X.T
    scaled = iterates(8 * X, y, "lr_gd", step_size / 64) @ (8 * X).T
    torch.testing.assert_close(scaled, plain, rtol=0, atol=1e-7 * float(plain.abs().max()))
    weights = sample_weights("normalized_lr_gd", plain * y, 1)
    torch.testing.assert_close(weights.sum(1), torch.ones(len(plain)).double())


@given(st.integers(0, 1000))
@settings(max_examples=12)
def test_bounds(seed: int) -> None:
    X, y = gaussian(seed, n=10, d=3)
    sizes = {"n": 10, "radius": radius(X), "margin": margin(X, y)}
    for method in METHODS[2:]:
        assert separate(X, y, method=method, max_iter=3000).n_iter <= iteration_bound(method, **sizes)
    for step_size in (1.0, 100.0):
        count = separate(X, y, step_size=step_size, max_iter=3000).n_iter
        assert count <= iteration_bound("normalized_lr_gd", **sizes, step_size=step_size)
