"""Which Taylor coefficients pass through a network, and how they multiply."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from torch import Tensor

Index = tuple[int, ...]
Operator = tuple[tuple[Index, float], ...]  # sum of weight x D^index
Terms = tuple[tuple[float, int, int], ...]


@dataclass(frozen=True)
class Algebra:
    """What of a Taylor expansion is kept, and how that of a product follows from that of its factors.

    Beside coefficients ``D^a f / a!`` it can keep sums of several of the highest ones, for an operator such as
    ``u_t - nu u_xx``: products leave the highest coefficients to each other (they span an ideal of the truncated
    polynomials), so that a fixed linear combination of them passes through a network as one coefficient.

    Attributes:
        elements: each coefficient as a differential operator.
        products: for coefficient a the triples (weight, b, c) of ``(p q)_a = sum weight p_b q_c``.
        adjoint: for coefficient b the triples (weight, a, c) of the transpose, ``p_b <- sum weight q_c g_a``.
        squares: for coefficient a half its square, ``(p p)_a / 2 = sum weight p_b p_c``, equal products taken together.
        chain: for coefficient a > 0 the triples (weight, b, c) of the recurrence ``y_a = sum weight h_b s_c`` that
            solves ``dy = s dh``.
        readings: each wanted derivative or operator as pairs (weight, coefficient).
    """

    elements: tuple[Operator, ...]
    products: tuple[Terms, ...]
    adjoint: tuple[Terms, ...]
    squares: tuple[Terms, ...]
    chain: tuple[Terms, ...]
    readings: tuple[tuple[tuple[float, int], ...], ...]

    @property
    def size(self) -> int:
        """Number of coefficients."""
        return len(self.elements)

    def variable(self, position: int, value: Tensor) -> list[Tensor | None]:
        """Return the series of one coordinate around ``value``: ``value + x_position``."""
        unit = tuple(int(i == position) for i in range(len(self.elements[0][0][0])))
        slope = value.new_ones((1,) * value.ndim)
        weights = [dict(element).get(unit) for element in self.elements[1:]]
        return [value, *(None if w is None else slope * w for w in weights)]


@lru_cache(maxsize=256)
def algebra(indices: tuple[Index, ...], operators: tuple[Operator, ...] = ()) -> Algebra:
    """Return the smallest algebra that knows the given derivatives and operators."""
    asked = [*indices, *(index for operator in operators for index, _ in operator)]
    closed = {below for index in asked for below in product(*(range(n + 1) for n in index))}
    # What nothing else is a multiple of, and only operators ask for, is kept in their sums alone.
    tops = {a for a in closed - set(indices) if any(a) and not any(a != b and _divides(a, b) for b in closed)}
    ordered = sorted(closed - tops, key=lambda index: (sum(index), tuple(-n for n in index)))
    position = {index: i for i, index in enumerate(ordered)}
    elements: list[Operator] = [((a, 1 / _factorial(a)),) for a in ordered]
    readings: list[list[tuple[float, int]]] = [[(float(_factorial(a)), position[a])] for a in indices]
    for operator in operators:
        readings.append([(w * _factorial(a), position[a]) for a, w in operator if a not in tops])
        if high := tuple((a, w) for a, w in operator if a in tops):
            readings[-1].insert(0, (1.0, len(elements)))
            elements.append(high)

    products: list[Terms] = []
    chain: list[Terms] = []
    for e, element in enumerate(elements):
        # The ends 1 x element and element x 1 first; what lies between are products of kept coefficients.
        product_terms = [(1.0, 0, e), (1.0, e, 0)][: 1 + (e > 0)]
        chain_terms = [(1.0, e, 0)]
        for a, w in element:
            weight = w * _factorial(a)
            i = next((i for i, n in enumerate(a) if n), 0)
            for b in product(*(range(n + 1) for n in a)):
                c = tuple(n - m for m, n in zip(b, a, strict=True))
                if not any(b) or not any(c):
                    continue
                product_terms.append((weight, position[b], position[c]))
                # Differentiate along the first variable: a_i y_a = sum of b_i h_b s_(a-b) over b with b_i > 0.
                if b[i]:
                    chain_terms.append((weight * b[i] / a[i], position[b], position[c]))
        products.append(tuple(product_terms))
        chain.append(tuple(chain_terms))
    size = len(elements)
    adjoint = [tuple((w, a, c) for a in range(size) for w, i, c in products[a] if i == b) for b in range(size)]
    squares = [tuple((w / 2 if b == c else w, b, c) for w, b, c in terms if b <= c) for terms in products]
    return Algebra(
        elements=tuple(elements),
        products=tuple(products),
        adjoint=tuple(adjoint),
        squares=tuple(squares),
        chain=tuple(chain),
        readings=tuple(tuple(reading) for reading in readings),
    )


def _divides(a: Index, b: Index) -> bool:
    return all(m <= n for m, n in zip(a, b, strict=True))


def _factorial(index: Index) -> int:
    return math.prod(map(math.factorial, index))


def univariate(order: int) -> Algebra:
    """Return the polynomials of one variable up to ``order``."""
    return algebra(((order,),))
