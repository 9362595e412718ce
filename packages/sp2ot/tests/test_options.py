"""Row weights, shares of their own, capacities, values and gradients, against solvers that know nothing of scaling."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import ot
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor
from torch.testing import assert_close

from offprints.sp2ot import TransportResult, partial_ot, transport_value


def random_cost(seed: int, *shape: int, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return -(scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).log_softmax(-1)


def linear_program(cost: Tensor, rows: np.ndarray, columns: np.ndarray, mass: float) -> tuple[float, np.ndarray]:
    """The exact partial problem: rows and columns at most so much, a mass in total."""
    n, k = cost.shape
    at_most = np.vstack([np.kron(np.eye(n), np.ones(k)), np.kron(np.ones(n), np.eye(k))])
    found = linprog(
        cost.numpy().ravel(), A_ub=at_most, b_ub=np.concatenate([rows, columns]), A_eq=np.ones((1, n * k)), b_eq=[mass]
    )
    assert found.status == 0
    return found.fun, found.x.reshape(n, k)


# ---- weights and shares ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["newton", "sinkhorn"])
@pytest.mark.parametrize("rho", [0.3, 1.0])
@pytest.mark.parametrize("gamma", [1.0, math.inf])
def test_a_sample_of_weight_two_is_two_samples(gamma: float, rho: float, method: str) -> None:
    cost = random_cost(0, 12, 4)
    counts = torch.tensor([1, 2, 1, 3, 1, 1, 2, 1, 1, 4, 1, 2])
    options: dict[str, Any] = {"rho": rho, "gamma": gamma, "method": method, "max_iterations": 20_000}
    repeated = partial_ot(cost.repeat_interleave(counts, 0), **options)
    weighted = partial_ot(cost, weights=counts.double(), **options)
    assert weighted.converged
    assert torch.equal(weighted.plan, partial_ot(cost, weights=counts, **options).plan)
    assert_close(weighted.pseudo_labels.repeat_interleave(counts, 0), repeated.pseudo_labels, atol=1e-8, rtol=0)
    assert_close(weighted.plan.sum(), torch.tensor(rho, dtype=torch.float64))
    assert_close(weighted.column_potential, repeated.column_potential, atol=1e-7, rtol=0)
    with_virtual = torch.nn.functional.pad(cost, (0, 1))
    whole = (weighted.row_potential[:, None] + weighted.column_potential - with_virtual / 0.1).exp()
    assert_close(whole.sum(1), counts / counts.sum().double(), atol=1e-9, rtol=0)


def test_a_sample_of_no_weight_moves_nothing() -> None:
    cost = random_cost(1, 9, 3)
    weights = torch.ones(9)
    weights[4] = 0
    keep = weights > 0
    result = partial_ot(cost, rho=0.4, weights=weights)
    assert_close(result.pseudo_labels[keep], partial_ot(cost[keep], rho=0.4).pseudo_labels, atol=1e-9, rtol=0)
    assert result.plan[4].sum() == 0
    assert 0 < result.pseudo_labels[4].sum() < 1  # what it would get


@pytest.mark.parametrize("method", ["newton", "sinkhorn"])
def test_shares_and_weights_of_their_own(method: str) -> None:
    cost = random_cost(2, 4, 20, 5)
    rho = torch.tensor([0.3, 1.0, 0.7, 1.0], dtype=torch.float64)
    weights = torch.rand(4, 20, generator=torch.Generator().manual_seed(0)) + 0.1
    init = torch.zeros(4, 6)
    options: dict[str, Any] = {"method": method, "max_iterations": 20_000}
    together = partial_ot(cost, rho=rho, weights=weights, init=init, **options)
    assert together.converged
    for i in range(4):
        alone = partial_ot(cost[i], rho=float(rho[i]), weights=weights[i], **options)
        assert_close(together.plan[i], alone.plan, atol=1e-9, rtol=0)
        assert_close(together.row_potential[i], alone.row_potential, atol=1e-7, rtol=0)
        assert_close(together.column_potential[i], alone.column_potential, atol=1e-7, rtol=0)


# ---- capacities ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["newton", "sinkhorn"])
@pytest.mark.parametrize("rho", [0.25, 0.5, 0.8])
def test_capacities_approach_the_linear_program(rho: float, method: str) -> None:
    """Exact partial transport: scipy's linear program, and POT's."""
    cost = random_cost(3, 15, 4)
    rows, columns = np.full(15, 1 / 15), np.array([0.5, 0.2, 0.15, 0.1])
    value, _ = linear_program(cost, rows, columns, rho)
    pot = ot.partial.partial_wasserstein(rows, columns, cost.numpy(), m=rho)
    assert float((pot * cost.numpy()).sum()) == pytest.approx(value, abs=1e-9)
    epsilon = 1e-3 if method == "newton" else 3e-2
    result = partial_ot(
        cost, rho=rho, epsilon=epsilon, capacity=torch.from_numpy(columns), method=method, max_iterations=50_000
    )
    assert result.converged
    assert (result.plan.sum(0) <= torch.from_numpy(columns) + 1e-9).all()
    assert (result.column_potential[:4] <= 0).all()
    found = transport_value(cost, result, rho=rho, epsilon=epsilon, capacity=torch.from_numpy(columns))
    # A row has 5 shares, of entropy log 5 at most: the smoothed plan is no farther from the best than epsilon times it.
    assert value - 1e-9 <= float(found.linear) <= value + epsilon * math.log(5)
    assert_close(found.primal, found.dual, atol=1e-9, rtol=0)


def test_capacities_that_do_not_bind_are_none() -> None:
    """Equal to sizes of next to no weight; and capacities that are used up are equalities."""
    cost = random_cost(4, 30, 5)
    loose = partial_ot(cost, rho=0.4, capacity=torch.ones(5))
    assert_close(loose.plan, partial_ot(cost, rho=0.4, gamma=1e-9).plan, atol=1e-7, rtol=0)
    assert loose.column_potential[:5].abs().max() == 0
    tight = torch.tensor([0.1, 0.05, 0.05, 0.15, 0.05], dtype=torch.float64)
    full = partial_ot(cost, rho=0.4, capacity=tight)
    assert_close(full.plan, partial_ot(cost, rho=0.4, gamma=math.inf, prior=tight).plan, atol=1e-9, rtol=0)
    none = partial_ot(cost, rho=0.4, capacity=torch.tensor([0.3, 0.0, 0.2, 0.2, 0.2]))
    assert none.plan[:, 1].sum() == 0


@pytest.mark.parametrize("capacity", [[0.2, 0.15, 0.1, 0.08, 0.3], [0.02, 0.02, 0.5, 0.5, 0.02]])
def test_both_methods_meet_the_same_capacities(capacity: list[float]) -> None:
    cost = random_cost(5, 3, 40, 5)
    cost[1] *= 5
    limits = torch.tensor(capacity, dtype=torch.float64)
    newton = partial_ot(cost, rho=0.5, capacity=limits)
    scaling = partial_ot(cost, rho=0.5, capacity=limits, method="sinkhorn", max_iterations=100_000)
    assert newton.converged
    assert scaling.converged
    assert_close(newton.plan, scaling.plan, atol=1e-8, rtol=0)
    mass = newton.plan.sum(1)
    slack = limits - mass > 1e-8
    assert slack.any()
    assert (~slack).any()
    assert newton.column_potential[:, :5][slack].abs().max() == 0  # a price only where the capacity is used up


@pytest.mark.parametrize("limits", [torch.full((5,), 0.1), torch.full((5,), 0.1) * (1 - 4e-7)], ids=["more", "less"])
def test_capacities_that_rounding_keeps_from_being_used_up(limits: Tensor) -> None:
    """In float32 they are together a little more, or less, than the mass: sizes that are equalities, but for that."""
    cost = random_cost(16, 2, 40, 5, scale=3.0)
    assert abs(float(limits.double().sum()) - 0.5) > 1e-9
    expected = partial_ot(cost, rho=0.5, gamma=math.inf)
    for rho in (0.5, torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.2])):
        result = partial_ot(cost, rho=rho, capacity=limits)
        assert result.converged
        assert_close(result.plan[0], expected.plan[0], atol=1e-7, rtol=0)


# ---- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.3, 1.0])
@pytest.mark.parametrize("gamma", [0.5, math.inf])
def test_value_and_dual(gamma: float, rho: float) -> None:
    cost = random_cost(6, 2, 15, 4)
    weights = torch.linspace(1, 3, 15)
    prior = torch.tensor([3.0, 2.0, 1.0, 0.0])
    options: dict[str, Any] = {"rho": rho, "gamma": gamma, "prior": prior, "weights": weights}
    best = partial_ot(cost, **options, tol=1e-13)
    value = transport_value(cost, best, **options)
    assert value.primal.shape == (2,)
    assert_close(value.primal, value.dual, atol=1e-10, rtol=0)
    assert_close(value.primal, value.linear + value.sizes + value.entropy)
    assert_close(value.linear, (best.plan * cost).sum((1, 2)))
    # Another cost has another solution, which is a plan and potentials of this problem that are not the best.
    other = partial_ot(cost.flip(1), **options, tol=1e-13)
    worse = transport_value(cost, other, **options)
    assert (worse.primal > value.primal + 1e-3).all()
    assert (worse.dual < value.dual - 1e-3).all()


def test_value_where_capacities_are_used_up() -> None:
    """Potentials of equalities have any sign."""
    cost = random_cost(18, 20, 4)
    limits = torch.tensor([0.2, 0.1, 0.05, 0.05], dtype=torch.float64)
    result = partial_ot(cost, rho=0.4, capacity=limits, tol=1e-13)
    assert result.column_potential[:4].max() > 0
    value = transport_value(cost, result, rho=0.4, capacity=limits)
    assert_close(value.primal, value.dual, atol=1e-10, rtol=0)


def test_the_price_of_mass_is_the_slope_of_the_value() -> None:
    """The dual variable of the transported mass, against differences of values."""
    cost = random_cost(7, 20, 4)
    values = [
        float(transport_value(cost, partial_ot(cost, rho=r, gamma=math.inf, tol=1e-13), rho=r, gamma=math.inf).primal)
        for r in (0.4 - 1e-4, 0.4 + 1e-4)
    ]
    g = partial_ot(cost, rho=0.4, gamma=math.inf, tol=1e-13).column_potential
    price = 0.1 * float(g[:4].mean() - g[4])
    assert (values[1] - values[0]) / 2e-4 == pytest.approx(price, rel=1e-5)


# ---- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"rho": 0.4},
        {"rho": 1.0},
        {"rho": 1.0, "gamma": math.inf},
        {"rho": 0.4, "gamma": math.inf, "prior": torch.tensor([2.0, 1.0, 0.0])},
        {"rho": 0.4, "weights": torch.linspace(1, 2, 5)},
        {"rho": 0.5, "capacity": torch.tensor([0.9, 0.1, 0.08])},
        {"rho": 0.6, "method": "sinkhorn", "max_iterations": 20_000},
    ],
    ids=str,
)
def test_gradient(options: dict[str, Any]) -> None:
    cost = random_cost(8, 2, 5, 3, scale=1.0).requires_grad_()

    def of(cost: Tensor) -> tuple[Tensor, Tensor]:
        result = partial_ot(cost, epsilon=0.3, tol=1e-13, differentiable=True, **options)
        assert not result.row_potential.requires_grad
        return result.plan, result.pseudo_labels

    assert torch.autograd.gradcheck(of, (cost,), eps=1e-5, atol=1e-6)
    if "method" not in options:
        assert torch.autograd.gradcheck(lambda c: of(c[0]), (cost,), eps=1e-5, atol=1e-6)


def test_gradient_of_the_value_is_the_plan() -> None:
    """Danskin: at the solution only the cost's own place counts. Through the plan and its entropy alike."""
    cost = random_cost(9, 12, 4).requires_grad_()
    result = partial_ot(cost, rho=0.4, gamma=math.inf, tol=1e-13, differentiable=True)
    plan = result.plan
    rest = 1 / 12 - plan.sum(1)
    value = (plan * cost).sum() + 0.1 * (torch.xlogy(plan, plan).sum() + torch.xlogy(rest, rest).sum())
    (gradient,) = torch.autograd.grad(value, cost)
    assert_close(gradient, plan.detach(), atol=1e-8, rtol=0)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        (first,) = torch.autograd.grad(
            partial_ot(cost, rho=0.4, differentiable=True).plan.square().sum(), cost, create_graph=True
        )
        first.sum().backward()


