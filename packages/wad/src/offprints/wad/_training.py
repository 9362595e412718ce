"""What both trainings need: batches drawn ahead, one seed, checks of what is to be trained."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor, nn

from offprints.shared.validation import check_number


def check_seed(seed: int | None, name: str) -> int | None:
    """A seed, or None, as a plain number.

    Raises:
        TypeError: not an integer.
        ValueError: not in [0, 2**32).
    """
    return None if seed is None else check_number(seed, name, low=0, high=2**32, open_high=True, integer=True)


def shuffled_batches(count: int, steps: int, batch_size: int) -> Int[Tensor, "steps batch"]:
    """Rows of so many batches: one permutation of all rows after the other, drawn from torch's global stream."""
    passes = -(-steps * batch_size // count)
    # One sort of random numbers draws all permutations at once.
    order = torch.rand(passes, count, dtype=torch.float32, device="cpu").argsort(1).flatten()
    return order[: steps * batch_size].view(steps, batch_size)


def check_trainable(module: nn.Module, name: str) -> None:
    """Refuse a module whose training would change nothing.

    Raises:
        ValueError: no parameter requires a gradient, or some were made in inference mode, which gives them none.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError(f"{name} must have a parameter that requires a gradient, got none")
    if any(parameter.is_inference() for parameter in trained):
        raise ValueError(f"{name} must not be made in torch.inference_mode, where parameters cannot be trained")


def place_of(module: nn.Module, name: str) -> Tensor:
    """The first floating parameter: where a module computes, and in which type.

    Raises:
        TypeError: not a module.
        ValueError: there is none.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module, got {type(module).__name__}")
    for parameter in module.parameters():
        if parameter.is_floating_point():
            return parameter
    raise ValueError(f"{name} must have parameters, got {type(module).__name__} without any")
