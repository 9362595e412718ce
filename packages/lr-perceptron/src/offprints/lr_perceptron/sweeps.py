"""Many step sizes at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from offprints.lr_perceptron._descent import Problems, descend
from offprints.lr_perceptron._inputs import as_steps, check_samples, check_signs, finite_or_refused, like_samples
from offprints.lr_perceptron.rules import GRADIENT_METHODS, METHODS
from offprints.shared.device import float32_region
from offprints.shared.validation import check_choice, check_number, check_tensor


@dataclass(frozen=True)
class SweepResult:
    """What `sweep` returns.

    Attributes:
        step_sizes: Step sizes ``[S]``, float64 (float32 on a device without it).
        n_iter: Updates until separation ``[S]``, int64; -1 where ``max_iter`` did not suffice.
        theta: Last iterates ``[S, d]``.

    Example:
        >>> X, y = torch.tensor([[1.0, -1.0], [-1.0, -4.0]]), torch.tensor([1, -1])
        >>> result = sweep(X, y, [1.0, 100.0], method="normalized_lr_gd")
        >>> result.n_iter.tolist(), result.theta.shape
        ([2, 2], torch.Size([2, 2]))
    """

    step_sizes: Float[Tensor, " S"]
    n_iter: Int[Tensor, " S"]
    theta: Float[Tensor, "S d"]


def _check_step_sizes(step_sizes: Any) -> list[float]:
    if isinstance(step_sizes, Tensor):
        if step_sizes.dtype == torch.bool or step_sizes.is_complex():
            raise TypeError(f"step_sizes must hold numbers, got {step_sizes.dtype}")
        check_tensor(step_sizes, "step_sizes", ndim=1, floating=False)
        values = step_sizes.tolist()
    elif isinstance(step_sizes, str | bytes) or not hasattr(step_sizes, "__len__"):
        raise TypeError(f"step_sizes must be a sequence of numbers or a tensor, got {type(step_sizes).__name__}")
    else:
        values = list(step_sizes)
    if not values:
        raise ValueError("step_sizes must hold at least one step size, got none")
    return [float(check_number(value, "step_sizes", low=0, open_low=True)) for value in values]


def sweep(
    X: Float[Tensor, "n d"],
    y: Float[Tensor, " n"] | Int[Tensor, " n"],
    step_sizes: Sequence[float] | Tensor,
    *,
    method: str = "lr_gd",
    max_iter: int = 10_000,
) -> SweepResult:
    """Run a gradient method from 0 for every step size, all in the same matrix products, until each separates.

    Step sizes that are done drop out. Each result is that of `separate` with this step size, up to the order in which
    numbers are summed. The perceptrons have no step size: they give S equal results.

    Args:
        X: Samples ``[n, d]``.
        y: Labels -1 and +1 ``[n]``.
        step_sizes: Step sizes ``[S]``.
        method: As in `separate`.
        max_iter: Most updates of each.

    Raises:
        TypeError: as `separate`; ``step_sizes`` is not a sequence of numbers.
        ValueError: as `separate`; no step size, or one that is not in (0, inf) or makes an iterate overflow.

    Example:
        >>> from offprints.lr_perceptron import worst_case_dataset
        >>> sweep(*worst_case_dataset(1000), [0.1, 1.0, 10.0, 100.0], method="normalized_lr_gd").n_iter
        tensor([157,  16,   2,   2])
    """
    samples = check_samples(X)
    signs = check_signs(y, "y", samples)
    sizes = _check_step_sizes(step_sizes)
    check_choice(method, "method", METHODS)
    max_iter = check_number(max_iter, "max_iter", low=0, integer=True)
    columns = len(sizes) if method in GRADIENT_METHODS else 1
    steps = as_steps(sizes[:columns], "step_sizes", samples)
    with torch.no_grad(), float32_region(samples.device):
        theta = samples.new_zeros(columns, samples.shape[1])
        problems = Problems(samples, signs.expand(columns, -1), method, steps, theta)
        found = descend(problems, max_iter)
        finite_or_refused(found.theta, "X", "step_sizes")
    n_iter = torch.where(found.separated, found.n_iter, -1).to(X.device)
    wide = torch.float32 if X.device.type == "mps" else torch.float64
    return SweepResult(
        step_sizes=torch.tensor(sizes, dtype=wide, device=X.device),
        n_iter=n_iter.expand(len(sizes)).clone(),
        theta=like_samples(found.theta.expand(len(sizes), -1).clone(), X),
    )
