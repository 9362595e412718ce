"""Step 1: the random buffer, a fixed expansion of the features (section "Method" of AEF-OCL)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from offprints.aef_ocl._regions import check_dtype, in_full
from offprints.shared.device import float32_region, make_generator
from offprints.shared.validation import check_number, check_tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "tanh": torch.tanh}


class RandomBuffer(nn.Module):
    """A fixed random expansion of features: phi = activation(A x), without a bias.

    The entries of A are uniform on (-1/sqrt(in), 1/sqrt(in)), as ``torch.nn.Linear`` begins. They are drawn in float64
    on the CPU from a generator of their own, so that every machine has the same matrix from the same seed. Input of any
    floating type is converted to the type of the weight, float64 by default, and autocast changes nothing: the ridge
    regression that follows needs the digits.

    Args:
        in_features: d, the size of a feature vector.
        out_features: D, the size of the expansion.
        activation: "relu", "gelu", "tanh", a function of a tensor, or None for a linear expansion.
        seed: Of the matrix.
        device: Where the matrix lies.
        dtype: float64 or float32; `half` and the like leave it.

    Attributes:
        weight: A, ``[out, in]``, a buffer: it is stored with the state and never trained.

    Raises:
        TypeError: an argument of the wrong kind; in `forward` something that is not a floating tensor.
        ValueError: a size below 1, an unknown activation; in `forward` another number of features.

    Example:
        >>> buffer = RandomBuffer(3, 8)
        >>> buffer(torch.zeros(2, 3)).shape
        torch.Size([2, 8])
        >>> torch.equal(buffer.weight, RandomBuffer(3, 8).weight)
        True
    """

    weight: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int = 8192,
        *,
        activation: str | Callable[[Tensor], Tensor] | None = "relu",
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        self.in_features = check_number(in_features, "in_features", low=1, integer=True)
        self.out_features = check_number(out_features, "out_features", low=1, integer=True)
        if isinstance(activation, str) and activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, a function or None: {activation!r}")
        if activation is not None and not isinstance(activation, str) and not callable(activation):
            raise TypeError(f"activation must be a name, a function or None, got {type(activation).__name__}")
        self.activation = activation
        self.seed = check_number(seed, "seed", low=0, high=2**63, open_high=True, integer=True)
        check_dtype(dtype)
        shape = (self.out_features, self.in_features)
        uniform = torch.rand(shape, generator=make_generator(self.seed), device="cpu", dtype=torch.float64)
        matrix = (2 * uniform - 1) / self.in_features**0.5
        target = torch.get_default_device() if device is None else device
        self.register_buffer("weight", matrix.to(device=target, dtype=dtype))

    def forward(self, x: Float[Tensor, "B in"]) -> Float[Tensor, "B out"]:
        """The expanded features, in the type of the weight."""
        check_tensor(x, "x", shape=(None, self.in_features), finite=False, allow_empty=True)
        with float32_region(x.device):
            expanded = F.linear(x.to(self.weight.dtype), self.weight)
            if self.activation is None:
                return expanded
            function = ACTIVATIONS[self.activation] if isinstance(self.activation, str) else self.activation
            phi = function(expanded)
        if not isinstance(phi, Tensor) or phi.shape != expanded.shape:
            got = tuple(phi.shape) if isinstance(phi, Tensor) else type(phi).__name__
            raise ValueError(f"activation must keep the shape {tuple(expanded.shape)}, got {got}")
        return phi

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(in_full(fn), recurse)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        """Sizes and activation: what the matrix does not say."""
        named = self.activation
        if named is not None and not isinstance(named, str):
            named = getattr(named, "__qualname__", type(named).__name__)
        return f"in_features={self.in_features}, out_features={self.out_features}, activation={named}"


def fingerprint(buffer: nn.Module) -> str:
    """A hash of a feature expansion: of what its repr says and of every tensor of its state, bit for bit."""
    told = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(buffer))  # places in memory are not the same on two machines
    digest = hashlib.sha256(told.encode())
    state: dict[str, Any] = buffer.state_dict()
    for name, value in state.items():
        digest.update(name.encode())
        if isinstance(value, Tensor):
            held = value.detach().cpu().contiguous()
            digest.update(f"{held.dtype} {tuple(held.shape)}".encode())
            digest.update(held.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
