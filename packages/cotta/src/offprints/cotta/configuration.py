"""What a model needs before it adapts itself: batch statistics, parameters that learn, an optimizer over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from offprints.shared.validation import check_choice

BatchNorm = _BatchNorm  # 1-d, 2-d, 3-d, synchronized
OptimizerLike = torch.optim.Optimizer | Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None


def configure_model(
    model: nn.Module, *, norm: Literal["batch", "source"] = "batch", train_mode: bool = False
) -> nn.Module:
    """Prepare a model for adaptation, in place, and return it: all parameters learn, batch norm as asked for.

    Args:
        model: The model.
        norm: ``"batch"``: every batch-norm layer normalizes with the statistics of the current batch; its running ones
            are dropped. ``"source"``: they are kept and used, for batches too small to have statistics.
        train_mode: Leave dropout and stochastic depth on, as the official code does. Otherwise evaluation mode.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: an unknown ``norm``.
    """
    check_model(model)
    check_choice(norm, "norm", ("batch", "source"))
    model.train(train_mode)
    model.requires_grad_(True)
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.eval()  # without running statistics a layer in this mode uses the batch's
            if norm == "batch":
                module.track_running_stats = False
                module.running_mean = None
                module.running_var = None
    return model


def collect_params(
    model: nn.Module, *, which: Literal["all", "weight_bias", "norm"] = "all"
) -> tuple[list[nn.Parameter], list[str]]:
    """The parameters that learn (``requires_grad``) and their names; a tied one is listed once.

    Args:
        model: The model.
        which: ``"all"``; ``"weight_bias"``: those called exactly weight or bias, the choice of the official code, which
            leaves out a transformer's ``in_proj_weight``, tokens, embeddings and layer scales; ``"norm"``: scale and
            shift of the batch-norm layers.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: an unknown ``which``.
    """
    check_model(model)
    check_choice(which, "which", ("all", "weight_bias", "norm"))
    found: dict[int, tuple[nn.Parameter, str]] = {}
    for prefix, module in model.named_modules():
        if which == "norm" and not isinstance(module, BatchNorm):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and (which == "all" or name in ("weight", "bias")):
                found.setdefault(id(parameter), (parameter, f"{prefix}.{name}" if prefix else name))
    return [parameter for parameter, _ in found.values()], [name for _, name in found.values()]


def check_model(model: nn.Module) -> None:
    """A module, or a TypeError."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")


def make_optimizer(
    optimizer: OptimizerLike, params: list[nn.Parameter], model: nn.Module
) -> tuple[torch.optim.Optimizer, list[nn.Parameter]]:
    """The optimizer and the parameters that it adapts."""
    if optimizer is None:
        return torch.optim.Adam(params, lr=1e-3, betas=(0.9, 0.999)), params
    made = optimizer if isinstance(optimizer, torch.optim.Optimizer) else None
    if made is None:
        if not callable(optimizer):
            raise TypeError(f"optimizer must be an optimizer, or make one of parameters, got {optimizer!r}")
        made = optimizer(params)
        if not isinstance(made, torch.optim.Optimizer):
            raise TypeError(f"optimizer must return a torch.optim.Optimizer, got {type(made).__name__}")
    own = {id(parameter) for parameter in model.parameters()}
    held = [parameter for group in made.param_groups for parameter in group["params"]]
    foreign = sum(id(parameter) not in own for parameter in held)
    if foreign:
        raise ValueError(
            f"optimizer must hold parameters of the model that adapts, got {foreign} of {len(held)} that are not its;"
            " make it after configure_model, from collect_params"
        )
    return made, held


def logits_of(output: Any) -> Tensor:
    """The logits in what a model returns: a tensor, torchvision's ``["out"]`` or a ``["logits"]``."""
    if isinstance(output, Mapping):
        output = next((output[key] for key in ("out", "logits") if key in output), output)
    if not isinstance(output, Tensor):
        raise TypeError(
            f"model must return a tensor of logits, or a mapping with 'out' or 'logits', got {type(output).__name__}"
        )
    if output.ndim < 2:
        raise ValueError(f"model must return logits [B, K, ...], got shape {tuple(output.shape)}")
    return output


def call_model(model: nn.Module, x: Tensor) -> Tensor:
    """The logits of a batch; torch's refusal of statistics from one value gets an explanation."""
    try:
        return logits_of(model(x))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            f"x of shape {tuple(x.shape)} leaves a batch-norm layer one value per channel, which has no statistics;"
            ' use a larger batch, or the running statistics: configure_model(model, norm="source") and configure=False'
        ) from error
