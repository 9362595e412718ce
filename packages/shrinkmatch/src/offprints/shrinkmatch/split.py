"""The labeled few: so many samples of each class (step 9)."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from offprints.shared.datasets import class_subset
from offprints.shared.labels import Classes, as_labels
from offprints.shared.validation import check_bool, check_number

Indices = np.ndarray[Any, np.dtype[np.int64]]


def split_labels(labels: Any, per_class: int, *, seed: int, include_labeled: bool = True) -> tuple[Indices, Indices]:
    """Indices of the labeled and of the unlabeled samples: of each class, shuffled, the first ``per_class``.

    Args:
        labels: ``(N,)`` integers, none negative, or text: an array, a list, a column of a data frame or a tensor.
        per_class: Labeled samples of each class, at least 1.
        seed: Seed of the draw; with the same one, a smaller set lies in a larger one.
        include_labeled: Whether the unlabeled samples are all samples, as in the paper, or the others.

    Returns:
        Both sorted.

    Raises:
        TypeError: labels that are not integers or text, a number of the wrong kind.
        ValueError: labels empty, not 1-D or negative; a class with fewer than ``per_class`` samples.

    Example:
        >>> labeled, unlabeled = split_labels([0, 1, 0, 1, 0, 1], 1, seed=0)
        >>> len(labeled), len(unlabeled)
        (2, 6)
    """
    per_class = check_number(per_class, "per_class", low=1, integer=True)
    seed = check_number(seed, "seed", low=0, integer=True)
    include_labeled = check_bool(include_labeled, "include_labeled")
    if np.ma.is_masked(labels):
        raise ValueError("labels must not have masked entries")
    given = labels.detach().cpu() if isinstance(labels, Tensor) else np.asarray(labels)
    if given.ndim != 1 or len(given) == 0:
        raise ValueError(f"labels must be one-dimensional and not empty, got shape {tuple(given.shape)}")
    if str(given.dtype).removeprefix("torch.").startswith(("bool", "float", "bfloat", "complex")):
        raise TypeError(f"labels must be integers or text, got {given.dtype}")
    values = as_labels(given, "labels", len(given))
    if values.dtype.kind in "iu" and values.min() < 0:
        raise ValueError(f"labels must not be negative, got {values.min()}: split labels that are all known")
    classes, numbers = Classes.of(values)
    counts = numbers.bincount()
    if counts.min() < per_class:
        scarce = classes.values[int(counts.argmin())]
        raise ValueError(
            f"per_class must be at most {int(counts.min())}, what labels has of class {scarce}, got {per_class}"
        )
    labeled = class_subset(numbers, per_class, seed=seed)
    everything = np.arange(len(values), dtype=np.int64)
    return labeled, everything if include_labeled else np.setdiff1d(everything, labeled)
