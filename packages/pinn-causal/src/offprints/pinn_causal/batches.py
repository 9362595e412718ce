"""Collocation points of a window: fixed grids and random draws, shared among processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offprints.shared.device import make_generator
from offprints.shared.distributed import rank, world_size

Batch = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Data:
    """Observations ``values`` ``(n, q)`` at points ``(n, 1 + d)``; NaN where an output was not observed."""

    points: Tensor
    values: Tensor

    def within(self, start: float, end: float) -> Data | None:
        """Return those between two times, both included; None where there are none."""
        slack = 1e-6 * max(abs(start), abs(end))
        t = self.points[:, 0]
        chosen = (t >= start - slack) & (t <= end + slack)
        return Data(self.points[chosen], self.values[chosen]) if bool(chosen.any()) else None


class Batches:
    """Batches of one window; drawn on the CPU, equal on every rank, which keeps its own share of the points.

    Attributes:
        grid: the fixed uniform grid.
        points: the number of points of a batch on all ranks; 1 without space.
    """

    def __init__(
        self,
        domain: Sequence[tuple[float, float]],
        span: tuple[float, float],
        *,
        n_t: int,
        n_x: int | Sequence[int],
        sampling: str,
        extend: float,
        seed: int,
        like: Tensor,
    ) -> None:
        self.domain, self.n_t, self.extend, self.like = tuple(domain), n_t, extend, like
        self.start, self.end = span
        self.generator = make_generator(seed)
        d = len(self.domain)
        per_axis = (round(n_x ** (1 / max(1, d))),) * d if isinstance(n_x, int) else tuple(n_x)
        self.n_x = n_x if isinstance(n_x, int) else math.prod(n_x)
        self.points = self.n_x if d else 1
        self.grid = self._grid(per_axis, extend if sampling == "grid" else 0.0)
        if d and sampling == "grid":
            self.points = math.prod(per_axis)

    def _grid(self, per_axis: Sequence[int], extend: float) -> Batch:
        end = self.start + (self.end - self.start) * (1 + extend)
        t = torch.linspace(self.start, end, self.n_t, dtype=torch.float64)
        lines = [
            torch.linspace(low, high, n, dtype=torch.float64)
            for (low, high), n in zip(self.domain, per_axis, strict=True)
        ]
        if not lines:
            return t.to(self.like), None
        x = lines[0] if len(lines) == 1 else torch.cartesian_prod(*lines)
        return t.to(self.like), self._share(x)

    def draw(self) -> Batch:
        """Return fresh sorted times and fresh points, uniform."""
        dtype = self.like.dtype
        unit = torch.rand(self.n_t, generator=self.generator, dtype=dtype).sort().values
        t = unit * ((self.end - self.start) * (1 + self.extend)) + self.start
        if not self.domain:
            return t.to(self.like), None
        x = torch.rand(self.n_x, len(self.domain), generator=self.generator, dtype=dtype)
        for axis, (low, high) in enumerate(self.domain):
            x[:, axis] = low + (high - low) * x[:, axis]
        return t.to(self.like), self._share(x[:, 0] if x.shape[1] == 1 else x)

    def _share(self, x: Tensor) -> Tensor:
        return x.tensor_split(world_size())[rank()].to(self.like)

    def share_of_mean(self, x: Tensor | None, points: int | None = None) -> float:
        """Return the weight of this rank's mean over its points in the mean over all."""
        if x is None:
            return 1.0 / world_size()
        return 1.0 if world_size() == 1 else len(x) / self.points
