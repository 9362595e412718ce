"""The five problems of the paper: residuals by Taylor mode, initial states, domains and loss weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from offprints.pinn_causal.algebra import Index, Operator
from offprints.pinn_causal.jets import derivatives
from offprints.pinn_causal.references import KS_REGIMES, random_stream_function, stream_fields
from offprints.shared.validation import check_monotone, check_number, check_tensor

Net = Callable[[Tensor], Tensor]


@runtime_checkable
class Problem(Protocol):
    """An evolution equation that `CausalPINN` can solve; write your own by these members.

    Attributes:
        equation_weights: weight of the squared residual of each equation.
        initial_weight: weight of the initial loss.
        n_outputs: number of outputs of the network.
        domain: ``(low, high)`` of each space axis, periodic; ``()`` for a system of ODEs.
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
        """Return the temporal losses ``L_i`` of shape ``(n_t,)``."""
        ...

    def initial(self, x: Tensor) -> Tensor:
        """Return the initial state on a grid ``x`` (of every axis)."""
        ...

    def initial_loss(self, net: Net, x: Tensor, state: Tensor) -> Tensor:
        """Return the unweighted mean squared error of the initial ``state`` at local time 0."""
        ...


class _Equation:
    """What the problems share: the temporal losses, a mean over space of the weighted squared residuals."""

    equation_weights: tuple[float, ...]

    # Equal by their coefficients: scikit-learn's clone copies an estimator's parameters.
    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash((type(self), *sorted(vars(self).items())))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({shown})"

    def residual(self, net: Net, t: Tensor, x: Tensor | None = None) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def temporal_losses(
        self, net: Net, t: Float[Tensor, " n_t"], x: Float[Tensor, " n_x *d"] | None = None
    ) -> Float[Tensor, " n_t"]:
        """Return ``L_i = mean_j sum_e c_e r_e(t_i, x_j)^2``; the equations of a system of ODEs are summed alone.

        Raises:
            TypeError, ValueError: as `residual`.
        """
        squares = [
            r.square() if c == 1 else c * r.square()
            for c, r in zip(self.equation_weights, self.residual(net, t, x), strict=True)
        ]
        total = sum(squares[1:], squares[0])
        return total if total.ndim == 1 else total.mean(-1)


def _check_times(t: Tensor) -> None:
    check_tensor(t, "t", ndim=1)
    check_monotone(t, "t", strict=False)


def _line(x: Tensor | None) -> Tensor:
    """Return the points of one space axis as ``(n_x,)``."""
    if x is None:
        raise ValueError("x must be given: the equation has a space axis")
    check_tensor(x, "x", ndim=(1, 2))
    if x.ndim == 2 and x.shape[1] != 1:
        raise ValueError(f"x must have shape (n_x,) or (n_x, 1), got {tuple(x.shape)}")
    return x.reshape(-1)


def _on_line(net: Net, t: Tensor, x: Tensor, indices: Sequence[Index], operator: dict[Index, float]) -> list[Tensor]:
    """Return partial derivatives (t, x) of a scalar network and an operator on the grid, each ``(n_t, n_x)``."""
    found = derivatives(net, [t[:, None], x[None, :]], indices, [tuple(operator.items())])
    return [_scalar(u) for u in found]


def _scalar(u: Tensor) -> Tensor:
    if u.shape[-1] != 1:
        raise ValueError(f"net must have 1 output, got {u.shape[-1]}")
    return u.squeeze(-1)


