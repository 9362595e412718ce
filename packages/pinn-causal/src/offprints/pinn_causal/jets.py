"""Derivatives of any order by Taylor mode: `jet` along a direction, `derivatives` on a space-time grid.

Taylor mode pushes the coefficients of a truncated series through the network once, where nested reverse mode doubles
its graph with every order. A module takes part by a method ``forward_jet(coeffs: list[Tensor]) -> list[Tensor]`` on
normalized coefficients; any other callable is differentiated by nested reverse mode, one order after the other.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch._C._functorch import get_interpreter_stack

from offprints.pinn_causal.algebra import Index, Operator, algebra
from offprints.pinn_causal.composites import composites
from offprints.pinn_causal.series import horner, stack
from offprints.shared.validation import check_number, check_tensor


def implements(fn: object, method: str) -> bool:
    """Tell whether ``method`` of ``fn`` stands for what a call of it would do.

    It does not where a subclass or an instance has changed ``forward`` behind its back, where hooks wait for a call, or
    where a module says by ``takes_jets`` that its parts are not what its jets assume.
    """
    if isinstance(fn, nn.Module) and hooked(fn):
        return False
    if not getattr(fn, "takes_jets", True):
        return False
    for cls in type(fn).__mro__:
        if method in vars(cls):
            return True
        if "forward" in vars(cls):
            return False
    return hasattr(fn, method)


def hooked(module: nn.Module) -> bool:
    """Tell whether a call of the module does more than its class says: hooks, or a ``forward`` of its own."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)


def jet(
    fn: Callable[[Tensor], Tensor],
    x: Float[Tensor, "*batch d"],
    direction: Float[Tensor, "*#batch d"],
    order: int,
) -> tuple[Float[Tensor, "*batch q"], ...]:
    """Return ``(f, D_v f, ..., D_v^order f)`` at ``x`` along ``direction`` v: true derivatives, not divided by k!.

    Args:
        fn: maps ``(..., d)`` to ``(..., q)``, point by point. Modules with a ``forward_jet`` use Taylor mode, any
            other callable nested reverse mode.
        x: points ``(..., d)``.
        direction: broadcastable to ``x``.
        order: highest derivative, at least 0.

    The result is differentiable in the parameters of ``fn``.

    Raises:
        TypeError: ``x`` or ``direction`` is not a floating tensor.
        ValueError: ``order`` is negative, ``direction`` does not broadcast to the shape of ``x``, or ``fn`` does not
            keep the dimensions before the last.

    Example:
        >>> import torch
        >>> x = torch.tensor([2.0])
        >>> value, first, second = jet(lambda z: z**3, x, torch.ones(1), 2)
        >>> [float(value), float(first), float(second)]
        [8.0, 12.0, 12.0]
    """
    if not callable(fn):
        raise TypeError(f"fn must be callable, got {type(fn).__name__}")
    check_tensor(x, "x", finite=False)
    check_tensor(direction, "direction", finite=False)
    check_number(order, "order", low=0, integer=True)
    if x.ndim == 0:
        raise ValueError("x must have shape (..., d), got a scalar")
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

    if len(coefficients) == 1:
        return [fn(coefficients[0])]
    # Inside torch.func transforms there is no torch.autograd.grad.
    nested = _nested_forward_mode if get_interpreter_stack() else _nested_reverse_mode

    def rightly(x: Tensor) -> Tensor:
        with composites():
            return fn(x)

    return [c / math.factorial(k) if k > 1 else c for k, c in enumerate(nested(rightly, coefficients))]


def _nested_reverse_mode(fn: Callable[[Tensor], Tensor], coefficients: list[Tensor]) -> list[Tensor]:
    """Return the derivatives along the curve; every point has a curve parameter of its own.

    Reverse mode nested in itself is what torch tests best: nested `torch.func.jvp` is wrong from the second derivative
    on for some layers (normalization) and lacks others (SiLU and Mish without gradients).
    """
    recorded = torch.is_grad_enabled()
    order = len(coefficients) - 1
    with torch.inference_mode(False), torch.enable_grad():
        curve = [c.clone() if c.is_inference() else c for c in coefficients]
        # A function without parameters gives results without a graph: the curve parameter is nobody's business.
        recorded = recorded and bool(getattr(fn(curve[0]), "requires_grad", False))
        s = curve[0].new_zeros(curve[0].shape[:-1]).requires_grad_()
        value = fn(horner(curve, s.unsqueeze(-1)))
        value = _check_output(value, curve[0])
        found, outputs = [value], list(value.unbind(-1))
        for k in range(1, order + 1):
            outputs = [_slope(c, s, recorded or k < order) for c in outputs]
            found.append(torch.stack(outputs, dim=-1))
    return found if recorded else [c.detach() for c in found]


def _slope(output: Tensor, s: Tensor, graph: bool) -> Tensor:
    if not output.requires_grad:
        return torch.zeros_like(output)
    (gradient,) = torch.autograd.grad(output.sum(), s, create_graph=graph, retain_graph=True, allow_unused=True)
    return torch.zeros_like(output) if gradient is None else gradient


