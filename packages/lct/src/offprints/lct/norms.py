"""Non-scaling LayerNorm: no learned scale, which would amplify the features that carry outliers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from offprints.shared.validation import check_number


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
            whose last axes do not fit.
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
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        if not shape:
            raise ValueError("normalized_shape must have at least one axis, got ()")
        for size in shape:
            check_number(size, "normalized_shape", low=1, integer=True)
        check_number(eps, "eps", low=0)
        self.normalized_shape = tuple(int(size) for size in shape)
        self.eps = eps
        self.channel_bias = channel_bias
        if bias:
            own = (self.normalized_shape[0], *[1] * (len(shape) - 1)) if channel_bias else self.normalized_shape
            self.bias = nn.Parameter(torch.zeros(own, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)

    def forward(self, x: Float[Tensor, "*batch_and_shape"]) -> Float[Tensor, "*batch_and_shape"]:
        """Normalize each sample over the last axes and add the bias."""
        axes = len(self.normalized_shape)
        last = tuple(x.shape[-axes:])
        fits = last[0] == self.normalized_shape[0] if self.channel_bias else last == self.normalized_shape
        if len(last) < axes or not fits:
            free = (self.normalized_shape[0], *["*"] * (axes - 1)) if self.channel_bias else self.normalized_shape
            raise ValueError(f"x must end in the normalized shape {free}, got shape {tuple(x.shape)}")
        if self.channel_bias and self.bias is not None:
            return F.layer_norm(x, last, eps=self.eps) + self.bias
        return F.layer_norm(x, last, bias=self.bias, eps=self.eps)

    def extra_repr(self) -> str:
        """The settings."""
        shape = f"{self.normalized_shape}, eps={self.eps}, bias={self.bias is not None}"
        return f"{shape}, channel_bias={self.channel_bias}"


def replace_norms(
    network: nn.Module,
    example: Tensor,
    *example_args: Any,
    types: Sequence[type[nn.Module]] = (nn.GroupNorm, nn.LayerNorm),
) -> nn.Module:
    """Replace every normalization of a network by :class:`NonScalingLayerNorm`, in place.

    One forward pass of the example finds the shapes: a LayerNorm keeps its own ``normalized_shape``, any other type
    gets its input's shape without the batch axis. Each keeps its eps, device and type; the new biases are 0. Modes,
    running statistics and random streams are as before.

    Args:
        network: Any module that is called as ``network(example, *example_args)``; a U-Net of ``diffusers`` too.
        example: Input of the resolution to train at, on the network's device.
        *example_args: Further arguments, such as noise levels.
        types: What to replace.

    Returns:
        The network (the new normalization where ``network`` itself is one of ``types``).

    Raises:
        ValueError: nothing to replace, a normalization that the example does not reach, or one used at two shapes.
    """
    norms = {
        module: name for name, module in network.named_modules() if any(isinstance(module, kind) for kind in types)
    }
    if not norms:
        raise ValueError(f"network holds none of types {', '.join(kind.__name__ for kind in types)}")
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def record(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        shape = module.normalized_shape if isinstance(module, nn.LayerNorm) else inputs[0].shape[1:]
        if shapes.setdefault(module, tuple(shape)) != tuple(shape):
            raise ValueError(
                f"network uses {norms[module]!r} at two shapes, {shapes[module]} and {tuple(shape)}: "
                "a bias of one shape cannot serve both"
            )

    hooks = [module.register_forward_pre_hook(record) for module in norms]
    training = [module for module in network.modules() if module.training]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[example.device] if example.is_cuda else []):
            network.eval()(example, *example_args)
    finally:
        for hook in hooks:
            hook.remove()
        for module in training:
            module.training = True
    missed = [name for module, name in norms.items() if module not in shapes]
    if missed:
        raise ValueError(f"example does not reach the normalization {', '.join(missed)} of network")

    new = {module: _like(module, shape) for module, shape in shapes.items()}
    for parent in list(network.modules()):
        for name, child in list(parent._modules.items()):
            if child in new:
                parent._modules[name] = new[child]
    return new.get(network, network)


def _like(module: nn.Module, shape: tuple[int, ...]) -> NonScalingLayerNorm:
    owned = next((t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()), None)
    device, dtype = (None, None) if owned is None else (owned.device, owned.dtype)
    norm = NonScalingLayerNorm(shape, eps=getattr(module, "eps", 1e-5), device=device, dtype=dtype)
    return norm.train(module.training)