@pytest.mark.parametrize(
    "options",
    [
        {"rho": 1.0, "gamma": 1e300},
        {"rho": 0.4, "gamma": math.inf, "prior": torch.tensor([1.0, 1e-30, 1.0, 1.0])},
        {"rho": 0.6, "weights": torch.tensor([0.0, 1.0, 2.0, 0.0, 1.0, 3.0])},
        {"rho": torch.tensor([0.5, 0.3], dtype=torch.float64), "capacity": torch.tensor([0.2, 0.1, 0.1, 0.1]).double()},
        {"rho": torch.tensor([0.5, 1.0], dtype=torch.float64), "capacity": torch.tensor([0.6, 0.5, 0.1, 0.0])},
    ],
    ids=str,
)
def test_gradient_where_potentials_hardly_hold_each_other(options: dict[str, Any]) -> None:
    """Next to no curvature of the sizes, samples of no weight, capacities that one problem uses up: differences."""
    cost = random_cost(15, 2, 6, 4, scale=1.0)
    generator = torch.Generator().manual_seed(0)
    upstream, direction = (torch.randn(cost.shape, generator=generator, dtype=torch.float64) for _ in range(2))

    def of(cost: Tensor) -> Tensor:
        return (partial_ot(cost, tol=1e-13, differentiable=True, **options).plan * upstream).sum()

    (gradient,) = torch.autograd.grad(of(cost.requires_grad_()), cost)
    with torch.no_grad():
        slope = (of(cost + 1e-6 * direction) - of(cost - 1e-6 * direction)) / 2e-6
    assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=1e-4, abs=1e-7)


