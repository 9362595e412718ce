"""The wrong, odd and extreme values that take an argument's place in `check_arguments`."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offprints.shared.testing._properties import strided

HUGE_INTEGER = 2**62  # no memory holds so much, and asking for it fails at once


@dataclass(frozen=True)
class Oddity:
    """A value that takes the place of an ordinary one.

    Attributes:
        value: Makes it of the ordinary one.
        refused: A result is a fault: the value cannot mean anything.
        extreme: With ``nan="propagate"`` the result may be NaN or infinite.
        large: The result may overflow the type, and for an integer take all time and memory there is.
        relative: The error may name the argument that no longer fits instead.
    """

    value: Callable[[Any], Any]
    refused: bool = False
    extreme: bool = False
    large: bool = False
    relative: bool = False


def _same(value: Any, *, refused: bool = False, **kinds: bool) -> Oddity:
    return Oddity(lambda _: value, refused=refused, **kinds)


NONE = {"None": _same(None)}
STRING = {"a string": _same("x", refused=True)}

NUMBERS = {
    **NONE,
    **STRING,
    "True": _same(True, refused=True),
    "NaN": _same(math.nan, refused=True),
    "inf": _same(math.inf, extreme=True),
    "-inf": _same(-math.inf, extreme=True),
    "-1": _same(-1),
    "0": _same(0),
    "a list": _same([1.0], refused=True),
}
FLOATS = {**NUMBERS, "huge": _same(1e30, large=True, extreme=True), "tiny": _same(1e-30, extreme=True)}
INTEGERS = {
    **NUMBERS,
    "a fraction": _same(1.5),
    "a NumPy integer": Oddity(lambda v: np.int64(v)),
    "huge": _same(HUGE_INTEGER, large=True, extreme=True),
}
CHOICES = {
    **NONE,
    "an unknown choice": _same("no such choice", refused=True),
    "a number": _same(3, refused=True),
    "a list": _same(["mean"], refused=True),  # which no dict can look up
}
BOOLEANS = {
    "None": _same(None),
    "a string": _same("no", refused=True),
    "1": _same(1),
    "a list": _same([], refused=True),
}
OBJECTS = {**NONE, **STRING, "a number": _same(3)}


def _filled(value: float) -> Callable[[Tensor], Tensor]:
    def fill(x: Tensor) -> Tensor:
        x = x.detach().clone()
        if x.numel():
            x.view(-1)[0] = value
        return x

    return fill


def _shapes(x: Tensor) -> dict[str, Oddity]:
    found = {"one more axis": Oddity(lambda x: x.detach()[None], relative=True)}
    if x.ndim > 0:
        found["one axis fewer"] = Oddity(lambda x: x.detach()[0], relative=True)
        found["empty"] = Oddity(lambda x: x.detach()[:0], relative=True)
        found["longer"] = Oddity(lambda x: torch.cat([x.detach(), x.detach()[:1]]), relative=True)
        found["shorter"] = Oddity(lambda x: x.detach()[:-1], relative=True)
    if x.ndim > 1:
        found["no classes"] = Oddity(lambda x: x.detach()[:, :0], relative=True)
        found["one class fewer"] = Oddity(lambda x: x.detach()[:, :-1], relative=True)
    return found


def _kinds() -> dict[str, Oddity]:
    return {
        **NONE,
        **STRING,
        "a number": _same(0.5),
        "an array": Oddity(lambda x: x.detach().cpu().numpy()),
        "a list": Oddity(lambda x: x.detach().tolist()),
        "complex": Oddity(lambda x: x.detach().to(torch.complex64)),
        "non-contiguous": Oddity(lambda x: strided(x) if x.ndim else x),
    }


def _of_tensor(x: Tensor) -> dict[str, Oddity]:
    found = {**_kinds(), **_shapes(x)}
    if x.is_floating_point():
        found |= {
            "NaN": Oddity(_filled(math.nan), extreme=True),
            "inf": Oddity(_filled(math.inf), extreme=True),
            "-inf": Oddity(_filled(-math.inf), extreme=True),
            "integer": Oddity(lambda x: x.detach().long()),
            "bool": Oddity(lambda x: x.detach() > 0),
            "float16": Oddity(lambda x: x.detach().half()),
            "bfloat16": Oddity(lambda x: x.detach().bfloat16()),
            "float64": Oddity(lambda x: x.detach().double()),
            "huge": Oddity(lambda x: x.detach() * 1e30, extreme=True, large=True),
            "tiny": Oddity(lambda x: x.detach() * 1e-30),
            "zeros": Oddity(lambda x: torch.zeros_like(x.detach())),
        }
    elif x.dtype == torch.bool:
        found |= {
            "floating": Oddity(lambda x: x.float()),
            "integer": Oddity(lambda x: x.long()),
            "all": Oddity(torch.ones_like),
            "none": Oddity(torch.zeros_like),
        }
    else:
        found |= {
            "floating": Oddity(lambda x: x.float()),
            "bool": Oddity(lambda x: x > 0),
            "int32": Oddity(lambda x: x.int()),
            "-1": Oddity(_filled(-1)),
            "huge": Oddity(_filled(2**40 if x.dtype == torch.int64 else torch.iinfo(x.dtype).max)),
        }
    return found


def _inside(values: Any) -> Iterator[tuple[str, Oddity]]:
    """Replace the first item of a list, tuple or dict by what may take its place."""
    key = next(iter(values)) if isinstance(values, Mapping) else 0

    def put(odd: Oddity) -> Callable[[Any], Any]:
        def replace(whole: Any) -> Any:
            changed = dict(whole) if isinstance(whole, Mapping) else list(whole)
            changed[key] = odd.value(whole[key])
            if isinstance(whole, Mapping):
                return changed
            return type(whole)(*changed) if hasattr(whole, "_fields") else type(whole)(changed)

        return replace

    for name, odd in oddities(values[key]).items():
        yield (
            f"{name} inside",
            Oddity(put(odd), refused=odd.refused, extreme=odd.extreme, large=odd.large, relative=odd.relative),
        )


def oddities(value: Any, annotation: Any = inspect.Parameter.empty) -> dict[str, Oddity]:
    """Return what may take the place of an argument, by name; the annotation decides where the value is None."""
    if isinstance(value, np.ndarray):
        return {} if value.dtype.kind not in "biuf" else _of_array(value)
    if isinstance(value, Tensor):
        return _of_tensor(value)
    if isinstance(value, bool):
        return BOOLEANS
    if isinstance(value, int):
        return INTEGERS
    if isinstance(value, float):
        return FLOATS
    if isinstance(value, str):
        return CHOICES
    if isinstance(value, list | tuple | Mapping):
        empty = {} if hasattr(value, "_fields") else {"empty": Oddity(lambda v: type(v)(), relative=True)}
        return {**OBJECTS, **empty, **(dict(_inside(value)) if len(value) else {})}
    if value is None:
        return _of_annotation(str(annotation))
    return OBJECTS


def _of_array(value: np.ndarray) -> dict[str, Oddity]:
    """Return the cases of the tensor of the same numbers, as arrays where they are tensors."""

    def convert(odd: Oddity) -> Callable[[Any], Any]:
        def make(array: np.ndarray) -> Any:
            made = odd.value(torch.from_numpy(np.array(array)))
            return made.numpy() if isinstance(made, Tensor) and made.dtype != torch.bfloat16 else made

        return make

    cases = {name: odd for name, odd in _of_tensor(torch.from_numpy(np.array(value))).items() if name != "an array"}
    converted = {
        name: Oddity(convert(odd), odd.refused, odd.extreme, odd.large, odd.relative) for name, odd in cases.items()
    }
    return {**converted, "a tensor": Oddity(lambda array: torch.from_numpy(np.array(array)))}


def _of_annotation(annotation: str) -> dict[str, Oddity]:
    if "Tensor" in annotation or "Callable" in annotation or "Module" in annotation:
        return {**STRING}
    if "Literal" in annotation:
        return {name: odd for name, odd in CHOICES.items() if name != "None"}
    words = set(re.findall(r"\w+", annotation))
    if words & {"float", "int"}:
        return {name: odd for name, odd in (FLOATS if "float" in words else INTEGERS).items() if "NumPy" not in name}
    if "bool" in words:
        return BOOLEANS
    return {}
