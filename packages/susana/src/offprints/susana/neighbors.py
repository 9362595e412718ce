"""Each row's nearest references: found without gradients, in blocks, then measured with gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from offprints.shared.validation import should_check
from offprints.susana.distances import chosen_distances, nearest_matrix

BLOCK = 2**22  # entries of a block of the matrix of all pairs


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How many neighbors are looked at, decided by sizes alone (step 1 of the score).

    Attributes:
        k: Neighbors of a row, after truncation.
        window: How far the nearest reference of another class is looked for; None: through all references.
        truncated: Whether k was cut to what there is.
        own: Whether the references are the rows themselves, so that each row leaves itself out.
        drop: Whether each row leaves out its nearest reference instead.
    """

    k: int
    window: int | None
    truncated: bool
    own: bool
    drop: bool

    @staticmethod
    def of(m: int, k: int, *, own: bool, drop: bool, name: str) -> Plan:
        """Plan for m references, with the default window of k + 1.

        Raises:
            ValueError: Fewer than three references are left; the message names `name`.
        """
        available = m - int(drop)
        if available < 3:
            raise ValueError(f"{name} must leave at least 3 references for each row, got {available}")
        k = available - 1 if k + 1 >= available else k
        return Plan(k=k, window=k + 1, truncated=k + 1 >= available, own=own and drop, drop=drop and not own)


@dataclass(frozen=True)
class Neighborhoods:
    """What the score is made of.

    Attributes:
        distance: Distances of the k nearest references, ``[n, k]``, with gradients.
        same: Whether these are of the row's class, ``[n, k]``.
        boundary: Distance of the nearest reference of another class, ``[n]``, with gradients.
        bounded: Whether there is one in the window, ``[n]``; elsewhere `boundary` means nothing.
    """

    distance: Float[Tensor, "n k"]
    same: Bool[Tensor, "n k"]
    boundary: Float[Tensor, " n"]
    bounded: Bool[Tensor, " n"]


def neighborhoods(
    x: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    z: Float[Tensor, "m d"],
    target_labels: Int[Tensor, " m"],
    plan: Plan,
    *,
    name: str,
    matrix: Float[Tensor, "n m"] | None = None,
) -> Neighborhoods:
    """The neighborhoods of the rows of x among the references z; `matrix` is `nearest_matrix` of them, if known.

    Only the chosen k + 1 distances of a row carry gradients.

    Raises:
        ValueError: Distances whose squares overflow; the message names `name`.
    """
    rows = max(1, BLOCK // len(z))
    found = []
    for start in range(0, len(x), rows):
        part = slice(start, start + rows)
        ordered = nearest_matrix(x[part], z) if matrix is None else matrix[part]
        found.append(_choose(ordered, labels[part, None] == target_labels, plan, start))
    index, same, bounded = found[0]
    if len(found) > 1:
        index, same, bounded = (torch.cat(parts) for parts in zip(*found, strict=True))
    distance = chosen_distances(x, z, index)
    if should_check(distance) and not bool(distance.detach().sum().isfinite()):
        raise ValueError(f"{name} must have distances whose squares are finite in their type, got inf")
    return Neighborhoods(distance[:, : plan.k], same, distance[:, plan.k], bounded)


def _choose(matrix: Tensor, same: Tensor, plan: Plan, start: int) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the k nearest references and of the nearest of another class, ``[n, k + 1]``, and their masks."""
    if plan.own:
        numbers = torch.arange(matrix.shape[1], device=matrix.device)
        matrix = matrix.masked_fill(numbers[start : start + len(matrix), None] == numbers, math.inf)
    elif plan.drop:
        matrix = matrix.scatter(1, matrix.argmin(1, keepdim=True), math.inf)
    order = matrix.topk(plan.k if plan.window is None else plan.window, largest=False).indices
    alike = same.gather(1, order)
    if plan.window is None:
        least, other = matrix.masked_fill(same, math.inf).min(1, keepdim=True)
        bounded = least[:, 0].isfinite()
    else:
        other = order.gather(1, (~alike).to(torch.uint8).argmax(1, keepdim=True))
        bounded = (~alike).any(1)
    return torch.cat([order[:, : plan.k], other], 1), alike[:, : plan.k], bounded
