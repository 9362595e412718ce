"""Class means and within-class covariance of features in one pass: mergeable, in memory d^2 + K d."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from offprints.shared.device import float32_region
from offprints.shared.distributed import all_reduce_
from offprints.shared.validation import check_labels, check_number, check_tensor

_ROWS = 1024  # of one product: longer sums in float32 would lose digits, and of a large batch no whole copy is made
_CHUNK = 128  # rows that are centered at once: in float64 they stay in the cache
_QUARTER = 0.25  # with this factor the difference of two numbers of float32 is one, too
_GROWTH = 4  # a class is centered anew when it has so many times the samples that its center was taken from
_NAMES = ("counts", "centers", "moved", "about", "limits")

Function = TypeVar("Function", bound=Callable[..., Any])


def _ordinary(function: Function) -> Function:
    """No gradients, and what is made in inference mode can be changed outside of it, too."""
    return torch.inference_mode(mode=False)(torch.no_grad()(function))


class FeatureStatistics:
    """Counts, class means and within-class covariance of features, from batches that are seen once.

    Samples are taken relative to a center of their class, its mean when it had at least a quarter of the samples that
    it has now, so that neither a large mean nor distant classes cost digits; what the means have moved since is taken
    off as two samples are merged (Chan, Golub and LeVeque 1979). All accumulators are float64, and so are counts and
    means. The products of a batch of float64 features are computed in float64, those of float32 and half types in
    float32, on centered values that are brought near 1, and in blocks of 1024 rows: their rounding is about 1e-6 of the
    covariance.

    Memory is d^2 + K d numbers, whatever the number of samples; it does not grow with the classes as K d^2.

    Args:
        num_classes: K.
        dim: d, the width of the features.

    Raises:
        TypeError: numbers that are not integers.
        ValueError: ``num_classes`` < 2 or ``dim`` < 1.

    Example:
        >>> stats = FeatureStatistics(2, 3)
        >>> stats.update(torch.tensor([[1.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 5.0, 0.0]]), torch.tensor([0, 0, 1]))
        >>> stats.means
        tensor([[2., 0., 0.],
                [0., 5., 0.]], dtype=torch.float64)
        >>> stats.within_covariance.trace()
        tensor(0.6667, dtype=torch.float64)
    """

    @_ordinary
    def __init__(self, num_classes: int, dim: int) -> None:
        self.num_classes = check_number(num_classes, "num_classes", low=2, integer=True)
        self.dim = check_number(dim, "dim", low=1, integer=True)
        self._placed = False
        counts = torch.zeros(self.num_classes, dtype=torch.int64)
        means = torch.zeros(self.num_classes, self.dim, dtype=torch.float64)
        self._set(counts, means, torch.zeros(self.dim, self.dim, dtype=torch.float64))

    def _set(self, counts: Tensor, means: Tensor, scatter: Tensor) -> None:
        """Hold samples of these counts, means and within-class scatter; the tensors become the accumulators."""
        self._counts, self._centers = counts, means
        # The sum of h - center over the samples h of each class, and of (h - center)(h - center)^T over all samples.
        # Of the latter the blocks on and above the diagonal count.
        self._moved, self._about = torch.zeros_like(means), scatter
        self._limits = _GROWTH * counts  # beyond them a class is centered anew
        self._complete = bool((counts > 0).all())

    @property
    def counts(self) -> Int[Tensor, " classes"]:
        """Samples of each class."""
        return self._counts.clone()

    @property
    def means(self) -> Float[Tensor, "classes dim"]:
        """Mean feature of each class; 0 where there is no sample."""
        return self._centers + self._moved / self._counts.clamp(min=1).unsqueeze(1)

    @property
    def global_mean(self) -> Float[Tensor, " dim"]:
        """Mean of all samples; 0 where there is none."""
        return (self._counts.double() / self._counts.sum().clamp(min=1)) @ self.means

    @property
    def within_covariance(self) -> Float[Tensor, "dim dim"]:
        """Sigma_W, the mean over all samples of (h - mu_k)(h - mu_k)^T; 0 where there is none."""
        return self._scatter() / self._counts.sum().clamp(min=1)

    def _scatter(self) -> Tensor:
        """The within-class covariance times the number of samples, a new tensor."""
        scatter = self._about.clone()
        _add_gram(scatter, self._moved / self._counts.clamp(min=1).double().sqrt().unsqueeze(1), sign=-1)
        for left, right in _blocks(self.dim):
            if left == right:
                scatter[left, left] = (scatter[left, left] + scatter[left, left].T) / 2
            else:
                scatter[right, left] = scatter[left, right].T
        return scatter

    @_ordinary
    def update(self, features: Float[Tensor, "batch dim"], labels: Int[Tensor, " batch"]) -> None:
        """Add a batch.

        Raises:
            TypeError: ``features`` not a floating tensor, ``labels`` not integers.
            ValueError: wrong shapes, an empty batch, NaN or infinite features, a label out of range.
        """
        check_tensor(features, "features", ndim=2, shape=(None, self.dim))
        if isinstance(labels, Tensor) and labels.ndim != 1:
            raise ValueError(f"labels must have 1 dimension, got shape {tuple(labels.shape)}")
        labels = check_labels(labels, "labels", length=len(features), num_classes=self.num_classes)
        if not self._placed:  # on the first batch's device, if that has float64
            self._to(torch.device("cpu") if features.device.type == "mps" else features.device)
        device = self._centers.device
        features, labels = features.detach().to(device), labels.to(device)
        for rows, its in zip(features.split(_ROWS), labels.split(_ROWS), strict=True):
            self._add(rows, its, torch.float64 if _exact(features) else torch.float32)

    def _add(self, features: Tensor, labels: Tensor, dtype: torch.dtype) -> None:
        """Add rows that were checked, by products of this type."""
        if not self._complete:
            self._begin(features, labels)
        centered = torch.empty(features.shape, dtype=dtype, device=features.device)
        on_cpu = features.device.type == "cpu"
        size = _CHUNK if on_cpu else _ROWS
        for rows, its, out in zip(features.split(size), labels.split(size), centered.split(size), strict=True):
            residual = rows.to(torch.float64, copy=True).sub_(self._centers.index_select(0, its))
            self._moved.index_add_(0, its, residual)
            torch.mul(residual, _QUARTER, out=out)
        _add_gram(self._about, centered, _QUARTER)
        self._counts.index_add_(0, labels, torch.ones_like(labels))
        if not on_cpu:  # to ask which are due would wait for the device
            self._center(labels.unique() if self.num_classes > len(labels) else slice(None))
        elif bool((due := self._counts[labels] > self._limits[labels]).any()):
            self._center(labels[due].unique())

    def _begin(self, features: Tensor, labels: Tensor) -> None:
        """Center classes that are new at the mean of their rows."""
        new = self._counts[labels] == 0
        found, its, count = labels[new].unique(return_inverse=True, return_counts=True)
        if len(found):
            rows = features[new].double()
            first = rows[:1].clone()  # is taken off, so that the sums are small
            sums = torch.zeros_like(self._centers[found]).index_add_(0, its, rows - first)
            self._centers[found] = sums / count.unsqueeze(1) + first
            self._limits[found] = _GROWTH * count
        self._complete = len(found) + int((self._counts > 0).sum()) == self.num_classes

    def _center(self, classes: Tensor | slice) -> None:
        """Center classes at their means."""
        count = self._counts[classes].unsqueeze(1).clamp(min=1)
        moved = self._moved[classes]
        _add_gram(self._about, moved / count.double().sqrt(), sign=-1)  # the root of an integer is float32
        self._centers[classes] += moved / count
        self._moved[classes] = 0
        self._limits[classes] = _GROWTH * self._counts[classes]

    @_ordinary
    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """Add the samples of another one, in place, and return self; the other is left as it is.

        Raises:
            TypeError: ``other`` is not a FeatureStatistics.
            ValueError: it has another number of classes or another width.
        """
        if not isinstance(other, FeatureStatistics):
            raise TypeError(f"other must be a FeatureStatistics, got {type(other).__name__}")
        if (other.num_classes, other.dim) != (self.num_classes, self.dim):
            raise ValueError(
                f"other must have {self.num_classes} classes and features of width {self.dim}, "
                f"got {other.num_classes} and {other.dim}"
            )
        if not self._placed and other._placed:
            self._to(other._centers.device)
        device = self._centers.device
        count, means, scatter = (value.to(device) for value in (other._counts, other.means, other._scatter()))
        counts = self._counts + count
        share = (count.double() / counts.clamp(min=1)).unsqueeze(1)
        delta = means - self.means
        scatter += self._scatter()
        _add_gram(scatter, delta * (self._counts.unsqueeze(1) * share).sqrt())
        self._set(counts, self.means + share * delta, scatter)
        return self

    @_ordinary
    def all_reduce(self) -> None:
        """Merge the samples of all processes of ``torch.distributed``, in place; alone it does nothing.

        All processes then hold the whole. Call it once, at the end: a second call would count everything again.
        """
        counts, means, scatter = self._counts.clone(), self.means, self._scatter()
        center = means * counts.unsqueeze(1)
        all_reduce_(counts, center)
        center = center / counts.clamp(min=1).unsqueeze(1)
        # Deviations from one common center, so that the sums lose no digits to large means.
        shift = (means - center) * (self._counts > 0).unsqueeze(1)
        correction = shift * self._counts.unsqueeze(1)
        _add_gram(scatter, shift * self._counts.double().sqrt().unsqueeze(1))
        all_reduce_(correction, scatter)
        correction = correction / counts.clamp(min=1).unsqueeze(1)
        _add_gram(scatter, correction * counts.double().sqrt().unsqueeze(1), sign=-1)
        self._set(counts, center + correction, scatter)

    def state_dict(self) -> dict[str, Tensor]:
        """The accumulators, to save: what is loaded goes on to the same result to the bit."""
        return {name: getattr(self, f"_{name}").clone() for name in _NAMES}

    @_ordinary
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state_dict` returned.

        Raises:
            TypeError: an accumulator of the wrong type.
            ValueError: a missing accumulator, or one of the wrong shape.
        """
        if missing := [name for name in _NAMES if name not in state]:
            raise ValueError(f"state lacks {', '.join(missing)}")
        for name in _NAMES:
            now = getattr(self, f"_{name}")
            check_tensor(state[name], f"state['{name}']", shape=now.shape, floating=now.is_floating_point())
        for name in _NAMES:
            now = getattr(self, f"_{name}")
            setattr(self, f"_{name}", state[name].to(device=now.device, dtype=now.dtype, copy=True))
        self._complete = bool((self._counts > 0).all())

    def _to(self, device: torch.device) -> None:
        for name in _NAMES:
            setattr(self, f"_{name}", getattr(self, f"_{name}").to(device))
        self._placed = True


