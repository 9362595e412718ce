"""Argument checks that give every package the same clear errors: the argument, what was got, what is allowed.

Structure (type, number of axes, shapes, options, hyperparameters) is always checked. Values (finite, ranges, row sums)
are checked at once on the CPU; on an accelerator they are asserted asynchronously, without waiting for the device;
under ``torch.compile`` and inside ``torch.vmap``, where there are no values to look at, they are left out. A package's
``validate=True`` forces the eager check on an accelerator too, ``False`` drops it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal, TypeAlias, overload

import numpy as np
import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack

Reduction: TypeAlias = Literal["mean", "sum", "none"]


def should_check(*tensors: Tensor, validate: bool | None = None) -> bool:
    """Whether values of these tensors are to be checked eagerly now: one place decides.

    Never under ``torch.compile`` or ``torch.vmap``; otherwise as ``validate`` says, by default when all are on the CPU.

    Example:
        >>> should_check(torch.zeros(2))
        True
        >>> should_check(torch.zeros(2), validate=False)
        False
    """
    if validate is False or _abstract():
        return False
    return validate is True or all(tensor.device.type == "cpu" for tensor in tensors)


def _abstract() -> bool:
    """Whether tensors stand for many or for future values, so that none can be read."""
    if torch.compiler.is_compiling():
        return True
    return any(level.key() == TransformType.Vmap for level in get_interpreter_stack() or ())


def _values_wanted(validate: bool | None) -> bool:
    return validate is not False and not _abstract()


def _require(condition: Tensor, message: str, got: Callable[[], object], validate: bool | None) -> None:
    """Values tier, where values are wanted: raise at once, or assert on the device without waiting."""
    if should_check(condition, validate=validate):
        if not bool(condition):
            raise ValueError(f"{message}, got {got()}")
    elif condition.device.type != "mps":  # not every torch release can assert there
        torch._assert_async(condition, message)


def check_tensor(
    x: Tensor,
    name: str,
    *,
    ndim: int | Collection[int] | None = None,
    min_ndim: int | None = None,
    shape: Sequence[int | None] | None = None,
    floating: bool = True,
    finite: bool = True,
    allow_empty: bool = False,
    dense: bool = True,
    validate: bool | None = None,
) -> Tensor:
    """Check one tensor and return it.

    Args:
        x: The argument.
        name: Its name.
        ndim: Number of axes, or those allowed.
        min_ndim: The least number of axes.
        shape: Expected sizes; None where any size will do.
        floating: Whether the type must be floating.
        finite: Whether NaN and infinity are refused.
        allow_empty: Whether an axis may have length 0.
        dense: Whether sparse layouts are refused; of a sparse tensor the structure alone is checked, not its values.
        validate: As in `should_check`.

    Raises:
        TypeError: not a tensor, not dense, or not floating.
        ValueError: wrong number of axes or shape, empty, not finite.

    Example:
        >>> check_tensor(torch.zeros(2, 3), "logits", shape=(None, 3)).shape
        torch.Size([2, 3])
        >>> check_tensor(torch.zeros(2, 3), "logits", ndim=1)
        Traceback (most recent call last):
        ValueError: logits must have 1 dimensions, got shape (2, 3)
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if dense and x.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got the layout {x.layout}")
    if floating and not x.is_floating_point():
        raise TypeError(f"{name} must have a floating type, got {x.dtype}")
    if ndim is not None:
        allowed = (ndim,) if isinstance(ndim, int) else tuple(sorted(ndim))
        if x.ndim not in allowed:
            axes = " or ".join(map(str, allowed))
            raise ValueError(f"{name} must have {axes} dimensions, got shape {tuple(x.shape)}")
    if min_ndim is not None and x.ndim < min_ndim:
        axes = "dimension" if min_ndim == 1 else "dimensions"
        got = "a scalar" if x.ndim == 0 else f"shape {tuple(x.shape)}"
        raise ValueError(f"{name} must have at least {min_ndim} {axes}, got {got}")
    if shape is not None and (
        x.ndim != len(shape) or any(want is not None and got != want for got, want in zip(x.shape, shape, strict=True))
    ):
        expected = ", ".join("*" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must have shape ({expected}), got {tuple(x.shape)}")
    if not allow_empty and x.numel() == 0:
        raise ValueError(f"{name} must not be empty, got shape {tuple(x.shape)}")
    valued = x.layout == torch.strided and not x.is_meta
    if finite and valued and (x.is_floating_point() or x.is_complex()) and _values_wanted(validate):
        # A finite sum has finite terms: on the CPU one pass instead of several, and no mask of the size of x.
        if should_check(x, validate=validate) and bool(x.detach().sum().isfinite()):
            return x
        finite_entries = x.detach().isfinite()
        _require(finite_entries.all(), f"{name} must be finite", lambda: _first(x, ~finite_entries), validate)
    return x


def _first(x: Tensor, bad: Tensor) -> str:
    """The first offending entry and how many there are."""
    return f"{x.detach()[bad][0].item()} ({int(bad.sum())} of {bad.numel()} entries refused)"


def check_same_shape(a: Tensor, b: Tensor, names: tuple[str, str]) -> None:
    """Refuse two tensors of different shapes with a ValueError.

    Example:
        >>> check_same_shape(torch.zeros(2), torch.zeros(3), ("pred", "target"))
        Traceback (most recent call last):
        ValueError: pred and target must have the same shape, got (2,) and (3,)
    """
    if a.shape != b.shape:
        raise ValueError(
            f"{names[0]} and {names[1]} must have the same shape, got {tuple(a.shape)} and {tuple(b.shape)}"
        )


def check_same_length(a: Any, b: Any, names: tuple[str, str]) -> None:
    """Refuse two arguments of different lengths with a ValueError.

    Example:
        >>> check_same_length([1, 2], [1, 2, 3], ("a", "b"))
        Traceback (most recent call last):
        ValueError: a and b must have the same length, got 2 and 3
    """
    if len(a) != len(b):
        raise ValueError(f"{names[0]} and {names[1]} must have the same length, got {len(a)} and {len(b)}")


def check_same_device(*tensors: Tensor, names: Sequence[str]) -> None:
    """Refuse tensors that are not all on one device with a ValueError.

    Example:
        >>> check_same_device(torch.zeros(1), torch.zeros(1, device="meta"), names=("x", "y"))
        Traceback (most recent call last):
        ValueError: x, y must be on the same device, got cpu, meta
    """
    if len({tensor.device for tensor in tensors}) > 1:
        devices = ", ".join(str(tensor.device) for tensor in tensors)
        raise ValueError(f"{', '.join(names)} must be on the same device, got {devices}")


def check_labels(
    y: Tensor,
    name: str,
    *,
    length: int | None = None,
    num_classes: int | None = None,
    ignore_index: int | None = None,
    unlabeled: int | None = None,
    validate: bool | None = None,
) -> Tensor:
    """Check integer class labels and return them as int64.

    Args:
        y: Labels of any integer type and shape.
        name: Name of the argument.
        length: Expected length of the first axis.
        num_classes: Labels must lie in [0, num_classes).
        ignore_index: A value allowed beside the classes.
        unlabeled: Another one.
        validate: As in `should_check`.

    Raises:
        TypeError: not a tensor, or of a floating, complex or boolean type.
        ValueError: wrong length, empty, a label out of range.

    Example:
        >>> check_labels(torch.tensor([0, 2], dtype=torch.uint8), "y", num_classes=3)
        tensor([0, 2])
        >>> check_labels(torch.tensor([0, 3]), "y", num_classes=3)
        Traceback (most recent call last):
        ValueError: y must hold labels in [0, 3), got 3...
    """
    if not isinstance(y, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(y).__name__}")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise TypeError(f"{name} must have an integer type, got {y.dtype}")
    if length is not None and (y.ndim == 0 or len(y) != length):
        raise ValueError(f"{name} must have length {length}, got shape {tuple(y.shape)}")
    if y.numel() == 0:
        raise ValueError(f"{name} must not be empty, got shape {tuple(y.shape)}")
    y = y.to(torch.int64)
    if num_classes is not None and _values_wanted(validate):
        inside = (y >= 0) & (y < num_classes)
        extra = [value for value in (ignore_index, unlabeled) if value is not None]
        for value in extra:
            inside = inside | (y == value)
        allowed = f"[0, {num_classes})" + "".join(f" or {value}" for value in extra)
        _require(inside.all(), f"{name} must hold labels in {allowed}", lambda: _first(y, ~inside), validate)
    return y


@overload
def check_number(
    v: Any,
    name: str,
    *,
    low: float | None = None,
    high: float | None = None,
    open_low: bool = False,
    open_high: bool = False,
    integer: Literal[True],
) -> int: ...


@overload
def check_number(
    v: Any,
    name: str,
    *,
    low: float | None = None,
    high: float | None = None,
    open_low: bool = False,
    open_high: bool = False,
    integer: bool = False,
) -> float: ...


def check_number(
    v: Any,
    name: str,
    *,
    low: float | None = None,
    high: float | None = None,
    open_low: bool = False,
    open_high: bool = False,
    integer: bool = False,
) -> float:
    """Check a number against bounds, closed unless ``open_low`` / ``open_high``, and return it as a plain one.

    NumPy scalars come back as Python's ``int`` and ``float``: use what is returned. Booleans and NaN are refused;
    infinity only passes where a bound allows it (``high=math.inf``).

    Raises:
        TypeError: not a number, or not an integer where one is needed.
        ValueError: NaN, infinite or out of bounds.

    Example:
        >>> check_number(np.int64(3), "n_steps", low=1, integer=True)
        3
        >>> check_number(0.0, "lr", low=0, open_low=True)
        Traceback (most recent call last):
        ValueError: lr must be a number in (0, inf), got 0.0
    """
    kind = "an integer" if integer else "a number"
    accepted = (int, np.integer) if integer else (int, float, np.integer, np.floating)
    if isinstance(v, (bool, np.bool_)) or not isinstance(v, accepted):
        raise TypeError(f"{name} must be {kind}, got {v!r} ({type(v).__name__})")
    too_low = low is not None and (v <= low if open_low else v < low)
    too_high = high is not None and (v >= high if open_high else v > high)
    # Comparisons instead of math.isinf and math.isnan: the compiler traces them where a number is symbolic.
    infinite = abs(v) == math.inf and not (v == low and not open_low) and not (v == high and not open_high)
    # Whole numbers have no largest one: beyond the largest float they would be infinite where they are used.
    infinite = infinite or (not integer and isinstance(v, int) and abs(v) > sys.float_info.max)
    if not -math.inf <= v <= math.inf or too_low or too_high or infinite:
        left = "(-inf" if low is None else f"{'(' if open_low else '['}{low}"
        right = "inf)" if high is None else f"{high}{')' if open_high else ']'}"
        raise ValueError(f"{name} must be {kind} in {left}, {right}, got {v}")
    return v.item() if isinstance(v, np.generic) else v


def check_bool(v: Any, name: str) -> bool:
    """Check a switch, and return it as a plain ``bool``; a string or a number is never taken for one.

    Raises:
        TypeError: not a boolean.

    Example:
        >>> check_bool(np.True_, "rescale")
        True
        >>> check_bool("no", "rescale")
        Traceback (most recent call last):
        TypeError: rescale must be True or False, got 'no' (str)
    """
    if not isinstance(v, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {v!r} ({type(v).__name__})")
    return bool(v)


def check_choice(v: Any, name: str, choices: Collection[Any]) -> None:
    """Refuse a value that is not one of the choices with a ValueError that lists them.

    Example:
        >>> check_choice("median", "reduction", ("mean", "sum"))
        Traceback (most recent call last):
        ValueError: reduction must be one of 'mean', 'sum', got 'median'
    """
    try:
        known = v in choices
    except (TypeError, ValueError, RuntimeError):  # an unhashable value; an array, whose comparison has no truth value
        known = False
    if not known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {v!r}")


def check_probabilities(p: Tensor, name: str, *, atol: float | None = None, validate: bool | None = None) -> Tensor:
    """Check that entries are non-negative and the last axis sums to 1, and return the tensor.

    The default tolerance goes by the type: 1e-6 for float64, 1e-3 for float32, 2e-2 for half types.

    Raises:
        TypeError: not a floating tensor.
        ValueError: empty, a scalar, negative or not finite entries, sums other than 1.

    Example:
        >>> check_probabilities(torch.tensor([0.5, 0.25]), "prior")
        Traceback (most recent call last):
        ValueError: prior must sum to 1 along the last axis within 0.001, got a sum off by 0.25
    """
    check_tensor(p, name, min_ndim=1, validate=validate)
    if atol is None:
        atol = {torch.float64: 1e-6, torch.float32: 1e-3}.get(p.dtype, 2e-2)
    if _values_wanted(validate):
        values = p.detach()
        _require((values >= 0).all(), f"{name} must not be negative", lambda: values.min().item(), validate)
        off = values.to(torch.promote_types(p.dtype, torch.float32)).sum(-1) - 1
        message = f"{name} must sum to 1 along the last axis within {atol:g}"
        _require((off.abs() <= atol).all(), message, lambda: f"a sum off by {off.abs().max().item():.3g}", validate)
    return p


def check_monotone(
    x: Tensor, name: str, *, increasing: bool = True, strict: bool = True, validate: bool | None = None
) -> Tensor:
    """Check that a 1-D tensor is sorted, and return it.

    Raises:
        TypeError: not a tensor.
        ValueError: not 1-D, empty, NaN, or not sorted as asked.

    Example:
        >>> check_monotone(torch.tensor([0.0, 2.0, 1.0]), "times")
        Traceback (most recent call last):
        ValueError: times must be strictly increasing, got 2.0 before 1.0
    """
    check_tensor(x, name, ndim=1, floating=False, validate=validate)
    if _values_wanted(validate):
        left, right = (x.detach()[:-1], x.detach()[1:]) if increasing else (x.detach()[1:], x.detach()[:-1])
        good = left < right if strict else left <= right
        word = ("strictly " if strict else "") + ("increasing" if increasing else "decreasing")

        def neighbors() -> str:
            at = int(good.logical_not().nonzero()[0])
            return f"{x[at].item()} before {x[at + 1].item()}"

        _require(good.all(), f"{name} must be {word}", neighbors, validate)
    return x


def reduce(values: Tensor, reduction: Reduction, *, weight: Tensor | None = None) -> Tensor:
    """Reduce per-sample values: their mean or sum, or as they are, times ``weight`` first if given.

    The mean divides by the number of values, not by the sum of the weights.

    Raises:
        ValueError: an unknown reduction, a weight of another shape.

    Example:
        >>> losses = torch.tensor([1.0, 3.0])
        >>> reduce(losses, "mean")
        tensor(2.)
        >>> reduce(losses, "none", weight=torch.tensor([1.0, 0.5]))
        tensor([1.0000, 1.5000])
    """
    check_choice(reduction, "reduction", ("mean", "sum", "none"))
    if weight is not None:
        check_same_shape(values, weight, ("values", "weight"))
        values = values * weight
    if reduction == "mean":
        return values.mean()
    return values.sum() if reduction == "sum" else values