def test_gradient_by_function_transforms() -> None:
    cost = random_cost(17, 6, 3).requires_grad_()
    options: dict[str, Any] = {"rho": 0.5, "prior": torch.tensor([1.0, 0.0, 2.0]), "differentiable": True}

    def of(cost: Tensor) -> Tensor:
        return partial_ot(cost, **options).plan

    (expected,) = torch.autograd.grad(of(cost).square().sum(), cost)
    assert_close(torch.func.grad(lambda c: of(c).square().sum())(cost.detach()), expected)
    jacobian = torch.func.jacrev(of)(cost.detach())
    assert_close((2 * of(cost).detach()[:, :, None, None] * jacobian).sum((0, 1)), expected)


def test_gradient_types() -> None:
    cost = random_cost(10, 8, 3).float().requires_grad_()
    assert not partial_ot(cost, rho=0.4).plan.requires_grad
    partial_ot(cost, rho=0.4, differentiable=True).plan.square().sum().backward()
    assert cost.grad is not None
    assert cost.grad.dtype == torch.float32
    wide = cost.detach().double().requires_grad_()
    partial_ot(wide, rho=0.4, differentiable=True).plan.square().sum().backward()
    assert_close(cost.grad.double(), wide.grad, atol=1e-7, rtol=1e-5)


