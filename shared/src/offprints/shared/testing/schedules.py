"""`check_schedule`: a function of the step.

::

    check_schedule(lambda step: rho_schedule(step, 100), 100, start=0.1, end=1.0, monotone="increasing")
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from offprints.shared.testing._properties import Skip, expect_error, run_properties


def check_schedule(
    fn: Callable[[Any], Any],
    total: int,
    *,
    first: int = 0,
    start: Any = None,
    end: Any = None,
    monotone: Literal["increasing", "decreasing"] | None = None,
    skip: Skip | None = None,
) -> None:
    """Check a schedule at every step from `first` to `total`, both included.

    Properties, in order: *plain numbers* (Python's int and float, or a tuple of them), *finite*, *determinism*, *ends*,
    *monotone* (weakly), *NumPy steps*, *bad steps* (below `first` a ValueError; a fraction, NaN or text refused).

    Args:
        fn: ``fn(step)``.
        total: The last step.
        first: The first step, where it is not 0.
        start, end: Values at `first` and `total`; None: not compared.
        monotone: Direction, checked for every component; None: not checked.
        skip: Property to reason.
    """
    if total <= first:
        raise ValueError(f"total must exceed first={first}, got {total}")
    steps = range(first, total + 1)

    def values(step: Any) -> tuple[Any, ...]:
        value = fn(step)
        return value if isinstance(value, tuple) else (value,)

    def check_plain() -> None:
        for step in steps:
            for value in values(step):
                if type(value) not in (int, float):
                    raise AssertionError(f"step {step} gives {value!r}, a {type(value).__name__}")

    def check_finite() -> None:
        for step in steps:
            if not all(math.isfinite(value) for value in values(step)):
                raise AssertionError(f"step {step} gives {fn(step)!r}")

    def check_determinism() -> None:
        forward = {step: values(step) for step in steps}
        for step in reversed(steps):
            if (again := values(step)) != forward[step]:
                raise AssertionError(f"step {step} gives {forward[step]}, and later {again}")

    def check_ends() -> None:
        for name, step, expected in (("start", first, start), ("end", total, end)):
            if expected is not None:
                wanted = expected if isinstance(expected, tuple) else (expected,)
                if not np.allclose(values(step), wanted, rtol=1e-9, atol=1e-12):
                    raise AssertionError(f"step {step} gives {fn(step)!r}; the {name} is {expected!r}")

    def check_monotone() -> None:
        if monotone is None:
            return
        sign = 1 if monotone == "increasing" else -1
        for step in range(first, total):
            for a, b in zip(values(step), values(step + 1), strict=True):
                if sign * (b - a) < 0:
                    raise AssertionError(f"not {monotone}: {a!r} at step {step}, then {b!r}")

    def check_numpy() -> None:
        step = (first + total) // 2
        if values(np.int64(step)) != values(step) or any(type(v) not in (int, float) for v in values(np.int64(step))):
            raise AssertionError(f"np.int64({step}) gives {fn(np.int64(step))!r}, {step} gives {fn(step)!r}")

    def check_bad() -> None:
        expect_error(ValueError, f"step {first - 1}", fn, first - 1)
        expect_error(TypeError, f"step {str(total)!r}", fn, str(total))
        for bad in (first + 0.5, math.nan):
            expect_error((TypeError, ValueError), f"step {bad!r}", fn, bad)

    properties: dict[str, Callable[[], None]] = {
        "plain numbers": check_plain,
        "finite": check_finite,
        "determinism": check_determinism,
        "ends": check_ends,
        "monotone": check_monotone,
        "NumPy steps": check_numpy,
        "bad steps": check_bad,
    }
    run_properties("check_schedule", fn, properties, skip)
