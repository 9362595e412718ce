"""Trigonometric interpolation of a state on a periodic grid: the exact initial condition of a time window."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offprints.pinn_causal.algebra import Algebra, univariate
from offprints.pinn_causal.embeddings import check_points
from offprints.pinn_causal.series import Series, multiply, sin_cos, stack


class TrigonometricInterpolant(nn.Module):
    """Fields ``(q, n)`` or ``(q, n, n)`` [:, iy, ix] on a uniform periodic grid as a function of the coordinates.

    Modes below the rounding of the fields' dtype are left out: they are noise, and derivatives would amplify it.
    """

    amplitudes: Tensor
    takes_series = True

    def __init__(self, fields: Tensor, domain: Sequence[tuple[float, float]]) -> None:
        super().__init__()
        self.domain = tuple(domain)
        self.modes = fields.shape[-1]
        basis = self._grid_basis(self.modes)
        # The basis is orthogonal on the grid.
        projection = basis / basis.square().sum(0)
        amplitudes = fields.detach().cpu().double() @ projection  # not every accelerator has float64
        if len(domain) == 2:
            amplitudes = (amplitudes.transpose(1, 2) @ projection).transpose(1, 2)
        noise = torch.finfo(fields.dtype).eps * amplitudes.abs().amax(dim=tuple(range(1, fields.ndim)), keepdim=True)
        self.register_buffer("amplitudes", torch.where(amplitudes.abs() > noise, amplitudes, 0).to(fields))

    @staticmethod
    def _grid_basis(n: int) -> Float[Tensor, "n n"]:
        angle = 2 * math.pi * torch.arange(n, dtype=torch.float64)[:, None] / n
        cosines = torch.cos(angle * torch.arange(n // 2 + 1))
        sines = torch.sin(angle * torch.arange(1, (n + 1) // 2))
        return torch.cat([cosines, sines], dim=1)

    def _waves(self, axis: int, x: Series, ring: Algebra) -> Series:
        low, high = self.domain[axis]
        first = x[0]
        assert first is not None
        k = 2 * math.pi / (high - low) * torch.arange(self.modes // 2 + 1, dtype=first.dtype, device=first.device)
        shifted: Series = [first - low, *x[1:]]
        sine, cosine = sin_cos(ring, [None if c is None else c.unsqueeze(-1) * k for c in shifted])
        used = slice(1, (self.modes + 1) // 2)
        waves: Series = []
        for s, c in zip(sine, cosine, strict=True):
            known = s if c is None else c
            if known is None:
                waves.append(None)
                continue
            zero = torch.zeros_like(known)
            waves.append(torch.cat([zero if c is None else c, (zero if s is None else s)[..., used]], dim=-1))
        return waves

    def forward_series(self, coordinates: Sequence[Series], ring: Algebra) -> Series:
        """Return the series of the fields ``(..., q)``, given those of the space coordinates."""
        waves = self._waves(0, coordinates[0], ring)
        if len(self.domain) == 1:
            return [None if c is None else c @ self.amplitudes.T for c in waves]
        rows = self._waves(1, coordinates[1], ring)
        partial: Series = [None if c is None else torch.einsum("...l,qlk->...qk", c, self.amplitudes) for c in rows]
        columns: Series = [None if c is None else c.unsqueeze(-2) for c in waves]
        return [None if c is None else c.sum(-1) for c in multiply(ring, columns, partial)]

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch q"]:
        """Return the fields at points ``(..., d)``.

        Raises:
            TypeError: ``x`` is not a floating tensor, or not of the dtype of the fields.
            ValueError: the last dimension of ``x`` is not d.
        """
        check_points(x, len(self.domain), like=self.amplitudes)
        return self.forward_jet([x])[0]

    def forward_jet(self, coeffs: list[Tensor]) -> list[Tensor]:
        """Return the normalized Taylor coefficients along a curve."""
        coordinates: list[Series] = [list(c) for c in zip(*(c.unbind(-1) for c in coeffs), strict=True)]
        return list(stack(self.forward_series(coordinates, univariate(len(coeffs) - 1))).unbind(0))
