"""How a window begins: the state it is given, its initial loss, and what it hands to the next one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from offprints.pinn_causal.equation import Equation, Net, Problem, on_points, outputs_at, space_of, state_at
from offprints.pinn_causal.exact import AtTime, ExactInitialCondition, State, exact_conditions
from offprints.pinn_causal.interpolant import TrigonometricInterpolant
from offprints.shared.device import evaluating

Function = Callable[[Tensor], Tensor]


@dataclass
class Start:
    """The beginning of a window.

    Attributes:
        time: absolute.
        x: where the state is known, see `state_points`.
        state: as ``problem.initial`` has it.
        rates: time derivatives of the state from the first on, for equations of higher order in time.
        first: whether it is that of the whole problem, whose own initial loss then counts.
        function: the state as a function of the space coordinates ``(..., d)``, for exact conditions; None: it is made
            from ``state`` and ``x``.
        rate_function: its time derivative.
    """

    time: float
    x: Tensor
    state: Tensor
    rates: list[Tensor] = field(default_factory=list)
    first: bool = True
    function: Function | None = None
    rate_function: Function | None = None


def exact_state(problem: Problem, start: Start, order: int = 0) -> State:
    """Return the state (or its rate) of a window's beginning as exact conditions take it.

    Raises:
        ValueError: the state is an array, but the domain is not periodic.
    """
    given = start.rate_function if order else start.function
    values = start.rates[order - 1] if order else start.state
    if not problem.domain:
        return values
    if given is not None:
        return given
    interpolant = interpolate(problem, values)
    if interpolant is None or getattr(problem, "periodic", None) is False:
        raise ValueError(
            "initial must be a function of the space coordinates (..., d) where the initial condition is exact and the "
            "domain is not periodic, got an array"
        )
    return interpolant


def interpolate(problem: Problem, state: Tensor) -> TrigonometricInterpolant | None:
    """Return the trigonometric interpolant of a state on a grid; None where there is none."""
    d = len(problem.domain)
    if d > 2 or on_points(problem):
        return None
    fields = state.unsqueeze(0) if state.ndim == d else state[: problem.n_outputs]
    return TrigonometricInterpolant(fields, problem.domain)


def initial_function(problem: Problem, x: Tensor, state: Tensor) -> Function | None:
    """Return ``problem.initial`` as a function of ``(..., d)``, where a trigonometric interpolant would be wrong.

    None where the problem is periodic: the interpolant of its samples it shall be.
    """
    d = len(problem.domain)
    if not d or (d > 1 and not on_points(problem)):
        return None

    function = pointwise(problem, problem.initial)
    periodic = getattr(problem, "periodic", None)
    if periodic is None and d == 1:
        periodic = _same(TrigonometricInterpolant(state.reshape(-1, len(x)), problem.domain), function, problem, x)
    return None if periodic else function


def pointwise(problem: Problem, method: Function) -> Function:
    """Return a method on points ``(n,)`` or ``(n, d)``, fields first, as a function ``(..., d)`` to ``(..., q)``."""
    d = len(problem.domain)

    def function(z: Tensor) -> Tensor:
        points = z.reshape(-1, d)
        values = method(points[:, 0] if d == 1 else points)
        values = values.unsqueeze(0) if values.ndim == 1 else values
        return values.movedim(0, -1).reshape(*z.shape[:-1], -1)

    return function


def _same(found: Function, expected: Function, problem: Problem, x: Tensor) -> bool:
    """Tell whether two functions agree where neither was fitted: between the points of a grid and at the ends."""
    (low, high), n = problem.domain[0], len(x)
    between = low + (high - low) * (torch.arange(n + 1, dtype=x.dtype, device=x.device) - 0.5).clamp(0, n) / n
    try:
        with torch.no_grad():
            a, b = found(between[:, None]), expected(between[:, None])
    except Exception:  # a function of the user's that is one for the grid alone
        return True
    return a.shape == b.shape and bool((a - b).abs().max() <= 1e-4 * b.abs().max())


def hand_over(problem: Problem, net: nn.Module, time: float, x: Tensor, order: int) -> Start:
    """Return the beginning of the next window: the end state of a trained network, and its rates below ``order``."""
    with torch.no_grad():
        state = state_at(problem, net, time, x)
        rates = [outputs_at(problem, net, time, x, k) for k in range(1, order)]
    start = Start(time, x, state, rates, first=False)
    if not problem.domain or not exact_conditions(net):
        return start
    if getattr(problem, "periodic", None) is True and interpolate(problem, state) is not None:
        return start
    # The network itself is its end state, on any domain. It costs a call of each window before.
    frozen = copy.deepcopy(net).requires_grad_(False)
    start.function = AtTime(frozen, time)
    if rates:
        start.rate_function = AtTime(frozen, time, 1)
    return start


def begin(net: nn.Module, problem: Problem, start: Start, *, user_state: bool) -> None:
    """Give the exact initial conditions in a network the state of the window.

    A function that the user wrote for the first window stays, unless ``fit`` was given another state.
    """
    for condition in exact_conditions(net):
        own = start.first and bool(problem.domain) and not user_state
        if not (own and not isinstance(condition.initial, Tensor)):
            condition.set_initial(exact_state(problem, start))
        if condition.rate is not None and start.rates and not (own and not isinstance(condition.rate, Tensor)):
            condition.set_rate(exact_state(problem, start, 1))


def covered(net: nn.Module, problem: Problem, start: Start, asked_state: bool) -> int:
    """Return how many of value and rates hold by construction: nothing, the value, value and rate.

    Raises:
        ValueError: an exact condition is inside another module, which does not keep what it says.
    """
    conditions = exact_conditions(net)
    if isinstance(net, ExactInitialCondition):
        return 2 if net.rate is not None else 1
    if not conditions and not asked_state:
        return 0
    with evaluating(net):
        found = outputs_at(problem, net, start.time, start.x)
    expected = start.state if found.shape == start.state.shape else start.state[: problem.n_outputs]
    function = conditions[0].initial if conditions else None
    if start.first and problem.domain and function is not None and not isinstance(function, Tensor):
        # The user's own function may be another than the problem's initial state.
        expected = found if problem.n_outputs > 1 else _on(function, problem, start.x, found)
    if found.shape == expected.shape and bool((found - expected).abs().max() <= 1e-4 * _size(expected)):
        return 2 if conditions and conditions[0].rate is not None else 1
    if not conditions:
        return 0  # `make_net(state)` makes what it likes of the state
    raise ValueError(
        f"make_net must return the ExactInitialCondition itself or take the state of the window, make_net(state): "
        f"{type(net).__name__} does not keep the state of the one inside it"
    )


def _on(function: Function, problem: Problem, x: Tensor, like: Tensor) -> Tensor:
    points = torch.stack(torch.broadcast_tensors(*space_of(problem, x)), dim=-1)
    with torch.no_grad():
        return function(points)[..., 0].expand(like.shape)


def _size(x: Tensor) -> float:
    return max(float(x.abs().max()), 1e-30)


def initial_mismatch(problem: Problem, net: Net, start: Start, held: int, order: int) -> Tensor | None:
    """Return the initial loss: squared errors of value and rates that do not hold by construction; None for none.

    ``net`` is in local time, 0 at the beginning of the window.
    """
    if held >= order:
        return None
    total: Tensor | None = None
    # The problem's own initial loss may speak of rates at the very beginning, which later windows do not share.
    speaks_of_rates = bool(start.rates) and not has_rate(problem)
    if start.first or not speaks_of_rates:
        if held < 1 or not start.rates:
            total = problem.initial_loss(net, start.x, start.state)
            check_loss(total)
    elif held < 1:
        total = (outputs_at(problem, net, 0.0, start.x) - start.state).square().mean()
    for k, rate in enumerate(start.rates, start=1):
        if held <= k:
            error = (outputs_at(problem, net, 0.0, start.x, k) - rate).square().mean()
            total = error if total is None else total + error
    return total


def has_rate(problem: Problem) -> bool:
    """Tell whether the problem knows du/dt at the beginning apart from its initial loss."""
    own = getattr(problem, "initial_rate", None)  # of the class, or of this object alone
    return callable(own) and getattr(own, "__func__", own) is not Equation.initial_rate


def check_loss(loss: Tensor) -> None:
    """Refuse an initial loss of the user's that is not one number, zero or more."""
    if not isinstance(loss, Tensor):
        raise TypeError(f"problem.initial_loss must return a torch.Tensor, got {type(loss).__name__}")
    if loss.ndim:
        raise ValueError(f"problem.initial_loss must return a scalar, got shape {tuple(loss.shape)}")
    if loss.device.type == "cpu" and float(loss.detach()) < 0:
        raise ValueError(f"problem.initial_loss must not be negative, got {float(loss.detach()):g}")
