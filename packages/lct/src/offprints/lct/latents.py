"""Statistics of latents: the normalization that training needs, and the box plot that shows impulsive outliers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offprints.shared.device import working_dtype
from offprints.shared.distributed import GroupMoments
from offprints.shared.validation import check_bool, check_number, check_tensor


class LatentNormalizer(nn.Module):
    """Bring latents to mean 0 and a given standard deviation at each position, over the data set; and back.

    x = (latent - mean) / std * target_std, with mean and unbiased std of shape ``[C, H, W]`` (or any other), gathered
    batch by batch by :meth:`update` (Chan's merge, float64). A position that is constant up to ``eps`` gives exactly 0.
    Latents of Stable Diffusion's autoencoder are often stored times 0.18215: divide first, or leave it, the result is
    the same.

    The buffers stay float64 whatever type the module is brought to, and on the CPU where the device has no float64.

    Args:
        shape: Of one sample.
        target_std: Standard deviation of the result; sigma_data of the model.
        eps: The least std.
        per_channel: One mean and one std for each channel, the first axis of ``shape``: the other axes may then have
            any length, so that latents of other resolutions are normalized, too. Every position counts as a sample.

    Raises:
        TypeError, ValueError: a shape without positive integers, ``target_std`` or ``eps`` <= 0; in calls, an input
            that is not ``[B, *shape]``; NaN or infinite values in :meth:`update`, which then changes nothing.
        RuntimeError: used before two samples were seen.

    Example:
        >>> normalizer = LatentNormalizer((2,))
        >>> normalizer.update(torch.tensor([[0.0, 10.0], [2.0, 30.0], [4.0, 50.0]]))
        >>> normalizer(torch.tensor([[4.0, 30.0]]))
        tensor([[0.5000, 0.0000]])
    """

    count: Tensor
    center: Tensor
    m2: Tensor

    def __init__(
        self, shape: Sequence[int], *, target_std: float = 0.5, eps: float = 1e-6, per_channel: bool = False
    ) -> None:
        super().__init__()
        if not isinstance(shape, Sequence):
            raise TypeError(f"shape must be a sequence of integers, got {type(shape).__name__}")
        self.shape = tuple(check_number(size, "shape", low=1, integer=True) for size in shape)
        self.target_std = float(check_number(target_std, "target_std", low=0, open_low=True))
        self.eps = float(check_number(eps, "eps", low=0, open_low=True))
        self.per_channel = check_bool(per_channel, "per_channel")
        if self.per_channel and not self.shape:
            raise ValueError("shape must have an axis of channels where per_channel is True, got ()")
        own = (self.shape[0], *[1] * (len(self.shape) - 1)) if self.per_channel else self.shape
        self.register_buffer("count", torch.zeros(1, dtype=torch.float64))
        self.register_buffer("center", torch.zeros(1, *own, dtype=torch.float64))
        self.register_buffer("m2", torch.zeros(1, *own, dtype=torch.float64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LatentNormalizer:
        device = fn(torch.empty(0)).device
        if device.type != "mps":
            for name, buffer in self._buffers.items():
                if buffer is not None:
                    self._buffers[name] = buffer.to(device)
        return self

    def _accepted(self) -> tuple[int | None, ...]:
        return (None, self.shape[0], *[None] * (len(self.shape) - 1)) if self.per_channel else (None, *self.shape)

    def _moments(self) -> GroupMoments:
        moments = GroupMoments(1, self.center.shape[1:], device=self.center.device)
        moments.load_state_dict({"count": self.count, "mean": self.center, "m2": self.m2})
        return moments

    def _keep(self, moments: GroupMoments) -> None:
        self.count, self.center, self.m2 = moments.count, moments.mean, moments.m2

    def update(self, batch: Float[Tensor, "batch *shape"]) -> None:
        """Add the samples of a batch."""
        check_tensor(batch, "batch", shape=self._accepted(), validate=True)
        if self.per_channel:
            batch = batch.movedim(1, -1).reshape(-1, *self.center.shape[1:])
        moments = self._moments()
        moments.update(batch)
        if not bool(moments.m2.isfinite().all()):
            raise ValueError(f"batch must have squares within float64, got {float(batch.abs().max()):g}")
        self._keep(moments)

    def merge_(self, other: LatentNormalizer) -> LatentNormalizer:
        """Add the samples that another one has seen."""
        if not isinstance(other, LatentNormalizer):
            raise TypeError(f"other must be a LatentNormalizer, got {type(other).__name__}")
        if other.center.shape != self.center.shape:
            own, got = (tuple(each.center.shape[1:]) for each in (self, other))
            raise ValueError(f"other must have statistics of shape {own}, got {got}")
        self._keep(self._moments().merge_(other._moments()))
        return self

    def all_reduce_(self, group: Any = None) -> LatentNormalizer:
        """Add the samples of all processes, once; a single process is left as it is."""
        self._keep(self._moments().all_reduce_(group))
        return self

    def _check_ready(self) -> None:
        if not torch.compiler.is_compiling() and float(self.count) < 2:
            raise RuntimeError(
                f"LatentNormalizer has seen {int(self.count)} samples; call update with at least two first"
            )

    @property
    def mean(self) -> Tensor:
        """Mean of each position, float64, ``shape`` (``[C, 1, ...]`` per channel)."""
        self._check_ready()
        return self.center[0]

    @property
    def std(self) -> Tensor:
        """Unbiased standard deviation of each position, at least ``eps``, float64, as the mean."""
        return self._std().clamp(min=self.eps)

    def _std(self) -> Tensor:
        self._check_ready()
        return (self.m2[0].clamp(min=0) / (self.count - 1).clamp(min=1)).sqrt()

    def forward(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """Latents ``[B, *shape]`` to normalized ones, in their type."""
        check_tensor(x, "x", shape=self._accepted(), finite=False)
        std = self._std()
        scale = torch.where(std > self.eps, self.target_std / std.clamp(min=self.eps), 0.0)
        return self._affine(x, lambda y, mean, s: (y - mean) * s, scale)

    def inverse(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """Normalized latents ``[B, *shape]`` back to the autoencoder's, in their type."""
        check_tensor(x, "x", shape=self._accepted(), finite=False)
        return self._affine(x, lambda y, mean, s: y * s + mean, self.std / self.target_std)

    def _affine(self, x: Tensor, fn: Callable[[Tensor, Tensor, Tensor], Tensor], scale: Tensor) -> Tensor:
        working = working_dtype(x)
        mean, scale = (t.to(working).to(x.device) for t in (self.mean, scale))
        return fn(x.to(working), mean, scale).to(x.dtype)

    def extra_repr(self) -> str:
        """The settings."""
        return f"{self.shape}, target_std={self.target_std}, eps={self.eps}, per_channel={self.per_channel}"


@torch.no_grad()
def impulse_statistics(x: Float[Tensor, "*shape"]) -> dict[str, float | tuple[float, float]]:
    """The box plot of all entries of a tensor: does this data have impulsive outliers, the paper's cause of failure?

    Quartiles (linear interpolation), the inner fences q1 - 1.5 IQR and q3 + 1.5 IQR, the outer ones with 3 IQR, and how
    many entries lie beyond. Normal data have 0.7 % beyond the inner and 0.0002 % beyond the outer fences, and an excess
    kurtosis of 0; the latents of Stable Diffusion's autoencoder, and the differences f(x_{i+1}) - f(x_i) of a
    consistency model on them, have many more.

    Args:
        x: Any shape, floating: pixels, latents, temporal differences.

    Returns:
        q1, median, q3, iqr, inner (lo, hi), outer (lo, hi), inner_fraction, outer_fraction, excess_kurtosis (NaN where
        all entries are equal), max_abs.

    Raises:
        TypeError: not a floating tensor.
        ValueError: empty, NaN or infinite.

    Example:
        >>> found = impulse_statistics(torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 100.0]))
        >>> found["median"], round(found["outer_fraction"], 3)
        (2.5, 0.167)
    """
    check_tensor(x, "x", validate=True)
    values = x.detach().flatten()
    ordered = values.to(working_dtype(x)).sort().values
    q1, median, q3 = (_quantile(ordered, q) for q in (0.25, 0.5, 0.75))
    iqr = q3 - q1
    inner, outer = ((q1 - k * iqr, q3 + k * iqr) for k in (1.5, 3.0))

    def beyond(fences: tuple[float, float]) -> float:
        low, high = (torch.tensor(fence, dtype=torch.float64) for fence in fences)
        below = torch.searchsorted(exact, low)
        return float(below + len(exact) - torch.searchsorted(exact, high, right=True)) / len(exact)

    exact = ordered.cpu().double()
    largest = exact.abs().max()
    deviations = exact / largest.clamp(min=torch.finfo(torch.float64).tiny)  # of any unit
    deviations = deviations - deviations.mean()
    deviations = deviations / deviations.abs().max()
    squares = deviations.square()
    kurtosis = squares.square().mean() / squares.mean().square() - 3
    return {
        "q1": q1,
        "median": median,
        "q3": q3,
        "iqr": iqr,
        "inner": inner,
        "outer": outer,
        "inner_fraction": beyond(inner),
        "outer_fraction": beyond(outer),
        "excess_kurtosis": float(kurtosis),
        "max_abs": float(largest),
    }


def _quantile(ordered: Tensor, q: float) -> float:
    """Linear interpolation between order statistics (torch.quantile refuses more than 2^24 numbers)."""
    position = q * (len(ordered) - 1)
    below = int(position)
    low, high = (float(ordered[min(k, len(ordered) - 1)]) for k in (below, below + 1))
    return low + (position - below) * (high - low)
