"""Class means and within-class covariance of features in one pass: mergeable, in memory d^2 + K d."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from offprints.shared.device import float32_region
from offprints.shared.distributed import all_reduce_
from offprints.shared.validation import check_labels, check_number, check_tensor

_CHUNK = 4096  # rows that are centered at once: of a large batch no whole copy is made
_ROWS = 1024  # of one product in float32: longer sums would lose digits
_NAMES = ("counts", "means", "scatter")


class FeatureStatistics:
    """Counts, class means and within-class covariance of features, from batches that are seen once.

    A batch is centered by the class means so far and merged as two samples are (Chan, Golub and LeVeque 1979), so that
    neither a large mean nor distant classes cost digits. All accumulators are float64. The products of a batch of
    float64 features are computed in float64, those of float32 and half types in float32, on centered values and in
    blocks of 1024 rows: their rounding is about 1e-6 of the covariance.

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

    def __init__(self, num_classes: int, dim: int) -> None:
        self.num_classes = check_number(num_classes, "num_classes", low=2, integer=True)
        self.dim = check_number(dim, "dim", low=1, integer=True)
        self._counts = torch.zeros(self.num_classes, dtype=torch.int64)
        self._means = torch.zeros(self.num_classes, self.dim, dtype=torch.float64)
        self._scatter = torch.zeros(self.dim, self.dim, dtype=torch.float64)
        self._placed = self._complete = False

    @property
    def counts(self) -> Int[Tensor, " classes"]:
        """Samples of each class."""
        return self._counts.clone()

    @property
    def means(self) -> Float[Tensor, "classes dim"]:
        """Mean feature of each class; 0 where there is no sample."""
        return self._means.clone()

    @property
    def global_mean(self) -> Float[Tensor, " dim"]:
        """Mean of all samples; 0 where there is none."""
        return (self._counts.double() / self._counts.sum().clamp(min=1)) @ self._means

    @property
    def within_covariance(self) -> Float[Tensor, "dim dim"]:
        """Sigma_W, the mean over all samples of (h - mu_k)(h - mu_k)^T; 0 where there is none."""
        return self._scatter / self._counts.sum().clamp(min=1)

    @torch.no_grad()
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
        device = self._means.device
        features, labels = features.detach().to(device), labels.to(device)
        exact = _exact(features)
        for rows, its in zip(features.split(_CHUNK), labels.split(_CHUNK), strict=True):
            self._add(rows, its, exact)

    def _add(self, features: Tensor, labels: Tensor, exact: bool) -> None:
        """Add rows that were checked."""
        present = torch.arange(self.num_classes, device=features.device)
        if self.num_classes > len(features):  # the cost of a small batch does not grow with K
            present, labels = labels.unique(return_inverse=True)
        membership = membership_of(labels, len(present))
        before, centers = self._counts[present], self._means[present]
        count = torch.bincount(labels, minlength=len(present))
        if not self._complete:
            centers = torch.where((before == 0).unsqueeze(1), _class_means(features, membership, count), centers)
        residual = features - centers.index_select(0, labels)  # in float64, whatever the type of the features
        moved = torch.sparse.mm(membership, residual)
        total = (before + count).clamp(min=1).double().unsqueeze(1)  # the root of an integer is float32
        # What the change of the means takes off, summed over classes: moved moved^T / total.
        change = moved / total.sqrt()
        if not exact:
            residual, change = residual.float(), change.float()
        self._scatter += _gram(residual) - _gram(change)
        self._means.index_copy_(0, present, centers + moved / total)
        self._counts.index_add_(0, present, count)
        self._complete = self._complete or bool((self._counts > 0).all())

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
            self._to(other._means.device)
        device = self._means.device
        present = other._counts.nonzero().flatten().to(device)
        count, means, scatter = (value.to(device) for value in (other._counts, other._means, other._scatter))
        self._merge(present, count[present], means[present], self._scatter + scatter)
        self._complete = bool((self._counts > 0).all())
        return self

    def all_reduce(self) -> None:
        """Merge the samples of all processes of ``torch.distributed``, in place; alone it does nothing.

        All processes then hold the whole. Call it once, at the end: a second call would count everything again.
        """
        counts = self._counts.clone()
        center = self._means * self._counts.unsqueeze(1)
        all_reduce_(counts, center)
        center = center / counts.clamp(min=1).unsqueeze(1)
        # Deviations from one common center, so that the sums lose no digits to large means.
        shift = (self._means - center) * (self._counts > 0).unsqueeze(1)
        correction = shift * self._counts.unsqueeze(1)
        scatter = self._scatter + _gram(shift * self._counts.double().sqrt().unsqueeze(1))
        all_reduce_(correction, scatter)
        correction = correction / counts.clamp(min=1).unsqueeze(1)
        self._means = center + correction
        self._scatter = scatter - _gram(correction * counts.double().sqrt().unsqueeze(1))
        self._counts = counts
        self._complete = bool((counts > 0).all())

    def state_dict(self) -> dict[str, Tensor]:
        """The three accumulators, to save."""
        return {"counts": self.counts, "means": self.means, "scatter": self._scatter.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state_dict` returned.

        Raises:
            TypeError: an accumulator of the wrong type.
            ValueError: a missing accumulator, or one of the wrong shape.
        """
        if missing := [name for name in _NAMES if name not in state]:
            raise ValueError(f"state lacks {', '.join(missing)}")
        check_tensor(state["counts"], "state['counts']", shape=(self.num_classes,), floating=False)
        check_tensor(state["means"], "state['means']", shape=(self.num_classes, self.dim))
        check_tensor(state["scatter"], "state['scatter']", shape=(self.dim, self.dim))
        device = self._means.device
        self._counts = state["counts"].to(device=device, dtype=torch.int64, copy=True)
        self._means = state["means"].to(device=device, dtype=torch.float64, copy=True)
        self._scatter = state["scatter"].to(device=device, dtype=torch.float64, copy=True)
        self._complete = bool((self._counts > 0).all())

    def _to(self, device: torch.device) -> None:
        self._counts, self._means = self._counts.to(device), self._means.to(device)
        self._scatter, self._placed = self._scatter.to(device), True

    def _merge(self, present: Tensor, count: Tensor, means: Tensor, scatter: Tensor) -> None:
        """Add classes ``present`` with their counts and means; ``scatter`` is the sum of both within-class scatters."""
        before = self._counts[present]
        share = count.double() / (before + count).clamp(min=1)
        delta = means - self._means[present]
        delta[before == 0] = 0  # a class that is new is where it is
        # Everything is computed before anything is changed.
        scatter = scatter + _gram(delta * (before * share).sqrt().unsqueeze(1))
        moved = self._means[present] + delta * share.unsqueeze(1)
        moved = torch.where((before == 0).unsqueeze(1), means * (count > 0).unsqueeze(1), moved)
        self._scatter = scatter
        self._means = self._means.index_copy(0, present, moved)
        self._counts = self._counts.index_add(0, present, count)


def membership_of(labels: Tensor, num_classes: int) -> Tensor:
    """The sparse matrix ``[classes, rows]`` of ones whose product with the rows is their sum in each class."""
    place = torch.stack([labels, torch.arange(len(labels), device=labels.device)])
    ones = torch.ones(len(labels), dtype=torch.float64, device=labels.device)
    return torch.sparse_coo_tensor(place, ones, (num_classes, len(labels)), check_invariants=False)


def _class_means(features: Tensor, membership: Tensor, count: Tensor) -> Tensor:
    """Mean of each class in float64, 0 without a sample; one row is taken off first, so that the sums are small."""
    first = features[0].double()
    sums = torch.sparse.mm(membership, features - first)
    return (sums / count.clamp(min=1).unsqueeze(1) + first) * (count > 0).unsqueeze(1)


def _exact(features: Tensor) -> bool:
    """Whether products are to be taken in float64."""
    # A process that lets float32 products be rounded to less than float32 must not round ours.
    return features.dtype == torch.float64 or torch.get_float32_matmul_precision() != "highest"


def _gram(rows: Tensor) -> Tensor:
    """rows^T rows in float64; of the symmetric result only one half is computed."""
    d = rows.shape[1]
    result = torch.zeros(d, d, dtype=torch.float64, device=rows.device)
    blocks = [slice(start, min(start + size, d)) for size in [max(256, -(-d // 4))] for start in range(0, d, size)]
    with float32_region(rows.device):
        for part in rows.split(_ROWS) if rows.dtype == torch.float32 else [rows]:
            for number, left in enumerate(blocks):
                for right in blocks[number:]:
                    result[left, right] += part[:, left].T @ part[:, right]
    for number, left in enumerate(blocks):
        result[left, left] = (result[left, left] + result[left, left].T) / 2
        for right in blocks[number + 1 :]:
            result[right, left] = result[left, right].T
    return result
