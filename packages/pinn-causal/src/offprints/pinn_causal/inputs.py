"""What `CausalPINN.fit` is given: the state at the beginning, observations, and the order of the equation in time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from offprints.pinn_causal.batches import Data
from offprints.pinn_causal.equation import Equation, Problem, on_points, order_in_time, state_points
from offprints.pinn_causal.exact import ExactInitialCondition, exact_conditions
from offprints.pinn_causal.handover import Start, has_rate, initial_function, pointwise
from offprints.pinn_causal.march import required_arguments
from offprints.shared.device import local_seed
from offprints.shared.estimators import as_features


def beginning(problem: Problem, initial: Any, like: Tensor, t0: float) -> Start:
    """Return the beginning of the problem, from what `fit` was given or the problem's own initial state.

    Raises:
        TypeError, ValueError: the state, or what the problem returns, has another kind or shape than it must.
    """
    d = len(problem.domain)
    function = None
    if initial is None or callable(initial):
        x = state_points(problem, None, like)
        if initial is None:
            state = problem.initial(x)
            _check_own_state(problem, state, x)
        else:
            state = _sample(problem, initial, x)
            function = initial
        state = state.to(like)
        function = function or initial_function(problem, x, state)
    else:
        state, n = _check_state(problem, initial)
        x = state_points(problem, n, like)
        state = state.to(like)
    rates, rate_function = [], None
    if has_rate(problem) and (rate := problem.initial_rate(x)) is not None:  # type: ignore[attr-defined]
        if not isinstance(rate, Tensor) or rate.shape != state.shape:
            got = tuple(rate.shape) if isinstance(rate, Tensor) else type(rate).__name__
            raise ValueError(f"problem.initial_rate must return shape {tuple(state.shape)}, got {got}")
        rates = [rate.to(like)]
        if d and function is not None:
            rate_function = pointwise(problem, problem.initial_rate)  # type: ignore[attr-defined]
    return Start(t0 + 0.0, x, state, rates, function=function, rate_function=rate_function)


def order_of_windows(
    problem: Problem,
    start: Start,
    make_net: Callable[..., nn.Module],
    n_t: int,
    *,
    several: bool,
    observed: bool,
    seed: int,
) -> int:
    """Return the order in time: value and rates that a window must hand over, or an exact condition may hold.

    Raises:
        ValueError: nothing gives the rate at the beginning of an `Equation` of second order, or it is of a higher one.
    """
    states_wanted = required_arguments(make_net) > 0

    def conditions() -> list[ExactInitialCondition]:
        if states_wanted:
            return []
        with local_seed(seed):
            net: object = make_net()
        return exact_conditions(net) if isinstance(net, nn.Module) else []

    own: Any = problem.initial_loss
    own_loss = getattr(own, "__func__", own) is not Equation.initial_loss
    if own_loss and not several and not start.rates and not conditions():
        return 1
    t = start.x.new_full((n_t,), start.time)
    d = len(problem.domain)
    x = None
    if d:
        unit = torch.linspace(0.1, 0.9, 7, dtype=start.x.dtype, device=start.x.device)
        x = torch.stack([low + (high - low) * unit for low, high in problem.domain], dim=-1)
        x = x[:, 0] if d == 1 else x
    order = order_in_time(problem, t, x)
    known = 1 + len(start.rates)
    if order > known and not (own_loss or observed or states_wanted):
        known = max([known, *(2 for c in conditions() if c.rate is not None)])
        if order > known > 1:
            raise ValueError(
                "problem must be of second order in time at most, or have an initial_loss of its own, got order "
                f"{order}"
            )
        if order > known:
            raise ValueError(
                f"problem.initial_rate must return du/dt at the beginning: the equation is of order {order} in time"
            )
    return max(order, 1 + len(start.rates))


def _check_own_state(problem: Problem, state: object, x: Tensor) -> None:
    d = len(problem.domain)
    if not isinstance(state, Tensor):
        raise TypeError(f"problem.initial must return a torch.Tensor, got {type(state).__name__}")
    if not bool(state.isfinite().all()):
        raise ValueError("problem.initial must be finite")
    q = problem.n_outputs
    if d == 0 and state.shape != (q,):
        raise ValueError(f"problem.initial must have shape ({q},), got {tuple(state.shape)}")
    if d == 1 or (d and on_points(problem)):
        wanted = (len(x),) if q == 1 else (q, len(x))
        if state.shape != wanted:
            raise ValueError(
                f"problem.initial must have shape {wanted} on points {tuple(x.shape)}, got {tuple(state.shape)}"
            )


def _sample(problem: Problem, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    d = len(problem.domain)
    if d == 0 or (d > 1 and not on_points(problem)):
        kind = "for a system of ODEs" if d == 0 else f"for {type(problem).__name__}"
        raise TypeError(f"initial must be an array {kind}, got a function")
    with torch.no_grad():
        values = function(x[:, None] if d == 1 else x)
    if not isinstance(values, Tensor) or values.shape != (len(x), problem.n_outputs):
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"initial must return shape {(len(x), problem.n_outputs)}, got {got}")
    if not bool(values.isfinite().all()):
        raise ValueError("initial must be finite")
    return values[:, 0] if problem.n_outputs == 1 else values.T


def observations(problem: Problem, data: tuple[Any, ...], like: Tensor, begin: float, end: float) -> Data:
    """Return the observations given to `fit`.

    Raises:
        TypeError, ValueError: they are of another kind or shape, or outside of the time of the windows.
    """
    d, q = len(problem.domain), problem.n_outputs
    parts = ("t", "x", "values") if d else ("t", "values")
    if not isinstance(data, tuple | list) or len(data) != len(parts):
        raise ValueError(f"data must be ({', '.join(parts)}), got {type(data).__name__} of {len(data)}")
    t = as_features(data[0], "data t", ndim=1, dtype=like.dtype, device=like.device)
    values = data[-1] if isinstance(data[-1], Tensor) else torch.as_tensor(np.asarray(data[-1]))
    if not values.is_floating_point():
        raise TypeError(f"data values must have a floating type, got {values.dtype}")
    values = values.to(like)
    values = values[:, None] if values.ndim == 1 and q == 1 else values
    if values.shape != (len(t), q) or bool(values.isinf().any()) or bool(values.isnan().all()):
        raise ValueError(f"data values must have shape {(len(t), q)}, finite or NaN, got {tuple(values.shape)}")
    columns = [t[:, None]]
    if d:
        ndim = np.ndim(data[1]) if not isinstance(data[1], Tensor) else data[1].ndim
        x = as_features(data[1], "data x", ndim=1 if d == 1 and ndim == 1 else 2).to(like)
        x = x[:, None] if x.ndim == 1 else x
        if x.shape != (len(t), d):
            raise ValueError(f"data x must have shape {(len(t), d)}, got {tuple(x.shape)}")
        columns.append(x)
    slack = 1e-6 * max(abs(end), abs(begin))
    if bool((t < begin - slack).any()) or bool((t > end + slack).any()):
        raise ValueError(f"data t must be in [{begin:g}, {end:g}], got {float(t.min()):g} to {float(t.max()):g}")
    return Data(torch.cat(columns, dim=1), values)


def _check_state(problem: Problem, initial: Tensor | ArrayLike) -> tuple[Tensor, tuple[int, ...] | None]:
    """Return a user's state and its points per axis."""
    axes, q = len(problem.domain), problem.n_outputs
    legacy = axes > 1 and not on_points(problem)
    ndim = 1 if axes == 0 else axes + 1 if q > 1 or legacy else axes
    if legacy and q == 1:
        ndim = initial.ndim if isinstance(initial, Tensor) else np.ndim(initial)
    state = as_features(initial, "initial", ndim=ndim)
    if axes == 0:
        if len(state) != q:
            raise ValueError(f"initial must have shape ({q},), got {tuple(state.shape)}")
        return state, None
    shape = state.shape[-axes:]
    if min(shape) < 4 or (legacy and len(set(shape)) != 1):
        equal = ", equal along each axis" if legacy else ""
        raise ValueError(f"initial must have at least 4 points{equal}, got {tuple(state.shape)}")
    n = tuple(reversed(shape))
    if on_points(problem) or axes == 1:
        if state.ndim > axes and len(state) != q:
            raise ValueError(f"initial must have {q} fields, got {tuple(state.shape)}")
        return (state.flatten(-axes) if axes > 1 else state), n
    expected = problem.initial(state_points(problem, n, torch.zeros(0, dtype=torch.float64))).shape
    if state.shape != expected:
        raise ValueError(f"initial must have shape {tuple(expected)}, got {tuple(state.shape)}")
    return state, n
