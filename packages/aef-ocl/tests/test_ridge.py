"""Ridge regression over a stream: equal to the joint solution, by either solver, however the rows come."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offprints.aef_ocl import NotFittedError, RecursiveRidge, ridge_solution
from offprints.aef_ocl.reference import joint_ridge, recursion
from offprints.shared.testing import check_arguments, check_module, check_streaming

SOLVERS = ("cholesky", "recursive")


def data(n: int, D: int, K: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, D, generator=generator, dtype=torch.float64)
    return X, torch.randint(K, (n,), generator=generator)


def near(ours: Tensor, theirs: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * float(theirs.abs().max()))


@pytest.mark.parametrize("solver", SOLVERS)
def test_streaming(solver) -> None:
    """Later batches bring classes; one of them has more rows than there are features."""
    X, y = data(40, 6, 3)
    y[:12] = 0
    batches = [(X[:5], y[:5]), (X[5:6], y[5:6]), (X[6:], y[6:])]
    check_streaming(
        lambda: RecursiveRidge(6, gamma=0.1, solver=solver),
        batches,
        result=lambda ridge: (ridge.weight, ridge.covariance, ridge.n_samples_seen_),
        rtol=1e-8,
        atol=1e-10,
    )


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("rows", [1, 3, 10, 31, 64])
def test_every_size_of_batch(solver, rows) -> None:
    """One row, a quarter of the features and more, more than the features: each way of the recursion."""
    X, y = data(96, 12, 4)
    ridge = RecursiveRidge(12, gamma=0.01, solver=solver)
    for x, labels in zip(X.split(rows), y.split(rows), strict=True):
        ridge.partial_fit(x, labels)
    near(ridge.weight, ridge_solution(X, y, 0.01))
    near(ridge.covariance, torch.linalg.inv(X.T @ X + 0.01 * torch.eye(12).double()))
    assert torch.equal(ridge.covariance, ridge.covariance.T)


@settings(max_examples=15)
@given(st.integers(1, 300), st.integers(1, 40), st.sampled_from([1e-3, 0.1, 10.0]), st.integers(0, 10**6))
def test_is_the_stationary_point(D, n, gamma, seed) -> None:
    """Phi'(Phi W - Y) + gamma W = 0 and R (G + gamma I) = I; blocks of the matrix of every width."""
    X, y = data(n, D, 3, seed)
    Y = torch.nn.functional.one_hot(y, 3).double()
    for solver in SOLVERS:
        ridge = RecursiveRidge(D, gamma=gamma, solver=solver)
        for x, labels in zip(X.split(7), Y.split(7), strict=True):
            ridge.partial_fit(x, labels)
        gradient = X.T @ (X @ ridge.weight - Y) + gamma * ridge.weight
        assert float(gradient.abs().max()) <= 1e-9 * n * D**0.5
        identity = ridge.covariance @ (X.T @ X + gamma * torch.eye(D).double())
        assert float((identity - torch.eye(D).double()).abs().max()) <= 1e-8 * n / gamma


