from __future__ import annotations

import math
import warnings

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from torch.testing import assert_close

from offprints.sp2ot import TransportResult, partial_ot
from offprints.sp2ot._semidual import SemiDual
from offprints.sp2ot._solvers import newton

RHOS = (0.1, 0.5, 0.9, 1.0)


def random_cost(seed: int, *shape: int, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return -(scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).log_softmax(-1)


def extended_plan(cost: Tensor, result: TransportResult, epsilon: float = 0.1) -> Tensor:
    """The plan with the virtual cluster, from the potentials alone."""
    with_virtual = torch.nn.functional.pad(cost, (0, 1))
    return (result.row_potential[..., None] + result.column_potential[..., None, :] - with_virtual / epsilon).exp()


def check_solution(cost: Tensor, result: TransportResult, rho: float, epsilon: float, gamma: float) -> None:
    """Feasibility, first-order optimality, and agreement of plan, labels and potentials."""
    n, k = cost.shape
    whole = extended_plan(cost, result, epsilon)
    assert_close(whole[:, :k], result.plan, atol=1e-12, rtol=1e-9)
    assert_close(result.pseudo_labels, n * result.plan)
    assert (result.plan >= 0).all()
    assert_close(whole.sum(1), torch.full((n,), 1 / n, dtype=torch.float64), atol=1e-12, rtol=0)
    assert abs(float(result.plan.sum()) - rho) < 1e-9
    assert abs(float(whole[:, k].sum()) - (1 - rho)) < 1e-9
    wanted = rho / k * torch.exp(-epsilon * result.column_potential[:k] / gamma)
    assert float((whole.sum(0)[:k] - wanted).abs().sum()) < 1e-9


# ---- the solution ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["newton", "sinkhorn"])
@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**31),
    samples=st.integers(1, 40),
    clusters=st.integers(1, 8),
    rho=st.floats(0.05, 1.0),
    epsilon=st.sampled_from([0.05, 0.1, 0.7]),
    gamma=st.sampled_from([0.3, 1.0, 20.0, math.inf]),
)
def test_optimality(
    method: str, seed: int, samples: int, clusters: int, rho: float, epsilon: float, gamma: float
) -> None:
    if method == "sinkhorn" and (gamma > 1 or rho < 0.3 or epsilon < 0.1):
        gamma, rho, epsilon = 1.0, max(rho, 0.3), 0.7  # where it converges within a second
    cost = random_cost(seed, samples, clusters)
    result = partial_ot(cost, rho=rho, epsilon=epsilon, gamma=gamma, method=method, max_iterations=20_000)
    assert result.converged
    assert result.residual <= 1e-10
    check_solution(cost, result, rho, epsilon, gamma)


@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("gamma", [1.0, math.inf])
@pytest.mark.parametrize("largest", [1e2, 1e3, 1e4])
def test_large_costs(largest: float, gamma: float, rho: float) -> None:
    """Costs at which the semi-dual is nearly piecewise linear, one cluster out of reach of every sample."""
    generator = torch.Generator().manual_seed(int(largest))
    cost = largest * torch.rand(3, 60, 7, generator=generator, dtype=torch.float64)
    cost[1] = -(largest / 6 * torch.randn(60, 7, generator=generator, dtype=torch.float64)).log_softmax(-1)
    cost[2, :, 0] += largest
    result = partial_ot(cost, rho=rho, gamma=gamma, tol=1e-9)
    assert result.converged
    assert result.plan.isfinite().all()
    assert_close(result.plan.sum((1, 2)), torch.full((3,), rho, dtype=torch.float64), atol=1e-8, rtol=0)
    assert (result.plan.sum(2) <= 1 / 60 + 1e-12).all()


def test_the_scaling_iteration_survives_underflow() -> None:
    """A cluster whose whole column underflows in the linear domain."""
    cost = random_cost(0, 30, 4)
    cost[:, 2] += 500.0
    with pytest.warns(ConvergenceWarning, match="residual"):
        result = partial_ot(cost, rho=0.9, method="sinkhorn", max_iterations=50)
    assert not result.converged
    assert result.plan.isfinite().all()
    assert result.residual < 1
    assert partial_ot(cost, rho=0.9).converged


@pytest.mark.parametrize("rho", RHOS[:3])
def test_hard_columns_equal_balanced_transport(rho: float) -> None:
    """POT on the extended cost."""
    cost = random_cost(1, 50, 6)
    rows, columns = np.full(50, 1 / 50), np.append(np.full(6, rho / 6), 1 - rho)
    extended = torch.nn.functional.pad(cost, (0, 1)).numpy()
    expected = ot.sinkhorn(rows, columns, extended, 0.1, method="sinkhorn_log", numItermax=20_000, stopThr=1e-12)
    result = partial_ot(cost, rho=rho, gamma=math.inf)
    assert_close(result.plan, torch.from_numpy(expected)[:, :6], atol=1e-8, rtol=0)
    assert_close(result.plan.sum(0), torch.full((6,), rho / 6, dtype=torch.float64), atol=1e-10, rtol=0)


