"""Arguments that several public functions share, checked once at the door."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from offprints.shared.validation import check_number


def _items(values: Any, name: str, kind: str) -> list[Any]:
    """A sequence, an array or a tensor as a list."""
    found = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(found, str | bytes) or not isinstance(found, Sequence):
        raise TypeError(f"{name} must be a sequence of {kind}, got {values!r} ({type(values).__name__})")
    return list(found)


def check_class_counts(class_counts: Any, *, balanced_for: str | None = None) -> list[int]:
    """Class sizes as integers: at least two classes of at least one sample; equal ones for ``balanced_for``."""
    values = _items(class_counts, "class_counts", "integers")
    # By kind and not one by one: a hundred thousand classes are no rarity.
    wrong = [kind for kind in set(map(type, values)) if kind is bool or not issubclass(kind, int | np.integer)]
    if wrong:
        raise TypeError(f"class_counts must hold integers, got {', '.join(kind.__name__ for kind in wrong)}")
    if len(values) < 2:
        raise ValueError(f"class_counts must hold at least 2 classes, got {len(values)}")
    if min(values) < 1:
        raise ValueError(f"class_counts must be at least 1, got {min(values)}")
    if balanced_for is not None and min(values) != max(values):
        raise ValueError(
            f"class_counts must be equal for {balanced_for}, got {min(values)} to {max(values)} samples a class"
        )
    return [int(value) for value in values]


def check_decays(weight_decay: Any) -> tuple[float, ...]:
    """The decays of W_1 to W_M; a single number is that of one layer."""
    if isinstance(weight_decay, int | float | np.generic):
        return (float(check_number(weight_decay, "weight_decay", low=0, open_low=True)),)
    values = _items(weight_decay, "weight_decay", "numbers")
    if not values:
        raise ValueError("weight_decay must hold one number per layer, got an empty sequence")
    return tuple(float(check_number(value, "weight_decay", low=0, open_low=True)) for value in values)


def check_decay(decay: Any, name: str) -> float:
    """One positive decay."""
    return float(check_number(decay, name, low=0, open_low=True))


def check_dims(dims: Any, depth: int) -> tuple[int, ...]:
    """The widths d_1 to d_M of the layers' inputs."""
    values = _items(dims, "dims", "integers")
    if len(values) != depth:
        raise ValueError(f"dims must hold one width per layer of weight_decay, {depth}, got {len(values)}")
    return tuple(check_number(value, "dims", low=1, integer=True) for value in values)


def check_dtype(dtype: Any) -> torch.dtype:
    """A floating type."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating torch.dtype, got {dtype!r}")
    return dtype
