from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from torch.testing import assert_close

from offprints.sp2ot import knn_similarity, partial_ot, semantic_partial_ot


def problem(seed: int, n: int = 40, k: int = 5) -> tuple[Tensor, Tensor]:
    """Costs, and a positive semidefinite similarity."""
    generator = torch.Generator().manual_seed(seed)
    cost = -(2 * torch.randn(n, k, generator=generator, dtype=torch.float64)).log_softmax(1)
    features = torch.randn(n, 6, generator=generator, dtype=torch.float64)
    return cost, (-torch.cdist(features, features).square() / 6).exp()


@pytest.mark.parametrize("gamma", [1.0, math.inf])
@settings(max_examples=12)
@given(seed=st.integers(0, 2**31), rho=st.sampled_from([0.1, 0.5, 0.9]), damping=st.sampled_from([0.5, 1.0]))
def test_objective_falls(gamma: float, seed: int, rho: float, damping: float) -> None:
    """The theorem: with a positive semidefinite similarity no outer step raises the objective."""
    cost, similarity = problem(seed)
    result = semantic_partial_ot(
        cost, similarity, rho=rho, gamma=gamma, semantic_weight=8.0, damping=damping, outer_iterations=10, outer_tol=0
    )
    steps = result.objective[1:] if math.isinf(gamma) else result.objective
    assert (steps.diff() <= 1e-9).all()
    assert result.objective.shape == (11,)
    assert abs(float(result.plan.sum()) - rho) < 1e-9
    assert (result.plan.sum(1) <= 1 / 40 + 1e-12).all()


def test_objective_is_the_one_of_the_docstring() -> None:
    cost, similarity = problem(1, 20, 3)
    rho, gamma, epsilon, weight = 0.4, 0.7, 0.1, 5.0
    result = semantic_partial_ot(cost, similarity, rho=rho, gamma=gamma, semantic_weight=weight)
    q = result.plan
    rest, mass = 1 / 20 - q.sum(1), q.sum(0)
    expected = (q * cost).sum() - (1 - rho) * weight * (similarity * (q @ q.T)).sum()
    expected += gamma * (mass * (mass * 3 / rho).log() - mass + rho / 3).sum()
    expected += epsilon * sum((p * (p.log() - 1)).sum() for p in (q, rest))
    assert_close(result.objective[-1], expected)


def test_the_limit_is_a_fixed_point() -> None:
    """The plan solves the transport problem that it is the tangent of."""
    cost, similarity = problem(2)
    result = semantic_partial_ot(cost, similarity, rho=0.5, semantic_weight=8.0, outer_tol=1e-13)
    assert result.converged
    tangent = cost - 0.5 * 8.0 * (similarity + similarity.T) @ result.plan
    assert_close(partial_ot(tangent, rho=0.5).plan, result.plan, atol=1e-7, rtol=0)
    again = semantic_partial_ot(cost, similarity, rho=0.5, semantic_weight=8.0, init_plan=result.plan, outer_tol=1e-9)
    assert again.outer_iterations == 1
    assert_close(again.plan, result.plan, atol=1e-7, rtol=0)


def test_neighbors_agree_more() -> None:
    cost, similarity = problem(3)
    plain = partial_ot(cost, rho=0.5).plan
    semantic = semantic_partial_ot(cost, similarity, rho=0.5, semantic_weight=8.0).plan
    plain_reward, semantic_reward = ((similarity * (q @ q.T)).sum() for q in (plain, semantic))
    assert semantic_reward > 1.05 * plain_reward


def test_no_semantics_is_partial_transport() -> None:
    cost, similarity = problem(4)
    for rho, options in ((1.0, {}), (0.4, {"semantic_weight": 0.0})):
        result = semantic_partial_ot(cost, similarity, rho=rho, **options)
        assert result.converged
        assert result.outer_iterations == 1
        assert_close(result.plan, partial_ot(cost, rho=rho).plan, atol=1e-12, rtol=0)
    kept = semantic_partial_ot(cost, similarity, rho=1.0, semantic_weight=8.0, decay=False)
    assert (kept.plan - partial_ot(cost, rho=1.0).plan).abs().max() > 1e-4
    decayed = semantic_partial_ot(cost, similarity, rho=0.6, semantic_weight=10.0)
    fixed = semantic_partial_ot(cost, similarity, rho=0.6, semantic_weight=4.0, decay=False)
    assert_close(decayed.plan, fixed.plan, atol=1e-9, rtol=0)


