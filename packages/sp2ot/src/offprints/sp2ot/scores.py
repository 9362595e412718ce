"""Scores of a clustering of long-tailed data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from offprints.shared.validation import check_number, check_same_length

MOST_LABELS = 10**8  # a vector of them is kept
LARGEST_TABLE = 4096  # labels up to which all pairs of cluster and class are tabulated


def cluster_scores(
    labels_true: Any,
    labels_pred: Any,
    *,
    num_clusters: int | None = None,
    split: Sequence[float] | np.ndarray = (0.3, 0.4, 0.3),
) -> dict[str, Any]:
    """Match clusters to classes so that most samples agree (Hungarian), then score the matched labels.

    Args:
        labels_true: ``[N]`` integers, classes from 0.
        labels_pred: ``[N]`` integers, clusters from 0.
        num_clusters: ``K``, of classes and of clusters; default: the largest label of both, plus 1.
        split: Shares of the classes that are head, medium and tail: of the classes in order of their size in
            ``labels_true``, the largest first and equal ones by label, the first ``int(s_0 K)``, the next
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

    Example:
        >>> scores = cluster_scores([0, 0, 0, 1, 1], [1, 1, 1, 1, 0])
        >>> scores["accuracy"], scores["balanced_accuracy"], scores["mapping"]
        (0.8, 0.75, {0: 1, 1: 0})
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    true, pred = _labels(labels_true, "labels_true"), _labels(labels_pred, "labels_pred")
    check_same_length(true, pred, ("labels_true", "labels_pred"))
    needed = int(max(true.max(), pred.max())) + 1
    size = needed if num_clusters is None else num_clusters
    size = check_number(size, "num_clusters", low=1, high=MOST_LABELS, integer=True)
    if size < needed:
        raise ValueError(f"num_clusters must exceed every label, got {size} and the label {needed - 1}")
    split = tuple(split.tolist()) if isinstance(split, np.ndarray) and split.ndim == 1 else split
    if isinstance(split, (str, bytes)) or not isinstance(split, Sequence) or len(split) != 3:
        raise ValueError(f"split must be three shares of at most 1 together, got {split}")
    shares = [check_number(share, "split", low=0, high=1) for share in split]
    if sum(shares) > 1 + 1e-9:
        raise ValueError(f"split must be three shares of at most 1 together, got {split}")

    class_of = _matching(true, pred, size)
    named = class_of[pred]
    of_class, predicted = np.bincount(true, minlength=size), np.bincount(named, minlength=size)
    hits = np.bincount(true[named == true], minlength=size)
    recall = np.divide(hits, of_class, out=np.full(size, np.nan), where=of_class > 0)
    seen = of_class + predicted > 0
    by_size = recall[np.argsort(-of_class, kind="stable")]
    head, medium, tail = (int(share * size) for share in shares)
    groups = {"head": by_size[:head], "medium": by_size[head : head + medium], "tail": by_size[size - tail :]}
    return {
        "accuracy": float(hits.sum() / len(true)),
        "balanced_accuracy": _mean(recall),
        "f1": float((2 * hits[seen] / (of_class + predicted)[seen]).mean()),
        "nmi": float(normalized_mutual_info_score(true, pred)),
        "ari": float(adjusted_rand_score(true, pred)),
        **{name: _mean(values) for name, values in groups.items()},
        "mapping": dict(enumerate(class_of.tolist())),
    }


def _matching(true: np.ndarray, pred: np.ndarray, size: int) -> np.ndarray:
    """The class of every cluster, one to one, with the most samples in agreement.

    With many labels only the pairs that occur are looked at: a table of all would not fit into memory.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components, min_weight_full_bipartite_matching

    if size <= LARGEST_TABLE:
        counts = np.zeros((size, size), dtype=np.int64)  # cluster, class
        np.add.at(counts, (pred, true), 1)
        return linear_sum_assignment(counts, maximize=True)[1]
    clusters, row = np.unique(pred, return_inverse=True)
    classes, column = np.unique(true, return_inverse=True)
    pairs, counts = np.unique(row * len(classes) + column, return_counts=True)
    row, column = pairs // len(classes), pairs % len(classes)
    nodes = len(clusters) + len(classes)
    together = connected_components(coo_array((counts, (row, len(clusters) + column)), (nodes, nodes)), directed=False)
    part = together[1][row]
    order = np.argsort(part, kind="stable")
    class_of = np.full(size, -1)
    for chosen in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
        if len(chosen) == 1:
            class_of[clusters[row[chosen]]] = classes[column[chosen]]
            continue
        rows, at_row = np.unique(row[chosen], return_inverse=True)
        columns, at_column = np.unique(column[chosen], return_inverse=True)
        if len(rows) * len(columns) <= LARGEST_TABLE**2:
            table = np.zeros((len(rows), len(columns)), dtype=np.int64)
            table[at_row, at_column] = counts[chosen]
            taken, found = linear_sum_assignment(table, maximize=True)
        else:
            # Every cluster may also take a column of its own, which is no class. A weight of 0 would be no edge.
            own = np.arange(len(rows))
            ends = np.concatenate([at_row, own]), np.concatenate([at_column, len(columns) + own])
            at = tuple(end.astype(np.int32) for end in ends)  # all that the matching of SciPy before 1.15 takes
            weight = np.concatenate([counts[chosen] + 1.0, np.ones(len(own))])
            graph = coo_array((weight, at), (len(rows), len(columns) + len(own))).tocsr()
            taken, found = min_weight_full_bipartite_matching(graph, maximize=True)
            taken, found = taken[found < len(columns)], found[found < len(columns)]
        class_of[clusters[rows[taken]]] = classes[columns[found]]
    class_of[class_of < 0] = np.setdiff1d(np.arange(size), class_of)
    return class_of


def _labels(labels: Any, name: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    try:
        values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    except ValueError:  # lists of different lengths
        raise ValueError(f"{name} must be one-dimensional, got lists of different lengths") from None
    if values.dtype.kind not in "iu":
        raise TypeError(f"{name} must have an integer type, got {values.dtype}")
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"{name} must be one-dimensional and not empty, got shape {values.shape}")
    if values.min() < 0:
        raise ValueError(f"{name} must not be negative, got {values.min()}")
    if values.max() >= MOST_LABELS:
        raise ValueError(f"{name} must be less than {MOST_LABELS}, got {values.max()}")
    return values.astype(np.int64)


def _mean(values: np.ndarray) -> float:
    """Mean without NaN, NaN where there is nothing else."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