# ---- many columns ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.1, 0.6, 1.0])
@pytest.mark.parametrize("gamma", [1.0, math.inf])
def test_many_columns(gamma: float, rho: float) -> None:
    """Solved with products alone; more clusters than samples, and a batch of an easy and a hard problem."""
    cost = random_cost(11, 2, 40, 1100)
    cost[1] *= 2
    result = partial_ot(cost, rho=rho, gamma=gamma)
    assert result.converged
    mass = result.plan.sum(1)
    wanted = rho / 1100 * torch.exp(-(0.1 / gamma) * result.column_potential[:, :1100])
    assert_close(mass, wanted, atol=1e-10, rtol=0)
    assert_close(result.plan.sum((1, 2)), torch.full((2,), rho, dtype=torch.float64), atol=1e-9, rtol=0)
    if gamma == 1 and rho > 0.1:
        scaled = partial_ot(cost[0], rho=rho, method="sinkhorn", max_iterations=20_000)
        assert_close(result.plan[0], scaled.plan, atol=1e-8, rtol=0)


def test_capacities_of_many_columns() -> None:
    cost = random_cost(12, 60, 1000)
    capacity = torch.linspace(2e-4, 3e-3, 1000, dtype=torch.float64)
    result = partial_ot(cost, rho=0.5, epsilon=0.3, capacity=capacity)
    scaled = partial_ot(cost, rho=0.5, epsilon=0.3, capacity=capacity, method="sinkhorn", max_iterations=50_000)
    assert result.converged
    assert_close(result.plan, scaled.plan, atol=1e-8, rtol=0)


