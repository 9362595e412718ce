"""Boundary conditions as objects: each adds its squared residual to the temporal losses, so that it is causal too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from offprints.pinn_causal.jets import partials
from offprints.shared.validation import check_choice, check_number

Value = float | Callable[[Tensor, Tensor], Tensor]
Domain = Sequence[tuple[float, float]]
Net = Callable[[Tensor], Tensor]


class Boundary:
    """A condition on the boundary of the domain.

    Attributes:
        axis: the space axis on whose ends it holds.
        weight: of its squared residual in the temporal losses.
    """

    def __init__(self, *, axis: int = 0, weight: float = 1.0) -> None:
        self.axis = check_number(axis, "axis", low=0, high=2, integer=True)
        self.weight = check_number(weight, "weight", low=0, open_low=True)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash((type(self), *sorted(vars(self).items(), key=lambda item: item[0])))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    def losses(self, net: Net, t: Float[Tensor, " n_t"], x: Tensor, domain: Domain) -> Float[Tensor, " n_t"]:
        """Return the mean squared residual at each time; the points ``x`` are moved to the boundary along the axis."""
        if self.axis >= len(domain):
            raise ValueError(f"axis must be below {len(domain)}, the number of space axes, got {self.axis}")
        squares = [r.square().mean(-1) for r in self._residuals(net, t, x, domain)]
        return self.weight * sum(squares[1:], squares[0])

    def _residuals(self, net: Net, t: Tensor, x: Tensor, domain: Domain) -> list[Tensor]:
        raise NotImplementedError

    def _face(self, t: Tensor, x: Tensor, place: float) -> list[Tensor]:
        """Return the coordinates of the product of times and the points on a face."""
        if x.ndim == 1:
            return [t[:, None], x.new_full((1, 1), place)]
        columns = [c[None, :] for c in x.unbind(-1)]
        columns[self.axis] = x.new_full((1, 1), place)
        return [t[:, None], *columns]

    def _along(self, d: int, order: int) -> tuple[int, ...]:
        return (0, *(order if i == self.axis else 0 for i in range(d)))


class Robin(Boundary):
    """``alpha u + beta du/dn = value`` on one end of an axis or both, n pointing outward.

    Args:
        alpha, beta: coefficients.
        value: a number, or a function of absolute times ``(n_t, 1)`` and points ``(n, d)`` on the boundary that
            broadcasts to ``(n_t, n)``.
        side: "low", "high" or "both".
        output: which output of the network.
        axis, weight: as in `Boundary`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range; both coefficients are 0.

    Example:
        >>> Robin(1.0, 0.5, lambda t, x: torch.cos(t), side="high").losses(
        ...     lambda z: torch.cos(z[..., :1]) + 0 * z[..., 1:], torch.linspace(0, 1, 3), torch.rand(4), ((0.0, 1.0),))
        tensor([0., 0., 0.])
    """

    def __init__(
        self,
        alpha: float,
        beta: float,
        value: Value = 0.0,
        *,
        side: Literal["low", "high", "both"] = "both",
        output: int = 0,
        axis: int = 0,
        weight: float = 1.0,
    ) -> None:
        super().__init__(axis=axis, weight=weight)
        self.alpha, self.beta = check_number(alpha, "alpha"), check_number(beta, "beta")
        if not self.alpha and not self.beta:
            raise ValueError("alpha and beta must not both be 0")
        self.value: Value = value if callable(value) else check_number(value, "value")
        check_choice(side, "side", ("low", "high", "both"))
        self.side = side
        self.output = check_number(output, "output", low=0, integer=True)

    def _residuals(self, net: Net, t: Tensor, x: Tensor, domain: Domain) -> list[Tensor]:
        found = []
        for side, place, outward in zip(("low", "high"), domain[self.axis], (-1.0, 1.0), strict=True):
            if self.side not in (side, "both"):
                continue
            coordinates = self._face(t, x, place)
            orders = [o for o, c in ((0, self.alpha), (1, self.beta)) if c]
            values = partials(net, coordinates, [self._along(len(domain), o) for o in orders])
            if self.output >= values[0].shape[-1]:
                raise ValueError(f"output must be below {values[0].shape[-1]}, got {self.output}")
            weights = [self.alpha if o == 0 else outward * self.beta for o in orders]
            terms = [w * v[..., self.output] for w, v in zip(weights, values, strict=True)]
            left = sum(terms[1:], terms[0])
            shape = torch.broadcast_shapes(*(c.shape for c in coordinates))
            found.append(left.expand(shape) - self._wanted(coordinates, shape))
        return found

    def _wanted(self, coordinates: list[Tensor], shape: torch.Size) -> Tensor | float:
        if not callable(self.value):
            return self.value
        points = torch.stack(torch.broadcast_tensors(*(c[0] for c in coordinates[1:])), dim=-1)
        wanted = self.value(coordinates[0], points)
        try:
            return wanted.expand(shape)
        except (RuntimeError, AttributeError):
            got = tuple(wanted.shape) if isinstance(wanted, Tensor) else type(wanted).__name__
            raise ValueError(f"value must return a tensor that broadcasts to {tuple(shape)}, got {got}") from None


class Dirichlet(Robin):
    """``u = value`` on one end of an axis or both; arguments as for `Robin`.

    Example:
        >>> u = lambda z: z[..., :1] * z[..., 1:]  # t x
        >>> Dirichlet(0.0, side="low").losses(u, torch.linspace(0, 1, 3), torch.rand(4), ((0.0, 1.0),))
        tensor([0., 0., 0.])
    """

    def __init__(
        self,
        value: Value = 0.0,
        *,
        side: Literal["low", "high", "both"] = "both",
        output: int = 0,
        axis: int = 0,
        weight: float = 1.0,
    ) -> None:
        super().__init__(1.0, 0.0, value, side=side, output=output, axis=axis, weight=weight)


class Neumann(Robin):
    """``du/dn = value`` on one end of an axis or both, n pointing outward; arguments as for `Robin`.

    Example:
        >>> u = lambda z: z[..., :1] + z[..., 1:] ** 2
        >>> Neumann(2.0, side="high").losses(u, torch.linspace(0, 1, 3), torch.rand(4), ((0.0, 1.0),))
        tensor([0., 0., 0.])
    """

    def __init__(
        self,
        value: Value = 0.0,
        *,
        side: Literal["low", "high", "both"] = "both",
        output: int = 0,
        axis: int = 0,
        weight: float = 1.0,
    ) -> None:
        super().__init__(0.0, 1.0, value, side=side, output=output, axis=axis, weight=weight)


class Periodic(Boundary):
    """Equal values, and derivatives along the axis up to ``order``, on both ends of an axis, for all outputs.

    `SpaceTimeEmbedding` makes a network periodic exactly; this is for networks that are not.

    Example:
        >>> u = lambda z: torch.sin(2 * torch.pi * z[..., 1:])
        >>> bool(Periodic().losses(u, torch.linspace(0, 1, 3), torch.rand(4), ((0.0, 1.0),)).max() < 1e-9)
        True
    """

    def __init__(self, *, order: int = 1, axis: int = 0, weight: float = 1.0) -> None:
        super().__init__(axis=axis, weight=weight)
        self.order = check_number(order, "order", low=0, integer=True)

    def _residuals(self, net: Net, t: Tensor, x: Tensor, domain: Domain) -> list[Tensor]:
        indices = [self._along(len(domain), o) for o in range(self.order + 1)]
        low, high = (partials(net, self._face(t, x, place), indices) for place in domain[self.axis])
        n = len(t), 1 if x.ndim == 1 else len(x)
        return [(b - a).expand(*n, -1)[..., q] for a, b in zip(low, high, strict=True) for q in range(a.shape[-1])]
