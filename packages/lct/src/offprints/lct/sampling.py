"""One-step and multi-step sampling from a trained consistency model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from offprints.shared.device import working_dtype
from offprints.shared.validation import check_number, check_tensor

# The official two-step sampler: level 200 of the increasing grid of 641, 440 of the decreasing one.
TWO_STEP_SIGMAS: tuple[float, float] = (80.0, 0.36931547704)


@torch.no_grad()
def consistency_sample(
    model: Callable[..., Tensor],
    noise: Float[Tensor, "batch *shape"],
    *,
    sigmas: Sequence[float] = (80.0,),
    sigma_min: float = 0.002,
    generator: torch.Generator | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> Float[Tensor, "batch *shape"]:
    """Samples from noise: x = f(sigma_1 z, sigma_1), then x = f(x + sqrt(sigma_k^2 - smin^2) z', sigma_k), k = 2, ...

    Args:
        model: ``model(x, sigma, **model_kwargs)`` with ``sigma`` ``[B]``; used in the mode that it is in, so call
            ``eval()`` first where it has dropout.
        noise: Standard normal, ``[B, ...]``.
        sigmas: Noise levels, decreasing; one for one step, :data:`TWO_STEP_SIGMAS` for two.
        sigma_min: The model's lowest level.
        generator: Of the noise added between steps, on its device; default: the global stream of the noise's device.
        model_kwargs: Passed to the model.

    Returns:
        Samples of the noise's shape and type, without a graph; normalized latents, to be brought back by
        ``LatentNormalizer.inverse`` and decoded.

    Raises:
        TypeError: ``noise`` not floating.
        ValueError: ``noise`` empty, with fewer than two axes, NaN or infinite; ``sigmas`` empty, not decreasing, below
            ``sigma_min``.
    """
    check_tensor(noise, "noise")
    if noise.ndim < 2:
        raise ValueError(f"noise must have a batch axis and at least one more, got shape {tuple(noise.shape)}")
    check_number(sigma_min, "sigma_min", low=0, open_low=True)
    levels = [sigmas] if isinstance(sigmas, int | float) else list(sigmas)
    if not levels:
        raise ValueError("sigmas must not be empty")
    for level in levels:
        check_number(level, "sigmas", low=sigma_min)
    if any(later >= earlier for earlier, later in itertools.pairwise(levels)):
        raise ValueError(f"sigmas must be strictly decreasing, got {levels}")

    x = noise
    for k, level in enumerate(levels):
        fresh, amount = noise, level
        if k > 0:
            source = noise.device if generator is None else generator.device
            fresh = torch.randn(noise.shape, generator=generator, device=source, dtype=noise.dtype).to(noise.device)
            amount = math.sqrt(level**2 - sigma_min**2)
        noisy = amount * fresh if k == 0 else x + amount * fresh
        sigma = torch.full((len(noise),), level, device=noise.device, dtype=working_dtype(noise))
        x = model(noisy, sigma, **(model_kwargs or {}))
    return x
