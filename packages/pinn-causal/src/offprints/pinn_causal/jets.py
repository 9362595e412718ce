"""Derivatives of any order by Taylor mode: `jet` along a direction, `derivatives` on a space-time grid.

Taylor mode pushes the coefficients of a truncated series through the network once, where nested reverse mode doubles
its graph with every order. A module takes part by a method ``forward_jet(coeffs: list[Tensor]) -> list[Tensor]`` on
normalized coefficients; any other callable is differentiated by nested `torch.func.jvp`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from offprints.pinn_causal.algebra import Index, Operator, algebra
from offprints.pinn_causal.series import horner, stack
from offprints.shared.validation import check_number, check_tensor


def implements(fn: object, method: str) -> bool:
    """Tell whether ``fn`` has ``method`` and no subclass has changed ``forward`` behind its back."""
    for cls in type(fn).__mro__:
        if method in vars(cls):
            return True
        if "forward" in vars(cls):
            return False
    return hasattr(fn, method)


def jet(
    fn: Callable[[Tensor], Tensor],
    x: Float[Tensor, "*batch d"],
    direction: Float[Tensor, "*#batch d"],
    order: int,
) -> tuple[Float[Tensor, "*batch q"], ...]:
    """Return ``(f, D_v f, ..., D_v^order f)`` at ``x`` along ``direction`` v: true derivatives, not divided by k!.

    Args:
        fn: maps ``(..., d)`` to ``(..., q)``, point by point. Modules with a ``forward_jet`` use Taylor mode, any
            other callable nested forward mode.
        x: points ``(..., d)``.
        direction: broadcastable to ``x``.
        order: highest derivative, at least 0.

    The result is differentiable in the parameters of ``fn``.

    Raises:
        TypeError: ``x`` or ``direction`` is not a floating tensor.
        ValueError: ``order`` is negative, or ``direction`` does not broadcast to the shape of ``x``.
    """
    check_tensor(x, "x", finite=False)
    check_tensor(direction, "direction", finite=False)
    check_number(order, "order", low=0, integer=True)
    try:
        fits = torch.broadcast_shapes(direction.shape, x.shape) == x.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"direction must be broadcastable to x of shape {tuple(x.shape)}, got {tuple(direction.shape)}"
        )
    if order == 0:
        return (fn(x),)
    curve = [x, direction.to(x).expand_as(x), *(torch.zeros_like(x) for _ in range(order - 1))]
    return tuple(math.factorial(k) * c if k > 1 else c for k, c in enumerate(compose(fn, curve)))


def compose(fn: Callable[[Tensor], Tensor], coefficients: list[Tensor]) -> list[Tensor]:
    """Return the normalized Taylor coefficients of ``fn`` along the curve ``sum c_k s^k``."""
    if implements(fn, "forward_jet"):
        result: list[Tensor] = fn.forward_jet(coefficients)  # type: ignore[attr-defined]
        return result

    def all_orders(order: int) -> Callable[[Tensor], tuple[Tensor, ...]]:
        if order == 0:
            return lambda s: (fn(horner(coefficients, s)),)
        lower = all_orders(order - 1)

        def upper(s: Tensor) -> tuple[Tensor, ...]:
            values, tangents, *_ = torch.func.jvp(lower, (s,), (torch.ones_like(s),))
            return (*values, tangents[-1])

        return upper

    start = coefficients[0].new_zeros(())
    with warnings.catch_warnings():
        # The first use of forward mode makes torch warn of its own scripted decompositions.
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)
        values = all_orders(len(coefficients) - 1)(start)
    return [c / math.factorial(k) for k, c in enumerate(values)]


def derivatives(
    net: Callable[[Tensor], Tensor],
    coordinates: Sequence[Tensor],
    indices: Sequence[Index],
    operators: Sequence[Operator] = (),
) -> list[Float[Tensor, "*grid q"]]:
    """Return partial derivatives of ``net``, then differential operators, at points given by their coordinates.

    Args:
        net: takes points ``(..., d)``; networks of this package share one pass among all derivatives.
        coordinates: d tensors that broadcast to the shape of the grid: t as ``(n_t, 1)``, x as ``(1, n_x)``.
        indices: d exponents each: ``(1, 0)`` is d/dt, ``(0, 2)`` is d^2/dx^2.
        operators: ``((index, weight), ...)`` each. An operator costs no more than one of its derivatives where those
            are the highest: ask for ``u_t - nu u_xx`` rather than for both terms.
    """
    if _takes_series(net):
        ring = algebra(tuple(indices), tuple(operators))
        series = net.forward_series([ring.variable(i, c) for i, c in enumerate(coordinates)], ring)  # type: ignore[attr-defined]
        coefficients = (series if isinstance(series, Tensor) else stack(series)).unbind(0)
        return [_weighted([(w, coefficients[a]) for w, a in reading]) for reading in ring.readings]
    points = torch.stack(torch.broadcast_tensors(*coordinates), dim=-1)
    asked = {*indices, *(index for operator in operators for index, _ in operator)}
    found = _along_directions(net, points, tuple(asked))
    sums = [_weighted([(w, found[index]) for index, w in operator]) for operator in operators]
    return [*(found[index] for index in indices), *sums]


def _weighted(terms: Sequence[tuple[float, Tensor]]) -> Tensor:
    parts = [c if w == 1 else w * c for w, c in terms]
    return sum(parts[1:], parts[0])


def _takes_series(net: Any) -> bool:
    return implements(net, "forward_series") and bool(net.takes_series)


def _along_directions(
    net: Callable[[Tensor], Tensor], points: Tensor, indices: tuple[Index, ...]
) -> dict[Index, Tensor]:
    """Return partial derivatives out of directional ones, for modules that know `jet` alone."""
    order = max(map(sum, indices))
    directions: dict[Index, int] = {}  # direction -> the highest order it is needed to
    recipes: dict[Index, list[tuple[float, Index]]] = {}
    for index in indices:
        recipes[index] = _polarization(index)
        for _, direction in recipes[index]:
            directions[direction] = max(directions.get(direction, 0), sum(index))
    if not directions or order == 0:
        return dict.fromkeys(indices, net(points))
    jets = {v: jet(net, points, points.new_tensor(v), n) for v, n in directions.items()}
    value = next(iter(jets.values()))[0]
    result = {}
    for index in indices:
        terms = [w * jets[v][sum(index)] for w, v in recipes[index]]
        result[index] = sum(terms[1:], terms[0]) if terms else value
    return result


@lru_cache(maxsize=256)
def _polarization(index: Index) -> list[tuple[float, Index]]:
    """Return weights and directions v with ``D^index f = sum weight D_v^m f``, m the degree of ``index``.

    ``D_v^m f = sum_a m!/a! v^a D^a f`` is a form of degree m in v, and forms of degree m are determined by their
    values on the lattice of the exponents themselves; only the variables that occur in ``index`` take part.
    """
    degree = sum(index)
    active = [i for i, n in enumerate(index) if n]
    if not active:
        return []
    lattice = [v for v in product(range(degree + 1), repeat=len(active)) if sum(v) == degree]
    if len(active) == 1:
        lattice = [(1,)]
    monomials = [v for v in product(range(degree + 1), repeat=len(active)) if sum(v) == degree]
    matrix = np.array(
        [
            [
                math.factorial(degree)
                / math.prod(map(math.factorial, a))
                * math.prod(x**n for x, n in zip(v, a, strict=True))
                for a in monomials
            ]
            for v in lattice
        ]
    )
    row = np.linalg.inv(matrix)[monomials.index(tuple(index[i] for i in active))]
    recipe = []
    for weight, v in zip(row, lattice, strict=True):
        full = [0] * len(index)
        for i, n in zip(active, v, strict=True):
            full[i] = n
        if abs(weight) > 1e-12:
            recipe.append((float(weight), tuple(full)))
    return recipe
