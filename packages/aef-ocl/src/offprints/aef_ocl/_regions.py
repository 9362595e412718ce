"""How statistics are computed: without a graph, in plain tensors, in full precision, whatever surrounds the call."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import nn

from offprints.shared.device import float32_region

P = ParamSpec("P")
Owner = TypeVar("Owner", bound=Any)
Result = TypeVar("Result")
Module = TypeVar("Module", bound=nn.Module)


@contextmanager
def plain_region(device: torch.device | str) -> Iterator[None]:
    """No graph, no autocast; tensors made inside can be changed in place later, also where inference mode is on."""
    with torch.inference_mode(False), torch.no_grad(), float32_region(device):
        yield


def without_graph(method: Callable[Concatenate[Owner, P], Result]) -> Callable[Concatenate[Owner, P], Result]:
    """Run a method without a graph; what it makes are plain tensors, also where inference mode is on."""

    @functools.wraps(method)
    def call(self: Owner, /, *args: P.args, **kwargs: P.kwargs) -> Result:
        with torch.inference_mode(False), torch.no_grad():
            return method(self, *args, **kwargs)

    return call


def plainly(method: Callable[Concatenate[Owner, P], Result]) -> Callable[Concatenate[Owner, P], Result]:
    """Run a method in `plain_region` of its object's device."""

    @functools.wraps(method)
    def call(self: Owner, /, *args: P.args, **kwargs: P.kwargs) -> Result:
        with plain_region(self._device()):
            return method(self, *args, **kwargs)

    return call


def twin(module: Module) -> Module:
    """A module of the same tensors; this one keeps its own where the other one gets new ones."""
    other = copy.copy(module)
    other._buffers = dict(module._buffers)
    return other


def in_full(fn: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """What a module does to its tensors, but for half types: ``model.half()`` must not round sums inside of it."""

    def apply(tensor: torch.Tensor) -> torch.Tensor:
        made = fn(tensor)
        narrow = tensor.is_floating_point() and made.dtype not in (torch.float64, torch.float32)
        return tensor.to(made.device) if narrow else made

    return apply


def check_dtype(dtype: Any, name: str = "dtype") -> torch.dtype:
    """The accumulators' type, float32 or float64: half types can neither hold nor solve a Gram matrix."""
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{name} must be torch.float64 or torch.float32, got {dtype!r} ({type(dtype).__name__})")
    if dtype not in (torch.float64, torch.float32):
        raise ValueError(f"{name} must be torch.float64 or torch.float32, got {dtype}")
    return dtype


def check_magnitude(X: torch.Tensor, name: str, dtype: torch.dtype) -> None:
    """Refuse numbers whose squares, summed, the accumulators cannot hold."""
    largest = torch.finfo(dtype).max ** 0.5 * 1e-5
    if X.device.type == "cpu" and float(X.abs().max()) > largest:
        raise ValueError(f"{name} must have entries of magnitude at most {largest:.3g} in {dtype}, got {X.abs().max()}")
