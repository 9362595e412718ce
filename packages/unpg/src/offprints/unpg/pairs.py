"""Pairs of one batch: their similarities (steps 2 and 3), and the box-and-whisker filter of the negatives (step 4)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from offprints.shared.device import float32_region, working_dtype
from offprints.shared.validation import check_bool, check_labels, check_number, check_tensor, should_check
from offprints.unpg._geometry import check_embeddings, directions


class PairSimilarities(NamedTuple):
    """Similarities of the pairs p < q of a batch, row by row.

    Attributes:
        positive: Of the pairs with equal labels, 1-D.
        negative: Of the pairs with different labels, 1-D.

    Example:
        >>> PairSimilarities(torch.ones(1), torch.zeros(2)).positive
        tensor([1.])
    """

    positive: Float[Tensor, " positives"]
    negative: Float[Tensor, " negatives"]


def pair_similarities(
    embeddings: Float[Tensor, "batch dim"], labels: Int[Tensor, " batch"], *, normalize: bool = True
) -> PairSimilarities:
    """Compute the similarities of all pairs of a batch, steps 2 and 3 (MLPG: sample-to-sample pairs).

    The order is that of the upper triangle of the `(B, B)` matrix, row by row. The gradient flows to both members of a
    pair. Similarities of half types are computed and returned in float32. Either part may be empty.

    Args:
        embeddings: `(B, d)`.
        labels: `(B,)`, any integers.
        normalize: Cosines; otherwise inner products.

    Raises:
        TypeError: `embeddings` is no floating tensor, `labels` no integer one, `normalize` no boolean.
        ValueError: shapes that do not fit, an empty batch, values that are not finite.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
        >>> pair_similarities(x, torch.tensor([0, 0, 1]))
        PairSimilarities(positive=tensor([1.]), negative=tensor([0., 0.]))
    """
    check_embeddings(embeddings)
    labels = check_batch_labels(labels, embeddings)
    check_bool(normalize, "normalize")
    with float32_region(embeddings.device):
        x = embeddings.to(working_dtype(embeddings))
        x = directions(x) if normalize else x
        similarities = x @ x.T
    same, upper = labels[:, None] == labels, upper_triangle(similarities)
    return PairSimilarities(similarities[same & upper], similarities[~same & upper])


def check_batch_labels(labels: Tensor, embeddings: Tensor, num_classes: int | None = None) -> Tensor:
    """One integer label for each row, as int64, on the device of the rows."""
    labels = check_labels(labels, "labels", length=len(embeddings), num_classes=num_classes)
    if labels.ndim != 1:
        raise ValueError(f"labels must have shape ({len(embeddings)},), got {tuple(labels.shape)}")
    return labels.to(embeddings.device)


def upper_triangle(similarities: Float[Tensor, "batch batch"]) -> Bool[Tensor, "batch batch"]:
    """Mark each pair once."""
    return torch.ones(similarities.shape, dtype=torch.bool, device=similarities.device).triu(1)


def iqr_bounds(values: Float[Tensor, " n"], *, whisker: float = 1.5) -> tuple[Tensor, Tensor]:
    """Compute the ends of the whiskers, `Q1 - whisker * (Q3 - Q1)` and `Q3 + whisker * (Q3 - Q1)`, step 4.

    The quartiles are order statistics without interpolation, those of the sorted values at `int(0.25 n)` and
    `int(0.75 n)`, found by selection. No gradient flows through them. Half types give float32.

    Args:
        values: 1-D, not empty.
        whisker: Length of the whiskers in units of the box, at least 0.

    Returns:
        Both ends, 0-dimensional.

    Raises:
        TypeError: `values` is no floating tensor, `whisker` no number.
        ValueError: `values` is not 1-D, empty or not finite, `whisker` is negative or infinite.

    Example:
        >>> low, high = iqr_bounds(torch.tensor([0.0, 1.0, 2.0, 3.0, 9.0]))
        >>> low.item(), high.item()
        (-2.0, 6.0)
    """
    check_tensor(values, "values", ndim=1)
    whisker = check_number(whisker, "whisker", low=0)
    values = values.detach().to(working_dtype(values))
    return whiskers(*quartiles(values), whisker)


def iqr_filter(values: Float[Tensor, " n"], *, whisker: float = 1.5) -> Float[Tensor, " kept"]:
    """Keep the values between the whiskers of `iqr_bounds`, both ends included, in their order; step 4.

    Very high values are removed as well as very low ones: among negative pairs the highest are often labeled wrongly,
    the lowest teach nothing. Values that are all equal are all kept. The gradient of a kept value is 1.

    Args:
        values: 1-D, not empty.
        whisker: Length of the whiskers in units of the box, at least 0.

    Raises:
        TypeError, ValueError: as `iqr_bounds`.

    Example:
        >>> iqr_filter(torch.tensor([9.0, 0.0, 1.0, 2.0, 3.0]))
        tensor([0., 1., 2., 3.])
    """
    low, high = iqr_bounds(values, whisker=whisker)
    return values[(values >= low) & (values <= high)]


def whiskers(q1: Tensor, q3: Tensor, whisker: float) -> tuple[Tensor, Tensor]:
    """Both ends from the quartiles."""
    # A box of length 0 has whiskers of length 0 also where the factor is infinite in the type of the values.
    reach = (whisker * (q3 - q1)).nan_to_num(nan=0.0, posinf=torch.inf)
    return q1 - reach, q3 + reach


def quartiles(values: Float[Tensor, " n"]) -> tuple[Tensor, Tensor]:
    """The sorted values at `n // 4` and `3 n // 4`, without sorting.

    By what lies above them: `kthvalue` takes quadratic time on a CPU for values that come in falling order.
    """
    n = len(values)
    upper = values.topk(n - n // 4, sorted=False)[0]
    return upper.min(), upper.topk(n - 3 * n // 4, sorted=False)[0].min()


def masked_quartiles(
    values: Float[Tensor, "rows columns"], mask: Bool[Tensor, "rows columns"]
) -> tuple[Tensor, Tensor]:
    """The quartiles of the values at `mask`; any numbers where there is none.

    Where values can be read at once, by selection. On an accelerator, under `torch.compile` and `torch.vmap` their
    number is not known here: there by a sort, which needs none and does not wait.
    """
    values = values.detach()
    if should_check(values, mask):
        chosen = values[mask]
        if len(chosen) == 0:
            return values.new_zeros(()), values.new_zeros(())
        return quartiles(chosen)
    ordered = torch.where(mask, values, torch.inf).flatten().sort()[0]
    count = mask.sum()
    first, third = (
        ordered.gather(0, index.clamp(max=len(ordered) - 1)[None])[0] for index in (count // 4, 3 * count // 4)
    )
    return first.nan_to_num(posinf=0), third.nan_to_num(posinf=0)


def pair_logsumexp(
    x: Float[Tensor, "batch dim"], labels: Int[Tensor, " batch"], scale: float, whisker: float | None
) -> Float[Tensor, ""]:
    """The logarithm of the sum of `exp(scale * v)` over the kept negative pairs `v` of unit rows.

    One number serves every row of the batch, since all see the same pairs. It is a very negative one where there is no
    pair, finite so that derivatives of any order are zero and not undefined.
    """
    similarities = x @ x.T
    keep = (labels[:, None] != labels) & upper_triangle(similarities)
    if whisker is not None:
        low, high = whiskers(*masked_quartiles(similarities, keep), whisker)
        fixed = similarities.detach()
        # Cosines that are equal but for rounding, which goes by the shape of the product, are kept or removed together.
        slack = 4 * torch.finfo(x.dtype).eps
        keep = keep & (fixed >= low - slack) & (fixed <= high + slack)
    return torch.where(keep, scale * similarities, nothing(x.dtype)).flatten().logsumexp(0)


def nothing(dtype: torch.dtype) -> float:
    """A logit that adds nothing to any sum of exponentials, and is finite."""
    return torch.finfo(dtype).min / 4
