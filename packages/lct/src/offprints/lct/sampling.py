"""One-step and multi-step sampling from a trained consistency model, with guidance, editing and inpainting."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from offprints.lct.model import check_call, check_output
from offprints.shared.device import working_dtype
from offprints.shared.validation import check_bool, check_number, check_same_device, check_same_shape, check_tensor

# The official two-step sampler: level 200 of the increasing grid of 641, 440 of the decreasing one.
TWO_STEP_SIGMAS: tuple[float, float] = (80.0, 0.36931547704)


def consistency_sample(
    model: Callable[..., Tensor],
    noise: Float[Tensor, "batch *shape"],
    *,
    sigmas: Sequence[float] | Float[Tensor, " steps"] = (80.0,),
    sigma_min: float = 0.002,
    generator: torch.Generator | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    guidance: float = 1.0,
    unconditional_kwargs: Mapping[str, Any] | None = None,
    initial: Float[Tensor, "batch *shape"] | None = None,
    known: Float[Tensor, "batch *shape"] | None = None,
    mask: Bool[Tensor, "..."] | None = None,
    callback: Callable[[int, Tensor], None] | None = None,
    differentiable: bool = False,
) -> Float[Tensor, "batch *shape"]:
    """Samples from noise: x = f(sigma_1 z, sigma_1), then x = f(x + sqrt(sigma_k^2 - smin^2) z', sigma_k), k = 2, ...

    Args:
        model: ``model(x, sigma, **model_kwargs)`` with ``sigma`` ``[B]``; used in the mode that it is in, so call
            ``eval()`` first where it has dropout.
        noise: Standard normal, ``[B, ...]``.
        sigmas: Noise levels, decreasing; one for one step, ``TWO_STEP_SIGMAS`` for two, or
            ``karras_sigmas(n).flip(0)``. A last level of ``sigma_min`` changes nothing.
        sigma_min: The model's lowest level.
        generator: Of the noise added between steps, on its device; default: the global stream of the noise's device.
        model_kwargs: Passed to the model.
        guidance: Classifier-free guidance, w in f_without + w (f_with - f_without); 1 for none.
        unconditional_kwargs: Passed to the model in place of ``model_kwargs`` for f_without; needed where ``guidance``
            is not 1.
        initial: Clean latents to edit: the first step begins at ``initial`` + sqrt(sigma_1^2 - smin^2) z, with
            sigma_1 well below the largest level.
        known: Clean latents of which the entries where ``mask`` is True are kept, at every step (inpainting).
        mask: Booleans that broadcast to the shape of ``noise``.
        callback: Called with the number of the step, from 0, and a copy of its samples.
        differentiable: Whether gradients flow to ``noise``, the model and its arguments; otherwise no graph is made.

    Returns:
        Samples of the noise's shape and type; normalized latents, to be brought back by ``LatentNormalizer.inverse``
        and decoded.

    Raises:
        TypeError: ``noise`` not floating, ``generator`` not a generator, ``mask`` not boolean.
        ValueError: ``noise`` empty, with fewer than two axes, NaN or infinite; ``sigmas`` empty, not decreasing, below
            ``sigma_min``; ``initial`` or ``known`` of another shape, ``known`` without ``mask``, guidance without
            ``unconditional_kwargs``; a model that gives another shape.

    Example:
        >>> def model(x, sigma):  # of standard normal data
        ...     return x / (1 + sigma.square()).sqrt()[:, None]
        >>> consistency_sample(model, torch.ones(1, 2), sigmas=(3.0,))
        tensor([[0.9487, 0.9487]])
    """
    check_tensor(noise, "noise", min_ndim=2)
    levels = _levels(sigmas, float(check_number(sigma_min, "sigma_min", low=0, open_low=True)))
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    guidance = float(check_number(guidance, "guidance"))
    if guidance != 1 and unconditional_kwargs is None:
        raise ValueError("unconditional_kwargs must be given where guidance is not 1")
    for value, name in ((initial, "initial"), (known, "known")):
        if value is not None:
            check_tensor(value, name)
            check_same_shape(noise, value, ("noise", name))
            check_same_device(noise, value, names=("noise", name))
    if (known is None) != (mask is None):
        raise ValueError("known and mask must be given together, got one of them")
    if mask is not None:
        _check_mask(mask, noise)
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be callable, got {type(callback).__name__}")
    arguments = [check_call(model, model_kwargs)]
    without_ = check_call(model, unconditional_kwargs, "unconditional_kwargs")
    if guidance != 1:
        arguments.append(without_)
    working = working_dtype(noise)

    def estimate(x: Tensor, level: float) -> Tensor:
        # A network may work in place and give the same memory each time: each call has tensors of its own.
        with_, *without = [
            check_output(
                model(
                    x if kwargs is arguments[-1] else x.clone(),
                    torch.full((len(x),), level, device=x.device, dtype=working),
                    **kwargs,
                ),
                noise,
                "model",
            ).clone()
            for kwargs in arguments
        ]
        found = with_ if not without else without[0] + guidance * (with_ - without[0])
        found = found.to(noise.dtype)
        return found if known is None or mask is None else torch.where(mask, known.to(found.dtype), found)

    with torch.set_grad_enabled(check_bool(differentiable, "differentiable") and torch.is_grad_enabled()):
        x = noise if initial is None else initial.to(noise.dtype)
        for k, level in enumerate(levels):
            amount = math.sqrt(max(level**2 - sigma_min**2, 0.0))
            if k > 0:
                source = noise.device if generator is None else generator.device
                fresh = torch.randn(noise.shape, generator=generator, device=source, dtype=noise.dtype)
                noisy = x + amount * fresh.to(noise.device)
            else:
                noisy = level * noise if initial is None else x + amount * noise
            x = estimate(noisy, level)
            if callback is not None:
                callback(k, x.detach().clone())
    return x


def _levels(sigmas: Any, sigma_min: float) -> list[float]:
    """The levels as plain numbers; what its type has rounded below ``sigma_min`` is ``sigma_min``."""
    eps = 1e-12
    if isinstance(sigmas, Tensor):
        check_tensor(sigmas, "sigmas", validate=True)
        eps = torch.finfo(sigmas.dtype).eps
        sigmas = sigmas.detach().cpu().double().numpy()
    elif isinstance(sigmas, np.ndarray | np.generic) and sigmas.dtype.kind == "f":
        eps = float(np.finfo(sigmas.dtype).eps)
    if isinstance(sigmas, np.ndarray):
        if sigmas.ndim > 1:
            raise ValueError(f"sigmas must have one dimension, got shape {sigmas.shape}")
        sigmas = sigmas.reshape(-1).tolist()
    given = list(sigmas) if isinstance(sigmas, Sequence) and not isinstance(sigmas, str) else [sigmas]
    if not given:
        raise ValueError("sigmas must not be empty")
    numbers = [float(check_number(level, "sigmas", low=0, open_low=True)) for level in given]
    levels = [sigma_min if sigma_min * (1 - eps) <= level < sigma_min else level for level in numbers]
    if min(levels) < sigma_min:
        raise ValueError(f"sigmas must be at least sigma_min = {sigma_min}, got {min(levels)}")
    if any(later >= earlier for earlier, later in itertools.pairwise(levels)):
        raise ValueError(f"sigmas must be strictly decreasing, got {levels}")
    return levels


def _check_mask(mask: Any, noise: Tensor) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a torch.Tensor, got {type(mask).__name__}")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be boolean, True where latents are known, got {mask.dtype}")
    check_same_device(noise, mask, names=("noise", "mask"))
    try:
        fits = torch.broadcast_shapes(mask.shape, noise.shape) == noise.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(f"mask must broadcast to the shape of noise {tuple(noise.shape)}, got {tuple(mask.shape)}")