def _exact(features: Tensor) -> bool:
    """Whether products are to be taken in float64."""
    # A process that lets float32 products be rounded to less than float32 must not round ours.
    return features.dtype == torch.float64 or torch.get_float32_matmul_precision() != "highest"


def _blocks(dim: int) -> list[tuple[slice, slice]]:
    """Rows and columns of the blocks on and above the diagonal of a symmetric matrix."""
    size = max(256, -(-dim // 4))
    parts = [slice(start, min(start + size, dim)) for start in range(0, dim, size)]
    return [(left, right) for number, left in enumerate(parts) for right in parts[number:]]


def _add_gram(total: Tensor, rows: Tensor, factor: float = 1.0, *, sign: int = 1) -> None:
    """Add rows^T rows / factor^2 to the blocks of ``total`` that count, by products of the rows' type.

    The rows are changed, too.
    """
    # Brought near 1 by a power of two, so that no square overflows or underflows.
    one = torch.ones((), dtype=torch.float64, device=rows.device)
    power = torch.frexp(torch.maximum(rows.amax(), -rows.amin()).double()).exponent.clamp(min=-100)
    rows.mul_(torch.ldexp(one, -power))
    scale = torch.ldexp(one, 2 * power) * (sign / factor**2)
    with float32_region(rows.device):
        for left, right in _blocks(rows.shape[1]):
            total[left, right].addcmul_((rows[:, left].T @ rows[:, right]).double(), scale)
