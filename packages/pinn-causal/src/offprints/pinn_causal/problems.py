"""The problems of the paper: residuals by Taylor mode, initial states, domains and loss weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offprints.pinn_causal.algebra import Index
from offprints.pinn_causal.arguments import check_sequence
from offprints.pinn_causal.equation import Equation, Net, check_times
from offprints.pinn_causal.jets import partials
from offprints.pinn_causal.references import KS_REGIMES, random_stream_function, stream_fields
from offprints.shared.validation import check_number, check_tensor


def _line(x: Tensor | None) -> Tensor:
    """Return the points of one space axis as ``(n_x,)``."""
    if x is None:
        raise ValueError("x must be given: the equation has a space axis")
    check_tensor(x, "x", ndim=(1, 2))
    if x.ndim == 2 and x.shape[1] != 1:
        raise ValueError(f"x must have shape (n_x,) or (n_x, 1), got {tuple(x.shape)}")
    return x.reshape(-1)


Coefficient = float | nn.Parameter


def _coefficient(value: Coefficient, name: str, low: float | None = None) -> Coefficient:
    """Return a coefficient; a parameter is an unknown to train and may be anything."""
    if isinstance(value, Tensor):
        check_tensor(value, name)
        if value.numel() != 1:
            raise ValueError(f"{name} must have one entry, got shape {tuple(value.shape)}")
        return value
    return check_number(value, name, low=low)


def _apply(
    net: Net, coordinates: Sequence[Tensor], indices: Sequence[Index], *operators: dict[Index, Any]
) -> list[Tensor]:
    """Return partial derivatives and operators; one whose weights are trained is put together term by term."""
    fixed = [o for o in operators if not any(isinstance(w, Tensor) for w in o.values())]
    extra = list(dict.fromkeys(i for o in operators if o not in fixed for i in o))
    found = partials(net, coordinates, [*indices, *extra], [tuple(o.items()) for o in fixed])
    terms = dict(zip(extra, found[len(indices) :], strict=False))
    known = iter(found[len(indices) + len(extra) :])
    return [
        *found[: len(indices)],
        *(next(known) if o in fixed else sum(w * terms[i] for i, w in o.items()) for o in operators),
    ]


def _on_line(net: Net, t: Tensor, x: Tensor, indices: Sequence[Index], operator: dict[Index, Any]) -> list[Tensor]:
    """Return partial derivatives (t, x) of a scalar network and an operator on the grid, each ``(n_t, n_x)``."""
    return [_scalar(u) for u in _apply(net, [t[:, None], x[None, :]], indices, operator)]


def _scalar(u: Tensor) -> Tensor:
    if u.shape[-1] != 1:
        raise ValueError(f"net must have 1 output, got {u.shape[-1]}")
    return u.squeeze(-1)


class _OnLine(Equation):
    """A scalar equation on a periodic interval."""

    n_outputs = 1
    periodic = True

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

    Example:
        >>> t, x = torch.linspace(0, 1, 5), torch.linspace(-1, 1, 9)
        >>> AllenCahn().temporal_losses(MLP(2, (8,), 1), t, x).shape
        torch.Size([5])
    """

    equation_weights: tuple[float, ...] = (1.0,)
    domain: tuple[tuple[float, float], ...] = ((-1.0, 1.0),)

    def __init__(self, *, nu: Coefficient = 1e-4, reaction: Coefficient = 5.0) -> None:
        self.nu, self.reaction = _coefficient(nu, "nu", 0), _coefficient(reaction, "reaction")
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
        check_times(t)
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

    Example:
        >>> problem = KuramotoSivashinsky.regular()
        >>> problem.alpha, problem.beta, problem.gamma, problem.domain
        (5.0, 0.5, 0.005, ((-1.0, 1.0),))
    """

    equation_weights: tuple[float, ...] = (1.0,)

    def __init__(self, *, alpha: Coefficient, beta: Coefficient, gamma: Coefficient) -> None:
        self.alpha, self.beta = _coefficient(alpha, "alpha"), _coefficient(beta, "beta")
        self.gamma = _coefficient(gamma, "gamma", 0)
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
        check_times(t)
        operator: dict[Index, Any] = {(1, 0): 1.0, (0, 2): self.beta, (0, 4): self.gamma}
        u, u_x, linear = _on_line(net, t, _line(x), [(0, 0), (0, 1)], operator)
        return (linear + self.alpha * u * u_x,)

    def initial(self, x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the initial state of the regime."""
        if self._chaotic:
            return torch.cos(x) * (1 + torch.sin(x))
        return -torch.sin(math.pi * x)