@pytest.mark.filterwarnings("ignore:Sparse")
def test_layouts_and_asymmetry() -> None:
    cost, _ = problem(5)
    features = torch.randn(40, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    graph = knn_similarity(features, k=4)
    dense = graph.to_dense()
    assert not torch.equal(dense, dense.T)
    options = {"rho": 0.3, "semantic_weight": 8.0, "outer_iterations": 4, "outer_tol": 0.0}
    expected = semantic_partial_ot(cost, dense, **options)
    symmetric = semantic_partial_ot(cost, (dense + dense.T) / 2, **options)
    assert_close(symmetric.plan, expected.plan, atol=1e-10, rtol=0)
    for layout in (graph, graph.to_sparse_csr(), graph.float()):
        assert_close(semantic_partial_ot(cost, layout, **options).plan, expected.plan, atol=1e-6, rtol=0)


@pytest.mark.parametrize("outer_tol", [0.0, 1e-6])
def test_batches(outer_tol: float) -> None:
    (cost, similarity), (other, _) = problem(6), problem(7)
    options = {"rho": 0.3, "semantic_weight": 8.0, "outer_tol": outer_tol, "outer_iterations": 60}
    together = semantic_partial_ot(torch.stack([cost, 5 * other]), similarity, **options)
    for i, c in enumerate((cost, 5 * other)):
        alone = semantic_partial_ot(c, similarity, **options)
        assert_close(together.plan[i], alone.plan, atol=1e-6, rtol=0)
        assert_close(together.objective[i, -1], alone.objective[-1], atol=1e-6, rtol=0)
    assert together.objective.shape == (2, together.outer_iterations + 1)


def test_methods_agree() -> None:
    cost, similarity = problem(8)
    options = {"rho": 0.5, "semantic_weight": 8.0}
    newton = semantic_partial_ot(cost, similarity, **options)
    sinkhorn = semantic_partial_ot(cost, similarity, method="sinkhorn", max_iterations=20_000, **options)
    assert_close(sinkhorn.plan, newton.plan, atol=1e-8, rtol=0)
    assert sinkhorn.inner_iterations > newton.inner_iterations


def test_a_graph_that_is_not_semidefinite() -> None:
    """Descent is not promised; the iteration ends, and never with a plan worse than the one before."""
    cost, _ = problem(9)
    similarity = 1 - torch.eye(40, dtype=torch.float64)
    similarity[:20, :20] = 0
    similarity[20:, 20:] = 0
    result = semantic_partial_ot(cost, similarity, rho=0.5, semantic_weight=300.0)
    assert result.objective[-1] <= result.objective[1:].min() + 1e-6
    assert result.plan.isfinite().all()


def test_unconverged_is_said() -> None:
    cost, similarity = problem(10)
    with pytest.warns(ConvergenceWarning, match="outer_iterations"):
        result = semantic_partial_ot(cost, similarity, rho=0.3, semantic_weight=8.0, outer_iterations=2)
    assert not result.converged
    with pytest.warns(ConvergenceWarning, match="residual"):
        result = semantic_partial_ot(
            cost, similarity, rho=0.1, semantic_weight=8.0, method="sinkhorn", max_iterations=3
        )
    assert not result.converged


def test_large_weights() -> None:
    """The paper's weight on few samples: costs in the thousands, still solved."""
    cost, similarity = problem(11)
    result = semantic_partial_ot(cost, similarity, rho=0.2, outer_iterations=5, outer_tol=0, tol=1e-9)
    assert result.plan.isfinite().all()
    assert abs(float(result.plan.sum()) - 0.2) < 1e-7
