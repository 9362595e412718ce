"""The integer times of a diffusers scheduler, and where each of its calls leads.

Levels are read from a plain table: entry t, and a level of its own below time 0.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from offprints.pndm.plans import Node, Step

Spacing = Literal["leading", "linspace", "trailing"]
SPACINGS: tuple[Spacing, ...] = ("leading", "linspace", "trailing")


class Table(NamedTuple):
    """Levels by training step, and the one below time 0, in float64."""

    levels: np.ndarray
    final: float

    def at(self, times: np.ndarray) -> np.ndarray:
        """Levels at integer times; a time beyond the table has that of the last entry."""
        return np.where(times < 0, self.final, self.levels[np.clip(times, 0, len(self.levels) - 1)])


def spaced(num_steps: int, num_train_timesteps: int, spacing: Spacing, offset: int) -> np.ndarray:
    """The times ``[num_steps]`` as diffusers spaces them, the latest first.

    Raises:
        ValueError: the first one lies beyond the table.
    """
    times: np.ndarray
    if spacing == "linspace":
        times = np.linspace(0, num_train_timesteps - 1, num_steps).round()[::-1]
    elif spacing == "leading":
        times = np.arange(num_steps - 1, -1, -1) * (num_train_timesteps // num_steps) + offset
    else:
        times = np.round(np.arange(num_train_timesteps, 0, -num_train_timesteps / num_steps)) - 1
    times = times.astype(np.int64)
    if times[0] >= num_train_timesteps:
        raise ValueError(
            f"num_inference_steps={num_steps} with steps_offset={offset} begins at {times[0]}, beyond the table of"
            f" {num_train_timesteps} entries"
        )
    return times


def steps_by_ratio(times: np.ndarray, ratio: int, table: Table, *, to_minus_one: bool = False) -> list[Step]:
    """As diffusers steps: from each time t to t - `ratio`, whatever is listed next.

    Runge-Kutta steps and the second try of Euler's lead to the next time in the list. For an odd ratio the first half
    step is at t - ratio // 2, while the network is asked at the next time plus ratio // 2. With `to_minus_one` the last
    step ends at time -1.
    """
    ends = times - ratio
    listed = np.append(times[1:], ends[-1])
    if to_minus_one:
        ends[-1] = listed[-1] = -1
    asked = listed + ratio // 2
    restarts = np.append(times[1:] + ratio, times[-1])
    return _steps(np.stack([times, ends, listed, restarts, times - ratio // 2, asked, asked, times - 1], 1), table)


def steps_by_list(times: np.ndarray, table: Table) -> list[Step]:
    """From each time to the next in the list, and from the last one to -1; half steps at their middle, rounded down."""
    ends = np.append(times[1:], -1)
    halves = ends + (times - ends) // 2
    return _steps(np.stack([times, ends, ends, times, halves, halves, halves, times - 1], 1), table)


def _steps(grid: np.ndarray, table: Table) -> list[Step]:
    pairs = np.stack([grid, table.at(grid)], 2).tolist()
    rows = [[Node(*pair) for pair in row] for row in pairs]
    return [
        Step(start, end, following, restart, (first, second), half, unit.level)
        for start, end, following, restart, first, second, half, unit in rows
    ]