# ---- bad values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": torch.tensor([0.3, 0.4])}, "rho must be a number, or one for each"),
        ({"rho": torch.tensor([[0.3]])}, "rho must be a number, or one for each"),
        ({"rho": torch.tensor(0.3)}, "rho must be a number, or one for each"),
        ({"rho": 0.4, "weights": torch.ones(3)}, "weights must have shape"),
        ({"rho": 0.4, "weights": -torch.ones(4)}, "weights must not be negative"),
        ({"rho": 0.4, "weights": torch.zeros(4)}, "weights must not be negative and not all zero"),
        ({"rho": 0.4, "capacity": torch.tensor([0.2, 0.1])}, "capacity must be at least rho=0.4 together, got 0.3"),
        ({"rho": 0.4, "capacity": torch.tensor([0.9, -0.1])}, "capacity must not be negative"),
        ({"rho": 0.4, "capacity": torch.ones(2), "prior": torch.ones(2)}, "capacity takes the place of a prior"),
        ({"rho": 0.4, "capacity": torch.ones(3)}, "capacity must have shape"),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        partial_ot(random_cost(13, 4, 2), **options)


def test_shares_out_of_range() -> None:
    for bad in (torch.tensor([0.3, 1.1]), torch.tensor([0.0, 0.3]), torch.tensor([math.nan, 0.3])):
        with pytest.raises(ValueError, match="rho must"):
            partial_ot(random_cost(13, 2, 4, 2), rho=bad)
    with pytest.raises(TypeError, match="differentiable"):
        partial_ot(random_cost(13, 4, 2), rho=0.3, differentiable=1)  # type: ignore[arg-type]


def test_a_value_of_another_result() -> None:
    result = partial_ot(random_cost(14, 4, 2), rho=0.3)
    with pytest.raises(ValueError, match=re.escape("result.plan must have shape")):
        transport_value(random_cost(14, 5, 2), result, rho=0.3)
    with pytest.raises(TypeError, match="result must be a TransportResult"):
        transport_value(random_cost(14, 4, 2), tuple(result), rho=0.3)  # type: ignore[arg-type]
    assert isinstance(result, TransportResult)
