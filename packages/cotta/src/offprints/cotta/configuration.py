"""What a model needs before it adapts itself: batch statistics, parameters that learn, an optimizer over them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from offprints.cotta.statistics import mix_statistics, unmix_statistics
from offprints.shared.validation import check_bool, check_choice, check_number

BatchNorm = _BatchNorm  # 1-d, 2-d, 3-d, synchronized
Norm = (BatchNorm, _InstanceNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
OptimizerLike = torch.optim.Optimizer | Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None


def configure_model(
    model: nn.Module,
    *,
    norm: Literal["batch", "source"] = "batch",
    train_mode: bool = False,
    source_weight: float = 0.0,
) -> nn.Module:
    """Prepare a model for adaptation, in place, and return it: batch norm as asked for, the mode, nothing else.

    Parameters that are frozen (``requires_grad`` is False) stay frozen.

    Args:
        model: The model.
        norm: ``"batch"``: every batch-norm layer normalizes with the statistics of the current batch; its running ones
            are dropped. ``"source"``: they are kept and used, for batches too small to have statistics.
        train_mode: Leave dropout and stochastic depth on, as the official code does. Otherwise evaluation mode.
        source_weight: With ``norm="batch"``, the weight of the running statistics in a mix with the batch's.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: an unknown ``norm``, ``source_weight`` outside [0, 1], or source statistics asked for where a
            batch-norm layer has none.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
        >>> configure_model(model)[1].running_mean is None  # the batch's statistics are used
        True
    """
    check_model(model)
    check_choice(norm, "norm", ("batch", "source"))
    check_bool(train_mode, "train_mode")
    check_number(source_weight, "source_weight", low=0, high=1)
    layers = [module for module in model.modules() if isinstance(module, BatchNorm)]
    if (norm == "source" or source_weight > 0) and any(layer.running_mean is None for layer in layers):
        wish = 'norm="source"' if norm == "source" else "source_weight > 0"
        raise ValueError(f"model must have running statistics in its batch-norm layers for {wish}, got none")
    model.train(train_mode)
    for layer in layers:
        layer.eval()  # without running statistics a layer in this mode uses the batch's
        unmix_statistics(layer)
        if norm == "source" or source_weight == 1:
            continue
        if source_weight > 0:
            mix_statistics(layer, source_weight)
        else:
            layer.track_running_stats = False
            layer.running_mean = None
            layer.running_var = None
    return model


def collect_params(
    model: nn.Module, *, which: Literal["all", "weight_bias", "norm"] = "all"
) -> tuple[list[nn.Parameter], list[str]]:
    """The parameters that learn (``requires_grad``) and their names; a tied one is listed once.

    Args:
        model: The model.
        which: ``"all"``; ``"weight_bias"``: those called exactly weight or bias, the choice of the official code, which
            leaves out a transformer's ``in_proj_weight``, tokens, embeddings and layer scales; ``"norm"``: scale and
            shift of the normalization layers: batch, instance, layer, group and RMS norm of torch and what is derived
            from them.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: an unknown ``which``.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
        >>> collect_params(model, which="norm")[1]
        ['1.weight', '1.bias']
    """
    check_model(model)
    check_choice(which, "which", ("all", "weight_bias", "norm"))
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise ValueError("model must be made outside of torch.inference_mode: its parameters can never learn")
    found: dict[int, tuple[nn.Parameter, str]] = {}
    for prefix, module in model.named_modules():
        if which == "norm" and not isinstance(module, Norm):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and (which == "all" or name in ("weight", "bias")):
                found.setdefault(id(parameter), (parameter, f"{prefix}.{name}" if prefix else name))
    return [parameter for parameter, _ in found.values()], [name for _, name in found.values()]


def check_model(model: nn.Module) -> None:
    """A module, or a TypeError."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")


def configured_by_hand(source_weight: float) -> None:
    """Refuse a weight that would not be applied, as ``configure=False``."""
    if check_number(source_weight, "source_weight", low=0, high=1) > 0:
        raise ValueError(
            f"source_weight must be 0 with configure=False, got {source_weight}: give it to configure_model instead"
        )


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
    closure = inspect.signature(made.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise TypeError(f"optimizer must step without a closure, got {type(made).__name__}, which needs one")
    own = {id(parameter) for parameter in model.parameters()}
    held = [parameter for group in made.param_groups for parameter in group["params"]]
    foreign = sum(id(parameter) not in own for parameter in held)
    if foreign:
        raise ValueError(
            f"optimizer must hold parameters of the model that adapts, got {foreign} of {len(held)} that are not its;"
            " make it after configure_model, from collect_params"
        )
    return made, held