@pytest.mark.filterwarnings("ignore:If reg_type")
@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_everything_transported_equals_semi_unbalanced_transport(gamma: float) -> None:
    """POT with exact rows and soft columns."""
    cost = random_cost(2, 50, 6)
    expected = ot.unbalanced.sinkhorn_unbalanced(
        np.full(50, 1 / 50),
        np.full(6, 1 / 6),
        cost.numpy(),
        0.1,
        (math.inf, gamma),
        method="sinkhorn",
        reg_type="entropy",
        numItermax=20_000,
        stopThr=1e-13,
    )
    result = partial_ot(cost, rho=1.0, gamma=gamma)
    assert_close(result.plan, torch.from_numpy(expected), atol=1e-8, rtol=0)


@pytest.mark.parametrize("method", ["newton", "sinkhorn"])
def test_generic_optimizer_agrees(method: str) -> None:
    """The primal problem of four samples, by a general convex solver that knows no scaling."""
    from scipy.optimize import minimize

    n, k, rho, gamma, epsilon = 4, 3, 0.6, 1.0, 0.1
    cost = random_cost(3, n, k, scale=0.5)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        q = torch.tensor(flat, requires_grad=True)
        plan = q.view(n, k + 1)
        mass = plan[:, :k].sum(0)
        sizes = (torch.xlogy(mass, mass * k / rho) - mass + rho / k).sum()
        value = (plan[:, :k] * cost).sum() + gamma * sizes + epsilon * (torch.xlogy(plan, plan) - plan).sum()
        (gradient,) = torch.autograd.grad(value, q)
        return float(value.detach()), gradient.numpy()

    rows = np.kron(np.eye(n), np.ones(k + 1))
    virtual = np.tile(np.eye(k + 1)[k], n)
    matrix, sums = np.vstack([rows, virtual]), np.append(np.full(n, 1 / n), 1 - rho)
    exact = {"type": "eq", "fun": lambda x: matrix @ x - sums, "jac": lambda x: matrix}
    start = np.tile(np.append(np.full(k, rho / (n * k)), (1 - rho) / n), n)
    options = {"ftol": 1e-15, "maxiter": 2000}
    found = minimize(
        objective, start, jac=True, method="SLSQP", constraints=exact, bounds=[(1e-9, 1)] * len(start), options=options
    )
    result = partial_ot(cost, rho=rho, gamma=gamma, epsilon=epsilon, method=method, max_iterations=10_000)
    assert_close(result.plan, torch.from_numpy(found.x).view(n, k + 1)[:, :k], atol=2e-5, rtol=0)


# ---- invariances -----------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), rho=st.sampled_from(RHOS))
def test_permutations(seed: int, rho: float) -> None:
    cost = random_cost(seed, 25, 5)
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.randperm(25, generator=generator), torch.randperm(5, generator=generator)
    plan = partial_ot(cost, rho=rho).plan
    assert_close(partial_ot(cost[rows][:, columns], rho=rho).plan, plan[rows][:, columns], atol=1e-10, rtol=0)


def test_a_dearer_sample_gives_less() -> None:
    """The virtual cluster stays at 0: a constant on one row is no invariance."""
    cost = random_cost(4, 20, 4)
    dearer = cost.clone()
    dearer[7] += 1.0
    before, after = (partial_ot(c, rho=0.5).pseudo_labels.sum(1) for c in (cost, dearer))
    assert after[7] < 0.5 * before[7]
    assert (after[:7] >= before[:7]).all()


@pytest.mark.parametrize("gamma", [1.0, math.inf])
@pytest.mark.parametrize("rho", [0.4, 1.0])
def test_batches(rho: float, gamma: float) -> None:
    cost = random_cost(5, 3, 30, 6)
    cost[1] *= 100  # a problem that takes far more steps than its neighbors
    together = partial_ot(cost, rho=rho, gamma=gamma)
    alone = [partial_ot(c, rho=rho, gamma=gamma) for c in cost]
    assert_close(together.plan, torch.stack([r.plan for r in alone]), atol=1e-9, rtol=0)
    assert together.residual <= 1e-10
    assert together.column_potential.shape == (3, 7)
    assert together.row_potential.shape == (3, 30)


def test_a_problem_at_rounding_does_not_end_its_neighbors() -> None:
    """No residual reaches 1e-17: the easy problem is done in a step or two, the other goes on to its solution."""
    cost = torch.nn.functional.pad(random_cost(14, 2, 40, 6), (0, 1))
    cost[0] *= 0.01
    cost[1] *= 60
    target = torch.tensor([0.05] * 6 + [0.7], dtype=torch.float64)
    softness = torch.tensor([0.1] * 6 + [0.0], dtype=torch.float64)
    dual = SemiDual(cost / 0.1, target, softness.expand(2, -1))
    point, _ = newton(dual, torch.zeros(2, 7, dtype=torch.float64), tol=1e-17, max_iterations=500)
    assert point.residual.max() < 1e-13


