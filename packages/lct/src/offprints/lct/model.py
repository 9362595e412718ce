"""The preconditioned consistency model (Karras et al. 2022; Song et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offprints.shared.device import working_dtype
from offprints.shared.validation import check_number, check_tensor, should_check


def check_call(model: Any, kwargs: Any, name: str = "model_kwargs") -> dict[str, Any]:
    """The arguments to call a model with, as a dictionary of one's own.

    Raises:
        TypeError: a model that cannot be called, arguments that are not a mapping with names for keys.
    """
    if not callable(model):
        raise TypeError(f"model must be callable, got {type(model).__name__}")
    if kwargs is None:
        return {}
    if not isinstance(kwargs, Mapping) or not all(isinstance(key, str) for key in kwargs):
        raise TypeError(f"{name} must map names to arguments, got {kwargs!r}")
    return dict(kwargs)


def check_output(output: Any, like: Tensor, name: str) -> Tensor:
    """The tensor that a network gave: itself, its ``sample`` (diffusers), or the only item of a tuple.

    Raises:
        TypeError: none of these, or not floating.
        ValueError: a shape other than that of ``like``.
    """
    if isinstance(output, tuple) and len(output) == 1:
        (output,) = output
    if not isinstance(output, Tensor):
        output = getattr(output, "sample", output)
    if not isinstance(output, Tensor):
        raise TypeError(
            f"{name} must return a tensor, or an object with a tensor called sample, got {type(output).__name__}"
        )
    if not output.is_floating_point():
        raise TypeError(f"{name} must return a floating tensor, got {output.dtype}")
    if output.shape != like.shape:
        raise ValueError(f"{name} must return the shape of its input, {tuple(like.shape)}, got {tuple(output.shape)}")
    return output


class LatentConsistencyModel(nn.Module):
    """f(x, s) = c_skip(s) x + c_out(s) F(c_in(s) x, noise_scale ln s) around any network F.

    c_skip = sd^2 / ((s - smin)^2 + sd^2), c_out = sd (s - smin) / sqrt(s^2 + sd^2), c_in = 1 / sqrt(s^2 + sd^2), so
    that f(x, smin) = x exactly.

    Args:
        network: Called as ``network(x, t, **kwargs)`` with ``x`` ``[B, ...]`` and ``t`` ``[B]``; returns ``[B, ...]``,
            or an object that has it as ``sample``, as the networks of ``diffusers`` do.
        sigma_data: sd, the standard deviation of the data.
        sigma_min: smin, the lowest noise level.
        noise_scale: Factor of ln s in ``t``: 0.25 for Fourier embeddings, 250 (the official code) for embeddings of
            integer timesteps.

    Raises:
        TypeError, ValueError: settings that are not positive; in ``forward``, ``x`` not floating or without a second
            axis, ``sigma`` neither a number (or a tensor of one) nor ``[B]``, not finite, or below ``sigma_min`` (on an
            accelerator and under ``torch.compile`` it is then taken for ``sigma_min``), an output of another shape
            than ``x``.

    Example:
        >>> class Network(torch.nn.Module):
        ...     def forward(self, x, t):
        ...         return torch.tanh(x + t[:, None])
        >>> model, x = LatentConsistencyModel(Network()), torch.randn(4, 8)
        >>> torch.equal(model(x, 0.002), x)
        True
    """

    def __init__(
        self, network: nn.Module, *, sigma_data: float = 0.5, sigma_min: float = 0.002, noise_scale: float = 0.25
    ) -> None:
        super().__init__()
        self.sigma_data = float(check_number(sigma_data, "sigma_data", low=0, open_low=True))
        self.sigma_min = float(check_number(sigma_min, "sigma_min", low=0, open_low=True))
        self.noise_scale = float(check_number(noise_scale, "noise_scale", low=0, open_low=True))
        if not callable(network):
            raise TypeError(f"network must be a torch.nn.Module, got {type(network).__name__}")
        self.network = network

    def forward(
        self, x: Float[Tensor, "batch *shape"], sigma: Float[Tensor, " batch"] | float, **kwargs: Any
    ) -> Float[Tensor, "batch *shape"]:
        """The model's estimate of the clean sample from ``x`` at noise level ``sigma``, in the type of ``x``."""
        check_tensor(x, "x", finite=False, min_ndim=2)
        working = working_dtype(x)
        if isinstance(sigma, Tensor):
            check_tensor(sigma, "sigma", shape=() if sigma.ndim == 0 else (len(x),))
            level = sigma.to(x.device).expand(len(x))
            lowest = self.sigma_min * (1 - torch.finfo(sigma.dtype).eps)  # as the type of sigma has it
            if should_check(level) and not bool((level >= lowest).all()):
                raise ValueError(f"sigma must be at least sigma_min = {self.sigma_min}, got {float(level.min())}")
            level = level.clamp(min=self.sigma_min)
        else:
            number = check_number(sigma, "sigma", low=self.sigma_min)
            level = torch.full((len(x),), float(number), dtype=working, device=x.device)
        # The lowest level as the type of sigma has it, so that it is exactly 0 above it.
        above = (level - torch.full_like(level, self.sigma_min)).to(working)
        level = level.to(working)
        column, above = (t.view(-1, *[1] * (x.ndim - 1)) for t in (level, above))
        data = self.sigma_data**2
        c_in = (column.square() + data).rsqrt()
        c_skip = data / (above.square() + data)
        noisy = x.to(working)
        time = (self.noise_scale * level.log()).to(x.dtype)
        output = check_output(self.network((c_in * noisy).to(x.dtype), time, **kwargs), x, "network")
        return (c_skip * noisy + self.sigma_data * above * c_in * output.to(working)).to(x.dtype)
