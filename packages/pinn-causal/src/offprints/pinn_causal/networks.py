"""Networks with Taylor-mode derivatives: MLP, modified MLP, exact initial conditions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from offprints.pinn_causal import series
from offprints.pinn_causal.algebra import Algebra, univariate
from offprints.pinn_causal.embeddings import Group, check_points
from offprints.pinn_causal.jets import compose, derivatives, implements
from offprints.pinn_causal.series import Series, multiply, stack
from offprints.shared.validation import check_choice, check_number, check_tensor

ACTIVATIONS = {"tanh": (torch.tanh, series.tanh), "sin": (torch.sin, series.sin)}


class _Network(nn.Module):
    """What MLP and modified MLP have in common: arguments, the first layer on series, the jet protocol."""

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        out_features: int,
        *,
        activation: str = "tanh",
        embedding: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_number(in_features, "in_features", low=1, integer=True)
        check_number(out_features, "out_features", low=1, integer=True)
        for width in hidden:
            check_number(width, "hidden", low=1, integer=True)
        check_choice(activation, "activation", tuple(ACTIVATIONS))
        self.in_features, self.out_features, self.activation = in_features, out_features, activation
        self.embedding = embedding
        self.features = int(getattr(embedding, "out_features", in_features))
        if embedding is not None and getattr(embedding, "in_features", in_features) != in_features:
            raise ValueError(f"embedding takes {embedding.in_features} coordinates, but in_features is {in_features}")
        self.layers = nn.ModuleList(_linear(n, m) for n, m in pairwise((self.features, *hidden, out_features)))

    @property
    def takes_series(self) -> bool:
        """Whether series in several variables can pass: not through a foreign embedding."""
        return self.embedding is None or implements(self.embedding, "groups")

    # forward and forward_jet stand in one class: a subclass that changes forward alone loses the jets (`implements`).
    def forward(self, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out_features"]:
        """Return the outputs at points ``(..., in_features)``.

        Raises:
            TypeError: ``x`` is not a floating tensor.
            ValueError: the last dimension of ``x`` is not ``in_features``.
        """
        check_points(x, self.in_features)
        return self._value(x if self.embedding is None else self.embedding(x))

    def _value(self, h: Tensor) -> Tensor:
        """Return the outputs, given the features."""
        raise NotImplementedError

    def _groups(self, coordinates: Sequence[Series], ring: Algebra) -> list[Group]:
        if self.embedding is not None:
            groups: list[Group] = self.embedding.groups(coordinates, ring)  # type: ignore[operator]
            return groups
        return [
            (slice(i, i + 1), [None if a is None else a.unsqueeze(-1) for a in c]) for i, c in enumerate(coordinates)
        ]

    def _pass(self, groups: list[Group], ring: Algebra) -> Tensor:
        """Return the stacked coefficients ``(coefficients, ..., out_features)`` of the outputs."""
        raise NotImplementedError

    def _linears(self) -> list[nn.Linear]:
        return cast("list[nn.Linear]", list(self.layers))

    def _last(self, z: Tensor | Series) -> Tensor:
        last = self._linears()[-1]
        # A network without hidden layers has applied its only weights already.
        out = F.linear(z, last.weight) if isinstance(z, Tensor) else stack(z)
        return torch.cat([out[:1] + last.bias, out[1:]])

    def forward_series(self, coordinates: Sequence[Series], ring: Algebra) -> Tensor:
        """Return the stacked series of the outputs, given those of the coordinates."""
        return self._pass(self._groups(coordinates, ring), ring)

    def forward_jet(self, coeffs: list[Tensor]) -> list[Tensor]:
        """Return the normalized Taylor coefficients of the outputs along a curve, given those of the points."""
        check_points(coeffs[0], self.in_features)
        ring = univariate(len(coeffs) - 1)
        features = coeffs if self.embedding is None else compose(self.embedding, coeffs)
        return list(self._pass([(slice(0, self.features), list(features))], ring).unbind(0))


def _linear(n: int, m: int) -> nn.Linear:
    """Return a layer with Glorot normal weights, std sqrt(2 / (n + m)), and no bias yet."""
    layer = nn.Linear(n, m)
    nn.init.xavier_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _first(layer: nn.Linear, groups: list[Group]) -> Series:
    """Apply the weights (not the bias) of a layer to features in parts: on a grid the parts meet in a sum alone."""
    total: Series | None = None
    for columns, part in groups:
        weight = layer.weight[:, columns]
        image: Series = [None if c is None else F.linear(c, weight) for c in part]
        if total is None:
            total = image
        else:
            total = [b if a is None else a if b is None else a + b for a, b in zip(total, image, strict=True)]
    assert total is not None
    return total


class MLP(_Network):
    """Multilayer perceptron: ``h <- act(h W + b)``, last layer linear, Glorot normal weights, zero biases.

    Args:
        in_features: number of coordinates, 1 + d.
        hidden: width of each hidden layer.
        out_features: number of outputs.
        activation: "tanh" (the paper) or "sin".
        embedding: module from the coordinates to ``embedding.out_features`` features, such as `SpaceTimeEmbedding`.

    ``layers`` holds the linear layers, hidden ones and the last. Any number of dimensions before the last.

    Raises:
        ValueError: unknown activation, a width below 1, an embedding of other coordinates.
    """

    def _value(self, h: Tensor) -> Tensor:
        act, _ = ACTIVATIONS[self.activation]
        for layer in self.layers[:-1]:
            h = act(layer(h))
        out: Tensor = self.layers[-1](h)
        return out

    def _pass(self, groups: list[Group], ring: Algebra) -> Tensor:
        _, act = ACTIVATIONS[self.activation]
        layers = self._linears()
        h: Tensor | Series = _first(layers[0], groups)
        for layer, following in pairwise(layers):
            h = act(ring, h, layer.bias)
            if following is not layers[-1]:
                h = F.linear(h, following.weight)
        return self._last(h)


class ModifiedMLP(_Network):
    """The modified MLP of Wang, Teng and Perdikaris: two encoders of the input gate every hidden layer.

    With H the embedded input, ``U = act(H W_u + b_u)``, ``V = act(H W_v + b_v)``, ``z = H``; every hidden layer is
    ``o = act(z W + b)``, ``z <- o U + (1 - o) V``; the last layer is linear.

    Arguments as for `MLP`; ``gate_u`` and ``gate_v`` are the encoders.

    Raises:
        ValueError: as `MLP`, and hidden widths that differ, or no hidden layer.
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        out_features: int,
        *,
        activation: str = "tanh",
        embedding: nn.Module | None = None,
    ) -> None:
        if len(set(hidden)) != 1:
            raise ValueError(f"hidden must be one or more equal widths, got {tuple(hidden)}")
        super().__init__(in_features, hidden, out_features, activation=activation, embedding=embedding)
        self.gate_u = _linear(self.features, hidden[0])
        self.gate_v = _linear(self.features, hidden[0])

    def _value(self, h: Tensor) -> Tensor:
        act, _ = ACTIVATIONS[self.activation]
        z = h
        v = act(self.gate_v(z))
        d = act(self.gate_u(z)) - v
        for layer in self.layers[:-1]:
            z = torch.addcmul(v, act(layer(z)), d)
        out: Tensor = self.layers[-1](z)
        return out

    def _pass(self, groups: list[Group], ring: Algebra) -> Tensor:
        _, act = ACTIVATIONS[self.activation]
        v = act(ring, _first(self.gate_v, groups), self.gate_v.bias)
        d = act(ring, _first(self.gate_u, groups), self.gate_u.bias) - v
        layers = self._linears()
        h: Tensor | Series = _first(layers[0], groups)
        for layer, following in pairwise(layers):
            h = series.gate(ring, act(ring, h, layer.bias), d, v)
            if following is not layers[-1]:
                h = F.linear(h, following.weight)
        return self._last(h)


