"""Products of the samples with themselves, one row of the Gram matrix per sample that has weighed in a step."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MEMORY = 2**29  # bytes of rows that are kept at most
CHEAP = 8  # rows that cost about as much to compute as one product of all samples with a vector


def weighted_rows(table: Tensor, rows: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Sums of weighted rows of a table, one sum per bag, without a copy of the rows."""
    return F.embedding_bag(rows, table, offsets, mode="sum", per_sample_weights=weights)


class Products:
    """Rows ``X x_i`` of the Gram matrix, computed when they are first worth their price and kept.

    Late in a descent few samples weigh anything, and they are the same again and again. With their rows at hand an
    update of all n scores costs n times their number, whatever the dimension. Whether to buy rows that are missing is
    decided as one decides between renting and buying: at once where they are few, and otherwise when as much has been
    spent on updates without them as they cost.
    """

    def __init__(self, X: Tensor) -> None:
        self.X = X
        n = len(X)
        self.capacity = min(n, MEMORY // (n * X.element_size()))
        self.rows = X.new_empty(0, n)
        self.place = torch.full((n,), -1)
        self.count = 0
        self.spent = 0

    def places(self, active: Tensor) -> Tensor | None:
        """Where the rows of these samples are in `rows`, or None where they are not worth their price yet."""
        places = self.place[active]
        missing = active[places < 0].unique()
        if len(missing) == 0:
            return places
        if self.count + len(missing) > self.capacity:
            return None
        if len(missing) > max(CHEAP, self.spent):
            self.spent += CHEAP
            return None
        self.spent = 0
        self._buy(missing)
        return self.place[active]

    def _buy(self, missing: Tensor) -> None:
        end = self.count + len(missing)
        if end > len(self.rows):
            larger = self.X.new_empty(min(self.capacity, max(64, 2 * end)), len(self.X))
            larger[: self.count] = self.rows[: self.count]
            self.rows = larger
        torch.mm(self.X[missing], self.X.T, out=self.rows[self.count : end])
        self.place[missing] = torch.arange(self.count, end)
        self.count = end
