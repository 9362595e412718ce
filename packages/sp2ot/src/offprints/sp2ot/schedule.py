"""How much mass is transported as training goes on."""

from __future__ import annotations

import math
from typing import Literal

from offprints.shared.validation import check_choice, check_number

KINDS = ("sigmoid", "linear", "constant")


def rho_schedule(
    step: int,
    total_steps: int,
    *,
    base: float = 0.1,
    upper: float = 1.0,
    kind: Literal["sigmoid", "linear", "constant"] = "sigmoid",
) -> float:
    """The share ``rho`` of the mass to transport at a step of training.

    ``base + (upper - base) exp(-5 (1 - t/T)^2)`` for ``"sigmoid"``, which starts a little above ``base``;
    ``base + (upper - base) t/T`` for ``"linear"``; ``base`` for ``"constant"``.

    Args:
        step: Optimization step ``t``, from 0; beyond ``total_steps`` it counts as that.
        total_steps: ``T``, at least 1.
        base, upper: Ends of the schedule, in (0, 1], ``base <= upper``.
        kind: The form.

    Raises:
        TypeError: a step that is not an integer.
        ValueError: a number out of range, an unknown kind.

    Example:
        >>> [round(rho_schedule(step, 100), 3) for step in (0, 50, 100)]
        [0.106, 0.358, 1.0]
    """
    check_number(step, "step", low=0, integer=True)
    check_number(total_steps, "total_steps", low=1, integer=True)
    check_number(base, "base", low=0, high=1, open_low=True)
    check_number(upper, "upper", low=base, high=1)
    check_choice(kind, "kind", KINDS)
    t = min(int(step) / int(total_steps), 1.0)
    if kind == "constant":
        return float(base)
    ramp = t if kind == "linear" else math.exp(-5 * (1 - t) ** 2)
    return float(base + (upper - base) * ramp)
