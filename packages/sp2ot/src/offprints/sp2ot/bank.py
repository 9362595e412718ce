"""The memory buffer: transport on more samples than a batch has."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from offprints.shared.validation import check_bool, check_labels, check_number, check_tensor


def keep_wide(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A conversion of a module's tensors that moves them but does not narrow them to a half type."""

    def convert(x: Tensor) -> Tensor:
        made = fn(x)
        halved = made.is_floating_point() and made.element_size() < 4 <= x.element_size()
        return x.to(made.device) if halved else made

    return convert


class LogitBank(nn.Module):
    """The last ``size`` logits with the indices of their samples, in a ring, all of it in the ``state_dict``.

    Logits are kept in float32, or float64 after ``double()``; a half type is too narrow and changes nothing.

    Args:
        num_clusters: Columns of the logits.
        size: Rows.

    Raises:
        TypeError, ValueError: a number that is not an integer or below 1.

    Example:
        >>> bank = LogitBank(num_clusters=2, size=3)
        >>> rows = bank.push(torch.eye(2), torch.tensor([5, 6]))
        >>> bank.push(torch.ones(2, 2), torch.tensor([7, 8]))
        tensor([2, 0])
        >>> bank.snapshot()[1]
        tensor([8, 6, 7])
    """

    logits: Tensor
    index: Tensor
    filled: Tensor
    cursor: Tensor
    last: Tensor

    def __init__(self, num_clusters: int, size: int) -> None:
        super().__init__()
        num_clusters = check_number(num_clusters, "num_clusters", low=1, integer=True)
        size = check_number(size, "size", low=1, integer=True)
        self.register_buffer("logits", torch.zeros(size, num_clusters))
        self.register_buffer("index", torch.zeros(size, dtype=torch.int64))
        for name in ("filled", "cursor", "last"):  # rows in use, next row, rows of the last push
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LogitBank:
        return cast("LogitBank", super()._apply(keep_wide(fn), recurse))  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def push(
        self, logits: Float[Tensor, "batch clusters"], index: Int[Tensor, " batch"], *, replace_last: bool = False
    ) -> Int[Tensor, " batch"]:
        """Store a batch over the oldest rows, or, with ``replace_last``, over the rows of the last push.

        Returns:
            The rows of :meth:`snapshot` that hold this batch, also where it goes around the end.

        Raises:
            TypeError: logits that are not a floating tensor, an index that is not an integer one.
            ValueError: another number of clusters or rows of index, more rows than the bank has, logits that are not
                finite or do not fit the type of the bank, ``replace_last`` with another number of rows than the last
                push had.
        """
        size, clusters = self.logits.shape
        check_tensor(logits, "logits", shape=(None, clusters))
        batch = len(logits)
        index = check_labels(index, "index", length=batch)
        if index.ndim != 1:
            raise ValueError(f"index must have one dimension, got shape {tuple(index.shape)}")
        if batch > size:
            raise ValueError(f"logits must have at most {size} rows, the size of the bank, got {batch}")
        replace_last = check_bool(replace_last, "replace_last")
        if replace_last and batch != int(self.last):
            raise ValueError(f"logits must have the {int(self.last)} rows of the last push, got {batch}")
        stored = logits.detach().to(self.logits)
        if stored.dtype != logits.dtype:
            check_tensor(stored, f"logits in the bank's {str(stored.dtype).removeprefix('torch.')}")
        start = self.cursor - batch if replace_last else self.cursor
        rows = (start + torch.arange(batch, device=self.cursor.device)) % size
        self.logits[rows] = stored
        self.index[rows] = index.to(self.index.device)
        if not replace_last:
            self.cursor.copy_((self.cursor + batch) % size)
            self.filled.copy_((self.filled + batch).clamp(max=size))
            self.last.fill_(batch)
        return rows

    def snapshot(self) -> tuple[Float[Tensor, "filled clusters"], Int[Tensor, " filled"]]:
        """Copies of the stored logits and of the indices of their samples."""
        filled = int(self.filled)
        return self.logits[:filled].clone(), self.index[:filled].clone()

    def extra_repr(self) -> str:
        """Sizes, as they appear in the module's repr."""
        size, clusters = self.logits.shape
        return f"num_clusters={clusters}, size={size}"
