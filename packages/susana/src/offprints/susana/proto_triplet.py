"""The Proto-Triplet loss: a triplet loss whose positives and negatives are the prototypes of an episode."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from offprints.shared.device import float32_region
from offprints.shared.validation import (
    Reduction,
    check_choice,
    check_labels,
    check_number,
    check_tensor,
    reduce,
    should_check,
)
from offprints.susana.distances import check_pair, safe_root, squared_distances
from offprints.susana.prototypes import check_class_labels

REDUCTIONS = ("mean", "sum", "none")


def proto_triplet_loss(
    queries: Float[Tensor, "queries d"],
    query_labels: Int[Tensor, " queries"],
    prototypes: Float[Tensor, "ways d"],
    prototype_labels: Int[Tensor, " ways"] | None = None,
    *,
    margin: float = 0.5,
    eps: float = 1e-6,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute the Proto-Triplet loss max(0, d(q, P_y) - min_{c != y} d(q, P_c) + margin) of every query.

    The positive is the own prototype, the negative the nearest other one, and d the paper's distance with `eps` inside
    of its root. The mean is over all queries, also those whose hinge is 0; where several prototypes are nearest, they
    share the gradient. Half types are computed, and returned, in float32. Where values are not looked at (an
    accelerator, ``torch.compile``), a query without a prototype is taken for one of the first.

    Args:
        queries: Embedded queries ``[q, d]``.
        query_labels: Their classes ``[q]``.
        prototypes: One row for each class ``[n_way, d]``, at least two.
        prototype_labels: The classes of the prototypes ``[n_way]``, all different; default 0..n_way-1.
        margin: The gap that is asked for, at least 0.
        eps: What is added to the squared distance, at least 0.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        A number, or ``[q]`` for ``"none"``.

    Raises:
        TypeError: Features are not floating tensors, labels not of an integer type.
        ValueError: Shapes that do not fit, empty or not finite features, distances that overflow; fewer than two
            prototypes, a query's label without a prototype, two prototypes of one label, a negative `margin` or
            `eps`, an unknown `reduction`.

    Example:
        >>> prototypes = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
        >>> queries = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
        >>> proto_triplet_loss(queries, torch.tensor([0, 0]), prototypes, reduction="none")
        tensor([0.0000, 0.5000])
    """
    check_choice(reduction, "reduction", REDUCTIONS)
    margin = check_number(margin, "margin", low=0)
    eps = check_number(eps, "eps", low=0)
    check_tensor(queries, "queries", ndim=2)
    check_tensor(prototypes, "prototypes", ndim=2)
    check_pair(queries, prototypes, ("queries", "prototypes"))
    if len(prototypes) < 2:
        raise ValueError(f"prototypes must have at least 2 rows, got {len(prototypes)}")
    query_labels = check_class_labels(query_labels, queries, "query_labels", of="queries")
    if prototype_labels is None:
        check_labels(query_labels, "query_labels", num_classes=len(prototypes))
        prototype_labels = torch.arange(len(prototypes), device=prototypes.device)
    else:
        prototype_labels = check_class_labels(prototype_labels, prototypes, "prototype_labels", of="prototypes")
        _check_prototype_labels(query_labels, prototype_labels)
    with float32_region(queries.device):
        losses = triplet_hinges(squared_distances(queries, prototypes), query_labels, prototype_labels, margin, eps)
    return reduce(losses, reduction)


def triplet_hinges(
    squared: Tensor, query_labels: Tensor, prototype_labels: Tensor, margin: float, eps: float
) -> Tensor:
    """The hinge of every query, of the squared distances ``[q, n_way]``."""
    if should_check(squared) and not bool(squared.detach().amax().isfinite()):
        raise ValueError("queries and prototypes must have distances whose squares are finite in their type, got inf")
    distance = safe_root(squared, eps)
    own = query_labels[:, None] == prototype_labels
    positive = distance.gather(1, own.to(torch.uint8).argmax(1, keepdim=True))[:, 0]
    negative = distance.masked_fill(own, math.inf).amin(1)
    return torch.relu(positive - negative + margin)


def _check_prototype_labels(query_labels: Tensor, prototype_labels: Tensor) -> None:
    equal = prototype_labels[:, None] == prototype_labels
    single = equal.sum(1) == 1
    known = (query_labels[:, None] == prototype_labels).any(1)
    if should_check(query_labels, prototype_labels):
        if not bool(single.all()):
            repeated = prototype_labels[~single][0].item()
            raise ValueError(f"prototype_labels must be all different, got {repeated} more than once")
        if not bool(known.all()):
            missing = query_labels[~known][0].item()
            raise ValueError(f"query_labels must all be among prototype_labels, got {missing}")


class ProtoTripletLoss(nn.Module):
    """The Proto-Triplet loss as a module: `proto_triplet_loss` with its settings kept.

    Args:
        margin: The gap that is asked for, at least 0.
        eps: What is added to the squared distance, at least 0.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Raises:
        TypeError, ValueError: As `proto_triplet_loss`.

    Example:
        >>> prototypes = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
        >>> ProtoTripletLoss(margin=1.0)(torch.tensor([[1.0, 0.0]]), torch.tensor([0]), prototypes)
        tensor(1.)
    """

    def __init__(self, *, margin: float = 0.5, eps: float = 1e-6, reduction: Reduction = "mean") -> None:
        super().__init__()
        check_choice(reduction, "reduction", REDUCTIONS)
        self.margin = check_number(margin, "margin", low=0)
        self.eps = check_number(eps, "eps", low=0)
        self.reduction: Reduction = reduction

    def forward(
        self,
        queries: Float[Tensor, "queries d"],
        query_labels: Int[Tensor, " queries"],
        prototypes: Float[Tensor, "ways d"],
        prototype_labels: Int[Tensor, " ways"] | None = None,
    ) -> Tensor:
        """Compute the loss of queries against prototypes."""
        settings = {"margin": self.margin, "eps": self.eps}
        return proto_triplet_loss(
            queries, query_labels, prototypes, prototype_labels, reduction=self.reduction, **settings
        )

    def extra_repr(self) -> str:
        """Show the settings in the module's representation."""
        return f"margin={self.margin:g}, eps={self.eps:g}, reduction={self.reduction!r}"
