"""One process or many: rank, one-collective reductions, moments of groups. One process alone communicates nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from offprints.shared.validation import check_choice, check_labels, check_number, check_tensor, should_check

T = TypeVar("T")


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank(group: Any = None) -> int:
    """Number of this process, in the group if one is given (-1 outside of it); 0 in a single one.

    Example:
        >>> rank()
        0
    """
    return dist.get_rank(group) if _active() else 0


def world_size(group: Any = None) -> int:
    """Number of processes, of the group if one is given (-1 outside of it).

    Example:
        >>> world_size()
        1
    """
    return dist.get_world_size(group) if _active() else 1


def is_main() -> bool:
    """Whether this is the process that writes and prints.

    Example:
        >>> if is_main():
        ...     print("written once")
        written once
    """
    return rank() == 0


def _alone(group: Any) -> bool:
    """Whether there is nobody to communicate with; a process outside ``group`` has size -1 there."""
    return not _active() or dist.get_world_size(group) <= 1


def _communicable(tensor: Tensor, group: Any) -> Tensor:
    """NCCL reduces on a GPU only."""
    if tensor.device.type == "cpu" and dist.get_backend(group) == "nccl":
        return tensor.cuda()
    return tensor


def all_reduce_(*tensors: Tensor, op: Literal["sum", "max", "mean"] = "sum", group: Any = None) -> None:
    """Reduce tensors over all processes, in place, with one collective per type of number, whatever their count.

    Every process must pass the same shapes in the same order.

    Raises:
        TypeError: something that is not a tensor, a boolean one, or the mean of integers.
        ValueError: an unknown ``op``.

    Example:
        >>> loss, count = torch.tensor(6.0), torch.tensor(3)
        >>> all_reduce_(loss, count)
        >>> loss / count
        tensor(2.)
    """
    check_choice(op, "op", ("sum", "max", "mean"))
    for tensor in tensors:
        check_tensor(tensor, "tensors", floating=op == "mean", finite=False, allow_empty=True)
        if tensor.dtype == torch.bool:
            raise TypeError("tensors must hold numbers, got torch.bool")
    if _alone(group):
        return
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        same = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = _communicable(torch.cat([tensor.detach().reshape(-1).to(same[0].device) for tensor in same]), group)
        dist.all_reduce(flat, op=dist.ReduceOp.MAX if op == "max" else dist.ReduceOp.SUM, group=group)
        if op == "mean":
            flat /= dist.get_world_size(group)
        with torch.no_grad():
            for tensor, part in zip(same, flat.split([tensor.numel() for tensor in same]), strict=True):
                tensor.copy_(part.view(tensor.shape))


def share(value: T) -> T:
    """Rank 0's value on every rank; in one process the value itself. Plain values and tensors are pickled.

    Example:
        >>> share({"seed": 3})
        {'seed': 3}
    """
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def gather(value: T, group: Any = None) -> list[T]:
    """Every rank's value, on every rank, in the order of the ranks; of the group, if one is given.

    Example:
        >>> gather(len("rows"))
        [4]
    """
    if _alone(group):
        return [value]
    values: list[Any] = [None] * world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def on_main(function: Callable[[], T]) -> T:
    """What `function` returns or raises on rank 0, returned or raised on every rank.

    Example:
        >>> on_main(lambda: "written once")
        'written once'
    """
    if world_size() == 1:
        return function()
    result: T | None = None
    error: Exception | None = None
    if is_main():
        try:
            result = function()
        except Exception as raised:
            error = raised
    result, error = share((result, error))
    if error is not None:
        raise error
    return result  # type: ignore[return-value]  # set wherever there is no error


def _positive(count: Tensor) -> Tensor:
    """The counts to divide by: 1 where nothing was counted."""
    return torch.where(count > 0, count, 1)


def _batch_moments(
    x: Tensor, labels: Tensor, weights: Tensor | None, groups: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and sum of squared deviations of each group of one batch ``[N, D]``.

    Rows are gathered by group, in runs of ``run`` rows of one group. The first row of the group is taken from each:
    a run that is too short is filled with that row itself, which then adds nothing.
    """
    count = torch.zeros(groups, dtype=torch.int64, device=x.device).index_add_(0, labels, torch.ones_like(labels))
    run = min(32, 1 << max(0, len(x) // groups).bit_length())
    order = labels.argsort(stable=True)
    start = (count.cumsum(0) - count).clamp(max=len(x) - 1)
    ends = ((count + run - 1) // run).cumsum(0)
    # As many runs as there can be: to ask how many there are would wait for the device. Those too many add nothing.
    number = torch.arange(len(x) // run + groups, device=x.device)
    of_run = torch.searchsorted(ends, number, right=True).clamp_(max=groups - 1)
    before = ends.roll(1).index_fill(0, ends.new_zeros(1), 0)
    within = (number - before[of_run]).unsqueeze(1) * run + torch.arange(run, device=x.device)
    within = torch.where(within < count[of_run].unsqueeze(1), within, 0)
    rows = order[start[of_run].unsqueeze(1) + within]
    first = x[order[start]].to(dtype)

    total, squares = torch.zeros_like(first), torch.zeros_like(first)
    entries = 2**18 if x.device.type == "cpu" else 2**25  # of a block: it stays in the processor's cache
    block = max(1, entries // (run * max(1, x.shape[1])))
    for part, group in zip(rows.split(block), of_run.split(block), strict=True):
        deviation = x.index_select(0, part.flatten()).to(dtype).view(*part.shape, -1)
        deviation = deviation.sub_(first.index_select(0, group).unsqueeze(1))
        if weights is None:
            total.index_add_(0, group, deviation.sum(1))
            squares.index_add_(0, group, deviation.square_().sum(1))
        else:
            weighted = deviation * weights[part].unsqueeze(-1)
            total.index_add_(0, group, weighted.sum(1))
            squares.index_add_(0, group, weighted.mul_(deviation).sum(1))
    weight = count.to(dtype)
    if weights is not None:
        weight = torch.zeros_like(weight).index_add_(0, labels, weights)
    mean = total / _positive(weight).unsqueeze(1)
    first = torch.where((weight > 0).unsqueeze(1), first, 0)
    return weight, first + mean, squares.sub_(mean * total).clamp_(min=0)


class GroupMoments:
    """Count, mean and sum of squared deviations of each group, streaming and mergeable (Chan, Golub and LeVeque 1979).

    A batch is read once, as deviations from the first sample of each group, and merged pairwise, so that no precision
    is lost to large means; there is no loop over groups, and no copy of the batch in ``dtype``.

    Attributes:
        count: Samples per group, or the sum of their weights, ``[groups]``, in ``dtype`` as the others.
        mean: ``[groups, *shape]``; 0 where there is no sample.
        m2: Sums of squared deviations from the mean, ``[groups, *shape]``.

    Args:
        num_groups: Number of groups; None lets it grow as labels appear (each batch then waits for its device).
        shape: Shape of one sample.
        dtype: Type of the accumulators.
        device: Their device; default: that of the first batch, or the CPU if that is MPS, which has no float64.

    Raises:
        ValueError: ``num_groups`` < 1.

    Example:
        >>> moments = GroupMoments(2, (1,))
        >>> moments.update(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]))
        >>> moments.mean.flatten()
        tensor([2., 5.], dtype=torch.float64)
        >>> moments.std(ddof=0).flatten()
        tensor([1., 0.], dtype=torch.float64)
    """

    count: Tensor
    mean: Tensor
    m2: Tensor

    def __init__(
        self,
        num_groups: int | None,
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> None:
        if num_groups is not None:
            check_number(num_groups, "num_groups", low=1, integer=True)
        self.num_groups = num_groups
        self.shape = tuple(shape)
        self._placed = device is not None
        groups = num_groups or 0
        self.count = torch.zeros(groups, dtype=dtype, device=device)
        self.mean = torch.zeros(groups, *self.shape, dtype=dtype, device=device)
        self.m2 = torch.zeros_like(self.mean)

    def _columns(self, values: Tensor) -> Tensor:
        return values.view(-1, *[1] * len(self.shape))

    def _grow(self, groups: int) -> None:
        missing = groups - len(self.count)
        if missing > 0:
            self.count = torch.cat([self.count, self.count.new_zeros(missing)])
            self.mean = torch.cat([self.mean, self.mean.new_zeros(missing, *self.shape)])
            self.m2 = torch.cat([self.m2, self.m2.new_zeros(missing, *self.shape)])

    def _to(self, device: torch.device) -> None:
        self.count, self.mean, self.m2 = self.count.to(device), self.mean.to(device), self.m2.to(device)

    @torch.no_grad()
    def update(self, x: Tensor, groups: Tensor | None = None, *, weights: Tensor | None = None) -> None:
        """Add samples ``[N, *shape]`` with their groups ``[N]`` (default: all in group 0). An empty batch adds nothing.

        A sample with the weight 2 counts as two, one with 0 as none; ``weights`` are ``[N]``, default all 1.

        Raises:
            TypeError: ``x`` not a floating tensor, ``groups`` not of an integer type.
            ValueError: shapes that do not fit, a group out of range, NaN or infinite values, a negative weight.
        """
        check_tensor(x, "x", shape=(None, *self.shape), allow_empty=True)
        if len(x) == 0:
            return
        if groups is None:
            labels = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        else:
            labels = check_labels(groups, "groups", length=len(x), num_classes=self.num_groups)
        if labels.ndim != 1:
            raise ValueError(f"groups must have 1 dimension, got shape {tuple(labels.shape)}")
        if self.num_groups is None and (lowest := int(labels.min())) < 0:
            raise ValueError(f"groups must not be negative, got {lowest}")
        if not self._placed:
            self._to(torch.device("cpu") if x.device.type == "mps" else x.device)
            self._placed = True
        if self.num_groups is None:
            self._grow(int(labels.max()) + 1)
        x, labels = x.to(self.mean.device), labels.to(self.mean.device)
        if weights is not None:
            check_tensor(weights, "weights", shape=(len(x),))
            if should_check(weights) and bool((weights < 0).any()):
                raise ValueError(f"weights must not be negative, got {weights.min().item()}")
            weights = weights.to(self.mean)
        count, mean, m2 = _batch_moments(x.reshape(len(x), -1), labels, weights, len(self.count), self.mean.dtype)
        self._merge(count, mean.view_as(self.mean), m2.view_as(self.m2))

    def _merge(self, count: Tensor, mean: Tensor, m2: Tensor) -> None:
        total = self.count + count
        share = self._columns(count / _positive(total))
        delta = mean - self.mean
        self.m2 = self.m2 + m2 + delta.square() * self._columns(self.count) * share
        self.mean = self.mean + delta * share
        self.count = total

    @torch.no_grad()
    def merge_(self, other: GroupMoments) -> GroupMoments:
        """Add another's samples; where the number of groups is open, the larger one holds.

        Raises:
            TypeError: ``other`` is not a GroupMoments.
            ValueError: of another shape or another fixed number of groups.
        """
        if not isinstance(other, GroupMoments):
            raise TypeError(f"other must be a GroupMoments, got {type(other).__name__}")
        if other.shape != self.shape:
            raise ValueError(f"other must hold samples of shape {self.shape}, got {other.shape}")
        if self.num_groups is not None and len(other.count) > self.num_groups:
            raise ValueError(f"other must have at most {self.num_groups} groups, got {len(other.count)}")
        self._grow(len(other.count))
        missing = len(self.count) - len(other.count)
        parts = []
        for mine, theirs in ((self.count, other.count), (self.mean, other.mean), (self.m2, other.m2)):
            padding = theirs.new_zeros(missing, *theirs.shape[1:])
            parts.append(torch.cat([theirs, padding]).to(device=mine.device, dtype=mine.dtype))
        self._merge(parts[0], parts[1], parts[2])
        return self

    @torch.no_grad()
    def all_reduce_(self, group: Any = None) -> GroupMoments:
        """Merge the samples of all processes, which may have seen different groups.

        All then hold the whole: call it once, for another call would count everything again.
        """
        if _alone(group):
            return self
        if self.num_groups is None:
            groups = torch.tensor([len(self.count)], device=self.count.device)
            all_reduce_(groups, op="max", group=group)
            self._grow(int(groups))
        # Deviations are taken from one common center, so that the sums lose no digits to large means.
        weight = self._columns(self.count)
        total, center = self.count.clone(), self.mean * weight
        all_reduce_(total, center, group=group)
        center = center / self._columns(_positive(total))
        shift = self.mean - center
        correction, m2 = shift * weight, self.m2 + shift.square() * weight
        all_reduce_(correction, m2, group=group)
        correction = correction / self._columns(_positive(total))
        self.count, self.mean = total, center + correction
        self.m2 = m2 - correction.square() * self._columns(total)
        return self

    def std(self, ddof: int = 0) -> Tensor:
        """Standard deviation per group, ``[groups, *shape]``; NaN where a group has no more than ``ddof`` samples."""
        check_number(ddof, "ddof", low=0, integer=True)
        degrees = self._columns(self.count - ddof)
        variance = self.m2.clamp(min=0) / degrees
        return torch.where(degrees > 0, variance, torch.nan).sqrt()

    def state_dict(self) -> dict[str, Tensor]:
        """The three accumulators."""
        return {"count": self.count.clone(), "mean": self.mean.clone(), "m2": self.m2.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state_dict` returned.

        Raises:
            TypeError: an accumulator that is not a floating tensor.
            ValueError: a missing accumulator, or one of the wrong shape.
        """
        if missing := [name for name in ("count", "mean", "m2") if name not in state]:
            raise ValueError(f"state lacks {', '.join(missing)}")
        check_tensor(state["count"], "state['count']", shape=(self.num_groups,), allow_empty=True)
        for name in ("mean", "m2"):
            check_tensor(state[name], f"state[{name!r}]", shape=(len(state["count"]), *self.shape), allow_empty=True)
        device, dtype = self.count.device, self.count.dtype
        self.count, self.mean, self.m2 = (
            state[name].to(device=device, dtype=dtype, copy=True) for name in ("count", "mean", "m2")
        )
