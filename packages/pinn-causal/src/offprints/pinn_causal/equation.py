"""What an evolution equation must be to `CausalPINN`: the protocol `Problem`, and `Equation` to derive from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offprints.pinn_causal.jets import partials
from offprints.shared.validation import check_monotone, check_tensor

if TYPE_CHECKING:
    from offprints.pinn_causal.boundary import Boundary

Net = Callable[[Tensor], Tensor]
MEMBERS = (
    *("equation_weights", "initial_weight", "n_outputs", "domain"),
    *("residual", "temporal_losses", "initial", "initial_loss"),
)


@runtime_checkable
class Problem(Protocol):
    """An evolution equation that `CausalPINN` can solve. `Equation` needs a residual and an initial state only.

    Time is absolute in every residual. What is optional: ``periodic`` (bool), ``boundary`` (conditions such as
    `Dirichlet`), ``initial_rate(x)`` (du/dt at the beginning, for equations of second order in time) and
    ``state(net, t, x)`` (what a window hands over, where that is not the outputs of the network). Parameters
    (`torch.nn.Parameter`) on the problem are trained.

    Attributes:
        equation_weights: weight of the squared residual of each equation.
        initial_weight: weight of the initial loss.
        n_outputs: number of outputs of the network.
        domain: ``(low, high)`` of each space axis, at most three; ``()`` for a system of ODEs.

    Example:
        >>> isinstance(AllenCahn(), Problem), isinstance("u_t = u_xx", Problem)
        (True, False)
    """

    equation_weights: tuple[float, ...]
    initial_weight: float
    n_outputs: int
    domain: tuple[tuple[float, float], ...]

    def residual(self, net: Net, t: Tensor, x: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return one residual ``(n_t, n_x)`` per equation, ``(n_t,)`` per equation for ODEs.

        t ``(n_t,)`` sorted; x ``(n_x,)`` or ``(n_x, d)``, None for ODEs.
        """
        ...

    def temporal_losses(self, net: Net, t: Tensor, x: Tensor | None = None) -> Tensor:
        """Return the temporal losses ``L_i`` of shape ``(n_t,)``, not negative."""
        ...

    def initial(self, x: Tensor) -> Tensor:
        """Return the initial state: ``(q,)`` for ODEs; ``(n,)`` or ``(q, n)`` on the points ``x``.

        ``x`` is ``(n,)`` on a line. In the plane it is the one grid of both axes where they are equal, for fields
        ``(n, n)`` or ``(q, n, n)`` [:, iy, ix]; else, and always for an `Equation`, it is points ``(n, d)``.
        """
        ...

    def initial_loss(self, net: Net, x: Tensor, state: Tensor) -> Tensor:
        """Return the unweighted mean squared error of ``state`` at local time 0: ``net`` begins with the window."""
        ...


class _FromInitialState:
    """The number of outputs, by the initial state, unless a class or an object sets it."""

    def __get__(self, problem: Any, owner: type | None = None) -> Any:
        if problem is None:
            return self
        if not problem.domain:
            return len(problem.initial(torch.zeros(1)))
        d = len(problem.domain)
        x = torch.stack([torch.linspace(low, high, 4) for low, high in problem.domain], dim=-1)
        state = problem.initial(x[:, 0] if d == 1 else x)
        return 1 if state.ndim == 1 else len(state)


