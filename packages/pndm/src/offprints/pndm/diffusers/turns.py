"""Which call of a run it is: times are told by value, and one out of turn is refused."""

from __future__ import annotations

import torch
from torch import Tensor

from offprints.shared.validation import check_number


class Turns:
    """The times of a run's calls, one after the other.

    Attributes:
        times: One for each call.
        tensor: The same as an int64 tensor, for pipelines.
    """

    def __init__(self, times: list[int], device: torch.device | None) -> None:
        self.times = times
        self.tensor = torch.tensor(times, dtype=torch.int64).to(device)
        self._changes = _changes(self.tensor)

    def read(self, timestep: Tensor | float) -> tuple[float, int | None]:
        """The value, and the place in the list where it is an element of `tensor`.

        Raises:
            TypeError: not one number.
        """
        if not isinstance(timestep, Tensor):
            return check_number(timestep, "timestep", low=-float("inf")), None
        if timestep.numel() != 1 or timestep.is_complex() or timestep.dtype == torch.bool:
            raise TypeError(f"timestep must be one number, got {timestep.dtype} of shape {tuple(timestep.shape)}")
        if timestep._is_view() and timestep._base is self.tensor and timestep.dtype == torch.int64:
            place = int(timestep.storage_offset())
            if self._changes == _changes(self.tensor) >= 0 and 0 <= place < len(self.times):
                return self.times[place], place  # without waiting for a device
            return timestep.item(), place
        return timestep.item(), None

    def first(self, value: float, place: int | None) -> int:
        """Where a run begins whose first time this is.

        Raises:
            ValueError: no listed time, or the last one, which could be the index of a loop.
        """
        if value not in self.times:
            raise ValueError(
                f"timestep must be one of the times that set_timesteps gave, {self.times[0]} to {self.times[-1]},"
                f" got {value}"
            )
        if place is not None:
            return place
        if value == self.times[0]:
            return 0
        if value == self.times[-1]:
            raise ValueError(
                f"timestep must be the next of the timesteps, got {value}, the last of them, which could be the index"
                f" of a loop; to begin there call set_begin_index({len(self.times) - 1})"
            )
        return len(self.times) - 1 - self.times[::-1].index(int(value))

    def check(self, value: float, place: int | None, index: int) -> None:
        """Refuse a time that is not the one of call `index`."""
        again = "call set_timesteps before another run"
        if index >= len(self.times):
            raise ValueError(f"the run of {len(self.times)} calls is over; {again}")
        if value != self.times[index] or (place is not None and place != index):
            which = "" if place is None else f", entry {place} of timesteps"
            raise ValueError(
                f"timestep must be {self.times[index]} in call {index}, got {value}{which}; {again}, or"
                " set_timesteps(timesteps=...) for other times, or set_begin_index to begin at another call"
            )


def _changes(tensor: Tensor) -> int:
    """How often the tensor was changed in place; -1 where that is not counted."""
    return -1 if tensor.is_inference() else tensor._version
