"""Features of the coordinates: exact periodicity in space, powers of ten in time, random Fourier features."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offprints.pinn_causal.algebra import Algebra, univariate
from offprints.pinn_causal.series import Series, multiply, sin_cos, stack
from offprints.shared.validation import check_number, check_tensor

# A part of the features: its columns, and its series (..., columns). Parts may broadcast along different axes.
Group = tuple[slice, Series]


class _Embedding(nn.Module):
    """Features whose value and jets come from one definition: ``groups``."""

    in_features: int
    out_features: int

    def groups(self, coordinates: Sequence[Series], ring: Algebra) -> list[Group]:
        """Return the features, in parts, as series."""
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out_features"]:
        """Return the features of points.

        Raises:
            TypeError: ``x`` is not a floating tensor.
            ValueError: the last dimension of ``x`` is not ``in_features``.
        """
        (features,) = self.forward_jet([x])
        return features

    def forward_jet(self, coeffs: list[Tensor]) -> list[Tensor]:
        """Return the normalized Taylor coefficients of the features along a curve."""
        check_points(coeffs[0], self.in_features)
        ring = univariate(len(coeffs) - 1)
        coordinates: list[Series] = [list(c) for c in zip(*(c.unbind(-1) for c in coeffs), strict=True)]
        parts = [stack(series) for _, series in self.groups(coordinates, ring)]
        return list(torch.cat(parts, dim=-1).unbind(0))


def check_points(x: Tensor, in_features: int, *, like: Tensor | None = None) -> None:
    """Refuse points whose last dimension is not ``in_features``, or of another dtype than ``like``, the weights."""
    check_tensor(x, "x", finite=False, allow_empty=True)
    if like is not None and x.dtype != like.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(f"x must have the dtype of the network, {like.dtype}, got {x.dtype}")
    if x.ndim == 0 or x.shape[-1] != in_features:
        raise ValueError(f"x must have last dimension {in_features}, got shape {tuple(x.shape)}")


class SpaceTimeEmbedding(_Embedding):
    r"""Features that make a network exactly periodic in space, and see several time scales.

    With w = 2 pi / period, one space dimension::

        [10^p t (p in time_powers), 1, cos(k w x) (k = 1..M), sin(k w x)]

    and two, with cc = cos(k w_x x) cos(l w_y y) and so on over all pairs, k fastest::

        [1, 10^p t, cos(k w_x x), cos(l w_y y), sin(k w_x x), sin(l w_y y), cc, cs, sc, ss]

    Args:
        periods: of x, or of x and y.
        modes: M, the number of harmonics of each.
        time_powers: p; negative ones are true powers, 10^-3 = 0.001.

    Input ``(..., 1 + d)`` = (t, x[, y]); ``out_features`` is the number of features.

    Raises:
        ValueError: more than two space dimensions or none, as many ``modes`` as ``periods`` not given, a period that
            is not positive, a mode below 1, ``time_powers`` empty.

    Example:
        >>> embedding = SpaceTimeEmbedding(periods=[2.0], modes=[5])
        >>> embedding(torch.rand(10, 2)).shape
        torch.Size([10, 12])
    """

    def __init__(self, *, periods: Sequence[float], modes: Sequence[int], time_powers: Sequence[int] = (0,)) -> None:
        super().__init__()
        if len(periods) not in (1, 2):
            raise ValueError(f"periods must have 1 or 2 entries, one for each space dimension, got {len(periods)}")
        if len(modes) != len(periods):
            raise ValueError(f"modes must have as many entries as periods ({len(periods)}), got {len(modes)}")
        if not time_powers:
            raise ValueError("time_powers must not be empty")
        for period in periods:
            check_number(period, "periods", low=0, open_low=True)
        for mode in modes:
            check_number(mode, "modes", low=1, integer=True)
        for power in time_powers:
            check_number(power, "time_powers", integer=True)
        self.periods = tuple(map(float, periods))
        self.modes = tuple(modes)
        self.time_powers = tuple(time_powers)
        self.in_features = 1 + len(periods)
        harmonics = 2 * sum(modes) + (4 * math.prod(modes) if len(modes) == 2 else 0)
        self.out_features = len(time_powers) + 1 + harmonics

    def extra_repr(self) -> str:
        """Return the arguments."""
        return f"periods={self.periods}, modes={self.modes}, time_powers={self.time_powers}"

    def _angular(self, axis: int, like: Tensor) -> Tensor:
        steps = torch.arange(1, self.modes[axis] + 1, dtype=like.dtype, device=like.device)
        return steps * (2 * math.pi / self.periods[axis])

    def groups(self, coordinates: Sequence[Series], ring: Algebra) -> list[Group]:
        """Return the features of time and those of space as series."""
        time, *space = coordinates
        n_time = len(self.time_powers) + 1
        first = time[0]
        assert first is not None
        # A float base: integers have no negative powers.
        powers = torch.tensor([10.0**p for p in self.time_powers], dtype=first.dtype, device=first.device)
        one_first = len(space) == 2
        times: Series = []
        for a, c in enumerate(time):
            if c is None:
                times.append(None)
                continue
            one = (torch.ones_like(c) if a == 0 else torch.zeros_like(c)).unsqueeze(-1)
            scaled = c.unsqueeze(-1) * powers
            times.append(torch.cat([one, scaled] if one_first else [scaled, one], dim=-1))
        waves = []
        for axis, x in enumerate(space):
            assert x[0] is not None
            angular = self._angular(axis, x[0])
            waves.append(sin_cos(ring, [None if c is None else c.unsqueeze(-1) * angular for c in x]))
        if len(space) == 1:
            sine, cosine = waves[0]
            features = _concatenate([cosine, sine])
        else:
            (sx, cx), (sy, cy) = waves
            pairs = [_outer(ring, a, b) for a, b in ((cx, cy), (cx, sy), (sx, cy), (sx, sy))]
            features = _concatenate([cx, cy, sx, sy, *pairs])
        return [(slice(0, n_time), times), (slice(n_time, self.out_features), features)]


def _concatenate(parts: Sequence[Series]) -> Series:
    """Join series along the feature axis, coefficient by coefficient."""
    result: Series = []
    for coefficients in zip(*parts, strict=True):
        known = [c for c in coefficients if c is not None]
        if not known:
            result.append(None)
            continue
        batch = torch.broadcast_shapes(*(c.shape[:-1] for c in known))
        widths = [next(c.shape[-1] for c in part if c is not None) for part in parts]
        result.append(
            torch.cat(
                [
                    known[0].new_zeros((*batch, width)) if c is None else c.expand(*batch, width)
                    for c, width in zip(coefficients, widths, strict=True)
                ],
                dim=-1,
            )
        )
    return result


def _outer(ring: Algebra, p: Series, q: Series) -> Series:
    """Return all products of a feature of ``p`` and one of ``q``, those of ``p`` fastest."""
    rows: Series = [None if c is None else c.unsqueeze(-2) for c in p]
    columns: Series = [None if c is None else c.unsqueeze(-1) for c in q]
    return [None if c is None else c.flatten(-2) for c in multiply(ring, rows, columns)]


class FourierFeatures(_Embedding):
    """Random Fourier features ``[sin(x B), cos(x B)]``, B ~ sigma N(0, 1) of shape ``(in_features, n_features)``.

    B is a buffer, part of the state; ``out_features`` is ``2 n_features``.

    Raises:
        ValueError: ``in_features`` or ``n_features`` below 1, ``sigma`` not positive.

    Example:
        >>> FourierFeatures(2, 8, sigma=5.0)(torch.rand(10, 2)).shape
        torch.Size([10, 16])
    """

    frequencies: Tensor

    def __init__(
        self, in_features: int, n_features: int, *, sigma: float = 1.0, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        check_number(in_features, "in_features", low=1, integer=True)
        check_number(n_features, "n_features", low=1, integer=True)
        check_number(sigma, "sigma", low=0, open_low=True)
        self.in_features = in_features
        self.out_features = 2 * n_features
        self.sigma = float(sigma)
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
        device = None if generator is None else generator.device
        self.register_buffer(
            "frequencies", sigma * torch.randn(in_features, n_features, generator=generator, device=device)
        )

    def extra_repr(self) -> str:
        """Return the arguments."""
        return f"in_features={self.in_features}, n_features={self.out_features // 2}, sigma={self.sigma}"

    def groups(self, coordinates: Sequence[Series], ring: Algebra) -> list[Group]:
        """Return the features, which no coordinate has for itself, as one part."""
        angle: Series = []
        for coefficients in zip(*coordinates, strict=True):
            terms = [
                c.unsqueeze(-1) * row for c, row in zip(coefficients, self.frequencies, strict=True) if c is not None
            ]
            angle.append(sum(terms[1:], terms[0]) if terms else None)
        return [(slice(0, self.out_features), _concatenate(sin_cos(ring, angle)))]
