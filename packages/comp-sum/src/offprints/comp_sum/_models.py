"""Calling a user's model: its scores are checked, and an attack leaves its mode, its flags and its gradients alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from offprints.comp_sum.losses import check_target
from offprints.shared.device import evaluating, working_dtype
from offprints.shared.validation import check_tensor, should_check

Model = Callable[[Tensor], Tensor]


@contextmanager
def undisturbed(model: Model) -> Iterator[Model]:
    """Evaluation mode without parameter gradients, all put back outside; gradients of inputs are on inside.

    Parameters that need no gradient save the activations that theirs would need. What is given is the model to call: of
    a distributed one the module inside, since how many steps there are differs between processes, and every call of the
    wrapper would wait for the others.
    """
    module = model if isinstance(model, nn.Module) else nn.Module()
    trained = [param for param in module.parameters() if param.requires_grad and param.is_leaf]
    with torch.inference_mode(False):
        try:
            with evaluating(module), torch.enable_grad():
                for param in trained:
                    param.requires_grad_(False)
                yield model.module if isinstance(model, DistributedDataParallel) else model
        finally:
            for param in trained:
                param.requires_grad_(True)


def scores(model: Model, x: Tensor, name: str = "model") -> Tensor:
    """Scores ``[B, C]`` of inputs, in the type to compute in.

    Raises:
        TypeError: the model gave no floating tensor.
        ValueError: it gave another shape, fewer than two classes, or numbers that are not finite.
    """
    found: Any = model(x)
    if not isinstance(found, Tensor) or not found.is_floating_point():
        got = f"a tensor of {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
        raise TypeError(f"{name} must return a floating tensor of scores, got {got}")
    if found.ndim != 2 or len(found) != len(x) or found.shape[1] < 2:
        raise ValueError(f"{name} must return scores of shape ({len(x)}, 2 or more classes), got {tuple(found.shape)}")
    # A finite sum has finite terms; it may overflow where they do not.
    if should_check(found) and not bool(found.detach().sum().isfinite()) and not bool(found.detach().isfinite().all()):
        raise ValueError(f"{name} must return finite scores, got {_first(found.detach())}")
    return found.to(working_dtype(x))


def _first(found: Tensor) -> float:
    return float(found[~found.isfinite()][0])


def check_model(model: Any) -> Model:
    """Refuse what cannot be called."""
    if not callable(model):
        raise TypeError(f"model must be a module or a function of a batch, got {type(model).__name__}")
    checked: Model = model
    return checked


def check_inputs(x: Tensor, target: Tensor, clip: tuple[float, float] | None) -> Tensor:
    """Check inputs ``[B, ...]`` that lie in the box `clip` up to 1e-6, and labels ``[B]``; return these as int64."""
    check_tensor(x, "x", min_ndim=2)
    if clip is not None and should_check(x):
        low, high = x.detach().aminmax()
        if float(low) < clip[0] - 1e-6 or float(high) > clip[1] + 1e-6:
            raise ValueError(f"x must lie in [{clip[0]:g}, {clip[1]:g}], got {float(low):g} to {float(high):g}")
    # How many classes there are is known with the first scores.
    return check_target(target, x, values=False, of="x")
