"""The loss decomposition: where a federated round loses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from offprints.shared.validation import check_number, check_same_length


def loss_decomposition(
    local: Sequence[float], cross: Sequence[float], global_: float, weights: Sequence[float] | None = None
) -> dict[str, float]:
    """Split the loss F(w) of the global weights into three terms (the paper's decomposition).

    With the clients' shares p_i, F_i the loss on client i's data and w_i its weights after local training:

        F(w) = sum p_i F_i(w_i)                      local: how well each client does at home
             + sum p_i (F(w_i) - F_i(w_i))           shift: what its model loses on everybody's data
             + F(w) - sum p_i F(w_i)                 aggregation: what averaging changes, usually for the better

    The terms are differences of losses: whatever makes all models less confident makes them smaller.

    Args:
        local: F_i(w_i), one number a client.
        cross: F(w_i), one number a client.
        global_: F(w).
        weights: Sizes or shares of the clients; None: all the same. They are divided by their sum.

    Returns:
        "local", "shift", "aggregation" and "total", their sum, which is F(w) up to rounding.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: No client, unequal lengths, numbers that are not finite, weights that are negative or all zero.

    Example:
        >>> terms = loss_decomposition([0.1, 0.2], [0.5, 0.7], 0.4)
        >>> {name: round(value, 3) for name, value in terms.items()}
        {'local': 0.15, 'shift': 0.45, 'aggregation': -0.2, 'total': 0.4}
    """
    own, other = _numbers(local, "local"), _numbers(cross, "cross")
    check_same_length(own, other, ("local", "cross"))
    whole = float(check_number(global_, "global_"))
    sizes = [1.0] * len(own) if weights is None else _numbers(weights, "weights", low=0.0)
    check_same_length(own, sizes, ("local", "weights"))
    if not any(sizes):
        raise ValueError("weights must not all be zero")
    largest = max(sizes)
    sizes = [size / largest for size in sizes]
    share = [size / math.fsum(sizes) for size in sizes]
    mean_own = math.fsum(p * value for p, value in zip(share, own, strict=True))
    mean_other = math.fsum(p * value for p, value in zip(share, other, strict=True))
    terms = {"local": mean_own, "shift": mean_other - mean_own, "aggregation": whole - mean_other}
    return {**terms, "total": math.fsum(terms.values())}


def _numbers(values: Any, name: str, low: float | None = None) -> list[float]:
    """A list of plain floats from a sequence, an array or a tensor with one axis."""
    if isinstance(values, Tensor) or (hasattr(values, "tolist") and hasattr(values, "shape")):
        if len(values.shape) != 1:
            raise ValueError(f"{name} must have one dimension, got shape {tuple(values.shape)}")
        values = values.tolist()
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise TypeError(f"{name} must be a sequence of numbers, got {type(values).__name__}")
    if not values:
        raise ValueError(f"{name} must hold at least one number, got none")
    return [float(check_number(value, f"{name}[{i}]", low=low)) for i, value in enumerate(values)]
