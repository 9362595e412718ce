"""Features of a frozen model: its output, or what goes into one of its layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from offprints.shared.device import evaluating, resolve_device, working_dtype
from offprints.shared.validation import check_bool, check_labels, check_tensor


def extract_features(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    layer: str | None = None,
    device: torch.device | str | None = None,
    amp: bool = False,
) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
    """Features and labels of all batches, on the CPU: at least float32, and int64.

    The model runs in evaluation mode, without gradients; modes and device are put back.

    Args:
        model: Any module of one input.
        loader: Batches ``(inputs, labels, ...)``, or mappings with the keys ``labels`` (or ``label``) and the model's
            keyword arguments, as of transformers.
        layer: Name of a submodule whose input is the feature, such as ``"fc"`` of torchvision's ResNets or ``"head"``
            of timm's vision transformers; default: the model's output. More than two axes are flattened. Where the
            model runs the submodule several times, the input of the last time.
        device: Where the model and its inputs go for this; by default the model is not moved, and inputs go to the
            device of its first parameter.
        amp: Run under autocast, in torch's default half type of the device.

    Raises:
        TypeError: the feature is not one floating tensor; labels not of an integer type.
        ValueError: no such ``layer``, or one that the model did not run; an empty loader; NaN or infinite features;
            labels of another length.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
        >>> loader = [(torch.randn(5, 8), torch.arange(5) % 3), (torch.randn(2, 8), torch.arange(2))]
        >>> features, labels = extract_features(model, loader, layer="2")  # what goes into the last layer
        >>> features.shape, labels
        (torch.Size([7, 4]), tensor([0, 1, 2, 0, 1, 0, 1]))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(loader, Iterable):
        raise TypeError(f"loader must be iterable, got {type(loader).__name__}")
    parts = dict(model.named_modules())
    if layer is not None and (layer == "" or layer not in parts):
        known = ", ".join(name for name in parts if name) or "none"
        raise ValueError(f"layer must name a module of the model ({known}), got {layer!r}")
    check_bool(amp, "amp")
    held = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    target = held if device is None else resolve_device(device)
    caught: list[Any] = []
    hook = None if layer is None else parts[layer].register_forward_pre_hook(_catcher(caught), with_kwargs=True)
    features, labels = [], []
    try:
        if device is not None and target != held:
            model.to(target)
        context = torch.autocast(target.type) if amp else nullcontext()
        with evaluating(model), context:
            for batch in loader:
                caught.clear()
                inputs, keywords, given = _split(batch, target)
                output = model(*inputs, **keywords)
                rows = len((*inputs, *keywords.values())[0])
                found = _output_of(output) if layer is None else _input_of(layer, caught)
                features.append(_checked(found, rows, "the model's output" if layer is None else layer))
                target_labels = given if isinstance(given, Tensor) else torch.as_tensor(given)
                if target_labels.ndim != 1:
                    raise ValueError(f"labels must have one axis, got shape {tuple(target_labels.shape)}")
                labels.append(check_labels(target_labels, "labels", length=rows).cpu())
    finally:
        if hook is not None:
            hook.remove()
        if device is not None and target != held:
            model.to(held)
    if not features:
        raise ValueError("loader must yield at least one batch")
    return torch.cat(features), torch.cat(labels)


def _split(batch: Any, device: torch.device) -> tuple[list[Any], dict[str, Any], Any]:
    """Positional inputs, keyword inputs and labels of a batch."""
    if isinstance(batch, Mapping):
        keywords = {name: _moved(value, device) for name, value in batch.items() if name not in ("labels", "label")}
        given = batch.get("labels", batch.get("label"))
        if given is None or not keywords:
            raise ValueError(f"loader must yield mappings with inputs and the key 'labels', got {list(batch)}")
        return [], keywords, given
    if not isinstance(batch, (tuple, list)) or len(batch) < 2:
        raise TypeError(f"loader must yield (inputs, labels) or mappings, got {type(batch).__name__}")
    return [_moved(batch[0], device)], {}, batch[1]


def _moved(value: Any, device: torch.device) -> Any:
    """A copy on the device: the model may change its input in place, and the loader may own that memory."""
    return value.to(device, copy=True) if isinstance(value, Tensor) else value


def _catcher(caught: list[Any]) -> Any:
    """A hook that keeps a copy of a layer's first input: the model may go on to change it in place."""

    def hook(_: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        first = next(iter((*inputs, *keywords.values())), None)
        caught[:] = [first.clone() if isinstance(first, Tensor) else first]

    return hook


def _output_of(output: Any) -> Any:
    """The tensor in an output of transformers or timm, whose first field is it."""
    return next(iter(output.values())) if isinstance(output, Mapping) and output else output


def _input_of(layer: str, caught: list[Any]) -> Any:
    if not caught or caught[-1] is None:
        raise ValueError(f"layer {layer!r} got no input: the model did not run it")
    return caught[-1]


def _checked(feature: Any, rows: int, name: str) -> Tensor:
    """One batch of features on the CPU."""
    check_tensor(feature, f"the feature ({name})", validate=True)
    if feature.ndim < 2 or len(feature) != rows:
        raise ValueError(f"the feature ({name}) must have {rows} rows, got shape {tuple(feature.shape)}")
    # A copy: the model may own this memory and change it with the next batch.
    return feature.flatten(1).to(device="cpu", dtype=working_dtype(feature), copy=True)
