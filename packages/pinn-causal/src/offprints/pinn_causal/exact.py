"""Exact initial conditions, and networks seen from another time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offprints.pinn_causal.algebra import Algebra, Index, Operator, univariate
from offprints.pinn_causal.jets import compose, implements, partials
from offprints.pinn_causal.jets import takes_series as passes_series
from offprints.pinn_causal.series import Series, multiply, stack
from offprints.shared.validation import check_number, check_tensor

State = Tensor | Callable[[Tensor], Tensor]


class ExactInitialCondition(nn.Module):
    """``u(t, x) = u_0(x) + (t - t0) net(t, x)``: the initial state holds whatever the network says.

    With a ``rate``, for equations of second order in time, ``u = u_0 + (t - t0) v_0 + (t - t0)^2 net``: value and time
    derivative hold.

    Args:
        net: takes the same points.
        initial: the constant state ``(q,)`` of a system of ODEs, or a callable from the space coordinates ``(..., d)``
            to ``(..., q)``.
        time_index: which coordinate is t.
        t0: initial time.
        rate: ``v_0``, the time derivative at ``t0``, in the form of ``initial``.

    `CausalPINN` puts the time and the state of each window in. A function that the user gave for the first window stays
    as it is.

    Raises:
        TypeError: ``net`` is not callable, ``initial`` or ``rate`` is neither a tensor nor callable.
        ValueError: a tensor ``initial`` or ``rate`` is not one-dimensional, ``time_index`` negative; in a call, the
            state does not have the shape of the output of ``net``.

    Example:
        >>> net = ExactInitialCondition(MLP(2, (16,), 1), lambda x: torch.sin(x))
        >>> start = torch.tensor([[0.0, 0.5], [0.0, 1.5]])  # (t, x)
        >>> torch.equal(net(start), torch.sin(start[:, 1:]))
        True
    """

    def __init__(
        self,
        net: nn.Module,
        initial: State,
        *,
        time_index: int = 0,
        t0: float = 0.0,
        rate: State | None = None,
    ) -> None:
        super().__init__()
        given: object = net
        if not callable(given):
            raise TypeError(f"net must be callable, got {type(given).__name__}")
        self.time_index = check_number(time_index, "time_index", low=0, integer=True)
        self.t0 = check_number(t0, "t0") + 0.0
        self.net: nn.Module = net
        self.initial: State
        self.rate: State | None = None
        self.set_initial(initial)
        if rate is not None:
            self.set_rate(rate)

    def extra_repr(self) -> str:
        """Return the arguments."""
        return f"time_index={self.time_index}, t0={self.t0}"

    def set_initial(self, initial: State) -> None:
        """Replace the initial state."""
        self._put("initial", initial)

    def set_rate(self, rate: State) -> None:
        """Replace the time derivative at ``t0``."""
        self._put("rate", rate)

    def _put(self, name: str, value: State) -> None:
        if isinstance(value, Tensor):
            check_tensor(value, name, ndim=1)
        elif not callable(value):
            raise TypeError(f"{name} must be a tensor (q,) or a callable, got {type(value).__name__}")
        for registry in (self._buffers, self._modules, self.__dict__):
            registry.pop(name, None)
        if isinstance(value, Tensor):
            self.register_buffer(name, value.detach().clone())
        else:
            setattr(self, name, value)

    @property
    def takes_series(self) -> bool:
        """Whether series in several variables can pass the network."""
        return passes_series(self.net)

    def _space(self, x: Tensor) -> Tensor:
        return torch.cat([x[..., : self.time_index], x[..., self.time_index + 1 :]], dim=-1)

    def _state(self, name: str, x: Tensor, like: Tensor) -> Tensor:
        state: State = getattr(self, name)
        value = state if isinstance(state, Tensor) else state(self._space(x))
        self._check_shape(name, value, like.shape)
        return value

    def _check_shape(self, name: str, value: Tensor, shape: torch.Size) -> None:
        expected = shape[-1:] if isinstance(getattr(self, name), Tensor) else shape
        if value.shape != expected:
            raise ValueError(f"{name} must have shape {tuple(expected)} as the output of net, got {tuple(value.shape)}")

    def forward(self, x: Float[Tensor, "*batch coordinates"]) -> Float[Tensor, "*batch q"]:
        """Return the solution at points ``(..., 1 + d)``."""
        inner = self.net(x)
        elapsed = x[..., self.time_index, None] - self.t0
        start = self._state("initial", x, inner)
        if self.rate is None:
            return start + elapsed * inner
        return start + elapsed * (self._state("rate", x, inner) + elapsed * inner)

    def forward_jet(self, coeffs: list[Tensor]) -> list[Tensor]:
        """Return the normalized Taylor coefficients along a curve."""
        ring = univariate(len(coeffs) - 1)
        inner: Series = list(compose(self.net, coeffs))
        time: Series = [c[..., self.time_index, None] for c in coeffs]

        def state(name: str) -> Series:
            given: State = getattr(self, name)
            if isinstance(given, Tensor):
                return [given, *[None] * (ring.size - 1)]
            return list(compose(given, [self._space(c) for c in coeffs]))

        return list(stack(self._join(state, inner, time, ring)).unbind(0))

    def forward_series(self, coordinates: Sequence[Series], ring: Algebra) -> Series:
        """Return the series of the solution; the coordinates are plain ones, each a value and its own variable."""
        result = self.net.forward_series(coordinates, ring)  # type: ignore[operator]
        inner: Series = list(result.unbind(0)) if isinstance(result, Tensor) else list(result)
        time: Series = [None if c is None else c.unsqueeze(-1) for c in coordinates[self.time_index]]

        def state(name: str) -> Series:
            given: State = getattr(self, name)
            series: Series = [None] * ring.size
            if isinstance(given, Tensor):
                series[0] = given
                return series
            # It depends on space alone: what of each coefficient has no derivative in time.
            values = [c[0] for i, c in enumerate(coordinates) if i != self.time_index and c[0] is not None]
            k = self.time_index
            spatial = [tuple(((*i[:k], *i[k + 1 :]), w) for i, w in element if not i[k]) for element in ring.elements]
            asked = [a for a, operator in enumerate(spatial) if operator]
            operators = [spatial[a] for a in asked]
            own = given.partials if isinstance(given, AtTime) else partial(partials, given)
            for a, c in zip(asked, own(values, [], operators), strict=True):
                series[a] = c
            return series

        return self._join(state, inner, time, ring)

    def _join(self, state: Callable[[str], Series], inner: Series, time: Series, ring: Algebra) -> Series:
        assert time[0] is not None
        elapsed: Series = [time[0] - self.t0, *time[1:]]
        start, first = state("initial"), inner[0]
        assert start[0] is not None
        assert first is not None
        if start[0].shape[-1:] != first.shape[-1:]:
            self._check_shape("initial", start[0], first.shape)
        if self.rate is not None:
            inner = _add(state("rate"), multiply(ring, elapsed, inner))
        return _add(start, multiply(ring, elapsed, inner))


def _add(p: Series, q: Series) -> Series:
    return [b if a is None else a if b is None else a + b for a, b in zip(p, q, strict=True)]


class TimeShift(nn.Module):
    """``net(t - offset, x)``: a network in time of its own, by the absolute time of points ``(t, x...)``."""

    def __init__(self, net: nn.Module | Callable[[Tensor], Tensor], offset: float) -> None:
        super().__init__()
        self.net = net
        self.offset = float(offset)

    def extra_repr(self) -> str:
        """Return the arguments."""
        return f"offset={self.offset}"

    @property
    def takes_series(self) -> bool:
        """Whether series in several variables can pass the network."""
        return passes_series(self.net)

    def forward(self, x: Float[Tensor, "*batch coordinates"]) -> Float[Tensor, "*batch q"]:
        """Return the outputs at points ``(..., 1 + d)``."""
        value: Tensor = self.net(self._shifted(x))
        return value

    def _shifted(self, x: Tensor) -> Tensor:
        return torch.cat([x[..., :1] - self.offset, x[..., 1:]], dim=-1)

    def forward_jet(self, coeffs: list[Tensor]) -> list[Tensor]:
        """Return the normalized Taylor coefficients along a curve."""
        return compose(self.net, [self._shifted(coeffs[0]), *coeffs[1:]])

    def forward_series(self, coordinates: Sequence[Series], ring: Algebra) -> Series | Tensor:
        """Return the series of the outputs."""
        (value, *rest), *space = coordinates
        assert value is not None
        result: Series | Tensor = self.net.forward_series([[value - self.offset, *rest], *space], ring)  # type: ignore[operator, union-attr]
        return result


class WithoutRate(nn.Module):
    """A network without its time derivatives: its values, and its derivatives in space."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    @property
    def takes_series(self) -> bool:
        """Whether series in several variables can pass the network."""
        return passes_series(self.net)

    def forward(self, x: Float[Tensor, "*batch coordinates"]) -> Float[Tensor, "*batch q"]:
        """Return the outputs at points ``(t, x...)``."""
        value: Tensor = self.net(torch.cat([x[..., :1].detach(), x[..., 1:]], dim=-1))
        return value

    def forward_jet(self, coeffs: list[Tensor]) -> list[Tensor]:
        """Return the normalized Taylor coefficients along a curve."""
        still = [torch.cat([torch.zeros_like(c[..., :1]), c[..., 1:]], dim=-1) for c in coeffs[1:]]
        return compose(self.net, [coeffs[0], *still])

    def forward_series(self, coordinates: Sequence[Series], ring: Algebra) -> Series | Tensor:
        """Return the series of the outputs."""
        (value, *rest), *space = coordinates
        result: Series | Tensor = self.net.forward_series([[value, *(None for _ in rest)], *space], ring)  # type: ignore[operator]
        return result


