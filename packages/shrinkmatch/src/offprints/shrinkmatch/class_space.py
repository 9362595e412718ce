"""The shrunk class space: what is left when the rivals of the likeliest class are removed (step 3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from offprints.shared.device import working_dtype
from offprints.shared.validation import check_number, check_probabilities, check_tensor


class ShrunkSpace(NamedTuple):
    """What `shrink_class_space` finds for each row; all tensors are without a graph.

    Attributes:
        uncertain: ``(B,)`` bool, whether the largest probability is below the threshold.
        first_kept: ``(B,)`` int64, the rank c: ranks 0 and c, c+1, ... are kept, ranks 1 to c-1 removed. Defined for
            certain rows, too; C where there are fewer than three classes.
        confidence: ``(B,)``, the top class's probability renormalized over the kept classes; 1 where there are fewer
            than three classes.
        reached: ``(B,)`` bool, whether the row is uncertain and ``confidence`` reaches the threshold: such rows have a
            loss. False where there are fewer than three classes.
        kept: ``(B, C)`` bool, the kept classes, in the order of the classes.
        order: ``(B, C)`` int64, the classes by falling probability; of equal ones the first comes first.

    Example:
        >>> space = shrink_class_space(torch.tensor([[0.04, 0.5, 0.45, 0.01]]), threshold=0.9)
        >>> space.kept, space.confidence
        (tensor([[ True,  True, False,  True]]), tensor([0.9091]))
    """

    uncertain: Bool[Tensor, " batch"]
    first_kept: Int[Tensor, " batch"]
    confidence: Float[Tensor, " batch"]
    reached: Bool[Tensor, " batch"]
    kept: Bool[Tensor, "batch classes"]
    order: Int[Tensor, "batch classes"]


def shrink_class_space(probs: Float[Tensor, "batch classes"], *, threshold: float = 0.95) -> ShrunkSpace:
    """Remove, for each row, as few rivals of the top class as make it reach the threshold.

    With the probabilities sorted, p_(0) >= p_(1) >= ..., ranks 1 to c-1 are removed for the first c of 2, ..., C-1 with
    ``p_(0) / (p_(0) + sum_{j>=c} p_(j)) >= threshold``; where there is none, for c = C-1, and the row is not *reached*.
    At least one class is removed, and at least two are kept. Half types are compared in float32.

    Args:
        probs: ``(B, C)`` probabilities, rows that sum to 1.
        threshold: In (0, 1].

    Raises:
        TypeError: ``probs`` is not a floating tensor, ``threshold`` not a number.
        ValueError: ``probs`` is not 2-D, empty, not finite, negative, or a row does not sum to 1 within 1e-3 (float32),
            2e-2 (half types) or 1e-6 (float64), as logits do not; ``threshold`` out of range.

    Example:
        >>> space = shrink_class_space(torch.tensor([[0.5, 0.45, 0.04, 0.01], [0.97, 0.01, 0.01, 0.01]]))
        >>> space.uncertain, space.reached, space.first_kept
        (tensor([ True, False]), tensor([ True, False]), tensor([3, 2]))
    """
    threshold = check_threshold(threshold)
    check_pseudo_labels(probs)
    return find_space(probs.detach().to(working_dtype(probs)), threshold)


def check_threshold(threshold: float) -> float:
    """The threshold, in (0, 1]."""
    return check_number(threshold, "threshold", low=0, high=1, open_low=True)


def check_pseudo_labels(probs: Tensor) -> None:
    """Rows of probabilities ``(B, C)``."""
    check_tensor(probs, "probs", ndim=2)
    check_probabilities(probs, "probs")


def find_space(p: Tensor, threshold: float) -> ShrunkSpace:
    """`shrink_class_space` of checked probabilities without a graph, in float32 or float64."""
    classes = p.shape[1]
    ordered, order = p.sort(dim=1, descending=True, stable=True)  # stable: ties do not depend on the device
    top = ordered[:, 0]
    uncertain = top < threshold
    if classes < 3:  # no class can be removed and leave a choice
        first_kept = torch.full_like(order[:, 0], classes)
        confidence, reached = torch.ones_like(top), torch.zeros_like(uncertain)
    else:
        # Summed from the small end: differences of sums from the large end would cancel, and the confidence would no
        # longer grow with c.
        tails = ordered.flip(1).cumsum(1).flip(1)[:, 2:]
        confidences = top.unsqueeze(1) / (top.unsqueeze(1) + tails)
        enough = confidences >= threshold
        found = enough.any(1)
        place = torch.where(found, enough.to(torch.uint8).argmax(1), classes - 3)  # the first that is enough
        first_kept = place + 2
        confidence = confidences.gather(1, place.unsqueeze(1)).squeeze(1)
        reached = uncertain & found
    ranks = torch.arange(classes, device=p.device)
    kept_by_rank = (ranks == 0) | (ranks >= first_kept.unsqueeze(1))
    kept = torch.zeros_like(kept_by_rank).scatter(1, order, kept_by_rank)
    return ShrunkSpace(uncertain, first_kept, confidence, reached, kept, order)