class _OnLine(_Equation):
    """A scalar equation on a periodic interval."""

    n_outputs = 1
    domain: tuple[tuple[float, float], ...]

    def initial_loss(self, net: Net, x: Float[Tensor, " n"], state: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        """Return the mean of ``(u(0, x) - state)^2``.

        Raises:
            ValueError: ``x`` and ``state`` differ in length.
        """
        points = _line(x)
        check_tensor(state, "state", shape=points.shape)
        u = _scalar(net(torch.stack([torch.zeros_like(points), points], dim=-1)))
        return (u - state).square().mean()


class AllenCahn(_OnLine):
    """``u_t - nu u_xx + reaction (u^3 - u) = 0`` on [-1, 1], period 2, from ``x^2 cos(pi x)``.

    Raises:
        ValueError: ``nu`` is negative, or a parameter is not finite.
    """

    equation_weights: tuple[float, ...] = (1.0,)
    domain: tuple[tuple[float, float], ...] = ((-1.0, 1.0),)

    def __init__(self, *, nu: float = 1e-4, reaction: float = 5.0) -> None:
        check_number(nu, "nu", low=0)
        check_number(reaction, "reaction")
        self.nu, self.reaction = nu, reaction
        self.initial_weight = 100.0

    def residual(
        self, net: Net, t: Float[Tensor, " n_t"], x: Float[Tensor, " n_x *d"] | None = None
    ) -> tuple[Float[Tensor, "n_t n_x"]]:
        """Return the residual on the product of ``t`` and ``x``.

        Raises:
            TypeError: ``t`` or ``x`` is not a floating tensor.
            ValueError: ``t`` is not one-dimensional or not sorted (equal neighbors are allowed); ``x`` is missing or
                of a wrong shape.
        """
        _check_times(t)
        u, linear = _on_line(net, t, _line(x), [(0, 0)], {(1, 0): 1.0, (0, 2): -self.nu})
        return (linear + self.reaction * (u**3 - u),)

    def initial(self, x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return ``x^2 cos(pi x)``."""
        return x**2 * torch.cos(math.pi * x)


class KuramotoSivashinsky(_OnLine):
    """``u_t + alpha u u_x + beta u_xx + gamma u_xxxx = 0``, periodic.

    `regular` and `chaotic` are the paper's settings, with their domains, initial states and weights; an equation of
    other coefficients has those of the regular one, and ``domain`` and ``initial_weight`` may be set.

    Raises:
        ValueError: ``gamma`` is negative, or a parameter is not finite.
    """

    equation_weights: tuple[float, ...] = (1.0,)

    def __init__(self, *, alpha: float, beta: float, gamma: float) -> None:
        check_number(alpha, "alpha")
        check_number(beta, "beta")
        check_number(gamma, "gamma", low=0)
        self.alpha, self.beta, self.gamma = alpha, beta, gamma
        self.domain = (KS_REGIMES["regular"][1],)
        self.initial_weight = 1e3
        self._chaotic = False

    @classmethod
    def regular(cls) -> KuramotoSivashinsky:
        """Return the regular regime: 5, 0.5, 0.005 on [-1, 1] from ``-sin(pi x)``."""
        alpha, beta, gamma = KS_REGIMES["regular"][0]
        return cls(alpha=alpha, beta=beta, gamma=gamma)

    @classmethod
    def chaotic(cls) -> KuramotoSivashinsky:
        """Return the chaotic regime: 100/16, 100/16^2, 100/16^4 on [0, 2 pi] from ``cos x (1 + sin x)``."""
        (alpha, beta, gamma), domain, _ = KS_REGIMES["chaotic"]
        problem = cls(alpha=alpha, beta=beta, gamma=gamma)
        problem.domain, problem.initial_weight, problem._chaotic = (domain,), 1e4, True
        return problem

    def residual(
        self, net: Net, t: Float[Tensor, " n_t"], x: Float[Tensor, " n_x *d"] | None = None
    ) -> tuple[Float[Tensor, "n_t n_x"]]:
        """Return the residual on the product of ``t`` and ``x``; errors as for `AllenCahn.residual`."""
        _check_times(t)
        operator: dict[Index, float] = {(1, 0): 1.0, (0, 2): self.beta, (0, 4): self.gamma}
        u, u_x, linear = _on_line(net, t, _line(x), [(0, 0), (0, 1)], operator)
        return (linear + self.alpha * u * u_x,)

    def initial(self, x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the initial state of the regime."""
        if self._chaotic:
            return torch.cos(x) * (1 + torch.sin(x))
        return -torch.sin(math.pi * x)


class Lorenz(_Equation):
    """``x' = sigma (y - x)``, ``y' = x (rho - z) - y``, ``z' = x y - beta z``.

    Raises:
        ValueError: ``state0`` does not have three entries, or a parameter is not finite.
    """

    equation_weights: tuple[float, ...] = (1.0, 1.0, 1.0)
    n_outputs = 3
    domain: tuple[tuple[float, float], ...] = ()

    def __init__(
        self,
        *,
        sigma: float = 10.0,
        rho: float = 28.0,
        beta: float = 8 / 3,
        state0: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        for name, value in (("sigma", sigma), ("rho", rho), ("beta", beta)):
            check_number(value, name)
        if len(state0) != 3:
            raise ValueError(f"state0 must have 3 entries, got {len(state0)}")
        for value in state0:
            check_number(value, "state0")
        self.sigma, self.rho, self.beta = sigma, rho, beta
        self.state0 = tuple(map(float, state0))
        self.initial_weight = 1.0

    def residual(
        self, net: Net, t: Float[Tensor, " n_t"], x: Tensor | None = None
    ) -> tuple[Float[Tensor, " n_t"], ...]:
        """Return the three residuals at the times ``t``; ``net`` takes ``(..., 1)``, ``x`` is None.

        Raises:
            TypeError: ``t`` is not a floating tensor.
            ValueError: ``t`` is not one-dimensional or not sorted; ``x`` is given; ``net`` has not three outputs.
        """
        _check_times(t)
        if x is not None:
            raise ValueError("x must be None: the system has no space axis")
        state, rate = derivatives(net, [t], [(0,), (1,)])
        if state.shape[-1] != 3:
            raise ValueError(f"net must have 3 outputs, got {state.shape[-1]}")
        (a, b, c), (a_t, b_t, c_t) = state.unbind(-1), rate.unbind(-1)
        return (
            a_t - self.sigma * (b - a),
            b_t - a * (self.rho - c) + b,
            c_t - a * b + self.beta * c,
        )

    def initial(self, x: Tensor) -> Float[Tensor, " 3"]:
        """Return the state at time 0, in the dtype and on the device of ``x``."""
        return torch.tensor(self.state0, dtype=x.dtype, device=x.device)

    def initial_loss(self, net: Net, x: Tensor, state: Float[Tensor, " 3"]) -> Float[Tensor, ""]:
        """Return the mean of ``(u(0) - state)^2``; ``x`` is not used."""
        check_tensor(state, "state", shape=(3,))
        return (net(state.new_zeros(1)) - state).square().mean()


class NavierStokes2d(_Equation):
    """Incompressible flow on [0, 2 pi]^2, velocity (u, v), vorticity ``w = v_x - u_y``.

    ``w_t + u w_x + v w_y - viscosity (w_xx + w_yy) = 0`` and ``u_x + v_y = 0``, the second with weight 100.

    Raises:
        ValueError: ``viscosity`` is negative or not finite.
    """

    equation_weights: tuple[float, ...] = (1.0, 100.0)
    n_outputs = 2
    domain: tuple[tuple[float, float], ...] = ((0.0, 2 * math.pi), (0.0, 2 * math.pi))

    def __init__(self, *, viscosity: float = 0.01) -> None:
        check_number(viscosity, "viscosity", low=0)
        self.viscosity = viscosity
        self.initial_weight = 1e5

    def residual(
        self, net: Net, t: Float[Tensor, " n_t"], x: Float[Tensor, "n_x 2"] | None = None
    ) -> tuple[Float[Tensor, "n_t n_x"], Float[Tensor, "n_t n_x"]]:
        """Return the residuals of vorticity and continuity at times ``t`` and points ``x`` ``(n_x, 2)``.

        Raises:
            TypeError: ``t`` or ``x`` is not a floating tensor.
            ValueError: ``t`` is not one-dimensional or not sorted; ``x`` is not ``(n_x, 2)``; ``net`` has not two
                outputs.
        """
        _check_times(t)
        if x is None:
            raise ValueError("x must be given: the flow has two space axes")
        check_tensor(x, "x", shape=(None, 2))
        # Of (t, x, y). The vorticity equation is linear in the highest derivatives: with w = v_x - u_y, that of v_x
        # and that of u_y under d/dt - viscosity (d^2/dx^2 + d^2/dy^2) are all it needs of them.
        nu = self.viscosity
        of_v: Operator = (((1, 1, 0), 1.0), ((0, 3, 0), -nu), ((0, 1, 2), -nu))
        of_u: Operator = (((1, 0, 1), 1.0), ((0, 2, 1), -nu), ((0, 0, 3), -nu))
        indices = [(0, 0, 0), (0, 1, 0), (0, 0, 1), (0, 2, 0), (0, 1, 1), (0, 0, 2)]
        coordinates = [t[:, None], x[None, :, 0], x[None, :, 1]]
        found = [_velocity(f) for f in derivatives(net, coordinates, indices, [of_v, of_u])]
        (u, v), (u_x, _), (_, v_y), (_, v_xx), (u_xy, v_xy), (u_yy, _), (_, v_rate), (u_rate, _) = found
        w_x, w_y = v_xx - u_xy, v_xy - u_yy
        return v_rate - u_rate + u * w_x + v * w_y, u_x + v_y

    def initial(self, x: Float[Tensor, " n"]) -> Float[Tensor, "3 n n"]:
        """Return u, v, w of `solve_navier_stokes_2d`'s random flow of seed 0, [:, iy, ix] on the square of ``x``."""
        fields = stream_fields(*random_stream_function(0), x.detach().cpu().double().numpy())
        return torch.stack([torch.from_numpy(f) for f in fields]).to(x)

    def initial_loss(self, net: Net, x: Float[Tensor, " n"], state: Float[Tensor, "3 n n"]) -> Float[Tensor, ""]:
        """Return the sum of the mean squared errors of u, v and w on the square of the grid ``x``.

        Raises:
            ValueError: ``state`` is not ``(3, n, n)`` [:, iy, ix].
        """
        check_tensor(x, "x", ndim=1)
        check_tensor(state, "state", shape=(3, len(x), len(x)))
        return self.initial_errors(net, x, state).sum()

    def initial_errors(self, net: Net, x: Tensor, state: Tensor) -> Float[Tensor, " 3"]:
        """Return the mean squared errors of u, v and w at local time 0."""
        coordinates = [x.new_zeros(1, 1), x[None, :], x[:, None]]
        return (_flow(net, coordinates) - state).square().mean((1, 2))


def _velocity(f: Tensor) -> tuple[Tensor, ...]:
    if f.shape[-1] != 2:
        raise ValueError(f"net must have 2 outputs, got {f.shape[-1]}")
    return f.unbind(-1)


def _flow(net: Net, coordinates: Sequence[Tensor]) -> Tensor:
    """Return u, v and w on the grid of the coordinates, along a new first axis."""
    found = derivatives(net, coordinates, [(0, 0, 0), (0, 1, 0), (0, 0, 1)])
    (u, v), (_, v_x), (u_y, _) = (_velocity(f) for f in found)
    return torch.stack([u, v, v_x - u_y])


def state_grid(problem: Problem, state: Tensor | None, like: Tensor) -> Tensor:
    """Return the uniform grid of initial states, left end included, right end not: that of ``state``, or the default.

    One grid serves every axis: 512 points in one space dimension, 64 in two; a single 0 for ODEs.
    """
    if not problem.domain:
        return like.new_zeros(1)
    n = (512 if len(problem.domain) == 1 else 64) if state is None else state.shape[-1]
    low, high = problem.domain[0]
    return low + (high - low) / n * torch.arange(n, dtype=like.dtype, device=like.device)


def state_at(problem: Problem, net: Net, time: Tensor, x: Tensor) -> Tensor:
    """Return what a window hands over: the state of ``net`` at one time on the grid, as ``problem.initial`` has it."""
    if isinstance(problem, NavierStokes2d):
        return _flow(net, [time.reshape(1, 1), x[None, :], x[:, None]])
    if not problem.domain:
        return net(time.reshape(1))
    axes = (
        torch.broadcast_tensors(time.reshape(1), x)
        if len(problem.domain) == 1
        else torch.broadcast_tensors(time.reshape(1, 1), x[None, :], x[:, None])
    )
    fields = net(torch.stack(axes, dim=-1)).movedim(-1, 0)
    return fields[0] if problem.n_outputs == 1 else fields
