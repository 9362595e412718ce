"""Truncated Taylor series in one or several variables: the arithmetic behind every derivative of this package.

A series is the list of its normalized Taylor coefficients ``D^a f / a!``, one for each monomial of an `Algebra`; None
stands for a coefficient that vanishes. Coefficients may broadcast against each other, which is how a function of t
alone and one of x alone meet on a grid without being copied along it. Several directions share the zeroth coefficient.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import torch
from torch import Tensor

Index = tuple[int, ...]
Series = list[Tensor | None]


@dataclass(frozen=True)
class Algebra:
    """Polynomials truncated to a set of monomials that contains the divisors of its members.

    Attributes:
        indices: the exponents of each monomial, by degree; the first is the constant.
        products: for monomial a, the pairs of positions (b, c) with ``x^b x^c = x^a``.
        chain: for monomial a of positive degree, the triples (weight, b, c) of the recurrence
            ``y_a = sum weight h_b s_c`` that solves ``dy = s dh``.
        factorials: ``a!`` of each monomial: derivative = factorial x coefficient.
    """

    indices: tuple[Index, ...]
    products: tuple[tuple[tuple[int, int], ...], ...]
    chain: tuple[tuple[tuple[float, int, int], ...], ...]
    factorials: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of monomials."""
        return len(self.indices)

    def variable(self, position: int, value: Tensor) -> Series:
        """Return the series of one coordinate around ``value``: ``value + x_position``."""
        unit = tuple(int(i == position) for i in range(len(self.indices[0])))
        coefficients: Series = [value, *([None] * (self.size - 1))]
        if unit in self.indices:
            coefficients[self.indices.index(unit)] = torch.ones_like(value)
        return coefficients


@lru_cache(maxsize=256)
def algebra(indices: tuple[Index, ...]) -> Algebra:
    """Return the smallest algebra that holds the given monomials."""
    closed = {below for index in indices for below in product(*(range(n + 1) for n in index))}
    ordered = sorted(closed, key=lambda index: (sum(index), tuple(-n for n in index)))
    position = {index: i for i, index in enumerate(ordered)}
    products, chain = [], []
    for a in ordered:
        below = [b for b in ordered if all(m <= n for m, n in zip(b, a, strict=True))]
        rest = {b: tuple(n - m for m, n in zip(b, a, strict=True)) for b in below}
        products.append(tuple((position[b], position[rest[b]]) for b in below))
        # Differentiate along the first variable in the monomial: a_i y_a = sum of b_i h_b s_(a-b) over b with b_i > 0.
        i = next((i for i, n in enumerate(a) if n), 0)
        chain.append(tuple((b[i] / a[i], position[b], position[rest[b]]) for b in below if b[i]))
    factorials = tuple(math.prod(map(math.factorial, index)) for index in ordered)
    return Algebra(tuple(ordered), tuple(products), tuple(chain), factorials)


def univariate(order: int) -> Algebra:
    """Return the polynomials of one variable up to ``order``."""
    return algebra(((order,),))


def _sum_of_products(terms: Iterable[tuple[float, Tensor, Tensor]], out: Tensor | None = None) -> Tensor | None:
    """Return ``sum weight * p * q``; None when there is no term. ``out`` is written only where no graph is recorded."""
    total: Tensor | None = None
    for weight, p, q in terms:
        if total is None:
            total = torch.mul(p, q, out=out)
            if weight != 1:
                total.mul_(weight)
        elif total.shape == torch.broadcast_shapes(p.shape, q.shape):
            total.addcmul_(p, q, value=weight)
        else:
            total = torch.addcmul(total, p, q, value=weight)
    return total


def multiply(ring: Algebra, p: Series, q: Series) -> Series:
    """Return the product of two series."""
    return [
        _sum_of_products([(1.0, b, c) for i, j in pairs if (b := p[i]) is not None and (c := q[j]) is not None])
        for pairs in ring.products
    ]


def sin_cos(ring: Algebra, h: Series) -> tuple[Series, Series]:
    """Return sine and cosine of a series: ``ds = c dh``, ``dc = -s dh``."""
    assert h[0] is not None
    sine: Series = [torch.sin(h[0])]
    cosine: Series = [torch.cos(h[0])]
    for terms in ring.chain[1:]:
        pairs = [(w, b, c) for w, i, c in terms if (b := h[i]) is not None]
        sine.append(_sum_of_products([(w, b, q) for w, b, c in pairs if (q := cosine[c]) is not None]))
        cosine.append(_sum_of_products([(-w, b, q) for w, b, c in pairs if (q := sine[c]) is not None]))
    return sine, cosine


def _tanh_slope(ring: Algebra, y: Sequence[Tensor], a: int, out: Tensor | None = None) -> Tensor:
    """Return coefficient ``a`` of ``1 - y^2``, pairing the equal halves of the square."""
    if a == 0:
        return torch.addcmul(y[0].new_ones(()), y[0], y[0], value=-1, out=out)
    terms = [(-1.0 if b == c else -2.0, y[b], y[c]) for b, c in ring.products[a] if b <= c]
    slope = _sum_of_products(terms, out)
    assert slope is not None
    return slope


def _shape(h: Sequence[Tensor | None], *others: Tensor) -> torch.Size:
    return torch.broadcast_shapes(*(c.shape for c in h if c is not None), *(o.shape for o in others))


