"""Layers whose higher derivatives torch gets wrong or lacks, computed from operations that it differentiates rightly.

The formula of torch for the second derivative of layer normalization treats a part of it as constant: its own
derivative, which is the third, and the parameters' gradient of a second derivative, are wrong without a word. The fused
attention has no second derivative at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from offprints.shared.device import working_dtype


class _LayerNorm(TorchFunctionMode):
    """Replace layer normalization inside a ``with`` block, wherever a network calls it."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call the replacement of ``func``, or ``func``."""
        if func in (F.layer_norm, torch.layer_norm):
            return layer_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


@contextmanager
def composites() -> Iterator[None]:
    """Let networks that are called inside be differentiable any number of times."""
    with _LayerNorm(), sdpa_kernel(SDPBackend.MATH):
        yield


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """Return what `torch.layer_norm` does."""
    axes = tuple(range(-len(normalized_shape), 0))
    x = input.to(working_dtype(input))
    centered = x - x.mean(axes, keepdim=True)
    result = centered * torch.rsqrt(centered.square().mean(axes, keepdim=True) + eps)
    result = result if weight is None else result * weight
    return (result if bias is None else result + bias).to(input.dtype)
