"""Two ways to the maximum of the semi-dual: the paper's scaling iteration, and Newton's method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from offprints.sp2ot._semidual import Point, SemiDual

MAX_STEP = 20.0  # of a log-scaling: Newton's model is of no use farther away
HALVINGS = 12
PATIENCE = 40  # Newton steps after which the smoothing is lowered gradually instead
LARGE_RANGE = 1e3  # costs in units of the smoothing beyond which that is done from the start
WARM_UP = 10  # scaling steps before the first Newton step
SWEEP = 10  # scaling steps between two looks at the residual

Tolerance = float | Float[Tensor, " batch"]


def solve_newton(
    make: Callable[..., SemiDual],
    cost: Float[Tensor, "batch samples real"],
    softness: Float[Tensor, " columns"],
    epsilon: float,
    reach: Float[Tensor, " batch"],
    *,
    tol: Tolerance,
    max_iterations: int,
    init: Float[Tensor, "batch columns"] | None,
) -> tuple[SemiDual, Point, int]:
    """Newton's method from ``init`` or from a few scaling steps; where it stalls, with a gradually lowered smoothing.

    Costs that are large against ``epsilon`` make F nearly piecewise linear, and Newton's steps meaningless. Smoothed
    by the range of the costs it is benign, and the solution there is a good start for half of that smoothing.

    Args:
        make: The semi-dual of some of the problems, of their costs, softness, epsilon and which they are.
        reach: Range of the costs.
    """
    every = torch.ones_like(reach, dtype=torch.bool)
    dual = make(cost, softness.expand(len(cost), -1), epsilon, every)
    if init is None:
        start = cost.new_zeros(len(cost), len(softness), dtype=torch.float64)
        start = scaling(dual, start, tol=0.0, max_iterations=min(WARM_UP, max_iterations))[0].g
        first = 0 if bool((reach > LARGE_RANGE * epsilon).any()) else PATIENCE
    else:
        start, first = dual.allowed(init), PATIENCE
    point, iterations = newton(dual, start, tol=tol, max_iterations=min(first, max_iterations))
    stalled = point.residual > tol
    if iterations < max_iterations and bool(stalled.any()):
        g, more = _lower_smoothing(
            make,
            cost[stalled],
            softness,
            epsilon,
            reach[stalled],
            stalled,
            tol=tol[stalled] if isinstance(tol, Tensor) else tol,
            max_iterations=max_iterations - iterations,
        )
        whole = point.g.clone()
        whole[stalled] = g
        point, iterations = dual.move(whole), iterations + more
    return dual, point, iterations


def _lower_smoothing(
    make: Callable[..., SemiDual],
    cost: Float[Tensor, "batch samples real"],
    softness: Float[Tensor, " columns"],
    epsilon: float,
    reach: Float[Tensor, " batch"],
    which: Bool[Tensor, " all"],
    *,
    tol: Tolerance,
    max_iterations: int,
) -> tuple[Float[Tensor, "batch columns"], int]:
    """``g`` at ``epsilon`` by way of ``reach``, ``reach / 2``, ``reach / 4`` ..."""
    level = reach.clamp(min=epsilon)
    g = level.new_zeros(len(cost), len(softness))
    used = 0
    while True:
        last = bool((level <= epsilon).all())
        dual = make(cost, softness * (level / epsilon).unsqueeze(-1), level, which)
        point, steps = newton(dual, g, tol=tol if last else 1e-2, max_iterations=max_iterations - used)
        g, used = point.g, used + steps
        if last or used >= max_iterations:
            return g * (level / epsilon).unsqueeze(-1), used
        lower = (level / 2).clamp(min=epsilon)
        g, level = g * (level / lower).unsqueeze(-1), lower


def scaling(
    dual: SemiDual, g: Float[Tensor, "batch columns"], *, tol: Tolerance, max_iterations: int
) -> tuple[Point, int, Float[Tensor, "batch samples"]]:
    """Scale rows, then columns, until every residual is at most ``tol``; ``tol = 0`` never stops early.

    The residual is looked at every ``SWEEP`` steps, later every third time. Returns the point, the iterations, and the
    logarithms of the rows that its ``g`` was computed from: the iteration ends with the columns. Where the residual is
    small enough they are those of ``g`` itself.
    """
    point, done = dual.move(g), 0
    rows = dual.log_rows(point)
    stops = isinstance(tol, Tensor) or tol > 0
    while done < max_iterations:
        if stops and not bool((point.residual > tol).any()):
            return point, done, dual.log_rows(point)
        steps = min(SWEEP if stops and done < 10 * SWEEP else 3 * SWEEP, max_iterations - done)
        swept = dual.sweep(point.g, steps)
        if swept is not None:
            g, sums = swept
            rows = dual.log_rows(replace(point, row_sums=sums))
            point = dual.move(g)
        else:
            for _ in range(steps):
                rows = dual.log_rows(point)
                point = dual.move(dual.scale(point))
        done += steps
    return point, done, rows


def newton(
    dual: SemiDual, g: Float[Tensor, "batch columns"], *, tol: Tolerance, max_iterations: int
) -> tuple[Point, int]:
    """Newton's method with a bounded step and backtracking; a scaling step where that fails."""
    point = dual.move(g)
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
        least = 1e-4 * slope
        step = torch.ones_like(slope)
        best = point
        for halving in range(HALVINGS):
            ahead = direction if halving == 0 else step.unsqueeze(-1) * direction
            trial = dual.at(dual.allowed(point.g + ahead))
            if dual.capped is not None:
                least = 1e-4 * (point.gradient * (trial.g - point.g)).sum(-1) / step
            risen = trial.value >= point.value + step * least
            accepted = pending & torch.where(blind, trial.residual < point.residual, risen)
            best = trial.where(accepted, best)
            pending = pending & ~accepted
            if best is trial or not bool(pending.any()):
                break
            step = step / 2
        if best is not trial:
            exhausted = exhausted | (pending & blind)
            failed = pending & ~blind
            if bool(failed.any()):
                best = dual.move(torch.where(failed.unsqueeze(-1), dual.scale(point), best.g))
        if bool((best.g - dual.anchored).abs().amax() > MAX_STEP):
            best = dual.move(best.g)
        point = best
    return point, max_iterations
