"""Two ways to the maximum of the semi-dual: the paper's scaling iteration, and Newton's method."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from offprints.sp2ot._semidual import Point, SemiDual

MAX_STEP = 20.0  # of a log-scaling: Newton's model is of no use farther away
HALVINGS = 12
PATIENCE = 40  # Newton steps after which the smoothing is lowered gradually instead
LARGE_RANGE = 1e3  # costs in units of the smoothing beyond which that is done from the start
WARM_UP = 10  # scaling steps before the first Newton step


def solve_newton(
    cost: Float[Tensor, "batch samples columns"],
    target: Float[Tensor, " columns"],
    softness: Float[Tensor, " columns"],
    epsilon: float,
    *,
    tol: float,
    max_iterations: int,
    init: Float[Tensor, "batch columns"] | None,
) -> tuple[SemiDual, Point, int]:
    """Newton's method from ``init`` or from a few scaling steps; where it stalls, with a gradually lowered smoothing.

    Costs that are large against ``epsilon`` make F nearly piecewise linear, and Newton's steps meaningless. Smoothed
    by the range of the costs it is benign, and the solution there is a good start for half of that smoothing.
    """
    dual = SemiDual(cost / epsilon, target, softness.expand(len(cost), -1))
    reach = cost.amax((1, 2)) - cost.amin((1, 2))
    if init is None:
        start = scaling(dual, torch.zeros_like(cost[:, 0]), tol=0, max_iterations=min(WARM_UP, max_iterations))[0].g
        first = 0 if bool((reach > LARGE_RANGE * epsilon).any()) else PATIENCE
    else:
        start, first = init, PATIENCE
    point, iterations = newton(dual, start, tol=tol, max_iterations=min(first, max_iterations))
    stalled = point.residual > tol
    if iterations < max_iterations and bool(stalled.any()):
        g, more = _lower_smoothing(
            cost[stalled],
            target,
            softness,
            epsilon,
            reach[stalled],
            tol=tol,
            max_iterations=max_iterations - iterations,
        )
        whole = point.g.clone()
        whole[stalled] = g
        point, iterations = dual.move(whole), iterations + more
    return dual, point, iterations


def _lower_smoothing(
    cost: Float[Tensor, "batch samples columns"],
    target: Float[Tensor, " columns"],
    softness: Float[Tensor, " columns"],
    epsilon: float,
    reach: Float[Tensor, " batch"],
    *,
    tol: float,
    max_iterations: int,
) -> tuple[Float[Tensor, "batch columns"], int]:
    """``g`` at ``epsilon`` by way of ``reach``, ``reach / 2``, ``reach / 4`` ..."""
    level = reach.clamp(min=epsilon)
    g = cost.new_full((len(cost), cost.shape[2]), 0.0)
    used = 0
    while True:
        last = bool((level <= epsilon).all())
        dual = SemiDual(cost / level[:, None, None], target, softness * (level / epsilon).unsqueeze(-1))
        point, steps = newton(dual, g, tol=tol if last else 1e-2, max_iterations=max_iterations - used)
        g, used = point.g, used + steps
        if last or used >= max_iterations:
            return g * (level / epsilon).unsqueeze(-1), used
        lower = (level / 2).clamp(min=epsilon)
        g, level = g * (level / lower).unsqueeze(-1), lower


def scaling(
    dual: SemiDual, g: Float[Tensor, "batch columns"], *, tol: float, max_iterations: int
) -> tuple[Point, int, Float[Tensor, "batch samples"]]:
    """Scale rows, then columns, until every residual is at most ``tol``; ``tol = 0`` never stops early.

    Returns the point, the iterations, and the row potentials that its ``g`` was computed from: the iteration ends with
    the columns. Where the residual is small enough they are those of ``g`` itself.
    """
    dual.anchor(g)
    point = dual.at(g)
    rows = dual.row_potential(point)
    for iteration in range(max_iterations):
        rows = dual.row_potential(point)
        pending = point.residual > tol
        if tol > 0 and not bool(pending.any()):
            return point, iteration, rows
        g = dual.scale(point)
        point = dual.move(torch.where(pending.unsqueeze(-1), g, point.g) if tol > 0 else g)
    return point, max_iterations, rows


def newton(dual: SemiDual, g: Float[Tensor, "batch columns"], *, tol: float, max_iterations: int) -> tuple[Point, int]:
    """Newton's method with a bounded step and backtracking; a scaling step where that fails."""
    dual.anchor(g)
    point = dual.at(g)
    exhausted = torch.zeros_like(point.residual, dtype=torch.bool)  # nothing is left to gain but rounding
    for iteration in range(max_iterations):
        pending = (point.residual > tol) & ~exhausted
        if not bool(pending.any()):
            return point, iteration
        direction = dual.newton_direction(point)
        direction = direction * (MAX_STEP / direction.abs().amax(-1, keepdim=True)).clamp(max=1.0)
        slope = (point.gradient * direction).sum(-1)
        # A gain below the rounding of F cannot be seen in F: there, the residual decides.
        blind = slope <= 1e-12 * (1 + point.value.abs())
        step = torch.ones_like(slope)
        best = point
        for _ in range(HALVINGS):
            trial = dual.at(point.g + step.unsqueeze(-1) * direction)
            risen = trial.value >= point.value + 1e-4 * step * slope
            accepted = pending & torch.where(blind, trial.residual < point.residual, risen)
            best = trial.where(accepted, best)
            pending = pending & ~accepted
            if not bool(pending.any()):
                break
            step = step / 2
        exhausted = exhausted | (pending & blind)
        failed = pending & ~blind
        if bool(failed.any()):
            best = dual.move(torch.where(failed.unsqueeze(-1), dual.scale(point), best.g))
        elif bool((best.g - dual.anchored).abs().amax() > MAX_STEP):
            best = dual.move(best.g)
        point = best
    return point, max_iterations
