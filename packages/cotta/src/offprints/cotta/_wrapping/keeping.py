"""What must stay as it was: buffers that a forward changes, everything when a batch fails, caches of weights."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class BufferState:
    """The buffers of models, to be put back where a forward changed or replaced them (power iterations, counters,
    running statistics)."""

    def __init__(self, *models: nn.Module) -> None:
        self._held = [
            (module, name, buffer, None if buffer is None else buffer.detach().clone())
            for model in models
            for module in model.modules()
            for name, buffer in module._buffers.items()
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Put all of them back, in place where the tensors are still the same."""
        for module, name, buffer, value in self._held:
            if buffer is None or buffer.is_inference():
                module._buffers[name] = value
                continue
            if module._buffers.get(name) is not buffer:
                module._buffers[name] = buffer
            buffer.copy_(value)  # type: ignore[arg-type]


@contextmanager
def kept_buffers(*models: nn.Module) -> Iterator[None]:
    """The models' buffers after the block are those from before it."""
    state = BufferState(*models)
    try:
        yield
    finally:
        state.restore()


@torch.no_grad()
def copy_values(into: nn.Module, other: nn.Module) -> None:
    """Give a model the parameters and buffers of its copy, also those that no ``state_dict`` has."""
    for mine, theirs in zip(into.parameters(), other.parameters(), strict=True):
        mine.copy_(theirs)
    for module, source in zip(into.modules(), other.modules(), strict=True):
        for name, value in source._buffers.items():
            _put_buffer(module, name, value)


def buffer_values(model: nn.Module) -> dict[str, Tensor | None]:
    """Copies of all buffers by name, with those that have no value yet."""
    return {
        f"{prefix}.{name}" if prefix else name: None if value is None else value.detach().clone()
        for prefix, module in model.named_modules()
        for name, value in module._buffers.items()
    }


def put_buffers(model: nn.Module, values: dict[str, Tensor | None]) -> None:
    """Give a model the buffers that `buffer_values` returned."""
    for prefix, module in model.named_modules():
        for name in list(module._buffers):
            key = f"{prefix}.{name}" if prefix else name
            if key in values:
                _put_buffer(module, name, values[key])


def _put_buffer(module: nn.Module, name: str, value: Tensor | None) -> None:
    """In place where there is a tensor that fits."""
    own = module._buffers.get(name)
    if own is None or value is None or own.shape != value.shape or own.is_inference():
        device = None if own is None else own.device
        module._buffers[name] = (
            None if value is None else value.clone() if device is None else value.to(device, copy=True)
        )
    else:
        own.copy_(value)


class Snapshot:
    """Tensors and an optimizer's state as they are now, to go back to."""

    def __init__(self, tensors: Iterable[Tensor], optimizer: torch.optim.Optimizer) -> None:
        self._values = [(tensor, tensor.detach().clone()) for tensor in tensors]
        self._optimizer = optimizer
        self._state = copy.deepcopy(optimizer.state_dict())

    @torch.no_grad()
    def restore(self) -> None:
        """Put them back, in place."""
        for tensor, value in self._values:
            tensor.copy_(value)
        self._optimizer.load_state_dict(self._state)


def drop_caches(models: Sequence[nn.Module]) -> None:
    """Let models forget what they computed from their weights in evaluation mode.

    Networks that keep such values (attention biases in timm's LeViT) drop them in a ``train`` of their own; the modes
    stay as they are.
    """
    for model in models:
        modules = list(model.modules())
        if all(type(module).train is nn.Module.train for module in modules):
            continue
        modes = [module.training for module in modules]
        model.train(True)
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