class Lorenz(Equation):
    """``x' = sigma (y - x)``, ``y' = x (rho - z) - y``, ``z' = x y - beta z``.

    Raises:
        ValueError: ``state0`` does not have three entries, or a parameter is not finite.

    Example:
        >>> [r.shape for r in Lorenz().residual(MLP(1, (8,), 3), torch.linspace(0, 1, 5))]
        [torch.Size([5]), torch.Size([5]), torch.Size([5])]
    """

    equation_weights: tuple[float, ...] = (1.0, 1.0, 1.0)
    n_outputs = 3

    def __init__(
        self,
        *,
        sigma: Coefficient = 10.0,
        rho: Coefficient = 28.0,
        beta: Coefficient = 8 / 3,
        state0: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        check_sequence(state0, "state0", "three numbers")
        state0 = tuple(check_number(value, "state0") for value in state0)
        if len(state0) != 3:
            raise ValueError(f"state0 must have 3 entries, got {len(state0)}")
        self.sigma, self.rho, self.beta = (
            _coefficient(v, name) for name, v in (("sigma", sigma), ("rho", rho), ("beta", beta))
        )
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
        check_times(t)
        if x is not None:
            raise ValueError("x must be None: the system has no space axis")
        state, rate = partials(net, [t], [(0,), (1,)])
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


class NavierStokes2d(Equation):
    """Incompressible flow on [0, 2 pi]^2, velocity (u, v), vorticity ``w = v_x - u_y``.

    ``w_t + u w_x + v w_y - viscosity (w_xx + w_yy) = 0`` and ``u_x + v_y = 0``, the second with weight 100.

    Raises:
        ValueError: ``viscosity`` is negative or not finite.

    Example:
        >>> t, points = torch.linspace(0, 1, 5), torch.rand(7, 2)
        >>> vorticity, continuity = NavierStokes2d().residual(MLP(3, (8,), 2), t, points)
        >>> vorticity.shape, continuity.shape
        (torch.Size([5, 7]), torch.Size([5, 7]))
    """

    equation_weights: tuple[float, ...] = (1.0, 100.0)
    n_outputs = 2
    periodic = True
    state_on_points = False
    domain: tuple[tuple[float, float], ...] = ((0.0, 2 * math.pi), (0.0, 2 * math.pi))

    def __init__(self, *, viscosity: Coefficient = 0.01) -> None:
        self.viscosity = _coefficient(viscosity, "viscosity", 0)
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
        check_times(t)
        if x is None:
            raise ValueError("x must be given: the flow has two space axes")
        check_tensor(x, "x", shape=(None, 2))
        # Of (t, x, y). The vorticity equation is linear in the highest derivatives: with w = v_x - u_y, that of v_x
        # and that of u_y under d/dt - viscosity (d^2/dx^2 + d^2/dy^2) are all it needs of them.
        nu = self.viscosity
        of_v: dict[Index, Any] = {(1, 1, 0): 1.0, (0, 3, 0): -nu, (0, 1, 2): -nu}
        of_u: dict[Index, Any] = {(1, 0, 1): 1.0, (0, 2, 1): -nu, (0, 0, 3): -nu}
        indices = [(0, 0, 0), (0, 1, 0), (0, 0, 1), (0, 2, 0), (0, 1, 1), (0, 0, 2)]
        coordinates = [t[:, None], x[None, :, 0], x[None, :, 1]]
        found = [_velocity(f) for f in _apply(net, coordinates, indices, of_v, of_u)]
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

    def state(self, net: Net, t: Float[Tensor, ""], x: Float[Tensor, " n"]) -> Float[Tensor, "3 n n"]:
        """Return u, v and w at a time on the square of the grid ``x``: what a window hands over."""
        return _flow(net, [t.reshape(1, 1), x[None, :], x[:, None]])

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
    found = partials(net, coordinates, [(0, 0, 0), (0, 1, 0), (0, 0, 1)])
    (u, v), (_, v_x), (u_y, _) = (_velocity(f) for f in found)
    return torch.stack([u, v, v_x - u_y])
