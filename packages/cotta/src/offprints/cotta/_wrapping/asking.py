"""How a wrapper asks a model for logits: normalization before it, and what is read from its output."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from offprints.shared.validation import check_number

Channels = float | Sequence[float] | Tensor | np.ndarray[Any, Any]
Normalize = Callable[[Tensor], Tensor] | tuple[Channels, Channels] | None
LogitsFn = Callable[[Any], Tensor] | None


class ChannelNormalization:
    """(x - mean) / std by channel, axis 1."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = [float(check_number(value, "normalize[0]")) for value in mean]
        self.std = [float(check_number(value, "normalize[1]", low=0, open_low=True)) for value in std]
        if not self.mean or len(self.mean) != len(self.std):
            raise ValueError(
                f"normalize must be as many means as standard deviations, got {len(self.mean)} and {len(self.std)}"
            )

    def __call__(self, x: Tensor) -> Tensor:
        """The normalized batch."""
        if len(self.mean) not in (1, x.shape[1]):
            raise ValueError(f"normalize has {len(self.mean)} channels, got x of shape {tuple(x.shape)}")
        shape = (1, -1, *[1] * (x.ndim - 2))
        return (x - x.new_tensor(self.mean).view(shape)) / x.new_tensor(self.std).view(shape)


class Asker:
    """Asks models for logits ``[B, K, ...]``: ``logits_fn(model(normalize(x)))``, checked.

    Each forward has a tensor of its own: a model that works on its input in place spoils neither the caller's batch
    nor the next forward's.
    """

    def __init__(self, normalize: Normalize = None, logits_fn: LogitsFn = None) -> None:
        if isinstance(normalize, (tuple, list)):
            parts: Any = normalize  # arrays, and numbers for all channels, too
            pair = [part.flatten().tolist() if isinstance(part, (Tensor, np.ndarray)) else part for part in parts]
            pair = [[part] if isinstance(part, (int, float)) else part for part in pair]
            if len(pair) != 2 or not all(isinstance(part, Sequence) for part in pair):
                raise ValueError(f"normalize must be a function or a pair (mean, std), got {normalize!r}")
            normalize = ChannelNormalization(*pair)
        for name, value in (("normalize", normalize), ("logits_fn", logits_fn)):
            if value is not None and not callable(value):
                raise TypeError(f"{name} must be callable, got {type(value).__name__}")
        self.normalize, self.logits_fn = normalize, logits_fn

    def __call__(self, model: nn.Module, x: Tensor) -> Tensor:
        """The logits of a batch; torch's refusal of statistics from one value gets an explanation."""
        given = x.clone()
        if self.normalize is not None:
            given = self.normalize(given)
            if not isinstance(given, Tensor) or given.shape[:1] != x.shape[:1]:
                got = f"shape {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
                raise TypeError(f"normalize must return a batch of {len(x)} images, got {got}")
        try:
            output = model(given)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                f"x of shape {tuple(x.shape)} leaves a batch-norm layer one value per channel, which has no"
                " statistics; use a larger batch, or the running statistics:"
                ' configure_model(model, norm="source") and configure=False'
            ) from error
        return self._logits(output, len(x))

    def _logits(self, output: Any, rows: int) -> Tensor:
        source = "model"
        if self.logits_fn is not None:
            output, source = self.logits_fn(output), "logits_fn"
        elif isinstance(output, Mapping):  # torchvision's segmentation networks, transformers' outputs
            output = next((output[key] for key in ("out", "logits") if key in output), output)
        if not isinstance(output, Tensor) or not output.is_floating_point():
            got = output.dtype if isinstance(output, Tensor) else type(output).__name__
            raise TypeError(
                f"{source} must return a tensor of logits, or a mapping with 'out' or 'logits', got {got};"
                " logits_fn takes them from another output"
            )
        if output.ndim < 2 or len(output) != rows:
            raise ValueError(f"{source} must return logits [{rows}, K, ...], got shape {tuple(output.shape)}")
        if output.shape[1] < 2:
            raise ValueError(
                f"{source} must return logits of at least 2 classes, got shape {tuple(output.shape)}: the softmax of"
                " one logit is 1 whatever it is; [-z, z] / 2 has the probabilities of one logit z"
            )
        return output


def confidences(logits: Tensor) -> Tensor:
    """Probability of the likeliest class."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1).amax(1)


def pixels_of(logits: Tensor) -> int:
    """How many predictions a sample has: 1 for a classifier."""
    return math.prod(logits.shape[2:])
