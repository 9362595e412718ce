"""Long-tailed subsets of balanced data."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from torch import Tensor

from offprints.shared.datasets import class_subset
from offprints.shared.validation import check_choice, check_number

MOST_SAMPLES = 2**53  # of a class: floats count so far
MOST_CLASSES = 10**7  # a list of them is made


def long_tailed_counts(
    max_count: int, num_classes: int, *, ratio: float, kind: Literal["exp", "step"] = "exp"
) -> list[int]:
    """Samples of each class, largest class first.

    ``"exp"``: ``int(max_count * ratio^(c / (K - 1)))`` of class ``c``; ``"step"``: ``max_count`` of each of the first
    ``K // 2`` classes, ``int(max_count * ratio)`` of the others.

    Raises:
        TypeError: a count that is not an integer.
        ValueError: a count below 1, more than 10^7 classes or 2^53 samples of one, ``ratio`` outside (0, 1], an unknown
            kind.

    Example:
        >>> long_tailed_counts(100, 3, ratio=0.01)
        [100, 10, 1]
    """
    check_number(max_count, "max_count", low=1, high=MOST_SAMPLES, integer=True)
    check_number(num_classes, "num_classes", low=1, high=MOST_CLASSES, integer=True)
    check_number(ratio, "ratio", low=0, high=1, open_low=True)
    check_choice(kind, "kind", ("exp", "step"))
    if kind == "step":
        large = num_classes // 2
        return [int(max_count)] * large + [int(max_count * ratio)] * (num_classes - large)
    return [int(max_count * ratio ** (c / max(num_classes - 1, 1))) for c in range(num_classes)]


def long_tailed_indices(
    labels: Any, *, ratio: float, seed: int = 0, max_count: int | None = None, kind: Literal["exp", "step"] = "exp"
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Sorted indices of a random subset with :func:`long_tailed_counts` samples of each class.

    Args:
        labels: ``[N]`` integers; the classes are their distinct values, the smallest is the head.
        ratio: Size of the last class by that of the first, in (0, 1].
        seed: Of the draw.
        max_count: Samples of the head; default: as many as the smallest class has, so that all can give their share.
        kind: Form of the tail.

    Raises:
        TypeError: labels that are not integers.
        ValueError: labels with two axes or none at all, a class with fewer samples than its share, a number out of
            range.

    Example:
        >>> labels = np.repeat([0, 1, 2], 100)
        >>> np.bincount(labels[long_tailed_indices(labels, ratio=0.01)])
        array([100,  10,   1])
    """
    check_number(ratio, "ratio", low=0, high=1, open_low=True)
    check_choice(kind, "kind", ("exp", "step"))
    values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    class_subset(values, 0, seed=seed)  # refuses what are no labels
    classes, sizes = np.unique(values, return_counts=True)
    largest = int(sizes.min()) if max_count is None else check_number(max_count, "max_count", low=1, integer=True)
    counts = long_tailed_counts(largest, len(classes), ratio=ratio, kind=kind)
    for class_, size, count in zip(classes.tolist(), sizes.tolist(), counts, strict=True):
        if count > size:
            raise ValueError(f"max_count={largest} counts {count} samples of class {class_}, labels has {size}")
    return class_subset(values, dict(zip(classes.tolist(), counts, strict=True)), seed=seed)