class Equation:
    """An evolution equation of your own, by its residual and its initial state.

    A subclass gives ``residual(net, t, x)``, one tensor or a tuple of them, and ``initial(x)``; for PDEs the
    ``domain``. Points ``x`` are ``(n,)`` on a line and ``(n, d)`` in the plane and in space. `derivatives` is how a
    residual differentiates ``net``.

    Attributes:
        domain: ``(low, high)`` of each space axis; ``()`` for ODEs.
        periodic: whether the solution is periodic on the domain.
        boundary: conditions on its boundary, such as ``(Dirichlet(0.0),)``.
        equation_weights: of the squared residuals; empty: all 1.
        initial_weight: of the initial loss.
        n_outputs: outputs of the network; by default those of the initial state.

    Example:
        >>> class Wave(Equation):
        ...     domain, boundary, initial_weight = ((0.0, 1.0),), (Dirichlet(0.0),), 100.0
        ...     def residual(self, net, t, x):
        ...         return derivatives(net, [t[:, None], x[None]], [], [{(2, 0): 1, (0, 2): -1}])[0][..., 0]
        ...     initial = lambda self, x: torch.sin(torch.pi * x)
        >>> Wave().temporal_losses(MLP(2, (8,), 1), torch.linspace(0, 1, 5), torch.rand(7)).shape
        torch.Size([5])
    """

    equation_weights: tuple[float, ...] = ()
    initial_weight: float = 1.0
    domain: tuple[tuple[float, float], ...] = ()
    n_outputs: Any = _FromInitialState()
    periodic: bool = False
    boundary: Sequence[Boundary] = ()
    state_on_points: bool = True

    # Equal by their coefficients: scikit-learn's clone copies an estimator's parameters.
    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self) or vars(other).keys() != vars(self).keys():
            return False
        return all(_equal(value, vars(other)[name]) for name, value in vars(self).items())

    def __hash__(self) -> int:
        values = ((k, v.item() if isinstance(v, Tensor) and v.ndim == 0 else v) for k, v in sorted(vars(self).items()))
        return hash((type(self), *((k, v) for k, v in values if not isinstance(v, Tensor))))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={_plain(value)}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({shown})"

    def residual(self, net: Net, t: Tensor, x: Tensor | None = None) -> Any:
        """Return the residual of the equation, or a tuple of several: ``(n_t, n_x)``, for ODEs ``(n_t,)``."""
        raise NotImplementedError(f"{type(self).__name__} must define residual(net, t, x)")

    def initial(self, x: Tensor) -> Tensor:
        """Return the state at the beginning on points ``x``: ``(n,)`` or ``(q, n)``; for ODEs ``(q,)``."""
        raise NotImplementedError(f"{type(self).__name__} must define initial(x)")

    def initial_rate(self, x: Tensor) -> Tensor | None:
        """Return du/dt at the beginning, in the form of `initial`, where the equation is of second order in time."""
        return None

    def temporal_losses(
        self, net: Net, t: Float[Tensor, " n_t"], x: Float[Tensor, " n_x *d"] | None = None
    ) -> Float[Tensor, " n_t"]:
        """Return ``L_i = mean_j sum_e c_e r_e(t_i, x_j)^2``; the equations of a system of ODEs are summed alone.

        Raises:
            TypeError, ValueError: as `residual`; a residual is not ``(n_t, n_x)``, or ``(n_t,)`` for ODEs;
                ``equation_weights`` are not as many as the equations.
        """
        residuals = as_tuple(self.residual(net, t, x))
        weights = tuple(self.equation_weights) or (1.0,) * len(residuals)
        if len(weights) != len(residuals):
            raise ValueError(f"equation_weights must be as many as the residuals, {len(residuals)}, got {len(weights)}")
        shape = (len(t),) if x is None else (len(t), len(x))
        squares = [
            r.square() if c == 1 else c * r.square()
            for c, r in zip(weights, (_grid(r, shape) for r in residuals), strict=True)
        ]
        total = sum(squares[1:], squares[0])
        return total if total.ndim == 1 else total.mean(-1)

    def initial_loss(self, net: Net, x: Tensor, state: Tensor) -> Float[Tensor, ""]:
        """Return the mean of ``(u(0, x) - state)^2`` over points and outputs.

        Raises:
            ValueError: the outputs of ``net`` on ``x`` do not have the shape of ``state``.
        """
        u = outputs_at(self, net, 0.0, x)
        if u.shape != state.shape:
            raise ValueError(f"state must have shape {tuple(u.shape)} as the outputs of net, got {tuple(state.shape)}")
        return (u - state).square().mean()


def as_tuple(residuals: Any) -> tuple[Tensor, ...]:
    """Return the residuals of a system; a single one may come alone."""
    if isinstance(residuals, Tensor):
        return (residuals,)
    if not isinstance(residuals, tuple | list) or not residuals:
        got = f"an empty {type(residuals).__name__}" if residuals == () or residuals == [] else type(residuals).__name__
        raise TypeError(f"residual must return tensors, one or a tuple of them, got {got}")
    return tuple(residuals)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    return bool(a == b)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value


def _grid(r: Any, shape: tuple[int, ...]) -> Tensor:
    """Return a residual of the shape of the grid: what does not depend on a coordinate may have length 1 there."""
    if not isinstance(r, Tensor):
        raise TypeError(f"residual must return tensors, got {type(r).__name__}")
    if r.ndim != len(shape) or any(n not in (1, m) for n, m in zip(r.shape, shape, strict=True)):
        raise ValueError(f"residual must return tensors of shape {shape}, got {tuple(r.shape)}")
    return r.expand(shape)


def check_problem(problem: object) -> None:
    """Refuse what is no `Problem`, naming what it lacks."""
    missing = [name for name in MEMBERS if not _has(problem, name)]
    if missing:
        raise TypeError(
            f"problem must have the members of Problem, {type(problem).__name__} lacks {', '.join(missing)}"
        )
    for name in MEMBERS[4:]:
        if not callable(getattr(problem, name)):
            raise TypeError(f"problem.{name} must be a method, got {type(getattr(problem, name)).__name__}")
    for axis in problem.domain:  # type: ignore[attr-defined]
        low, high = axis
        if not low < high:
            raise ValueError(f"problem.domain must have low < high on each axis, got {axis}")


def _has(problem: object, name: str) -> bool:
    # By the class where it can be: a property that fails must say so itself.
    return hasattr(type(problem), name) or hasattr(problem, name)


