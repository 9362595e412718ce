"""The preconditioned consistency model (Karras et al. 2022; Song et al. 2023)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offprints.shared.device import working_dtype
from offprints.shared.validation import check_number, check_tensor


class LatentConsistencyModel(nn.Module):
    """f(x, s) = c_skip(s) x + c_out(s) F(c_in(s) x, noise_scale ln s) around any network F.

    c_skip = sd^2 / ((s - smin)^2 + sd^2), c_out = sd (s - smin) / sqrt(s^2 + sd^2), c_in = 1 / sqrt(s^2 + sd^2), so
    that f(x, smin) = x exactly.

    Args:
        network: Called as ``network(x, t, **kwargs)`` with ``x`` ``[B, ...]`` and ``t`` ``[B]``; returns ``[B, ...]``.
        sigma_data: sd, the standard deviation of the data.
        sigma_min: smin, the lowest noise level.
        noise_scale: Factor of ln s in ``t``: 0.25 for Fourier embeddings, 250 (the official code) for embeddings of
            integer timesteps.

    Raises:
        TypeError, ValueError: settings that are not positive; in ``forward``, ``x`` not floating or without a second
            axis, ``sigma`` neither a number of at least ``sigma_min`` nor ``[B]``.
    """

    def __init__(
        self, network: nn.Module, *, sigma_data: float = 0.5, sigma_min: float = 0.002, noise_scale: float = 0.25
    ) -> None:
        super().__init__()
        check_number(sigma_data, "sigma_data", low=0, open_low=True)
        check_number(sigma_min, "sigma_min", low=0, open_low=True)
        check_number(noise_scale, "noise_scale", low=0, open_low=True)
        self.network = network
        self.sigma_data = sigma_data
        self.sigma_min = sigma_min
        self.noise_scale = noise_scale

    def forward(
        self, x: Float[Tensor, "batch *shape"], sigma: Float[Tensor, " batch"] | float, **kwargs: Any
    ) -> Float[Tensor, "batch *shape"]:
        """The model's estimate of the clean sample from ``x`` at noise level ``sigma``, in the type of ``x``."""
        check_tensor(x, "x", finite=False)
        if x.ndim < 2:
            raise ValueError(f"x must have a batch axis and at least one more, got shape {tuple(x.shape)}")
        working = working_dtype(x)
        if isinstance(sigma, Tensor):
            check_tensor(sigma, "sigma", shape=(len(x),), finite=False)
            level = sigma.to(x.device)
        else:
            check_number(sigma, "sigma", low=self.sigma_min)
            level = torch.full((len(x),), float(sigma), dtype=working, device=x.device)
        # The lowest level as the type of sigma has it, so that it is exactly 0 above it.
        above = (level - torch.full_like(level, self.sigma_min)).to(working)
        level = level.to(working)
        column, above = (t.view(-1, *[1] * (x.ndim - 1)) for t in (level, above))
        data = self.sigma_data**2
        c_in = (column.square() + data).rsqrt()
        c_skip = data / (above.square() + data)
        noisy = x.to(working)
        output = self.network((c_in * noisy).to(x.dtype), (self.noise_scale * level.log()).to(x.dtype), **kwargs)
        return (c_skip * noisy + self.sigma_data * above * c_in * output.to(working)).to(x.dtype)
