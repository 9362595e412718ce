"""The calls of a run from the settings that it was begun with, kept for the next one that is the same."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from offprints.pndm.diffusers.grids import Table, steps_by_list, steps_by_ratio
from offprints.pndm.plans import PREDICTIONS, Call, Method, Prediction, Step, make_plan
from offprints.shared.validation import check_choice


class Grid(NamedTuple):
    """What the steps of a run depend on, but for the levels."""

    times: tuple[int, ...]  # one for each step
    ratio: int | None  # how far a step leads; None: to the next time
    method: Method


class Runs:
    """Steps and calls by grid; `forget` them when the levels change."""

    def __init__(self) -> None:
        self._made: dict[Any, Any] = {}

    def forget(self) -> None:
        """Make everything anew."""
        self._made.clear()

    def steps(self, grid: Grid, table: Table) -> list[Step]:
        """The steps of a whole run."""
        if grid not in self._made:
            if len(self._made) > 32:
                self._made.clear()
            times = np.array(grid.times, dtype=np.int64)
            if grid.ratio is None:
                self._made[grid] = steps_by_list(times, table)
            else:
                self._made[grid] = steps_by_ratio(times, grid.ratio, table, to_minus_one=grid.method == "fon")
        return self._made[grid]

    def calls(self, grid: Grid, table: Table, prediction: Prediction, begin: int) -> list[Call]:
        """The calls from number `begin` of the whole list on.

        Raises:
            ValueError: an unknown prediction, or what `make_plan` refuses.
        """
        key = (grid, prediction, begin)
        if key not in self._made:
            check_choice(prediction, "prediction_type", PREDICTIONS)
            self._made[key] = make_plan(self.steps(grid, table), grid.method, prediction, begin)
        return self._made[key]
