"""Partial optimal transport of samples to clusters: the pseudo-labels of P²OT."""

from __future__ import annotations

import math
import warnings
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from offprints.shared.device import float32_region
from offprints.shared.validation import check_choice, check_number, check_same_device, check_tensor
from offprints.sp2ot._semidual import SemiDual
from offprints.sp2ot._solvers import scaling, solve_newton

METHODS = ("newton", "sinkhorn")
LARGEST_REACH = 1e12  # of costs, in units of the smoothing
SMALLEST_SHARE = 1e-2  # of the transported mass that a residual must not exceed, however small that mass is
SMALLEST_RHO = 1e-13  # below, 1 - rho has too few digits to tell


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
        rho: Share of the mass to transport, from 1e-13 to 1.
        epsilon: Entropic smoothing.
        gamma: Weight of the sizes; ``inf`` makes them equalities.
        prior: ``(K,)`` relative sizes of the clusters, shares or counts; default: equal.
        method: The solver.
        tol: Largest residual, and at most a hundredth of ``rho``; 0 runs ``"sinkhorn"`` for exactly
            ``max_iterations``.
        max_iterations: Newton steps or scaling iterations.
        init: A ``column_potential`` to start from.

    Raises:
        TypeError: a cost that is not a floating tensor.
        ValueError: a cost that is not finite, empty or of another number of axes; a number out of range; an unknown
            method; an ``epsilon`` below 1e-12 of the range of the cost; a prior or ``init`` of another shape, a prior
            that is negative or all zero.

    Warns:
        sklearn.exceptions.ConvergenceWarning: the residual is larger than ``tol``.

    Example:
        >>> cost = torch.tensor([[0.1, 5.0], [5.0, 0.1], [2.0, 2.0]])
        >>> result = partial_ot(cost, rho=0.6)
        >>> result.pseudo_labels.sum(1).round(decimals=4)  # the third sample is unsure
        tensor([0.9000, 0.9000, 0.0000], dtype=torch.float64)
    """
    check_tensor(cost, "cost", ndim=(2, 3))
    check_transport(rho, epsilon, gamma, method, tol, max_iterations)
    clusters = cost.shape[-1]
    shares = relative_sizes(prior, clusters, cost)
    if init is not None:
        check_tensor(init, "init", shape=(*cost.shape[:-2], clusters + 1), finite=False)
        check_same_device(cost, init, names=("cost", "init"))
    check_reach(as_batch(cost), epsilon)
    solution = solve(
        as_batch(cost),
        rho=rho,
        epsilon=epsilon,
        gamma=gamma,
        prior=shares,
        method=method,
        tol=tol,
        max_iterations=max_iterations,
        init=None if init is None else as_batch(init, axes=2),
    )
    if not solution.converged and tol > 0:
        warn_unconverged(solution.residual, min(tol, SMALLEST_SHARE * rho), solution.iterations)
    return solution._replace(
        plan=like_cost(solution.plan, cost),
        pseudo_labels=like_cost(solution.pseudo_labels, cost),
        row_potential=like_cost(solution.row_potential, cost),
        column_potential=like_cost(solution.column_potential, cost),
    )


def check_transport(rho: float, epsilon: float, gamma: float, method: str, tol: float, max_iterations: int) -> None:
    """Refuse options of the transport problem that are out of range."""
    check_number(rho, "rho", low=SMALLEST_RHO, high=1)
    check_number(epsilon, "epsilon", low=0, open_low=True)
    check_number(gamma, "gamma", low=0, high=math.inf, open_low=True)
    check_choice(method, "method", METHODS)
    check_number(tol, "tol", low=0)
    check_number(max_iterations, "max_iterations", low=1, integer=True)


def check_reach(cost: Float[Tensor, "batch samples clusters"], epsilon: float) -> None:
    """Refuse a smoothing that float64 cannot tell from none: costs in its units have no digits left behind the point.

    Raises:
        ValueError: ``epsilon`` is too small for these costs, or the costs too large for float64.
    """
    reach = float(cost.amax().clamp(min=0) - cost.amin().clamp(max=0))  # the virtual cluster's cost is 0
    if not math.isfinite(reach):
        raise ValueError(f"cost must have a range that float64 holds, got {float(cost.amin())} to {float(cost.amax())}")
    if reach > LARGEST_REACH * epsilon:
        raise ValueError(
            f"epsilon must be at least {1 / LARGEST_REACH:g} of the range of the cost, {reach:g}, got {epsilon:g}"
        )


def relative_sizes(prior: Tensor | None, clusters: int, like: Tensor | None = None) -> Tensor | None:
    """Shares of the clusters, float64 and 1 together, of relative sizes; ``like`` has the device they must be on.

    Raises:
        TypeError: a prior that is not a tensor of numbers.
        ValueError: another length, negative or not finite, all zero.
    """
    if prior is None:
        return None
    check_tensor(prior, "prior", shape=(clusters,), floating=False)
    if prior.dtype == torch.bool or prior.is_complex():
        raise TypeError(f"prior must hold numbers, got {prior.dtype}")
    if like is not None:
        check_same_device(like, prior, names=("cost", "prior"))
    sizes = as_batch(prior, axes=1)
    if bool((sizes < 0).any()) or not bool((sizes > 0).any()):
        raise ValueError(f"prior must not be negative and not all zero, got {sizes.tolist()}")
    sizes = sizes / sizes.max()
    return sizes / sizes.sum()


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
    tol = min(tol, SMALLEST_SHARE * rho)
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
