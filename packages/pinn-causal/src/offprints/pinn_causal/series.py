"""Truncated Taylor series in one or several variables: the arithmetic behind every derivative of this package.

A series is the list of its normalized Taylor coefficients ``D^a f / a!``, as an `Algebra` numbers them; None stands for
a coefficient that vanishes. Coefficients may broadcast against each other, which is how a function of t
alone and one of x alone meet on a grid without being copied along it. Several directions share the zeroth coefficient.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from offprints.pinn_causal.algebra import Algebra

Series = list[Tensor | None]


def _sum_of_products(terms: Iterable[tuple[float, Tensor, Tensor]]) -> Tensor | None:
    """Return ``sum weight * p * q`` of tensors that broadcast; None when there is no term."""
    total: Tensor | None = None
    for weight, p, q in terms:
        if total is None:
            total = p * q if weight == 1 else weight * p * q
        elif total.shape == torch.broadcast_shapes(p.shape, q.shape):
            total.addcmul_(p, q, value=weight)
        else:
            total = torch.addcmul(total, p, q, value=weight)
    return total


def _into(out: Tensor, terms: Iterable[tuple[float, Tensor, Tensor]]) -> Tensor:
    """Write ``sum weight * p * q`` into ``out``, which has the full shape and is not part of a graph."""
    empty = True
    for weight, p, q in terms:
        if not empty:
            out.addcmul_(p, q, value=weight)
            continue
        torch.mul(p.expand_as(out), q, out=out)
        if weight != 1:
            out.mul_(weight)
        empty = False
    return out.zero_() if empty else out


def multiply(ring: Algebra, p: Series, q: Series) -> Series:
    """Return the product of two series."""
    return [
        _sum_of_products([(w, b, c) for w, i, j in terms if (b := p[i]) is not None and (c := q[j]) is not None])
        for terms in ring.products
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


def _shape(h: Sequence[Tensor | None], *others: Tensor) -> torch.Size:
    return torch.broadcast_shapes(*(c.shape for c in h if c is not None), *(o.shape for o in others))


class _Tanh(torch.autograd.Function):
    """tanh of a series, biased.

    With the slope series ``s = 1 - y^2``, ``dy = s dh`` is a product of series, so that the transpose is a correlation
    with ``s``, whatever the number of variables and the order. For a > 0 half squares ``(y y)_a / 2`` are kept instead
    of ``s_a``, and the factor -2 is left to the sums that they enter.
    """

    @staticmethod
    def forward(ctx: Any, ring: Algebra, stacked: bool, bias: Tensor | None, *h: Tensor | None) -> Tensor:
        """Return the stacked coefficients; ``h`` is one stacked tensor or one tensor (or None) per coefficient."""
        coefficients: Sequence[Tensor | None] = h[0].unbind(0) if stacked and h[0] is not None else h
        first = coefficients[0]
        assert first is not None
        shape = _shape(coefficients) if bias is None else _shape(coefficients, bias)
        y = first.new_empty((ring.size, *shape))
        parts = y.unbind(0)
        value = parts[0]
        if bias is None:
            torch.tanh(first, out=value)
        else:
            torch.add(first, bias, out=value).tanh_()
        halves = {0: torch.addcmul(value.new_ones(()), value, value, value=-1)}
        for a in range(1, ring.size):
            terms = []
            for w, i, c in ring.chain[a]:
                if (b := coefficients[i]) is None:
                    continue
                if c not in halves:
                    halves[c] = _half_square(ring, parts, c, torch.empty_like(value))
                terms.append((-2 * w if c else w, b, halves[c]))
            _into(parts[a], terms)
        ctx.halves = halves
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
        if recorded:  # a second derivative must know how the slopes came about
            slopes = [1 - parts[0].square(), *(_half_square(ring, parts, a) for a in range(1, ring.size))]
        else:
            known: dict[int, Tensor] = ctx.halves
            slopes = [
                known[a] if a in known else _half_square(ring, parts, a, torch.empty_like(parts[0]))
                for a in range(ring.size)
            ]
        buffer = None if recorded else torch.empty_like(y)
        out: list[Tensor | None] = []
        for b in range(ring.size):
            terms = [(-2 * w if c else w, slopes[c], g[a]) for w, a, c in ring.adjoint[b]]
            if b and not ctx.stacked and ctx.shapes[b] is None:
                out.append(None)
            else:
                out.append(_sum_of_products(terms) if buffer is None else _into(buffer[b], terms))
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


def _half_square(ring: Algebra, y: Sequence[Tensor], a: int, out: Tensor | None = None) -> Tensor:
    """Return coefficient ``a`` of ``y^2 / 2``."""
    terms = [(w, y[b], y[c]) for w, b, c in ring.squares[a]]
    total = _sum_of_products(terms) if out is None else _into(out, terms)
    assert total is not None
    return total


def tanh(ring: Algebra, h: Tensor | Series, bias: Tensor | None = None) -> Tensor:
    """Return the stacked coefficients ``(coefficients, ...)`` of ``tanh(h + bias)``; ``h`` stacked or a series."""
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
        left, right, parts = o.unbind(0), d.unbind(0), out.unbind(0)
        for part, start, terms in zip(parts, v.unbind(0), ring.products, strict=True):
            for weight, b, c in terms:
                torch.addcmul(start, left[b], right[c], value=weight, out=part)
                start = part
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
    f, gradients = factor.unbind(0), g.unbind(0)
    sums = [[(w, f[c], gradients[a]) for w, a, c in terms] for terms in ring.adjoint]
    if torch.is_grad_enabled():
        return torch.stack([c for terms in sums if (c := _sum_of_products(terms)) is not None])
    buffer = torch.empty_like(g)
    for out, terms in zip(buffer.unbind(0), sums, strict=True):
        _into(out, terms)
    return buffer


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