@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("method", ["newton", "sinkhorn"])
def test_warm_start_is_stationary(rho: float, method: str) -> None:
    cost = random_cost(6, 40, 5)
    solved = partial_ot(cost, rho=rho, tol=1e-12)
    again = partial_ot(cost, rho=rho, init=solved.column_potential, method=method)
    assert again.iterations == 0
    assert_close(again.plan, solved.plan, atol=1e-11, rtol=0)
    longer = partial_ot(cost, rho=rho, init=solved.column_potential, method="sinkhorn", tol=0, max_iterations=20)
    assert_close(longer.plan, solved.plan, atol=1e-10, rtol=0)


def test_a_bad_start_does_no_harm() -> None:
    cost = random_cost(7, 40, 5)
    expected = partial_ot(cost, rho=0.3).plan
    for scale in (50.0, -50.0, 5e4):
        init = scale * torch.linspace(-1, 1, 6, dtype=torch.float64)
        result = partial_ot(cost, rho=0.3, init=init)
        assert result.converged, scale
        assert_close(result.plan, expected, atol=1e-9, rtol=0)


def test_prior() -> None:
    cost = random_cost(8, 60, 4)
    prior = torch.tensor([0.6, 0.3, 0.1, 0.0], dtype=torch.float64)
    hard = partial_ot(cost, rho=0.5, gamma=math.inf, prior=prior)
    assert_close(hard.plan.sum(0), 0.5 * prior, atol=1e-10, rtol=0)
    assert hard.column_potential[3] == -math.inf
    soft = partial_ot(cost, rho=0.5, prior=prior)
    assert soft.plan[:, 3].sum() == 0
    assert soft.plan.sum(0)[0] > partial_ot(cost, rho=0.5).plan.sum(0)[0]
    equal = torch.full((4,), 0.25)
    assert_close(partial_ot(cost, rho=0.5, prior=equal).plan, partial_ot(cost, rho=0.5).plan)


def test_small_rho_keeps_the_sure_samples() -> None:
    logits = torch.zeros(40, 4, dtype=torch.float64)
    logits[torch.arange(40), torch.arange(40) % 4] = torch.linspace(0.5, 8, 40, dtype=torch.float64)
    weight = partial_ot(-logits.log_softmax(1), rho=0.2).pseudo_labels.sum(1).view(10, 4)
    assert (weight.diff(dim=0) > 0).all()  # surer samples of a cluster weigh more
    assert weight[:5].sum() < 0.2 * weight.sum()


# ---- types and flags -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dtypes_and_autocast(dtype: torch.dtype) -> None:
    cost = random_cost(9, 24, 4).to(dtype).requires_grad_()
    expected = partial_ot(cost.detach().double(), rho=0.4)
    with torch.autocast("cpu", torch.bfloat16):
        result = partial_ot(cost, rho=0.4)
    assert result.plan.dtype == torch.float64
    assert not result.plan.requires_grad
    assert_close(result.plan, expected.plan, atol=0, rtol=0)


def test_unconverged_is_said() -> None:
    cost = random_cost(10, 40, 5)
    for method, limit in (("sinkhorn", 5), ("newton", 1)):
        with pytest.warns(ConvergenceWarning, match="residual"):
            result = partial_ot(cost, rho=0.1, method=method, max_iterations=limit)
        assert not result.converged
        assert result.residual > 1e-10
        assert result.iterations == limit


def test_one_step_short_of_nothing() -> None:
    """tol = 0 with Newton ends at rounding instead of running on."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = partial_ot(random_cost(11, 40, 5), rho=0.4, tol=0.0)
    assert result.residual < 1e-13


def test_strides_and_inputs() -> None:
    cost = random_cost(12, 4, 30).T
    before = cost.clone()
    assert_close(partial_ot(cost, rho=0.4).plan, partial_ot(cost.contiguous(), rho=0.4).plan)
    assert torch.equal(cost, before)


@pytest.mark.gpu
def test_cuda_agrees() -> None:
    cost = random_cost(13, 2, 200, 12)
    for method in ("newton", "sinkhorn"):
        options = {"rho": 0.4, "method": method, "max_iterations": 5000}
        result = partial_ot(cost.cuda(), **options)
        assert result.plan.is_cuda
        assert_close(result.plan.cpu(), partial_ot(cost, **options).plan, atol=1e-9, rtol=0)


@pytest.mark.parametrize("rho", [1e-12, 3e-11, 1e-7])
def test_a_tiny_share_is_met_relative_to_itself(rho: float) -> None:
    cost = 5 * torch.rand(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = partial_ot(cost, rho=rho)
    assert result.converged
    assert float(result.plan.sum()) == pytest.approx(rho, rel=1e-3)


@pytest.mark.parametrize("sizes", [[300, 100, 30], [3.0, 1.0, 0.3], [3e200, 1e200, 3e199]])
def test_prior_of_relative_sizes(sizes: list[float]) -> None:
    cost = torch.rand(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    dtype = torch.int64 if isinstance(sizes[0], int) else torch.float64
    result = partial_ot(cost, rho=0.43, prior=torch.tensor(sizes, dtype=dtype), gamma=math.inf)
    assert_close(result.plan.sum(0), torch.tensor([0.3, 0.1, 0.03], dtype=torch.float64), atol=1e-9, rtol=0)
