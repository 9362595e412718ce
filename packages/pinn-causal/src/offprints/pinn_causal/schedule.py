"""Annealing of the causality parameter, and the stopping rule of a time window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from offprints.pinn_causal.arguments import check_sequence
from offprints.shared.validation import check_bool, check_number, check_tensor


class EpsilonSchedule:
    """Go through increasing ``values`` of eps: the next one when the smallest weight exceeds ``threshold``.

    Attributes:
        eps: the current value; stays the last one.
        index: its position.
        done: the last value has met its threshold (`step`) or spent its budget (`advance`).

    Raises:
        ValueError: ``values`` are empty, not positive or not increasing; ``threshold`` is not inside (0, 1).

    Example:
        >>> schedule = EpsilonSchedule((0.1, 1.0))
        >>> schedule.step(torch.ones(5)), schedule.eps
        (True, 1.0)
    """

    def __init__(self, values: Sequence[float] = (1e-2, 1e-1, 1.0, 10.0, 100.0), *, threshold: float = 0.99) -> None:
        check_sequence(values, "values", "numbers")
        values = tuple(values)
        if not values:
            raise ValueError("values must not be empty")
        for value in values:
            check_number(value, "values", low=0, open_low=True)
        if any(b <= a for a, b in pairwise(values)):
            raise ValueError(f"values must be increasing, got {values}")
        check_number(threshold, "threshold", low=0, high=1, open_low=True, open_high=True)
        self.values = values
        self.threshold = threshold
        self.index = 0
        self.done = False

    @property
    def eps(self) -> float:
        """The current causality parameter."""
        return self.values[self.index]

    def __repr__(self) -> str:
        return f"EpsilonSchedule({self.values}, threshold={self.threshold}; eps={self.eps}, done={self.done})"

    def step(self, weights: Tensor) -> bool:
        """Advance when ``min(weights) > threshold``; return whether it did.

        Raises:
            TypeError: ``weights`` is not a floating tensor.
            ValueError: ``weights`` is empty or has NaN or infinite entries.
        """
        check_tensor(weights, "weights")
        if not float(weights.min()) > self.threshold:
            return False
        self.advance()
        return True

    def advance(self) -> bool:
        """Go to the next value: the step budget of this one is spent. Return whether there was a next one."""
        if self.index + 1 < len(self.values):
            self.index += 1
            return True
        self.done = True
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain values."""
        return {"values": list(self.values), "threshold": self.threshold, "index": self.index, "done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state.

        Raises:
            ValueError: the state does not describe a schedule.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a dict, got {type(state).__name__}")
        missing = {"values", "threshold", "index", "done"} - set(state)
        if missing:
            raise ValueError(f"state lacks {sorted(missing)}")
        fresh = EpsilonSchedule(state["values"], threshold=state["threshold"])
        check_number(state["index"], "state['index']", low=0, high=len(fresh.values) - 1, integer=True)
        done = check_bool(state["done"], "state['done']")
        self.values, self.threshold = fresh.values, fresh.threshold
        self.index, self.done = int(state["index"]), done
