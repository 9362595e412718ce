"""Networks with Taylor-mode derivatives: MLP and modified MLP."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from offprints.pinn_causal import series
from offprints.pinn_causal.algebra import Algebra, univariate
from offprints.pinn_causal.arguments import check_sequence
from offprints.pinn_causal.embeddings import Group, check_points
from offprints.pinn_causal.jets import compose, hooked, implements
from offprints.pinn_causal.series import Series, stack
from offprints.shared.validation import check_choice, check_number

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
        check_sequence(hidden, "hidden", "widths")
        hidden = tuple(check_number(width, "hidden", low=1, integer=True) for width in hidden)
        check_choice(activation, "activation", tuple(ACTIVATIONS))
        self.in_features, self.out_features, self.activation = in_features, out_features, activation
        if embedding is not None and not isinstance(embedding, nn.Module):
            raise TypeError(f"embedding must be a torch.nn.Module, got {type(embedding).__name__}")
        self.embedding = embedding
        self.features = int(getattr(embedding, "out_features", in_features))
        if embedding is not None and getattr(embedding, "in_features", in_features) != in_features:
            raise ValueError(f"embedding takes {embedding.in_features} coordinates, but in_features is {in_features}")
        self.layers = nn.ModuleList(_linear(n, m) for n, m in pairwise((self.features, *hidden, out_features)))

    @property
    def takes_jets(self) -> bool:
        """Whether the layers are plain ones, of which the weights are all: no subclasses, hooks or adapters."""
        return all(_plain(layer) for layer in self._all_linears())

    @property
    def takes_series(self) -> bool:
        """Whether series in several variables can pass: not through a foreign embedding."""
        return self.embedding is None or implements(self.embedding, "groups")

    # forward and forward_jet stand in one class: a subclass that changes forward alone loses the jets (`implements`).
    def forward(self, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out_features"]:
        """Return the outputs at points ``(..., in_features)``.

        Raises:
            TypeError: ``x`` is not a floating tensor, or not of the dtype of the weights.
            ValueError: the last dimension of ``x`` is not ``in_features``.
        """
        check_points(x, self.in_features, like=next(self.parameters(), None))
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

    def _all_linears(self) -> list[nn.Linear]:
        return self._linears()

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
        check_points(coeffs[0], self.in_features, like=next(self.parameters(), None))
        ring = univariate(len(coeffs) - 1)
        features = coeffs if self.embedding is None else compose(self.embedding, coeffs)
        return list(self._pass([(slice(0, self.features), list(features))], ring).unbind(0))


def _plain(layer: nn.Module) -> bool:
    """Tell whether ``W h + b`` is all that a call does: type by type, since parametrizations are subclasses too."""
    return type(layer) is nn.Linear and layer.bias is not None and not hooked(layer)


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

    Example:
        >>> import torch
        >>> net = MLP(2, (32, 32), 1, embedding=SpaceTimeEmbedding(periods=[2.0], modes=[5]))
        >>> net(torch.rand(10, 2)).shape
        torch.Size([10, 1])
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

    Example:
        >>> import torch
        >>> net = ModifiedMLP(2, (32, 32), 1, embedding=SpaceTimeEmbedding(periods=[2.0], modes=[5]))
        >>> net(torch.rand(10, 2)).shape
        torch.Size([10, 1])
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
        check_sequence(hidden, "hidden", "widths")
        hidden = tuple(hidden)
        if len(set(hidden)) != 1:
            raise ValueError(f"hidden must be one or more equal widths, got {tuple(hidden)}")
        super().__init__(in_features, hidden, out_features, activation=activation, embedding=embedding)
        self.gate_u = _linear(self.features, hidden[0])
        self.gate_v = _linear(self.features, hidden[0])

    def _all_linears(self) -> list[nn.Linear]:
        return [*self._linears(), self.gate_u, self.gate_v]

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
