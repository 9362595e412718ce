"""The semantic term of SP²OT: neighbors in a fixed feature space should get the same label."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from offprints.shared.validation import check_bool, check_number, check_same_device, check_tensor
from offprints.sp2ot._problem import (
    LARGEST_REACH,
    as_batch,
    as_problems,
    check_reach,
    check_transport,
    relative_sizes,
)
from offprints.sp2ot._sparse import both_ways, check_similarity, multiply
from offprints.sp2ot.transport import like_cost, solve, warn_unconverged


class SemanticTransportResult(NamedTuple):
    """Solution of :func:`semantic_partial_ot`, in float64; ``*`` is the batch, if there is one.

    Attributes:
        plan: ``(*, N, K)`` mass.
        pseudo_labels: ``(*, N, K)``, ``N * plan``.
        objective: ``(*, outer + 1)``, after every outer step and at the start.
        outer_iterations: steps of majorization, the largest number of the batch.
        inner_iterations: steps of the transport solver, of all outer steps together.
        converged: whether the objective stopped falling and every transport problem was solved.
        column_potential: ``(*, K + 1)`` of the last transport problem.

    Example:
        >>> result = semantic_partial_ot(torch.eye(2), torch.eye(2), rho=0.5, semantic_weight=1.0)
        >>> bool((result.objective.diff() <= 1e-9).all()), result.converged
        (True, True)
    """

    plan: Float[Tensor, "*batch samples clusters"]
    pseudo_labels: Float[Tensor, "*batch samples clusters"]
    objective: Float[Tensor, "*batch steps"]
    outer_iterations: int
    inner_iterations: int
    converged: bool
    column_potential: Float[Tensor, "*batch columns"]


def semantic_partial_ot(
    cost: Float[Tensor, "*batch samples clusters"],
    similarity: Float[Tensor, "samples samples"],
    *,
    rho: float,
    semantic_weight: float = 1000.0,
    decay: bool = True,
    outer_iterations: int = 100,
    outer_tol: float = 1e-6,
    damping: float = 1.0,
    init_plan: Float[Tensor, "*batch samples clusters"] | None = None,
    epsilon: float = 0.1,
    gamma: float = 1.0,
    prior: Float[Tensor, " clusters"] | None = None,
    method: str = "newton",
    tol: float = 1e-10,
    max_iterations: int = 1000,
) -> SemanticTransportResult:
    """:func:`partial_ot` with the reward ``lambda <similarity, Q Q^T>`` for similar samples in one cluster.

    Majorize-minimize: the reward is replaced by its tangent at the current plan, which lowers the cost by
    ``lambda (S + S^T) Q``, and the transport problem is solved again, from the last potentials. ``lambda`` is
    ``(1 - rho) * semantic_weight``, so that it vanishes at ``rho = 1``. For a positive semidefinite similarity the
    objective falls at every step; for a graph of neighbors it need not, and the iteration stops where it does not.

    The reward scales as ``1/N``: the paper's weight of 1000 is made for 5120 samples, ``0.195 N`` in general.

    Args:
        cost: ``(N, K)``, or ``(B, N, K)`` for B problems with one similarity.
        similarity: ``(N, N)``, dense, sparse COO or CSR; need not be symmetric.
        rho: Share of the mass to transport, in (0, 1].
        semantic_weight: Weight of the reward.
        decay: Multiply the weight by ``1 - rho``.
        outer_iterations: At most so many steps.
        outer_tol: Stop where the objective changes by less; 0 takes exactly ``outer_iterations`` steps.
        damping: Weight of the new plan in the next one; 1 replaces it.
        init_plan: Where to start; default: ``rho / (N K)`` everywhere.
        epsilon, gamma, prior, method, tol, max_iterations: As in :func:`partial_ot`, for every step.

    Raises:
        TypeError, ValueError: as :func:`partial_ot`; a similarity that is not ``(N, N)`` or not finite, an
            ``init_plan`` of another shape or negative.

    Warns:
        sklearn.exceptions.ConvergenceWarning: a transport problem was not solved, or the objective still falls
            after ``outer_iterations`` steps with ``outer_tol > 0``.

    Example:
        >>> cost = torch.tensor([[0.1, 3.0], [3.0, 0.1], [1.0, 1.2]])
        >>> like_the_second = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
        >>> result = semantic_partial_ot(cost, like_the_second, rho=0.9, semantic_weight=30.0)
        >>> result.pseudo_labels.argmax(1)
        tensor([0, 1, 1])
    """
    check_tensor(cost, "cost", ndim=(2, 3))
    check_transport(rho, epsilon, gamma, method, tol, max_iterations)
    shares = relative_sizes(prior, cost.shape[-1], cost)
    check_similarity(similarity, cost.shape[-2])
    check_same_device(cost, similarity, names=("cost", "similarity"))
    check_reach(as_problems(cost), epsilon)
    check_bool(decay, "decay")
    check_number(semantic_weight, "semantic_weight", low=0)
    check_number(outer_iterations, "outer_iterations", low=1, integer=True)
    check_number(outer_tol, "outer_tol", low=0)
    check_number(damping, "damping", low=0, high=1, open_low=True)
    if init_plan is not None:
        check_tensor(init_plan, "init_plan", shape=cost.shape)
        check_same_device(cost, init_plan, names=("cost", "init_plan"))
        if bool((init_plan < 0).any()):
            raise ValueError(f"init_plan must not be negative, got {float(init_plan.min())}")
    result, residual = majorize(
        as_batch(cost),
        both_ways(similarity),
        None if init_plan is None else as_batch(init_plan),
        rho=rho,
        weight=semantic_weight * (1 - rho) if decay else semantic_weight,
        outer_iterations=outer_iterations,
        outer_tol=outer_tol,
        damping=damping,
        epsilon=epsilon,
        gamma=gamma,
        prior=shares,
        method=method,
        tol=tol,
        max_iterations=max_iterations,
    )
    if residual > tol > 0:
        warn_unconverged(residual, tol, max_iterations)
    elif not result.converged and outer_tol > 0:
        from sklearn.exceptions import ConvergenceWarning

        message = f"semantic transport: the objective still falls after {outer_iterations} outer_iterations"
        warnings.warn(message, ConvergenceWarning, stacklevel=2)
    return result._replace(
        plan=like_cost(result.plan, cost),
        pseudo_labels=like_cost(result.pseudo_labels, cost),
        objective=like_cost(result.objective, cost),
        column_potential=like_cost(result.column_potential, cost),
    )


def majorize(
    cost: Float[Tensor, "batch samples clusters"],
    both: Float[Tensor, "samples samples"],
    init_plan: Float[Tensor, "batch samples clusters"] | None,
    *,
    rho: float,
    weight: float,
    outer_iterations: int,
    outer_tol: float,
    damping: float,
    init: Float[Tensor, "batch columns"] | None = None,
    **transport: Any,
) -> tuple[SemanticTransportResult, float]:
    """:func:`semantic_partial_ot` of a checked batch in float64, and the largest residual; without warnings.

    Args:
        both: ``S + S^T``.
        weight: Of the semantic term, decayed already.
        init: Potentials for the first transport problem.
        transport: ``epsilon`` to ``max_iterations``.
    """
    batch, samples, clusters = cost.shape
    epsilon, gamma, prior = (transport[name] for name in ("epsilon", "gamma", "prior"))
    share = cost.new_full((clusters,), 1 / clusters) if prior is None else prior.to(cost)
    plan = cost.new_full(cost.shape, rho / (samples * clusters)) if init_plan is None else init_plan
    discount = weight * multiply(both, plan)
    largest = float(discount.abs().amax())
    if not largest <= LARGEST_REACH * epsilon:
        raise ValueError(
            f"semantic_weight times similarity times init_plan must be at most {LARGEST_REACH:g} epsilon, got a"
            f" reward of {largest:g} at epsilon {epsilon:g}"
        )
    value = _objective(plan, cost, discount, rho * share, epsilon, gamma)
    history, potential = [value], init
    done = torch.zeros(batch, dtype=torch.bool, device=cost.device)
    inner, residual = 0, 0.0
    steps = outer_iterations if weight > 0 or outer_tol == 0 else 1  # without the term one step is the solution
    for step in range(1, steps + 1):
        solved = solve(cost - discount, rho=rho, init=potential, **transport)
        inner, residual = inner + solved.iterations, max(residual, solved.residual)
        new_plan = plan + damping * (solved.plan - plan)
        new_discount = weight * multiply(both, new_plan)
        new_value = _objective(new_plan, cost, new_discount, rho * share, epsilon, gamma)
        # A term that is not concave can raise the objective: the plan before is the better one then.
        kept = done | ((new_value > value + outer_tol) if outer_tol > 0 and step > 1 else torch.zeros_like(done))
        done = kept | ((value - new_value).abs() < outer_tol)
        tall = kept[:, None, None]
        plan = torch.where(tall, plan, new_plan)
        discount = torch.where(tall, discount, new_discount)
        value = torch.where(kept, value, new_value)
        first = solved.column_potential if potential is None else potential
        potential = torch.where(kept.unsqueeze(-1), first, solved.column_potential)
        history.append(value)
        if outer_tol > 0 and bool(done.all()):
            break
    assert potential is not None  # there is at least one step
    result = SemanticTransportResult(
        plan,
        samples * plan,
        torch.stack(history, 1),
        len(history) - 1,
        inner,
        (weight == 0 or bool(done.all())) and residual <= transport["tol"],
        potential,
    )
    return result, residual


def _objective(
    plan: Float[Tensor, "batch samples clusters"],
    cost: Float[Tensor, "batch samples clusters"],
    discount: Float[Tensor, "batch samples clusters"],
    sizes: Float[Tensor, " clusters"],
    epsilon: float,
    gamma: float,
) -> Float[Tensor, " batch"]:
    """What the outer loop lowers: cost, sizes, semantic term, and the entropy of all K + 1 columns.

    ``discount`` is ``lambda (S + S^T) Q``, so that ``lambda <S, Q Q^T>`` is half of its product with ``Q``. Equal
    sizes that are enforced (``gamma = inf``) add nothing.
    """
    rest = (1 / plan.shape[1] - plan.sum(-1)).clamp(min=0)
    entropy = (torch.xlogy(plan, plan) - plan).sum((1, 2)) + (torch.xlogy(rest, rest) - rest).sum(1)
    value = (plan * (cost - discount / 2)).sum((1, 2)) + epsilon * entropy
    if math.isinf(gamma):
        return value
    mass = plan.sum(1)
    used = sizes > 0  # a cluster of no size gets nothing, and log 0 no place
    ratio = torch.where(used, mass / torch.where(used, sizes, 1.0), 1.0)
    return value + gamma * (torch.xlogy(mass, ratio) - mass + sizes).sum(1)
