"""Features of a frozen model: its output, or what goes into one of its layers."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from offprints.shared.device import resolve_device, working_dtype
from offprints.shared.validation import check_labels, check_tensor


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
        loader: Batches ``(inputs, labels, ...)``.
        layer: Name of a submodule whose input is the feature, such as ``"fc"`` of torchvision's ResNets or ``"head"``
            of timm's vision transformers; default: the model's output. More than two axes are flattened.
        device: Where the model runs; default: where it is.
        amp: Run under autocast, in torch's default half type of the device.

    Raises:
        TypeError: the feature is not one floating tensor; labels not of an integer type.
        ValueError: no such ``layer``, or one that the model did not run; an empty loader; NaN or infinite features;
            labels of another length.
    """
    parts = dict(model.named_modules())
    if layer is not None and (layer == "" or layer not in parts):
        known = ", ".join(name for name in parts if name) or "none"
        raise ValueError(f"layer must name a module of the model ({known}), got {layer!r}")
    held = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    target = held if device is None else resolve_device(device)
    modes = {part: part.training for part in parts.values()}
    caught: list[Any] = []
    hook = None if layer is None else parts[layer].register_forward_pre_hook(lambda _, inputs: caught.append(inputs))
    features, labels = [], []
    try:
        model.to(target).eval()
        context = torch.autocast(target.type) if amp else nullcontext()
        with torch.no_grad(), context:
            for batch in loader:
                caught.clear()
                output = model(batch[0].to(target))
                found = output if layer is None else _input_of(layer, caught)
                features.append(_checked(found, len(batch[0]), "the model's output" if layer is None else layer))
                target_labels = batch[1] if isinstance(batch[1], Tensor) else torch.as_tensor(batch[1])
                labels.append(check_labels(target_labels, "labels", length=len(batch[0])).cpu())
    finally:
        if hook is not None:
            hook.remove()
        for part, mode in modes.items():
            part.training = mode
        if target != held:
            model.to(held)
    if not features:
        raise ValueError("loader must yield at least one batch")
    return torch.cat(features), torch.cat(labels)


def _input_of(layer: str, caught: list[Any]) -> Any:
    if not caught or not caught[-1]:
        raise ValueError(f"layer {layer!r} got no positional input: the model did not run it")
    return caught[-1][0]


def _checked(feature: Any, rows: int, name: str) -> Tensor:
    """One batch of features on the CPU."""
    check_tensor(feature, f"the feature ({name})", validate=True)
    if feature.ndim < 2 or len(feature) != rows:
        raise ValueError(f"the feature ({name}) must have {rows} rows, got shape {tuple(feature.shape)}")
    at_least = working_dtype(feature)
    return feature.flatten(1).to(device="cpu", dtype=at_least)