@settings(max_examples=10)
@given(st.floats(1e-3, 1e3), st.integers(0, 10**6))
def test_scaling_leaves_the_scores(scale, seed) -> None:
    """X times c and gamma times c^2."""
    X, y = data(30, 8, 3, seed)
    one = RecursiveRidge(8, gamma=0.1).partial_fit(X, y)
    other = RecursiveRidge(8, gamma=0.1 * scale**2).partial_fit(scale * X, y)
    torch.testing.assert_close(other(scale * X), one(X), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
def test_equals_the_reference(solver) -> None:
    X, y = data(60, 10, 3)
    Y = np.eye(3)[y.numpy()]
    R, W = np.eye(10) / 0.01, np.zeros((10, 3))
    ridge = RecursiveRidge(10, gamma=0.01, solver=solver)
    for start in range(0, 60, 6):
        R, W = recursion(R, W, X[start : start + 6].numpy(), Y[start : start + 6])
        ridge.partial_fit(X[start : start + 6], y[start : start + 6])
    near(ridge.weight, torch.from_numpy(W), 1e-8)
    near(ridge.covariance, torch.from_numpy(R), 1e-8)
    near(ridge.weight, torch.from_numpy(joint_ridge(X.numpy(), Y, 0.01)), 1e-10)


@pytest.mark.parametrize("solver", SOLVERS)
def test_targets(solver) -> None:
    """Labels are one-hot targets; any targets do; columns may come later, and fewer are filled up."""
    X, y = data(30, 5, 3)
    one_hot = torch.nn.functional.one_hot(y, 3)
    labels = RecursiveRidge(5, solver=solver).partial_fit(X, y.to(torch.uint8)).weight
    near(RecursiveRidge(5, solver=solver).partial_fit(X, one_hot.float()).weight, labels)
    Y = torch.randn(30, 2, generator=torch.Generator().manual_seed(1))
    ridge = RecursiveRidge(5, solver=solver)
    ridge.partial_fit(X[:10], Y[:10, :1]).partial_fit(X[10:20], Y[10:20]).partial_fit(X[20:], Y[20:, :1])
    joint = Y.clone()
    joint[:10, 1] = joint[20:, 1] = 0
    near(ridge.weight, ridge_solution(X, joint, 1e-3))


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_large_penalty_leaves_no_weights(solver) -> None:
    X, y = data(30, 5, 3)
    weight = RecursiveRidge(5, gamma=1e12, solver=solver).partial_fit(X, y).weight
    near(weight * 1e12, X.T @ torch.nn.functional.one_hot(y, 3).double(), 1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_before_the_first_batch(solver) -> None:
    ridge = RecursiveRidge(3, gamma=0.5, solver=solver)
    torch.testing.assert_close(ridge.covariance, 2 * torch.eye(3).double())
    assert ridge.n_samples_seen_ == 0
    with pytest.raises(NotFittedError, match="partial_fit"):
        ridge.weight  # noqa: B018
    with pytest.raises(NotFittedError):
        ridge(torch.zeros(1, 3))
    with pytest.raises(AttributeError, match="no_such_name"):
        ridge.no_such_name  # noqa: B018


@pytest.mark.parametrize("solver", SOLVERS)
def test_merges_with_either_solver(solver) -> None:
    X, y = data(50, 6, 4)
    y[:20] %= 2  # the first has fewer columns
    whole = ridge_solution(X, y, 0.01)
    for its in SOLVERS:
        one = RecursiveRidge(6, gamma=0.01, solver=solver).partial_fit(X[:20], y[:20])
        other = RecursiveRidge(6, gamma=0.01, solver=its).partial_fit(X[20:], y[20:])
        near(copy.deepcopy(one).merge_(other).weight, whole)
        merged = other.merge_(one)
        near(merged.weight, whole)
        assert merged.n_samples_seen_ == 50
        near(merged.partial_fit(X, y).weight, ridge_solution(torch.cat([X, X]), torch.cat([y, y]), 0.01))


@pytest.mark.parametrize("solver", SOLVERS)
def test_state(solver) -> None:
    """Through a file into a fresh one with another penalty and no columns; then on, bit for bit."""
    X, y = data(40, 6, 3)
    ridge = RecursiveRidge(6, gamma=0.2, solver=solver).partial_fit(X[:20], y[:20])
    ridge.weight  # noqa: B018 - solved once: the state must not depend on it
    file = io.BytesIO()
    torch.save(ridge.state_dict(), file)
    file.seek(0)
    loaded = RecursiveRidge(6, gamma=5.0, solver=solver)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(loaded.weight, ridge.weight)
    assert loaded.gamma == 0.2
    assert torch.equal(loaded.partial_fit(X[20:], y[20:]).weight, ridge.partial_fit(X[20:], y[20:]).weight)
    with pytest.raises(ValueError, match="solver"):
        RecursiveRidge(6, solver=SOLVERS[solver == SOLVERS[0]]).load_state_dict(ridge.state_dict())


def test_the_weights_are_of_what_was_seen_last() -> None:
    """The kept solution goes with every change: a batch, a merge, a state, another type."""
    X, y = data(40, 6, 3)
    ridge = RecursiveRidge(6).partial_fit(X[:20], y[:20])
    first = ridge.weight
    ridge.partial_fit(X[20:], y[20:])
    assert not torch.equal(ridge.weight, first)
    second = ridge.weight
    ridge.merge_(RecursiveRidge(6).partial_fit(X[:5], y[:5]))
    assert not torch.equal(ridge.weight, second)
    other = RecursiveRidge(6).partial_fit(X, y)
    swapped = torch.func.functional_call(ridge, dict(other.named_buffers()), (X,))
    assert torch.equal(swapped, other(X))
    assert not torch.equal(swapped, ridge(X))
    assert ridge.float().weight.dtype == torch.float32


@pytest.mark.parametrize("solver", SOLVERS)
def test_rejected_batches_leave_no_trace(solver) -> None:
    X, y = data(40, 6, 3)
    ridge = RecursiveRidge(6, solver=solver).partial_fit(X[:20], y[:20])
    before = {name: copy.deepcopy(value) for name, value in ridge.state_dict().items()}
    bad = X[20:].clone()
    bad[3, 2] = torch.inf
    for call in (
        lambda: ridge.partial_fit(bad, y[20:]),
        lambda: ridge.partial_fit(X[20:], y[20:] - 5),
        lambda: ridge.partial_fit(X[20:], y[20:-1]),
        lambda: ridge.partial_fit(1e200 * X[20:], y[20:]),
        lambda: ridge.merge_(RecursiveRidge(6, gamma=7.0, solver=solver).partial_fit(X, y)),
    ):
        with pytest.raises(ValueError, match=r"X|Y|other"):
            call()
    for name, value in ridge.state_dict().items():
        assert torch.equal(value, before[name]) if isinstance(value, Tensor) else value == before[name]


def test_a_penalty_below_rounding_is_said_so() -> None:
    """Rank one and thousands of times gamma's digits: no jitter, no numbers without meaning."""
    ridge = RecursiveRidge(40, gamma=1e-12).partial_fit(1e4 * torch.ones(3, 40).double(), torch.arange(3))
    with pytest.raises(np.linalg.LinAlgError, match="gamma=1e-12"):
        ridge.weight  # noqa: B018
    X, y = data(100, 400, 2)
    single = RecursiveRidge(400, gamma=1e-7, dtype=torch.float32).partial_fit(X * 10, y)
    with pytest.raises(np.linalg.LinAlgError, match="float32"):
        single.weight  # noqa: B018
    near(RecursiveRidge(400, gamma=1e-7).partial_fit(X * 10, y).weight, ridge_solution(X * 10, y, 1e-7), 1e-3)


def test_surroundings_change_nothing() -> None:
    X, y = data(30, 6, 3)
    for solver in SOLVERS:
        expected = RecursiveRidge(6, solver=solver).partial_fit(X[:9], y[:9]).partial_fit(X[9:], y[9:]).weight
        with torch.inference_mode():
            ridge = RecursiveRidge(6, solver=solver).partial_fit(X[:9], y[:9])
            ridge.weight  # noqa: B018
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ridge.partial_fit(X[9:].requires_grad_(), y[9:])
            assert torch.equal(ridge.weight, expected)
            assert not ridge.weight.requires_grad
            assert ridge(X.detach().float()).dtype == torch.float64
        X = X.detach()
    strided = torch.stack([X, X], 2)[:, :, 0]
    near(RecursiveRidge(6).partial_fit(strided, y).weight, RecursiveRidge(6).partial_fit(X, y).weight, 1e-14)


def test_forward() -> None:
    X, y = data(30, 6, 3)
    ridge = RecursiveRidge(6).partial_fit(X, y)
    check_module(ridge, lambda g: (torch.randn(4, 6, generator=g),))
    query = X[:2].clone().requires_grad_()
    ridge(query).sum().backward()
    torch.testing.assert_close(query.grad, ridge.weight.sum(1).expand(2, 6))
    assert ridge(X[:0]).shape == (0, 3)


@pytest.mark.parametrize("solver", SOLVERS)
def test_arguments(solver) -> None:
    def weights(X: Tensor, Y: Tensor) -> Tensor:
        return RecursiveRidge(6, gamma=0.1, solver=solver).partial_fit(X, Y).weight

    def inputs(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.randn(7, 6, generator=generator), torch.randint(3, (7,), generator=generator)

    check_arguments(weights, inputs)
    check_arguments(RecursiveRidge, lambda g: {"in_features": 4, "gamma": 0.1})
    check_arguments(ridge_solution, lambda g: (*inputs(g), 0.1))


def test_what_was_taken_stays_as_it_was() -> None:
    """The covariance and the state of an earlier moment, while the sums change in place."""
    X, y = data(30, 6, 3)
    for solver in SOLVERS:
        ridge = RecursiveRidge(6, solver=solver).partial_fit(X[:10], y[:10])
        R, W, state = ridge.covariance, ridge.weight, ridge.state_dict()
        ridge.partial_fit(X[10:13], y[10:13]).partial_fit(X[13:], y[13:])
        whole = ridge.weight.clone()
        near(R, torch.linalg.inv(X[:10].T @ X[:10] + 1e-3 * torch.eye(6).double()), 1e-8)
        near(W, ridge_solution(X[:10], y[:10], 1e-3), 1e-8)
        resumed = RecursiveRidge(6, solver=solver)
        resumed.load_state_dict(state)
        near(resumed.weight, W)
        assert torch.equal(resumed.partial_fit(X[10:13], y[10:13]).partial_fit(X[13:], y[13:]).weight, whole)


def test_half_types_do_not_reach_the_sums() -> None:
    """A model of which this is a part may be rounded to a half type; the sums may not."""
    X, y = data(30, 6, 3)
    ridge = RecursiveRidge(6).partial_fit(X, y)
    weight = ridge.weight
    for rounded in (copy.deepcopy(ridge).half(), torch.nn.Sequential(copy.deepcopy(ridge)).to(torch.bfloat16)[0]):
        assert torch.equal(rounded.weight, weight)
    assert copy.deepcopy(ridge).float().weight.dtype == torch.float32


def test_a_factor_of_rounding_is_refused() -> None:
    """The factorization succeeds, but has a pivot below half of gamma, which rounding alone can make."""
    ridge = RecursiveRidge(2, gamma=1e-3).partial_fit(torch.eye(2), torch.tensor([0, 1]))
    ridge._matrix = torch.diag(torch.tensor([1.0, -4e-4], dtype=torch.float64))
    near(ridge.weight, torch.diag(torch.tensor([1 / 1.001, 1 / 6e-4], dtype=torch.float64)))
    ridge._matrix = torch.diag(torch.tensor([1.0, -6e-4], dtype=torch.float64))
    with pytest.raises(np.linalg.LinAlgError, match="gamma"):
        ridge.weight  # noqa: B018


def test_other_tensors_in_the_place_of_the_sums() -> None:
    X, y = data(30, 6, 3)
    ridge = RecursiveRidge(6).partial_fit(X, y)
    scores = ridge(X)
    for name, factor in (("_columns", 3.0), ("_matrix", 2.0)):
        put = {name: factor * getattr(ridge, name)}
        other = torch.func.functional_call(ridge, put, (X,))
        gram = X.T @ X * (2.0 if name == "_matrix" else 1.0) + 1e-3 * torch.eye(6).double()
        targets = torch.nn.functional.one_hot(y, 3).double() * (3.0 if name == "_columns" else 1.0)
        near(other, X @ torch.linalg.solve(gram, X.T @ targets), 1e-8)
        assert torch.equal(ridge(X), scores)
