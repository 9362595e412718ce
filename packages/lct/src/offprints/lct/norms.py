"""Non-scaling LayerNorm: no learned scale, which would amplify the features that carry outliers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from offprints.shared.validation import check_bool, check_number, check_tensor


class NonScalingLayerNorm(nn.Module):
    """LayerNorm with the scale fixed at 1 and a learned shift, initially 0: its only parameter is ``bias``.

    In a convolutional network it is taken over ``[C, H, W]`` with a bias of that shape, so that a network built for
    32 x 32 cannot run at 64 x 64. ``channel_bias=True`` is the form without a resolution: one bias per channel.

    Args:
        normalized_shape: The last axes, as in ``nn.LayerNorm``.
        eps: Added to the variance.
        bias: Whether there is a shift.
        channel_bias: A bias of shape ``[C, 1, ...]`` only; the axes after the first of ``normalized_shape`` may then
            have any length.
        device, dtype: Of the bias.

    Raises:
        TypeError, ValueError: a shape that is empty or not of positive integers, ``eps`` < 0; in ``forward`` an input
            that is not floating or whose last axes do not fit.

    Example:
        >>> norm = NonScalingLayerNorm((4, 8, 8))
        >>> [name for name, _ in norm.named_parameters()]
        ['bias']
        >>> norm(torch.randn(2, 4, 8, 8)).shape
        torch.Size([2, 4, 8, 8])
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        *,
        eps: float = 1e-5,
        bias: bool = True,
        channel_bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = tuple(normalized_shape) if isinstance(normalized_shape, Sequence) else (normalized_shape,)
        if not sizes:
            raise ValueError("normalized_shape must have at least one axis, got ()")
        shape = tuple(check_number(size, "normalized_shape", low=1, integer=True) for size in sizes)
        bias, channel_bias = check_bool(bias, "bias"), check_bool(channel_bias, "channel_bias")
        self.normalized_shape = shape
        self.eps = float(check_number(eps, "eps", low=0))
        self.channel_bias = channel_bias
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(f"dtype must be a floating type, got {dtype!r}")
        if bias:
            own = (self.normalized_shape[0], *[1] * (len(shape) - 1)) if channel_bias else self.normalized_shape
            self.bias = nn.Parameter(torch.zeros(own, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)

    @property
    def weight(self) -> Tensor | None:
        """The scale, ones that are neither trained nor stored: for code that reads it, as torch's Transformer does."""
        return None if self.bias is None else torch.ones_like(self.bias).expand(self.normalized_shape)

    def forward(self, x: Float[Tensor, "*batch_and_shape"]) -> Float[Tensor, "*batch_and_shape"]:
        """Normalize each sample over the last axes and add the bias."""
        check_tensor(x, "x", finite=False, allow_empty=True)
        axes = len(self.normalized_shape)
        last = tuple(x.shape[-axes:])
        fits = last[0] == self.normalized_shape[0] if self.channel_bias else last == self.normalized_shape
        if len(last) < axes or not fits:
            free = (self.normalized_shape[0], *["*"] * (axes - 1)) if self.channel_bias else self.normalized_shape
            raise ValueError(f"x must end in the normalized shape {free}, got shape {tuple(x.shape)}")
        if self.bias is not None and self.bias.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
            # A network of half types may keep its norms in float32.
            return self._normalized(x.to(torch.promote_types(x.dtype, self.bias.dtype)), last).to(x.dtype)
        return self._normalized(x, last)

    def _normalized(self, x: Tensor, last: tuple[int, ...]) -> Tensor:
        if self.channel_bias and self.bias is not None:
            return F.layer_norm(x, last, eps=self.eps) + self.bias
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.layer_norm(x, last, bias=bias, eps=self.eps)

    def extra_repr(self) -> str:
        """The settings."""
        shape = f"{self.normalized_shape}, eps={self.eps}, bias={self.bias is not None}"
        return f"{shape}, channel_bias={self.channel_bias}"
