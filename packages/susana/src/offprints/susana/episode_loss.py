"""The paper's combinations of losses on one episode, from one matrix of distances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from offprints.shared.device import float32_region
from offprints.shared.validation import check_choice, check_labels, check_number, check_tensor
from offprints.susana.distances import check_pair, nearest_matrix, squared_distances
from offprints.susana.icnn import loss_of, score_of
from offprints.susana.neighbors import Plan, neighborhoods
from offprints.susana.proto_triplet import triplet_hinges
from offprints.susana.prototypes import (
    METRICS,
    Metric,
    check_class_labels,
    check_logits,
    check_temperature,
    class_means,
    count_ways,
    logits_between,
    logits_of,
)

TERMS = ("cross_entropy", "support_icnn", "query_icnn", "full_icnn", "proto_triplet")
REFERENCES = ("support", "prototypes")


class FewShotLossOutput(NamedTuple):
    """What `FewShotLoss` returns; it unpacks as two.

    Attributes:
        loss: The total, a 0-dimensional tensor.
        parts: The value of every term by its name, unweighted.

    Example:
        >>> loss, parts = FewShotLossOutput(torch.tensor(1.5), {"cross_entropy": torch.tensor(1.5)})
        >>> loss
        tensor(1.5000)
    """

    loss: Tensor
    parts: dict[str, Tensor]


class FewShotLoss(nn.Module):
    """One or several of the paper's losses on an embedded episode: the mean of the terms, or a weighted sum.

    The terms are

    - ``"cross_entropy"`` of the logits of the queries, minus their distances to the prototypes of the support;
    - ``"support_icnn"``, the ICNN loss of the support among itself;
    - ``"query_icnn"``, of the queries among the support or the prototypes;
    - ``"full_icnn"``, of support and queries together, with a window that holds every row's whole class;
    - ``"proto_triplet"``, of the queries against the prototypes.

    The distances that the terms share are computed once: logits and Proto-Triplet use the same ones, and all ICNN terms
    find their neighbors in one matrix. With one shot no support has a neighbor of its class: ``"support_icnn"`` then
    spreads the supports evenly and nothing else. Half types are computed, and returned, in float32.

    Args:
        terms: Names of different terms, at least one.
        weights: A number for each term; then the loss is the sum of weight times term, else the terms' mean.
        margin: Of Proto-Triplet.
        k: Neighbors in every ICNN term.
        query_reference: What ``"query_icnn"`` compares queries with, ``"support"`` or ``"prototypes"`` (of at least 3
            classes).
        metric: Of the logits, as in `prototypical_logits`.
        temperature: Of the logits.
        n_way: Number of classes; default: one more than the largest support label, for which an accelerator is waited
            for.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: An unknown or repeated term or none, another number of weights, a setting out of range.

    Example:
        >>> support, query = torch.randn(10, 8), torch.randn(15, 8)
        >>> loss, parts = FewShotLoss()(support, torch.arange(10) % 5, query, torch.arange(15) % 5)
        >>> list(parts), bool(loss == sum(parts.values()) / 2)
        (['cross_entropy', 'support_icnn'], True)
    """

    def __init__(
        self,
        terms: Sequence[str] = ("cross_entropy", "support_icnn"),
        *,
        weights: Sequence[float] | None = None,
        margin: float = 0.5,
        k: int = 4,
        query_reference: Literal["support", "prototypes"] = "support",
        metric: Metric = "sqeuclidean",
        temperature: float = 1.0,
        n_way: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(terms, str) or not isinstance(terms, Sequence):
            raise TypeError(f"terms must be a sequence of names, got {terms!r}")
        for term in terms:
            check_choice(term, "terms", TERMS)
        if len(terms) == 0 or len(set(terms)) != len(terms):
            raise ValueError(f"terms must be one or more different names, got {list(terms)}")
        if weights is not None:
            if not isinstance(weights, Sequence):
                raise TypeError(f"weights must be a sequence of numbers, got {weights!r}")
            if len(weights) != len(terms):
                raise ValueError(f"weights must have as many items as terms, {len(terms)}, got {len(weights)}")
            weights = tuple(check_number(weight, "weights") for weight in weights)
        check_choice(query_reference, "query_reference", REFERENCES)
        check_choice(metric, "metric", METRICS)
        self.terms = tuple(terms)
        self.weights = weights
        self.margin = check_number(margin, "margin", low=0)
        self.k = check_number(k, "k", low=1, integer=True)
        self.query_reference: Literal["support", "prototypes"] = query_reference
        self.metric: Metric = metric
        self.temperature = check_temperature(temperature)
        self.n_way = None if n_way is None else check_number(n_way, "n_way", low=1, integer=True)

    def forward(
        self,
        support: Float[Tensor, "supports d"],
        support_labels: Int[Tensor, " supports"],
        query: Float[Tensor, "queries d"],
        query_labels: Int[Tensor, " queries"],
    ) -> FewShotLossOutput:
        """Compute the loss of one episode.

        Args:
            support: Embedded support samples ``[s, d]``.
            support_labels: Their classes ``[s]``, 0..n_way-1 in any order.
            query: Embedded queries ``[q, d]``.
            query_labels: Their classes ``[q]``.

        Returns:
            The total and the terms by name.

        Raises:
            TypeError: Features are not floating tensors, labels not of an integer type.
            ValueError: Shapes that do not fit, empty or not finite features, distances that overflow; a class without
                support, a query of an unknown class, fewer classes or references than a term needs.
        """
        check_tensor(support, "support", ndim=2)
        check_tensor(query, "query", ndim=2)
        check_pair(support, query, ("support", "query"))
        support_labels = check_class_labels(support_labels, support, "support_labels", of="support")
        query_labels = check_class_labels(query_labels, query, "query_labels", of="query")
        n_way = count_ways(support_labels, "support_labels", self.n_way)
        check_labels(query_labels, "query_labels", num_classes=n_way)
        if n_way < 2 and "proto_triplet" in self.terms:
            raise ValueError(f"support_labels must hold at least 2 classes for 'proto_triplet', got {n_way}")
        with float32_region(support.device):
            episode = _Episode(self, support, support_labels, query, query_labels, n_way)
            parts = {term: getattr(episode, term)() for term in self.terms}
            values = list(parts.values())
            if self.weights is None:
                loss = torch.stack(values).mean()
            else:
                loss = torch.stack([w * value for w, value in zip(self.weights, values, strict=True)]).sum()
        return FewShotLossOutput(loss, parts)

    def extra_repr(self) -> str:
        """Show the settings in the module's representation."""
        return f"terms={self.terms}, weights={self.weights}, margin={self.margin:g}, k={self.k}"


