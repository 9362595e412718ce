"""Features without place and unit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Scale:
    """The means of features, which are taken off, and their spread, by which they are divided.

    Attributes:
        mean: Of each column, float64.
        spread: Root of the mean squared deviation from it.
    """

    mean: Float[Tensor, " *features"]
    spread: float

    @classmethod
    def of(cls, samples: Float[Tensor, "rows *features"]) -> Scale:
        """The scale of samples."""
        x = samples.to(torch.float64 if samples.device.type != "mps" else torch.float32)
        unit = float(x.abs().max()) or 1.0  # squares of huge and tiny numbers leave the type
        mean = (x / unit).mean(0)
        spread = float((x / unit - mean).square().mean().sqrt()) * unit
        return cls(mean * unit, spread or 1.0)

    def apply(self, samples: Float[Tensor, "rows *features"]) -> Float[Tensor, "rows *features"]:
        """Centered and scaled, in float32."""
        return ((samples.to(self.mean) - self.mean) / self.spread).float()
