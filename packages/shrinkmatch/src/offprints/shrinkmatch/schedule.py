"""The learning rate's factor: seven sixteenths of a cosine (step 9)."""

from __future__ import annotations

import math

from offprints.shared.validation import check_number


def cosine_factor(step: int, total_steps: int, *, cycles: float = 7 / 16, warmup: int = 0) -> float:
    """The factor of the learning rate, ``max(0, cos(pi cycles t))``, for ``torch.optim.lr_scheduler.LambdaLR``.

    ``t = (step - warmup)/(total_steps - warmup)``; while ``step < warmup`` the factor is ``step / warmup``.

    Args:
        step: In [0, total_steps].
        total_steps: Steps of the training, at least 1.
        cycles: 7/16 ends at 0.195, 1/2 at 0.
        warmup: Steps of linear growth, fewer than ``total_steps``.

    Raises:
        TypeError: a step that is not an integer, a number of the wrong kind.
        ValueError: a number out of range.

    Example:
        >>> [round(cosine_factor(step, 1000), 4) for step in (0, 500, 1000)]
        [1.0, 0.773, 0.1951]
    """
    total_steps = check_number(total_steps, "total_steps", low=1, integer=True)
    step = check_number(step, "step", low=0, high=total_steps, integer=True)
    cycles = check_number(cycles, "cycles", low=0)
    warmup = check_number(warmup, "warmup", low=0, high=total_steps, open_high=True, integer=True)
    if step < warmup:
        return step / warmup
    return max(0.0, math.cos(math.pi * cycles * (step - warmup) / (total_steps - warmup)))
