"""Partial optimal transport of samples to clusters: the pseudo-labels of P²OT."""

from __future__ import annotations

import math
import warnings
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from offprints.shared.device import float32_region
from offprints.shared.validation import check_choice, check_number, check_probabilities, check_same_device, check_tensor
from offprints.sp2ot._semidual import SemiDual
from offprints.sp2ot._solvers import scaling, solve_newton

METHODS = ("newton", "sinkhorn")


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
    rho: float,
    epsilon: float = 0.1,
    gamma: float = 1.0,
    prior: Float[Tensor, " clusters"] | None = None,
    method: Literal["newton", "sinkhorn"] = "newton",
    tol: float = 1e-10,
    max_iterations: int = 1000,
    init: Float[Tensor, "*batch columns"] | None = None,
) -> TransportResult:
    """Transport the share ``rho`` of the samples' mass, the confident part, to clusters of softly prescribed sizes.

    Minimizes ``<Q, cost> + gamma KL(Q^T 1, rho * prior)`` with entropic smoothing over plans ``Q >= 0`` with
    ``Q 1 <= 1/N`` and total mass ``rho``: a virtual cluster of cost 0 and mass ``1 - rho`` takes what is not
    transported. Computed in float64 without a gradient, whatever the type of the cost and autocast.

    ``"newton"`` is a second-order method on the semi-dual in K + 1 variables: a handful of steps to rounding.
    ``"sinkhorn"`` is the paper's scaling iteration, whose last half-step fits the columns: where it stops at
    ``max_iterations``, rows may exceed ``1/N`` by as much as the residual says.

    Args:
        cost: ``(N, K)``, or ``(B, N, K)`` for B problems at once; usually ``-log_softmax(logits)``.
        rho: Share of the mass to transport, in (0, 1].
        epsilon: Entropic smoothing.
        gamma: Weight of the sizes; ``inf`` makes them equalities.
        prior: ``(K,)`` relative sizes of the clusters; default: equal.
        method: The solver.
        tol: Largest residual; 0 runs ``"sinkhorn"`` for exactly ``max_iterations``.
        max_iterations: Newton steps or scaling iterations.
        init: A ``column_potential`` to start from.

    Raises:
        TypeError: a cost that is not a floating tensor.
        ValueError: a cost that is not finite, empty or of another number of axes; a number out of range; an unknown
            method; a prior or ``init`` of another shape, a prior that is negative or does not sum to 1.

    Warns:
        sklearn.exceptions.ConvergenceWarning: the residual is larger than ``tol``.
    """
    check_tensor(cost, "cost", ndim=(2, 3))
    check_transport(rho, epsilon, gamma, method, tol, max_iterations)
    clusters = cost.shape[-1]
    check_prior(prior, clusters, cost)
    if init is not None:
        check_tensor(init, "init", shape=(*cost.shape[:-2], clusters + 1), finite=False)
        check_same_device(cost, init, names=("cost", "init"))
    solution = solve(
        as_batch(cost),
        rho=rho,
        epsilon=epsilon,
        gamma=gamma,
        prior=prior,
        method=method,
        tol=tol,
        max_iterations=max_iterations,
        init=None if init is None else as_batch(init, axes=2),
    )
    if not solution.converged and tol > 0:
        warn_unconverged(solution.residual, tol, solution.iterations)
    return solution._replace(
        plan=like_cost(solution.plan, cost),
        pseudo_labels=like_cost(solution.pseudo_labels, cost),
        row_potential=like_cost(solution.row_potential, cost),
        column_potential=like_cost(solution.column_potential, cost),
    )


def check_transport(rho: float, epsilon: float, gamma: float, method: str, tol: float, max_iterations: int) -> None:
    """Refuse options of the transport problem that are out of range."""
    check_number(rho, "rho", low=0, high=1, open_low=True)
    check_number(epsilon, "epsilon", low=0, open_low=True)
    check_number(gamma, "gamma", low=0, high=math.inf, open_low=True)
    check_choice(method, "method", METHODS)
    check_number(tol, "tol", low=0)
    check_number(max_iterations, "max_iterations", low=1, integer=True)