class _Episode:
    """One embedded episode; a method for each term, named as it is."""

    def __init__(
        self,
        loss: FewShotLoss,
        support: Tensor,
        support_labels: Tensor,
        query: Tensor,
        query_labels: Tensor,
        n_way: int,
    ) -> None:
        self.loss, self.n_way = loss, n_way
        self.support, self.support_labels = support, support_labels
        self.query, self.query_labels = query, query_labels
        terms, by_support = set(loss.terms), loss.query_reference == "support"
        self.prototypes: Tensor | None = None
        self.squared: Tensor | None = None
        self.matrix: Tensor | None = None
        if terms & {"cross_entropy", "proto_triplet"} or ("query_icnn" in terms and not by_support):
            self.prototypes = class_means(support, support_labels, n_way, "support_labels")
        if terms & {"cross_entropy", "proto_triplet"} and self.prototypes is not None:
            self.squared = squared_distances(query, self.prototypes)
        # One matrix for the ICNN terms that need more than a corner of it; they find their neighbors in its slices.
        self.all = torch.cat([support, query]) if "full_icnn" in terms else None
        if self.all is not None:
            self.matrix = nearest_matrix(self.all, self.all)

    def cross_entropy(self) -> Tensor:
        loss = self.loss
        if loss.metric == "cosine":
            assert self.prototypes is not None
            logits = logits_between(self.query, self.prototypes, "cosine", loss.temperature)
        else:
            assert self.squared is not None
            logits = logits_of(self.squared, loss.metric, loss.temperature)
        return F.cross_entropy(check_logits(logits, "support and query"), self.query_labels)

    def proto_triplet(self) -> Tensor:
        assert self.squared is not None
        numbers = torch.arange(self.n_way, device=self.squared.device)
        return triplet_hinges(self.squared, self.query_labels, numbers, self.loss.margin, 1e-6).mean()

    def support_icnn(self) -> Tensor:
        plan = Plan.of(len(self.support), self.loss.k, own=True, drop=True, name="support")
        x, y, n = self.support, self.support_labels, len(self.support)
        return self._icnn(x, y, x, y, plan, None if self.matrix is None else self.matrix[:n, :n])

    def query_icnn(self) -> Tensor:
        if self.loss.query_reference == "prototypes":
            assert self.prototypes is not None
            z, labels = self.prototypes, torch.arange(self.n_way, device=self.query.device)
            matrix = None
        else:
            z, labels, n = self.support, self.support_labels, len(self.support)
            matrix = None if self.matrix is None else self.matrix[n:, :n]
        name = "support" if self.loss.query_reference == "support" else "support_labels"
        plan = Plan.of(len(z), self.loss.k, own=False, drop=False, name=name)
        return self._icnn(self.query, self.query_labels, z, labels, plan, matrix)

    def full_icnn(self) -> Tensor:
        assert self.all is not None
        y = torch.cat([self.support_labels, self.query_labels])
        plan = Plan.of(len(y), self.loss.k, own=True, drop=True, name="support")
        # A window of the largest class's size, of which a row leaves itself out, always reaches the nearest reference
        # of another class: the same as no bound, and no size of a class has to be known.
        plan = Plan(k=plan.k, window=None, truncated=plan.truncated, own=True, drop=False)
        return self._icnn(self.all, y, self.all, y, plan, self.matrix)

    def _icnn(self, x: Tensor, y: Tensor, z: Tensor, yz: Tensor, plan: Plan, matrix: Tensor | None) -> Tensor:
        found = neighborhoods(x, y, z, yz, plan, name="support and query", matrix=matrix)
        return loss_of(score_of(found, plan, include_omega=False, eps=1e-7).score)