def _check_output(value: object, x: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"fn must return a torch.Tensor, got {type(value).__name__}")
    if value.ndim == 0:  # a constant
        return value.expand(*x.shape[:-1], 1)
    if value.shape[:-1] != x.shape[:-1]:
        raise ValueError(f"fn must map {tuple(x.shape)} to (*{tuple(x.shape[:-1])}, q), got {tuple(value.shape)}")
    return value


def _nested_forward_mode(fn: Callable[[Tensor], Tensor], coefficients: list[Tensor]) -> list[Tensor]:
    """Return the derivatives along the curve, by one parameter for all points."""

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
        return list(all_orders(len(coefficients) - 1)(start))


def derivatives(
    net: Callable[[Tensor], Tensor],
    coordinates: Sequence[Tensor],
    indices: Sequence[Index] = (),
    operators: Sequence[Operator | Mapping[Index, float | Tensor]] = (),
) -> list[Float[Tensor, "*grid q"]]:
    """Return partial derivatives of ``net``, then differential operators, at points given by their coordinates.

    Args:
        net: takes points ``(..., d)``; networks of this package share one pass among all derivatives.
        coordinates: d tensors that broadcast to the shape of the grid: t as ``(n_t, 1)``, x as ``(1, n_x)``.
        indices: d exponents each: ``(1, 0)`` is d/dt, ``(0, 2)`` is d^2/dx^2.
        operators: ``{index: weight, ...}`` each. An operator costs no more than one of its derivatives where those
            are the highest: ask for ``u_t - nu u_xx`` rather than for both terms. A weight may be a tensor that
            broadcasts to ``(*grid, q)``, such as an unknown coefficient; its term is then computed by itself.

    Each result broadcasts to ``(*grid, q)``.

    Raises:
        TypeError: ``net`` is not callable, a coordinate is not a floating tensor, an index or a weight is not a number.
        ValueError: no coordinates, or ones that do not broadcast; an index does not have one exponent, zero or more,
            for each coordinate; nothing is asked for.

    Example:
        >>> import torch
        >>> t, x = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0]])
        >>> u, heat = derivatives(lambda z: z[..., :1] * z[..., 1:] ** 2, [t, x], [(0, 0)], [{(1, 0): 1, (0, 2): -0.5}])
        >>> u.flatten().tolist(), heat.flatten().tolist()
        ([9.0, 18.0], [8.0, 7.0])
    """
    if not callable(net):
        raise TypeError(f"net must be callable, got {type(net).__name__}")
    given: object = coordinates
    if isinstance(given, Tensor) or not coordinates:
        raise ValueError("coordinates must be one or more tensors, one for each coordinate")
    for i, c in enumerate(coordinates):
        check_tensor(c, f"coordinates[{i}]", finite=False)
    try:
        torch.broadcast_shapes(*(c.shape for c in coordinates))
    except RuntimeError:
        shapes = ", ".join(str(tuple(c.shape)) for c in coordinates)
        raise ValueError(f"coordinates must broadcast to one grid, got {shapes}") from None
    asked = [_check_index(index, "indices", len(coordinates)) for index in indices]
    sums: list[list[tuple[Index, float]]] = []
    by_tensors: list[list[tuple[Index, Tensor]]] = []
    for operator in operators:
        pairs = tuple(operator.items()) if isinstance(operator, Mapping) else tuple(operator)
        if not pairs:
            raise ValueError("operators must have one or more terms each, got an empty one")
        sums.append([])
        by_tensors.append([])
        for index, weight in pairs:
            index = _check_index(index, "operators", len(coordinates))
            if isinstance(weight, Tensor):
                by_tensors[-1].append((index, check_tensor(weight, "operators", finite=False)))
            else:
                sums[-1].append((index, check_number(weight, "operators")))
    if not asked and not sums:
        raise ValueError("indices or operators must be given")
    apart = [index for terms in by_tensors for index, _ in terms]
    found = partials(net, coordinates, [*asked, *apart], [tuple(terms) for terms in sums if terms])
    terms_apart, totals = iter(found[len(asked) :]), iter(found[len(asked) + len(apart) :])
    results = found[: len(asked)]
    for terms, others in zip(sums, by_tensors, strict=True):
        parts = [*([next(totals)] if terms else []), *(weight * next(terms_apart) for _, weight in others)]
        results.append(sum(parts[1:], parts[0]))
    return results


def _check_index(index: Index, name: str, d: int) -> Index:
    if not isinstance(index, Sequence):
        raise TypeError(f"{name} must hold tuples of {d} exponents, got {index!r}")
    if len(index) != d:
        raise ValueError(f"{name} must hold tuples of {d} exponents, one for each coordinate, got {tuple(index)}")
    return tuple(check_number(n, name, low=0, integer=True) for n in index)


def partials(
    net: Callable[[Tensor], Tensor],
    coordinates: Sequence[Tensor],
    indices: Sequence[Index],
    operators: Sequence[Operator] = (),
) -> list[Float[Tensor, "*grid q"]]:
    """Return what `derivatives` does, without its checks."""
    if takes_series(net):
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


def takes_series(net: Any) -> bool:
    """Tell whether series in several variables can pass ``net``."""
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