def trainable(problem: object) -> list[nn.Parameter]:
    """Return the parameters on a problem, which are unknowns to train."""
    found: dict[int, nn.Parameter] = {}

    def collect(value: object) -> None:
        if isinstance(value, nn.Parameter):
            found[id(value)] = value
        elif isinstance(value, nn.Module):
            for parameter in value.parameters():
                collect(parameter)
        elif isinstance(value, list | tuple):
            for item in value:
                collect(item)
        elif isinstance(value, dict):
            for item in value.values():
                collect(item)

    collect(problem)
    if not isinstance(problem, nn.Module):
        collect(dict(getattr(problem, "__dict__", {})))
        collect({k: v for cls in type(problem).__mro__ for k, v in vars(cls).items() if isinstance(v, nn.Parameter)})
    return [p for p in found.values() if p.requires_grad]


# States: where they are known, and what a window hands over


def on_points(problem: Problem) -> bool:
    """Tell whether states live on points ``(n, d)``, and not on the one grid of all axes."""
    d = len(problem.domain)
    return d > 1 and (getattr(problem, "state_on_points", False) or d > 2 or len(set(map(tuple, problem.domain))) > 1)


def state_points(problem: Problem, n: Sequence[int] | None, like: Tensor) -> Tensor:
    """Return the ``x`` that ``problem.initial`` gets: uniform grids, without the right end unless not periodic.

    ``n`` are points per axis, by default 512, 64 x 64 or 16 x 16 x 16; a single 0 for ODEs.
    """
    d = len(problem.domain)
    if d == 0:
        return like.new_zeros(1)
    n = [{1: 512, 2: 64, 3: 16}[d]] * d if n is None else n
    closed = getattr(problem, "periodic", None) is False
    lines = []
    for (low, high), count in zip(problem.domain, n, strict=True):
        steps = torch.arange(count, dtype=like.dtype, device=like.device)
        lines.append(low + (high - low) / (count - closed) * steps)
    if not on_points(problem):
        return lines[0]
    mesh = torch.meshgrid(*reversed(lines), indexing="ij")  # x fastest
    return torch.stack([c.flatten() for c in reversed(mesh)], dim=-1)


def space_of(problem: Problem, x: Tensor) -> list[Tensor]:
    """Return the space coordinates of a state, which broadcast to its shape."""
    d = len(problem.domain)
    if d == 0:
        return []
    if d == 1:
        return [x]
    return list(x.unbind(-1)) if on_points(problem) else [x[None, :], x[:, None]]


def outputs_at(problem: Problem, net: Net, time: float, x: Tensor, order: int = 0) -> Tensor:
    """Return the outputs of ``net``, or their time derivative, at one time in the form of a state."""
    space = space_of(problem, x)
    t = x.new_full((1,) * max(1, *(c.ndim for c in space), 1), time)
    (found,) = partials(net, [t, *space], [(order, *(0 for _ in space))])
    if not space:
        return found[0]
    shape = torch.broadcast_shapes(t.shape, *(c.shape for c in space))
    fields = found.expand(*shape, -1).movedim(-1, 0)
    return fields[0] if problem.n_outputs == 1 else fields


def state_at(problem: Problem, net: Net, time: float, x: Tensor) -> Tensor:
    """Return what a window hands over: the state of ``net`` at one time, as ``problem.initial`` has it."""
    own = getattr(problem, "state", None)
    if callable(own):
        state: Tensor = own(net, x.new_tensor(time), x)
        return state
    return outputs_at(problem, net, time, x)


def order_in_time(problem: Problem, t: Tensor, x: Tensor | None) -> int:
    """Return the order of the highest time derivative in the residual, found by trial; 1 where it cannot be found.

    The trial functions agree at the one time ``t`` but in one derivative, to which the residual answers or does not.
    """
    outputs = problem.n_outputs

    def trial(order: int, size: float) -> Net:
        def net(z: Tensor) -> Tensor:
            tau = z[..., :1] - float(t[0])
            wave = 1 + 0.3 * torch.sin(z[..., 1:].sum(-1, keepdim=True) + 0.5)
            scales = torch.linspace(0.5, 1.0, outputs, dtype=z.dtype, device=z.device)
            return scales * wave * (1 + 0.7 * tau + size * tau**order)

        return net

    def answers(order: int, dtype: torch.dtype) -> bool:
        times = torch.full_like(t, float(t[0]), dtype=dtype)
        points = None if x is None else x.to(dtype)
        found = [problem.residual(trial(order, size), times, points) for size in (0.0, 1.0)]
        first, second = (as_tuple(r) for r in found)
        pairs = zip(first, second, strict=True)
        return any(float((a - b).abs().max()) > 1e-6 * float(a.abs().max() + b.abs().max()) for a, b in pairs)

    # The second time in the precision of the fit, which constants of the residual may be bound to.
    for dtype in dict.fromkeys((torch.float64, t.dtype)):
        with contextlib.suppress(Exception):  # a residual may ask more of its network than to be a function
            return max([1, *(order for order in (2, 3, 4) if answers(order, dtype))])
    return 1


def check_times(t: Tensor) -> None:
    """Refuse times that are not one-dimensional and sorted; equal neighbors are allowed."""
    check_tensor(t, "t", ndim=1)
    check_monotone(t, "t", strict=False)