class AtTime:
    """A trained network at one time, as a function of the space coordinates ``(..., d)``: the state it hands over.

    It is no module and has no parameters to train: it only looks at a network, whose parameters are frozen.
    """

    def __init__(self, net: nn.Module, time: float, order: int = 0) -> None:
        self.net, self.time, self.order = net, float(time), order

    def __deepcopy__(self, memo: dict[int, Any]) -> AtTime:
        return self  # what is frozen need not be copied

    def __call__(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch q"]:
        """Return the state at points ``(..., d)``."""
        points = torch.cat([torch.full_like(x[..., :1], self.time), x], dim=-1)
        if self.order == 0:
            value: Tensor = self.net(points)
            return value
        along = torch.zeros_like(points[..., :])
        along[..., 0] = 1
        coefficients = [points, along, *(torch.zeros_like(points) for _ in range(self.order - 1))]
        return compose(self.net, coefficients)[self.order] * _factorial(self.order)

    @property
    def takes_jets(self) -> bool:
        """Whether Taylor mode goes through: a rate is a derivative already."""
        return self.order == 0

    def forward_jet(self, coeffs: list[Tensor]) -> list[Tensor]:
        """Return the normalized Taylor coefficients along a curve in space."""
        times = [torch.full_like(coeffs[0][..., :1], self.time), *(torch.zeros_like(c[..., :1]) for c in coeffs[1:])]
        return compose(self.net, [torch.cat([t, c], dim=-1) for t, c in zip(times, coeffs, strict=True)])

    def partials(
        self, coordinates: Sequence[Tensor], indices: Sequence[Index], operators: Sequence[Operator]
    ) -> list[Tensor]:
        """Return partial derivatives in space, then operators: those of the network at its time."""
        first = coordinates[0]
        time = first.new_full((1,) * first.ndim, self.time)
        n = self.order
        sums = [tuple(((n, *index), weight) for index, weight in operator) for operator in operators]
        return partials(self.net, [time, *coordinates], [(n, *index) for index in indices], sums)


def _factorial(n: int) -> int:
    return n * _factorial(n - 1) if n > 1 else 1


def exact_conditions(net: nn.Module) -> list[ExactInitialCondition]:
    """Return the exact initial conditions within a network, outermost first."""
    return [module for module in net.modules() if isinstance(module, ExactInitialCondition)]


def in_window(net: nn.Module, start: float) -> nn.Module:
    """Return a network by absolute time for the window that begins at ``start``.

    Networks of this package are centered on their window: time since its start, as in the paper. A module of the user's
    own gets absolute time, since it may know boundary values that depend on time.
    """
    for condition in exact_conditions(net):
        condition.t0 = float(start)
        inner: nn.Module = condition.net
        condition.net = _centered(inner, start)
    return _centered(net, start)


def _centered(net: nn.Module, start: float) -> nn.Module:
    # Imported here: networks do not know of windows.
    from offprints.pinn_causal.networks import MLP, ModifiedMLP

    if start and isinstance(net, (MLP, ModifiedMLP)) and implements(net, "forward_series"):
        return TimeShift(net, start)
    return net
