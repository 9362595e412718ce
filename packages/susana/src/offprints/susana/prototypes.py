"""Class prototypes, and the logits of distances to them."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from offprints.shared.device import float32_region, working_dtype
from offprints.shared.validation import (
    check_choice,
    check_labels,
    check_number,
    check_same_device,
    check_tensor,
    should_check,
)
from offprints.susana.distances import check_pair, safe_root, squared_distances

Metric: TypeAlias = Literal["sqeuclidean", "euclidean", "cosine"]
METRICS = ("sqeuclidean", "euclidean", "cosine")


def check_class_labels(labels: Tensor, features: Tensor, name: str, *, of: str) -> Tensor:
    """Check integer labels, one for each row of `features`, and return them as int64."""
    labels = check_labels(labels, name, length=len(features))
    if labels.ndim != 1:
        raise ValueError(f"{name} must have 1 dimension, got shape {tuple(labels.shape)}")
    check_same_device(labels, features, names=(name, of))
    return labels


def count_ways(labels: Tensor, name: str, n_way: int | None) -> int:
    """The number of classes: given, or one more than the largest label, for which a device is waited for."""
    if n_way is not None:
        n_way = check_number(n_way, "n_way", low=1, integer=True)
        check_labels(labels, name, num_classes=n_way)
        return n_way
    low, high = torch.stack(labels.aminmax()).tolist()
    if low < 0:
        raise ValueError(f"{name} must not be negative, got {low}")
    if high >= len(labels):  # before memory is asked for: some class below it has no sample
        raise ValueError(f"{name} must hold every class of 0..{high}, got {len(labels)} labels")
    return int(high) + 1


def compute_prototypes(
    features: Float[Tensor, "n d"], labels: Int[Tensor, " n"], *, n_way: int | None = None
) -> Float[Tensor, "ways d"]:
    """Compute the prototype of every class, P_c = the mean of the features of class c.

    Half types are computed, and returned, in float32.

    Args:
        features: Embedded support samples ``[n, d]``.
        labels: Their classes ``[n]``, 0..n_way-1 of any integer type in any order.
        n_way: Number of classes; default: one more than the largest label, for which an accelerator is waited for.

    Returns:
        Prototypes ``[n_way, d]``.

    Raises:
        TypeError: `features` is not a floating tensor, `labels` not of an integer type.
        ValueError: They are not 2-D and 1-D, empty, not finite or of different lengths; a label is negative or at
            least `n_way`; a class has no sample.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [0.0, 4.0], [3.0, 0.0]])
        >>> compute_prototypes(features, torch.tensor([0, 1, 0]))
        tensor([[2., 0.],
                [0., 4.]])
    """
    check_tensor(features, "features", ndim=2)
    labels = check_class_labels(labels, features, "labels", of="features")
    n_way = count_ways(labels, "labels", n_way)
    with float32_region(features.device):
        return class_means(features, labels, n_way, "labels")


def class_means(features: Tensor, labels: Tensor, n_way: int, name: str) -> Tensor:
    """The mean of each class of checked features and labels."""
    x = features.to(working_dtype(features))
    counts = x.new_zeros(n_way).index_add(0, labels, torch.ones_like(labels, dtype=x.dtype))
    if should_check(counts) and not bool(counts.all()):
        empty = (counts == 0).nonzero().flatten().tolist()
        raise ValueError(f"{name} must hold every class of 0..{n_way - 1}, got none of {empty[:10]}")
    return x.new_zeros(n_way, x.shape[1]).index_add(0, labels, x) / counts[:, None]


def prototypical_logits(
    queries: Float[Tensor, "queries d"],
    prototypes: Float[Tensor, "ways d"],
    *,
    metric: Metric = "sqeuclidean",
    temperature: float = 1.0,
) -> Float[Tensor, "queries ways"]:
    """Compute the logits of queries: -||q - P_c||^2 / temperature, or another closeness in its place.

    Half types are computed, and returned, in float32.

    Args:
        queries: Embedded queries ``[q, d]``.
        prototypes: One row for each class ``[n_way, d]``.
        metric: ``"sqeuclidean"`` (the paper's), ``"euclidean"`` for minus the distance itself, ``"cosine"`` for the
            cosine of the angle (0 for a row of zeros).
        temperature: What the logits are divided by, more than 0.

    Returns:
        Logits ``[q, n_way]``.

    Raises:
        TypeError: `queries` or `prototypes` is not a floating tensor, `temperature` is not a number.
        ValueError: They are not 2-D, empty, not finite or of different widths; an unknown `metric`; `temperature` is
            not positive; logits that overflow.

    Example:
        >>> prototypes = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
        >>> prototypical_logits(torch.tensor([[0.0, 1.0]]), prototypes)
        tensor([[-1., -5.]])
    """
    check_tensor(queries, "queries", ndim=2)
    check_tensor(prototypes, "prototypes", ndim=2)
    check_pair(queries, prototypes, ("queries", "prototypes"))
    check_choice(metric, "metric", METRICS)
    temperature = check_temperature(temperature)
    return check_logits(logits_between(queries, prototypes, metric, temperature), "queries and prototypes")


def logits_between(queries: Tensor, prototypes: Tensor, metric: Metric, temperature: float) -> Tensor:
    """The logits of checked queries and prototypes."""
    with float32_region(queries.device):
        if metric == "cosine":
            return _unit(queries, prototypes) / temperature
        return logits_of(squared_distances(queries, prototypes), metric, temperature)


def check_logits(logits: Tensor, names: str) -> Tensor:
    """Refuse logits that overflow at their temperature; the message says of what they are."""
    if should_check(logits) and not bool(logits.detach().isfinite().all()):
        raise ValueError(f"{names} must give finite logits at this temperature, got an overflow")
    return logits


def check_temperature(temperature: float) -> float:
    """Check a temperature: positive."""
    return check_number(temperature, "temperature", low=0, open_low=True)


def logits_of(squared: Tensor, metric: Metric, temperature: float) -> Tensor:
    """The logits of squared distances."""
    return -(squared if metric == "sqeuclidean" else safe_root(squared, 0.0)) / temperature


def _unit(queries: Tensor, prototypes: Tensor) -> Tensor:
    """Cosines; rows are scaled by their largest entry first, so that no square overflows or vanishes."""
    dtype = working_dtype(queries, prototypes)
    rows = []
    for x in (queries.to(dtype), prototypes.to(dtype)):
        largest = x.detach().abs().amax(1, keepdim=True)
        rows.append(F.normalize(x / largest.masked_fill(largest == 0, 1.0)))
    return rows[0] @ rows[1].mT
