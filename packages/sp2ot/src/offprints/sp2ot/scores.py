"""Scores of a clustering of long-tailed data."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from offprints.shared.validation import check_number, check_same_length


def cluster_scores(
    labels_true: Any,
    labels_pred: Any,
    *,
    num_clusters: int | None = None,
    split: tuple[float, float, float] = (0.3, 0.4, 0.3),
) -> dict[str, Any]:
    """Match clusters to classes so that most samples agree (Hungarian), then score the matched labels.

    Args:
        labels_true: ``[N]`` integers, classes from 0, sorted by size: the first ones are the head.
        labels_pred: ``[N]`` integers, clusters from 0.
        num_clusters: ``K``, of classes and of clusters; default: the largest label of both, plus 1.
        split: Shares of the classes, in index order, that are head, medium and tail: the first ``int(s_0 K)``, the next
            ``int(s_1 K)``, the last ``int(s_2 K)``.

    Returns:
        ``accuracy``; ``balanced_accuracy``, the paper's ACC: the mean of the classes' recalls; ``f1``, the mean over
        the labels that are in truth or prediction; ``nmi``; ``ari``; ``head``, ``medium``, ``tail``, mean recalls of
        these classes (NaN where there are none in ``labels_true``); all in [0, 1] (``ari`` may be negative); and
        ``mapping``, cluster to class.

    Raises:
        TypeError: labels that are not integers.
        ValueError: labels of different lengths, none, with two axes, negative or at least ``num_clusters``; shares that
            are negative or more than 1 together.
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    true, pred = _labels(labels_true, "labels_true"), _labels(labels_pred, "labels_pred")
    check_same_length(true, pred, ("labels_true", "labels_pred"))
    needed = int(max(true.max(), pred.max())) + 1
    size = needed if num_clusters is None else num_clusters
    check_number(size, "num_clusters", low=1, integer=True)
    if size < needed:
        raise ValueError(f"num_clusters must exceed every label, got {size} and the label {needed - 1}")
    for share in split:
        check_number(share, "split", low=0, high=1)
    if len(split) != 3 or sum(split) > 1 + 1e-9:
        raise ValueError(f"split must be three shares of at most 1 together, got {split}")

    counts = np.zeros((size, size), dtype=np.int64)  # cluster, class
    np.add.at(counts, (pred, true), 1)
    clusters, classes = linear_sum_assignment(counts, maximize=True)
    matched = np.empty_like(counts)  # predicted class, true class
    matched[classes] = counts[clusters]
    hits, of_class, predicted = matched.diagonal(), matched.sum(0), matched.sum(1)
    recall = np.divide(hits, of_class, out=np.full(size, np.nan), where=of_class > 0)
    seen = of_class + predicted > 0
    head, medium, tail = (int(share * size) for share in split)
    groups = {"head": recall[:head], "medium": recall[head : head + medium], "tail": recall[size - tail :]}
    return {
        "accuracy": float(hits.sum() / len(true)),
        "balanced_accuracy": _mean(recall),
        "f1": float((2 * hits[seen] / (of_class + predicted)[seen]).mean()),
        "nmi": float(normalized_mutual_info_score(true, pred)),
        "ari": float(adjusted_rand_score(true, pred)),
        **{name: _mean(values) for name, values in groups.items()},
        "mapping": dict(zip(clusters.tolist(), classes.tolist(), strict=True)),
    }


def _labels(labels: Any, name: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if values.dtype.kind not in "iu":
        raise TypeError(f"{name} must have an integer type, got {values.dtype}")
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"{name} must be one-dimensional and not empty, got shape {values.shape}")
    if values.min() < 0:
        raise ValueError(f"{name} must not be negative, got {values.min()}")
    return values.astype(np.int64)


def _mean(values: np.ndarray) -> float:
    """Mean without NaN, NaN where there is nothing else."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
