"""Accuracy of generalized category discovery: one matching of clusters and classes for all samples."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from offprints.protogcd._inputs import as_ids, as_mask
from offprints.shared.validation import check_same_length

DENSE = 1024  # ids up to here are tabulated as they are
MOST_IDS = 8192  # different ones; the table of all pairs has its square


class GCDAccuracy(NamedTuple):
    """Accuracies in [0, 1], NaN where there are no samples.

    Attributes:
        all: Of all samples; the mean of the other two, weighted by their sizes.
        old: Of the samples of old classes.
        new: Of the others.

    Example:
        >>> gcd_accuracy([0, 0, 1, 1], [1, 1, 0, 1], [True, True, False, False]).all
        0.75
    """

    all: float
    old: float
    new: float


def gcd_accuracy(labels_true: Any, labels_pred: Any, old_mask: Any) -> GCDAccuracy:
    """Accuracy after the one-to-one matching of predicted and true ids under which most samples agree.

    There is one matching (Hungarian) of all samples, old and new classes together, and both accuracies are those under
    it: a model that calls an old class by the name of a new one is wrong in both.

    Args:
        labels_true: `(N,)` true ids, integers from 0: tensor, array or list.
        labels_pred: `(N,)` predicted ids, integers from 0.
        old_mask: `(N,)` booleans, which samples are of old classes.

    Raises:
        TypeError: Labels that are not integers, a mask that is not boolean.
        ValueError: Different lengths, no samples, other than one axis, negative ids, more than 8192 different ids.

    Example:
        >>> gcd_accuracy([0, 0, 1, 2], [2, 2, 0, 1], [True, True, False, False])
        GCDAccuracy(all=1.0, old=1.0, new=1.0)
    """
    true, pred = as_ids(labels_true, "labels_true"), as_ids(labels_pred, "labels_pred")
    check_same_length(true, pred, ("labels_true", "labels_pred"))
    old = as_mask(old_mask, "old_mask", length=len(true))
    right = matched(true, pred)
    hits, count = int(right.sum()), len(right)
    old_hits, old_count = int((right & old).sum()), int(old.sum())
    return GCDAccuracy(
        hits / count,
        old_hits / old_count if old_count else float("nan"),
        (hits - old_hits) / (count - old_count) if old_count < count else float("nan"),
    )


def matched(true: np.ndarray, pred: np.ndarray) -> np.ndarray:
    """Whether each sample's prediction is right, under the best matching of ids."""
    from scipy.optimize import linear_sum_assignment

    # Large ids are numbered anew; small ones, as predictions are, are not worth sorting for.
    true, pred = (np.unique(x, return_inverse=True)[1] if x.max() >= DENSE else x for x in (true, pred))
    size = int(max(true.max(), pred.max())) + 1
    if size > MOST_IDS:
        raise ValueError(f"labels_true and labels_pred must have at most {MOST_IDS} different ids, got {size}")
    counts = np.bincount(pred * size + true, minlength=size * size).reshape(size, size)
    of_pred = linear_sum_assignment(counts, maximize=True)[1]
    right: np.ndarray = of_pred[pred] == true
    return right
