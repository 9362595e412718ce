"""Steps 4 and 5: the pseudo-features generator, Gaussians of running class moments that fill classes up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from offprints.aef_ocl._gram import class_numbers
from offprints.aef_ocl._regions import check_dtype, check_magnitude, in_full, plainly
from offprints.shared.distributed import GroupMoments, all_reduce_, gather, world_size
from offprints.shared.validation import check_labels, check_number, check_tensor

CHUNK = 2048  # pseudo-features at a time


class PseudoFeatureGenerator(nn.Module):
    """Count, mean and deviation of each class, and features drawn from them: mu_c + noise s_c N(0, I).

    The moments are merged pairwise, so that no digits are lost to features far from zero, and no sample is stored.
    The deviation is the unbiased one, 0 for a class with a single sample. Classes may appear at any time.

    Args:
        in_features: d, the size of a feature vector, before the random buffer.
        noise: Factor of the deviations; 0 repeats the means.
        device: Where the moments lie.
        dtype: Their type, float64 or float32, which rounds what a batch adds to the means of a long stream.

    Attributes:
        count_: Samples per class ``[K]``, int64.
        mean_: ``[K, d]``; 0 for a class without samples.
        std_: ``[K, d]``; 0 for a class with fewer than two.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: ``in_features`` < 1, ``noise`` negative.

    Example:
        >>> generator = PseudoFeatureGenerator(1, noise=0.0)
        >>> _ = generator.partial_fit(torch.tensor([[1.0], [3.0], [7.0]]), torch.tensor([0, 0, 1]))
        >>> generator.deficits()
        tensor([0, 1])
        >>> generator.sample()
        (tensor([[7.]], dtype=torch.float64), tensor([1]))
    """

    _count: Tensor
    mean_: Tensor
    _m2: Tensor

    def __init__(
        self,
        in_features: int,
        *,
        noise: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        self.in_features = check_number(in_features, "in_features", low=1, integer=True)
        self.noise = check_number(noise, "noise", low=0)
        mean = torch.zeros(0, self.in_features, device=device, dtype=check_dtype(dtype))
        self.register_buffer("_count", mean.new_zeros(0, dtype=torch.int64))
        self.register_buffer("mean_", mean)
        self.register_buffer("_m2", mean.clone())

    def _device(self) -> torch.device:
        return self.mean_.device

    def _moments(self) -> GroupMoments:
        moments = GroupMoments(None, (self.in_features,), dtype=self.mean_.dtype, device=self.mean_.device)
        moments.count, moments.mean, moments.m2 = self._count.to(self.mean_), self.mean_, self._m2
        return moments

    def _keep(self, moments: GroupMoments, *counts: Tensor) -> Self:
        """The moments, and the sum of counts, which are integers: a float32 one would end at 2^24."""
        K = len(moments.count)
        padded = [nn.functional.pad(count.to(self._count.device), (0, K - len(count))) for count in counts]
        self._count, self.mean_, self._m2 = torch.stack(padded).sum(0), moments.mean, moments.m2
        return self

    @property
    def count_(self) -> Int[Tensor, " K"]:
        """Samples per class."""
        return self._count

    @property
    def std_(self) -> Float[Tensor, "K d"]:
        """Unbiased deviations, 0 for a class with fewer than two samples."""
        return self._moments().std(ddof=1).nan_to_num(nan=0.0)

    @plainly
    def partial_fit(self, X: Float[Tensor, "B d"], y: Int[Tensor, " B"]) -> Self:
        """Add features and the numbers of their classes, from 0 on.

        Raises:
            TypeError: X not a floating tensor, labels that are floating or boolean.
            ValueError: empty, NaN or infinite, too large to be squared, of another width or length, negative labels.
                A refused batch changes nothing.
        """
        check_tensor(X, "X", shape=(None, self.in_features))
        check_magnitude(X, "X", self.mean_.dtype)
        labels = class_numbers(y, "y", len(X))
        moments = self._moments()
        moments.update(X.to(self.mean_.device), labels.to(self.mean_.device))
        return self._keep(moments, self._count, labels.bincount())

    def deficits(self) -> Int[Tensor, " K"]:
        """What each class lacks to be as large as the largest; 0 for classes never seen."""
        count = self._count
        return torch.where(count > 0, count.max() - count, 0) if len(count) else count

    @plainly
    def sample(
        self,
        counts: Int[Tensor, " K"] | None = None,
        *,
        generator: torch.Generator | None = None,
        normals: Float[Tensor, "n d"] | None = None,
    ) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
        """Pseudo-features and the numbers of their classes, classes ascending.

        Args:
            counts: How many of each class; default: `deficits`.
            generator: Draws the noise, on its own device; default: torch's global one of the CPU.
            normals: The standard normal numbers to use instead of drawing them.

        Raises:
            TypeError: an argument of the wrong kind.
            ValueError: ``counts`` negative, of another length, or positive for a class never seen; ``normals`` of
                another shape or not finite.
        """
        chunks = list(self._chunks(counts, generator, normals))
        return torch.cat([features for features, _ in chunks]), torch.cat([labels for _, labels in chunks])

    def _chunks(
        self, counts: Tensor | None, generator: torch.Generator | None, normals: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The pseudo-features, never all of them at once; at least one chunk, which may be empty."""
        wanted = self.deficits() if counts is None else self._checked(counts)
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
        if normals is not None:
            check_tensor(normals, "normals", ndim=2, allow_empty=True)
            shape = (int(wanted.sum()), self.in_features)
            if tuple(normals.shape) != shape:
                raise ValueError(f"normals must have shape {shape} for these counts, got {tuple(normals.shape)}")
        labels = torch.arange(len(wanted), device=wanted.device).repeat_interleave(wanted)
        std = self.std_
        place = torch.device("cpu") if generator is None else generator.device
        for start in range(0, max(1, len(labels)), CHUNK):
            chosen = labels[start : start + CHUNK]
            if normals is None:
                shape = (len(chosen), self.in_features)
                drawn = torch.randn(shape, generator=generator, device=place, dtype=self.mean_.dtype)
            else:
                drawn = normals[start : start + CHUNK]
            yield self.mean_[chosen] + self.noise * std[chosen] * drawn.to(self.mean_), chosen

    def _checked(self, counts: Any) -> Tensor:
        wanted = check_labels(counts, "counts", length=len(self._count)).to(self.mean_.device)
        if wanted.ndim != 1:
            raise ValueError(f"counts must have 1 dimension, got shape {tuple(wanted.shape)}")
        if bool((wanted < 0).any()):
            raise ValueError(f"counts must not be negative, got {int(wanted.min())}")
        if bool(((wanted > 0) & (self._count == 0)).any()):
            raise ValueError("counts must be 0 for classes never seen")
        return wanted

    def _spread(self, rows: Tensor, width: int) -> None:
        """Move the classes to these places among ``width``, which ascend."""
        if len(rows) == width:
            return
        moments = self._moments()
        wide = GroupMoments(width, moments.shape, dtype=self.mean_.dtype, device=self.mean_.device)
        rows = rows.to(self.mean_.device)
        wide.count[rows], wide.mean[rows], wide.m2[rows] = moments.count, moments.mean, moments.m2
        self._keep(wide, self._count.new_zeros(width).index_copy(0, rows, self._count))

    @plainly
    def merge_(self, other: PseudoFeatureGenerator) -> Self:
        """Add the samples of another one, which is left alone; either may have seen nothing.

        Raises:
            TypeError: ``other`` is not a PseudoFeatureGenerator.
            ValueError: another number of features or another type.
        """
        if not isinstance(other, PseudoFeatureGenerator):
            raise TypeError(f"other must be a PseudoFeatureGenerator, got {type(other).__name__}")
        if other.in_features != self.in_features:
            raise ValueError(f"other must have in_features={self.in_features}, got {other.in_features}")
        if other.mean_.dtype != self.mean_.dtype:
            raise ValueError(f"other must have dtype={self.mean_.dtype}, got {other.mean_.dtype}")
        return self._keep(self._moments().merge_(other._moments()), self._count, other._count)

    @plainly
    def all_reduce_(self, group: Any = None) -> Self:
        """Merge those of all processes, which may have seen different classes or nothing. Call it once.

        Raises:
            ValueError: on every process, where numbers of features or types differ.
        """
        if world_size(group) <= 1:
            return self
        told = set(gather((self.in_features, str(self.mean_.dtype)), group))
        if len(told) > 1:
            raise ValueError(f"in_features and dtype must be the same on all processes, got {told}")
        moments = self._moments().all_reduce_(group)
        count = nn.functional.pad(self._count, (0, len(moments.count) - len(self._count)))
        all_reduce_(count, group=group)
        return self._keep(moments, count)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(in_full(fn), recurse)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        count = state_dict.get(f"{prefix}_count")
        if isinstance(count, Tensor) and count.ndim == 1:  # as many classes as were saved
            self._count = self._count.new_zeros(len(count))
            self.mean_, self._m2 = (part.new_zeros(len(count), self.in_features) for part in (self.mean_, self._m2))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"in_features={self.in_features}, noise={self.noise:g}"
