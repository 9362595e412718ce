"""Partial optimal transport of samples to clusters: the pseudo-labels of P²OT."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from offprints.shared.device import eagerly, float32_region
from offprints.shared.validation import check_bool, check_same_device, check_tensor
from offprints.sp2ot._implicit import Implicit
from offprints.sp2ot._problem import (
    as_batch,
    as_problems,
    check_capacity,
    check_reach,
    check_share,
    check_transport,
    reach_of,
    relative_sizes,
    row_masses,
)
from offprints.sp2ot._semidual import SemiDual
from offprints.sp2ot._solvers import Tolerance, scaling, solve_newton

SMALLEST_SHARE = 1e-2  # of the transported mass that a residual must not exceed, however small that mass is


class TransportResult(NamedTuple):
    """Solution of :func:`partial_ot`, in float64; ``*`` is the batch, if there is one.

    Attributes:
        plan: ``(*, N, K)`` mass: rows at most ``1/N``, ``rho`` in total.
        pseudo_labels: ``(*, N, K)``, ``N * plan``: rows sum to the confidence of a sample, at most 1.
        row_potential: ``(*, N)`` log-scaling ``F``.
        column_potential: ``(*, K + 1)`` log-scaling ``g``, last that of the virtual cluster. ``-inf`` for a column
            without mass: the virtual cluster at ``rho = 1``, a cluster whose prior is 0. The extended plan is
            ``exp(F_i + g_k - cost_ik / epsilon)``.
        iterations: the largest number of the batch.
        residual: the largest ``||e - c||_1`` of the batch: the masses that the columns ask for at ``g``, minus those
            that they get when every row sends all of its mass.
        converged: whether the residual is at most ``tol``.

    Example:
        >>> plan, labels, *_, converged = partial_ot(torch.eye(2), rho=0.5)
        >>> round(float(plan.sum()), 6), round(float(labels.sum()), 6), converged
        (0.5, 1.0, True)
    """

    plan: Float[Tensor, "*batch samples clusters"]
    pseudo_labels: Float[Tensor, "*batch samples clusters"]
    row_potential: Float[Tensor, "*batch samples"]
    column_potential: Float[Tensor, "*batch columns"]
    iterations: int
    residual: float
    converged: bool


def partial_ot(
    cost: Float[Tensor, "*batch samples clusters"],
    *,
    rho: float | Float[Tensor, " batch"],
    epsilon: float = 0.1,
    gamma: float = 1.0,
    prior: Float[Tensor, " clusters"] | None = None,
    method: Literal["newton", "sinkhorn"] = "newton",
    tol: float = 1e-10,
    max_iterations: int = 1000,
    init: Float[Tensor, "*batch columns"] | None = None,
    weights: Float[Tensor, "*batch samples"] | None = None,
    capacity: Float[Tensor, " clusters"] | None = None,
    differentiable: bool = False,
) -> TransportResult:
    """Transport the share ``rho`` of the samples' mass, the confident part, to clusters of softly prescribed sizes.

    Minimizes ``<Q, cost> + gamma KL(Q^T 1, rho * prior)`` with entropic smoothing over plans ``Q >= 0`` with
    ``Q 1 <= 1/N`` and total mass ``rho``: a virtual cluster of cost 0 and mass ``1 - rho`` takes what is not
    transported. Computed in float64, whatever the type of the cost and autocast, without a gradient unless asked for.

    ``"newton"`` is a second-order method on the semi-dual in K + 1 variables: a handful of steps to rounding. From 1000
    columns on its equations are solved by conjugate gradients, whose products cost as much as a scaling iteration.
    ``"sinkhorn"`` is the paper's scaling iteration, whose last half-step fits the columns: where it stops at
    ``max_iterations``, rows may exceed ``1/N`` by as much as the residual says.

    Args:
        cost: ``(N, K)``, or ``(B, N, K)`` for B problems at once; usually ``-log_softmax(logits)``.
        rho: Share of the mass to transport, from 1e-13 to 1; a tensor ``(B,)`` for a share of each problem.
        epsilon: Entropic smoothing.
        gamma: Weight of the sizes; ``inf`` makes them equalities.
        prior: ``(K,)`` relative sizes of the clusters, shares or counts; default: equal.
        method: The solver.
        tol: Largest residual, and at most a hundredth of ``rho``; 0 runs ``"sinkhorn"`` for exactly
            ``max_iterations``.
        max_iterations: Newton steps or scaling iterations.
        init: A ``column_potential`` to start from.
        weights: ``(N,)`` or ``(B, N)`` relative masses of the samples, or counts, in place of equal ones; ``1/N`` is
            their share of the sum then, and ``N * plan`` the plan by that share.
        capacity: ``(K,)`` largest masses of the clusters, in place of the soft sizes: the ordinary partial problem.
            Of all samples together the mass is 1; ``gamma`` plays no part.
        differentiable: Whether plan and pseudo-labels have a gradient in the cost, that of the solution by the implicit
            function theorem; potentials have none. Costs a matrix ``(K + 1, K + 1)`` in the backward pass.

    Raises:
        TypeError: a cost that is not a floating tensor.
        ValueError: a cost that is not finite, empty or of another number of axes; a number out of range; an unknown
            method; an ``epsilon`` below 1e-12 of the range of the cost; a prior, weights, capacity or ``init`` of
            another shape, a prior or weights that are negative or all zero, a capacity that is negative or less than
            ``rho`` together, or given beside a prior.

    Warns:
        sklearn.exceptions.ConvergenceWarning: the residual is larger than ``tol``.

    Example:
        >>> cost = torch.tensor([[0.1, 5.0], [5.0, 0.1], [2.0, 2.0]])
        >>> result = partial_ot(cost, rho=0.6)
        >>> result.pseudo_labels.sum(1).round(decimals=4)  # the third sample is unsure
        tensor([0.9000, 0.9000, 0.0000], dtype=torch.float64)
    """
    check_tensor(cost, "cost", ndim=(2, 3))
    of_each = isinstance(rho, Tensor)
    if isinstance(rho, Tensor):
        check_share(rho, cost)
    check_transport(1.0 if of_each else rho, epsilon, gamma, method, tol, max_iterations)  # type: ignore[arg-type]
    clusters = cost.shape[-1]
    shares = relative_sizes(prior, clusters, cost)
    check_bool(differentiable, "differentiable")
    if init is not None:
        check_tensor(init, "init", shape=(*cost.shape[:-2], clusters + 1), finite=False)
        check_same_device(cost, init, names=("cost", "init"))
    problems = as_problems(cost, differentiable)
    masses = None if weights is None else row_masses(weights, cost)
    largest = float(rho.max()) if isinstance(rho, Tensor) else rho
    if capacity is not None:
        check_capacity(capacity, prior, largest, cost)
    check_reach(problems.detach(), epsilon)
    solution = solve(
        problems,
        rho=rho.detach().double() if isinstance(rho, Tensor) else rho,
        epsilon=epsilon,
        gamma=gamma,
        prior=shares,
        method=method,
        tol=tol,
        max_iterations=max_iterations,
        init=None if init is None else as_batch(init, axes=2),
        weights=masses,
        capacity=None if capacity is None else as_batch(capacity, axes=1),
        differentiable=differentiable,
    )
    if not solution.converged and tol > 0:
        warn_unconverged(solution.residual, min(tol, SMALLEST_SHARE * largest), solution.iterations)
    return solution._replace(
        plan=like_cost(solution.plan, cost),
        pseudo_labels=like_cost(solution.pseudo_labels, cost),
        row_potential=like_cost(solution.row_potential, cost),
        column_potential=like_cost(solution.column_potential, cost),
    )


def warn_unconverged(residual: float, tol: float, iterations: int) -> None:
    """Warn of a plan that is not the solution."""
    from sklearn.exceptions import ConvergenceWarning

    message = f"partial transport: residual {residual:.2g} > tol {tol:.2g} after {iterations} iterations"
    warnings.warn(message, ConvergenceWarning, stacklevel=3)


def like_cost(part: Tensor, cost: Tensor) -> Tensor:
    """A result on the device of the cost, with a batch axis if that has one."""
    return (part if cost.ndim == 3 else part.squeeze(0)).to(cost.device)


@eagerly()  # the number of steps depends on the values
def solve(
    cost: Float[Tensor, "batch samples clusters"],
    *,
    rho: float | Float[Tensor, " batch"],
    epsilon: float,
    gamma: float,
    prior: Float[Tensor, " clusters"] | None,
    method: str,
    tol: float,
    max_iterations: int,
    init: Float[Tensor, "batch columns"] | None,
    weights: Float[Tensor, "batch samples"] | None = None,
    capacity: Float[Tensor, " clusters"] | None = None,
    differentiable: bool = False,
) -> TransportResult:
    """:func:`partial_ot` of a checked batch of costs of any floating type, without a warning."""
    if isinstance(rho, Tensor):
        full = rho >= 1
        if bool(full.any()) and not bool(full.all()):  # these have no virtual cluster
            parts = [
                solve(
                    cost[some],
                    rho=share,
                    epsilon=epsilon,
                    gamma=gamma,
                    prior=prior,
                    method=method,
                    tol=tol,
                    max_iterations=max_iterations,
                    init=None if init is None else init[some],
                    weights=None if weights is None else weights[some],
                    capacity=capacity,
                    differentiable=differentiable,
                )
                for some, share in ((full, 1.0), (~full, rho[~full]))
            ]
            back = torch.cat([full.nonzero(), (~full).nonzero()]).squeeze(1).argsort()
            return _merged(parts, back)
        rho = 1.0 if bool(full.all()) else rho.to(cost.device, torch.float64)
    batch, samples, clusters = cost.shape
    values = cost.detach()
    like: dict[str, Any] = {"dtype": torch.float64, "device": cost.device}
    share = torch.as_tensor(rho, **like).expand(batch).unsqueeze(1)
    tolerance: Tolerance
    tolerance = (SMALLEST_SHARE * rho).clamp(max=tol) if isinstance(rho, Tensor) else min(tol, SMALLEST_SHARE * rho)
    virtual = isinstance(rho, Tensor) or rho < 1
    sizes = torch.full((clusters,), 1 / clusters, **like) if prior is None else prior.to(**like)
    if capacity is not None:
        capacity = capacity.to(**like)
        if float(capacity.sum()) <= float(share.min()) * (1 + 1e-12):  # nothing is left to choose
            sizes, gamma, capacity = capacity / capacity.sum(), math.inf, None
    # Capacities may lack as much as rounding takes: rows are exact.
    asked = share * sizes if capacity is None else capacity * (share / capacity.sum()).clamp(min=1.0)
    hard = math.isinf(gamma) or capacity is not None
    # A column without mass has no logarithm: it takes no part.
    used = asked[0] > 0
    every = bool(used.all())
    if not every:
        values, asked = values[:, :, used], asked[:, used]
    real = asked.shape[1]
    target = torch.cat([asked, 1 - share], 1) if virtual else asked
    softness = torch.full((real + virtual,), 0.0 if hard else epsilon / gamma, **like)
    softness[real:] = 0
    capped = None
    if capacity is not None:
        capped = torch.arange(real + virtual, device=cost.device) < real
    columns = torch.cat([used, used.new_full((1,), virtual)])
    if init is not None:
        init = init.to(torch.float64)[:, columns]
        init = torch.where(init.isfinite(), init, 0.0)

    def make(cost: Tensor, softness: Tensor, epsilon: float | Tensor, which: Tensor) -> SemiDual:
        rows = None if weights is None else weights[which]
        return SemiDual(cost, target[which], softness, epsilon=epsilon, virtual=virtual, rows=rows, capped=capped)

    with torch.no_grad(), float32_region(cost.device):
        if method == "newton":
            dual, point, iterations = solve_newton(
                make,
                values,
                softness,
                epsilon,
                reach_of(values),
                tol=tolerance,
                max_iterations=max_iterations,
                init=init,
            )
            log_rows = dual.log_rows(point)
        else:
            dual = make(values, softness.expand(batch, -1), epsilon, torch.ones_like(share[:, 0], dtype=torch.bool))
            start = target.new_full(target.shape, -math.log(clusters + 1)) if init is None else init
            point, iterations, log_rows = scaling(
                dual, dual.allowed(start), tol=tolerance, max_iterations=max_iterations
            )
        shares = dual.shares(point, log_rows)
        g = point.g
        if method == "newton" and hard and capacity is None:  # the constant that gamma -> inf leads to
            shift = (asked * g[:, :real]).sum(-1, keepdim=True) / share
            g, log_rows = g - shift, log_rows + shift
        potential = g
        if not bool(columns.all()):
            potential = g.new_full((batch, clusters + 1), -math.inf)
            potential[:, columns] = g
        labels = shares[:, :, :real]
        if not every:
            labels = shares.new_zeros(batch, samples, clusters)
            labels[:, :, used] = shares[:, :, :real]
        residuals = point.residual
    if differentiable:
        held = None if capped is None else capped & (point.g >= 0)
        labels = Implicit.apply(cost, labels, shares, weights, softness * point.wanted, epsilon, used, held)
    plan = labels / samples if weights is None else labels * weights.unsqueeze(-1)
    converged = bool((residuals <= tolerance).all())
    return TransportResult(
        plan, labels, dual.row_potential(log_rows), potential, iterations, float(residuals.max()), converged
    )


def _merged(parts: Sequence[TransportResult], back: Tensor) -> TransportResult:
    """Results of parts of a batch, in the order ``back``."""

    def joined(tensors: list[Tensor]) -> Tensor:
        return torch.cat(tensors)[back]

    return TransportResult(
        joined([part.plan for part in parts]),
        joined([part.pseudo_labels for part in parts]),
        joined([part.row_potential for part in parts]),
        joined([part.column_potential for part in parts]),
        max(part.iterations for part in parts),
        max(part.residual for part in parts),
        all(part.converged for part in parts),
    )