class ExactInitialCondition(nn.Module):
    """``u(t, x) = u_0(x) + (t - t0) net(t, x)``: the initial state holds whatever the network says.

    Args:
        net: takes the same points.
        initial: the constant state ``(q,)`` of a system of ODEs, or a callable from the space coordinates ``(..., d)``
            to ``(..., q)``, such as a trigonometric interpolant.
        time_index: which coordinate is t.
        t0: initial time.

    Raises:
        TypeError: ``initial`` is neither a tensor nor callable.
        ValueError: a tensor ``initial`` is not one-dimensional, ``time_index`` negative.
    """

    def __init__(
        self,
        net: nn.Module,
        initial: Tensor | Callable[[Tensor], Tensor],
        *,
        time_index: int = 0,
        t0: float = 0.0,
    ) -> None:
        super().__init__()
        check_number(time_index, "time_index", low=0, integer=True)
        check_number(t0, "t0")
        self.net = net
        self.time_index, self.t0 = time_index, float(t0)
        self.initial: Tensor | Callable[[Tensor], Tensor]
        self.set_initial(initial)

    def set_initial(self, initial: Tensor | Callable[[Tensor], Tensor]) -> None:
        """Replace the initial state."""
        if isinstance(initial, Tensor):
            check_tensor(initial, "initial", ndim=1)
            if isinstance(getattr(self, "initial", None), nn.Module):
                del self.initial
            if "initial" in self._buffers:
                self._buffers["initial"] = initial.detach()
            else:
                self.__dict__.pop("initial", None)
                self.register_buffer("initial", initial.detach())
            return
        if not callable(initial):
            raise TypeError(f"initial must be a tensor (q,) or a callable, got {type(initial).__name__}")
        for registry in (self._buffers, self._modules, self.__dict__):
            registry.pop("initial", None)
        self.initial = initial

    @property
    def takes_series(self) -> bool:
        """Whether series in several variables can pass the network."""
        return implements(self.net, "forward_series") and bool(self.net.takes_series)

    def _space(self, x: Tensor) -> Tensor:
        return torch.cat([x[..., : self.time_index], x[..., self.time_index + 1 :]], dim=-1)

    def forward(self, x: Float[Tensor, "*batch coordinates"]) -> Float[Tensor, "*batch q"]:
        """Return the solution at points ``(..., 1 + d)``."""
        start = self.initial if isinstance(self.initial, Tensor) else self.initial(self._space(x))
        elapsed = x[..., self.time_index, None] - self.t0
        return start + elapsed * self.net(x)

    def forward_jet(self, coeffs: list[Tensor]) -> list[Tensor]:
        """Return the normalized Taylor coefficients along a curve."""
        ring = univariate(len(coeffs) - 1)
        inner: Series = list(compose(self.net, coeffs))
        start: Series = [None] * ring.size
        if isinstance(self.initial, Tensor):
            start[0] = self.initial
        else:
            start = list(compose(self.initial, [self._space(c) for c in coeffs]))
        time: Series = [c[..., self.time_index, None] for c in coeffs]
        return list(stack(_add(start, multiply(ring, self._elapsed(time), inner))).unbind(0))

    def _elapsed(self, time: Series) -> Series:
        assert time[0] is not None
        return [time[0] - self.t0, *time[1:]]

    def forward_series(self, coordinates: Sequence[Series], ring: Algebra) -> Series:
        """Return the series of the solution; the coordinates are plain ones, each a value and its own variable."""
        result = self.net.forward_series(coordinates, ring)  # type: ignore[operator]
        inner: Series = list(result.unbind(0)) if isinstance(result, Tensor) else list(result)
        time = self._elapsed([None if c is None else c.unsqueeze(-1) for c in coordinates[self.time_index]])
        start: Series = [None] * ring.size
        if isinstance(self.initial, Tensor):
            start[0] = self.initial
        else:
            # u_0 depends on space alone: what of each coefficient has no derivative in time.
            values = [c[0] for i, c in enumerate(coordinates) if i != self.time_index and c[0] is not None]
            k = self.time_index
            spatial = [tuple(((*i[:k], *i[k + 1 :]), w) for i, w in element if not i[k]) for element in ring.elements]
            asked = [a for a, operator in enumerate(spatial) if operator]
            for a, c in zip(asked, derivatives(self.initial, values, [], [spatial[a] for a in asked]), strict=True):
                start[a] = c
        return _add(start, multiply(ring, time, inner))


def _add(p: Series, q: Series) -> Series:
    return [b if a is None else a if b is None else a + b for a, b in zip(p, q, strict=True)]
