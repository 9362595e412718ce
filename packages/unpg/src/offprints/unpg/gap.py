"""How well a feature space separates identities (WDFS): the least similarity of equals, the largest of others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from offprints.shared.device import float32_region, working_dtype
from offprints.shared.validation import check_number
from offprints.unpg._geometry import check_embeddings, directions
from offprints.unpg.pairs import check_batch_labels

DIGIT = 16  # bits that one pass of the selection decides
Blocks = Callable[[], Iterator[Tensor]]


class SimilarityGap(NamedTuple):
    """Whether every pair of one identity is more similar than every pair of two.

    Attributes:
        inf_positive: The least similarity of pairs of one identity, or its quantile.
        sup_negative: The largest similarity of pairs of two identities, or its quantile.
        gap: Their difference; positive at quantile 0 where the space is well-discriminative (WDFS).

    Example:
        >>> SimilarityGap(0.5, 0.25, 0.25).gap > 0
        True
    """

    inf_positive: float
    sup_negative: float
    gap: float


@torch.no_grad()
def similarity_gap(
    embeddings: Float[Tensor, "rows dim"],
    labels: Int[Tensor, " rows"],
    *,
    quantile: float = 0.0,
    chunk_size: int = 4096,
) -> SimilarityGap:
    """Compute `Q_q(S^p) - Q_{1-q}(S^n)` over the cosines of all pairs, exactly, without storing them.

    At quantile 0 it is the definition of the paper, `inf S^p - sup S^n`; a small quantile forgives a few wrong labels.
    Quantiles are interpolated linearly, as `numpy.quantile` does, between order statistics that are found by selection
    on the bits of the numbers: two passes over the pairs in float32, four in float64.

    Args:
        embeddings: `(N, d)`, N of any size.
        labels: `(N,)`, any integers.
        quantile: In [0, 0.5).
        chunk_size: Rows and columns of a block of similarities.

    Raises:
        TypeError: `embeddings` is no floating tensor, `labels` no integer one.
        ValueError: shapes that do not fit, values that are not finite, no pair of one identity or none of two, an
            argument out of its range.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
        >>> found = similarity_gap(x, torch.tensor([0, 0, 1]))
        >>> round(found.inf_positive, 4), round(found.sup_negative, 4), round(found.gap, 4)
        (0.8, 0.6, 0.2)
    """
    check_embeddings(embeddings)
    labels = check_batch_labels(labels, embeddings)
    quantile = check_number(quantile, "quantile", low=0, high=0.5, open_high=True)
    chunk_size = check_number(chunk_size, "chunk_size", low=1, integer=True)
    counts = labels.unique(return_counts=True)[1]
    positives = int((counts * (counts - 1) // 2).sum())
    negatives = len(labels) * (len(labels) - 1) // 2 - positives
    for number, kind in ((positives, "equal"), (negatives, "different")):
        if number == 0:
            raise ValueError(f"labels must have a pair of {kind} labels, got {len(counts)} classes in {len(labels)}")

    with float32_region(embeddings.device):
        x = directions(embeddings.to(working_dtype(embeddings)))

        def of(same: bool) -> Blocks:
            return lambda: _pairs(x, labels, same, chunk_size)

        low = _quantile(of(True), positives, quantile)
        high = _quantile(of(False), negatives, 1 - quantile)
    return SimilarityGap(low, high, low - high)


def _pairs(x: Tensor, labels: Tensor, same: bool, chunk_size: int) -> Iterator[Tensor]:
    """The similarities of the pairs of one kind, block by block of the upper triangle."""
    for top in range(0, len(x), chunk_size):
        rows = slice(top, top + chunk_size)
        for left in range(top, len(x), chunk_size):
            columns = slice(left, left + chunk_size)
            equal = labels[rows, None] == labels[columns]
            wanted = equal if same else ~equal
            if top == left:
                wanted = wanted.triu(1)
            if wanted.any():
                yield (x[rows] @ x[columns].T)[wanted]


def _quantile(blocks: Blocks, count: int, q: float) -> float:
    """The quantile of `count` numbers, between the order statistics beside it."""
    if q == 0:
        return min(block.min().item() for block in blocks())
    if q == 1:
        return max(block.max().item() for block in blocks())
    place = q * (count - 1)
    rank = int(place)
    low, high = _order_statistics(blocks, [rank, min(rank + 1, count - 1)])
    share = place - rank
    return high - (high - low) * (1 - share) if share >= 0.5 else low + (high - low) * share


def _order_statistics(blocks: Blocks, ranks: list[int]) -> list[float]:
    """Numbers at places of the sorted whole, by radix selection: digits of their bits, from the highest on."""
    prefixes, left = [0] * len(ranks), list(ranks)
    dtype, bits, done = torch.float32, 32, 0
    while done < bits:
        counts = [torch.zeros(0)] * len(ranks)
        for block in blocks():
            dtype, bits = block.dtype, torch.finfo(block.dtype).bits
            keys = _keys(block)
            digit = keys >> (bits - done - DIGIT)
            digit = digit + 2 ** (DIGIT - 1) if done == 0 else digit & (2**DIGIT - 1)
            found: dict[int, Tensor] = {}
            for i, prefix in enumerate(prefixes):
                if prefix not in found:
                    chosen = digit if done == 0 else digit[(keys >> (bits - done)) == prefix]
                    found[prefix] = torch.bincount(chosen, minlength=2**DIGIT)
                counts[i] = counts[i] + found[prefix] if len(counts[i]) else found[prefix]
        for i, of_digit in enumerate(counts):
            upto = of_digit.cumsum(0)
            digit_of = int(torch.searchsorted(upto, left[i], right=True))
            left[i] -= int(upto[digit_of] - of_digit[digit_of])
            # The highest digit has the sign: it was counted from the lowest one on.
            prefixes[i] = digit_of - 2 ** (DIGIT - 1) if done == 0 else (prefixes[i] << DIGIT) | digit_of
        done += DIGIT
    return [_value(prefix, dtype) for prefix in prefixes]


def _keys(values: Tensor) -> Tensor:
    """Signed integers in the order of floating numbers: the bits, those of negative numbers turned round."""
    integer = torch.int64 if values.dtype == torch.float64 else torch.int32
    bits = values.view(integer)
    return torch.where(bits < 0, bits ^ torch.iinfo(integer).max, bits)


def _value(key: int, dtype: torch.dtype) -> float:
    """The number with this key."""
    integer = torch.int64 if dtype == torch.float64 else torch.int32
    bits = torch.tensor([key], dtype=integer)
    return torch.where(bits < 0, bits ^ torch.iinfo(integer).max, bits).view(dtype).item()