def check_prior(prior: Tensor | None, clusters: int, cost: Tensor) -> None:
    """Refuse a prior that is no distribution over the clusters."""
    if prior is not None:
        check_tensor(prior, "prior", shape=(clusters,))
        check_probabilities(prior, "prior", atol=1e-6)
        check_same_device(cost, prior, names=("cost", "prior"))


def warn_unconverged(residual: float, tol: float, iterations: int) -> None:
    """Warn of a plan that is not the solution."""
    from sklearn.exceptions import ConvergenceWarning

    message = f"partial transport: residual {residual:.2g} > tol {tol:.2g} after {iterations} iterations"
    warnings.warn(message, ConvergenceWarning, stacklevel=3)


def as_batch(x: Tensor, axes: int = 3) -> Tensor:
    """Float64 with a batch axis, without a graph, on a device that has float64."""
    x = x.detach()
    x = (x.cpu() if x.device.type == "mps" else x).double()
    return x if x.ndim == axes else x.unsqueeze(0)


def like_cost(part: Tensor, cost: Tensor) -> Tensor:
    """A result on the device of the cost, with a batch axis if that has one."""
    return (part if cost.ndim == 3 else part.squeeze(0)).to(cost.device)


def solve(
    cost: Float[Tensor, "batch samples clusters"],
    *,
    rho: float,
    epsilon: float,
    gamma: float,
    prior: Float[Tensor, " clusters"] | None,
    method: str,
    tol: float,
    max_iterations: int,
    init: Float[Tensor, "batch columns"] | None,
) -> TransportResult:
    """:func:`partial_ot` of a checked batch in float64, without a warning."""
    batch, samples, clusters = cost.shape
    share = cost.new_full((clusters,), 1 / clusters) if prior is None else prior.to(cost)
    target = torch.cat([rho * share, cost.new_full((1,), 1 - rho)])
    extended = torch.cat([cost, cost.new_zeros(batch, samples, 1)], 2)
    softness = cost.new_full((clusters + 1,), epsilon / gamma)
    softness[-1] = 0
    # A column without mass has no logarithm: it takes no part.
    used = target > 0
    every, real = bool(used.all()), int(used[:clusters].sum())
    if not every:
        extended, target, softness = extended[:, :, used], target[used], softness[used]
        init = None if init is None else init[:, used]
    if init is not None:
        init = torch.where(init.isfinite(), init, 0.0)
    with torch.no_grad(), float32_region(cost.device):
        if method == "newton":
            dual, point, iterations = solve_newton(
                extended, target, softness, epsilon, tol=tol, max_iterations=max_iterations, init=init
            )
            if softness.max() == 0:  # the constant that gamma -> inf leads to
                g = point.g - (target * point.g)[:, :real].sum(-1, keepdim=True) / rho
                point = dual.move(g)
            rows, plan = dual.row_potential(point), dual.plan(point)
        else:
            dual = SemiDual(extended / epsilon, target, softness.expand(batch, -1))
            start = extended.new_full((batch, len(target)), -math.log(clusters + 1)) if init is None else init
            point, iterations, rows = scaling(dual, start, tol=tol, max_iterations=max_iterations)
            plan = (rows.unsqueeze(-1) + point.g.unsqueeze(1) - dual.scaled_cost).exp_()
    potential = point.g
    if not every:
        potential = potential.new_full((batch, clusters + 1), -math.inf)
        potential[:, used] = point.g
        whole = plan.new_zeros(batch, samples, clusters + 1)
        whole[:, :, used] = plan
        plan = whole
    plan = plan[:, :, :clusters]
    residual = float(point.residual.max())
    return TransportResult(plan, samples * plan, rows, potential, iterations, residual, residual <= tol)