class _Tanh(torch.autograd.Function):
    """tanh of a series, biased.

    Backward: with the slope series ``s = 1 - y^2``, ``dy = s dh`` is a product of series, so that its transpose is a
    correlation with ``s``, whatever the number of variables and the order.
    """

    @staticmethod
    def forward(ctx: Any, ring: Algebra, stacked: bool, bias: Tensor | None, *h: Tensor | None) -> Tensor:
        """Return the stacked coefficients; ``h`` is one stacked tensor or one tensor (or None) per monomial."""
        coefficients: Sequence[Tensor | None] = h[0].unbind(0) if stacked and h[0] is not None else h
        first = coefficients[0]
        assert first is not None
        shape = _shape(coefficients) if bias is None else _shape(coefficients, bias)
        y = first.new_empty((ring.size, *shape))
        parts = y.unbind(0)
        torch.tanh(first if bias is None else first + bias, out=parts[0])
        slopes: dict[int, Tensor] = {}
        for a in range(1, ring.size):
            terms = [(w, b, c) for w, i, c in ring.chain[a] if (b := coefficients[i]) is not None]
            for *_, c in terms:
                if c not in slopes:
                    slopes[c] = _tanh_slope(ring, parts, c)
            if terms:
                _sum_of_products([(w, b.expand(shape), slopes[c]) for w, b, c in terms], parts[a])
            else:
                parts[a].zero_()
        ctx.slopes = slopes
        ctx.ring, ctx.stacked = ring, stacked
        ctx.shapes = [None if c is None else c.shape for c in h]
        ctx.bias_shape = None if bias is None else bias.shape
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Correlate the gradient with the slope."""
        (y,) = ctx.saved_tensors
        ring: Algebra = ctx.ring
        parts, g = y.unbind(0), gradients[0].unbind(0)
        recorded = torch.is_grad_enabled()
        # The slopes of the way there serve again, unless a second derivative must know how they came about.
        known = {} if recorded else ctx.slopes
        slopes = [known[a] if a in known else _tanh_slope(ring, parts, a) for a in range(ring.size)]
        wanted = [ctx.stacked or shape is not None for shape in ([None] * ring.size if ctx.stacked else ctx.shapes)]
        buffer = None if recorded or not ctx.stacked else torch.empty_like(y)
        out: list[Tensor | None] = []
        for b in range(ring.size):
            terms = [(1.0, slopes[i], g[a]) for a, pairs in enumerate(ring.products) for i, j in pairs if j == b]
            out.append(_sum_of_products(terms, None if buffer is None else buffer[b]) if wanted[b] or b == 0 else None)
        first = out[0]
        assert first is not None
        bias = None if ctx.bias_shape is None else first.sum_to_size(ctx.bias_shape)
        if ctx.stacked:
            return None, None, bias, buffer if buffer is not None else torch.stack([c for c in out if c is not None])
        reduced = [
            None if c is None or shape is None else c.sum_to_size(shape)
            for c, shape in zip(out, ctx.shapes, strict=True)
        ]
        return None, None, bias, *reduced


def tanh(ring: Algebra, h: Tensor | Series, bias: Tensor | None = None) -> Tensor:
    """Return the stacked coefficients ``(monomials, ...)`` of ``tanh(h + bias)``; ``h`` stacked or a series."""
    if isinstance(h, Tensor):
        return _Tanh.apply(ring, True, bias, h)
    return _Tanh.apply(ring, False, bias, *h)


def sin(ring: Algebra, h: Tensor | Series, bias: Tensor | None = None) -> Tensor:
    """Return the stacked coefficients of ``sin(h + bias)``."""
    coefficients: Series = list(h.unbind(0)) if isinstance(h, Tensor) else list(h)
    if bias is not None:
        assert coefficients[0] is not None
        coefficients[0] = coefficients[0] + bias
    return stack(sin_cos(ring, coefficients)[0])


class _Gate(torch.autograd.Function):
    """``v + o d`` on stacked series."""

    @staticmethod
    def forward(ctx: Any, ring: Algebra, o: Tensor, d: Tensor, v: Tensor) -> Tensor:
        """Return the stacked coefficients."""
        out = torch.empty_like(v)
        for a, pairs in enumerate(ring.products):
            for position, (b, c) in enumerate(pairs):
                torch.addcmul(out[a] if position else v[a], o[b], d[c], out=out[a])
        ctx.ring = ring
        ctx.save_for_backward(o, d)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Correlate the gradient with the other factor."""
        o, d = ctx.saved_tensors
        (g,) = gradients
        return None, _correlate(ctx.ring, d, g), _correlate(ctx.ring, o, g), g


def _correlate(ring: Algebra, factor: Tensor, g: Tensor) -> Tensor:
    """Return the transpose of the product with ``factor``, applied to ``g``; both stacked."""
    buffer = None if torch.is_grad_enabled() else torch.empty_like(g)
    out = []
    for b in range(ring.size):
        terms = [(1.0, factor[i], g[a]) for a, pairs in enumerate(ring.products) for i, j in pairs if j == b]
        out.append(_sum_of_products(terms, None if buffer is None else buffer[b]))
    return buffer if buffer is not None else torch.stack([c for c in out if c is not None])


def gate(ring: Algebra, o: Tensor, d: Tensor, v: Tensor) -> Tensor:
    """Return ``v + o d`` on stacked series: the gate ``o u + (1 - o) v`` with ``d = u - v``."""
    return _Gate.apply(ring, o, d, v)


def stack(series: Series) -> Tensor:
    """Stack a series along a new first axis, zeros for what vanishes."""
    shape = _shape(series)
    first = series[0]
    assert first is not None
    return torch.stack([first.new_zeros(shape) if c is None else c.expand(shape) for c in series])


def horner(coefficients: Sequence[Tensor], s: Tensor) -> Tensor:
    """Return the polynomial ``sum c_k s^k``."""
    value = coefficients[-1]
    for c in reversed(coefficients[:-1]):
        value = c + s * value
    return value
