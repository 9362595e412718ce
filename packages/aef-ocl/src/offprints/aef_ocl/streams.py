"""A stream whose classes are unequally large and drift: the setting of the paper on any labeled data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor

from offprints.aef_ocl._labels import as_labels
from offprints.shared.validation import check_number


def long_tailed_stream(
    X: Any,
    y: Any,
    *,
    ratio: float = 0.01,
    max_count: int = 100,
    min_count: int = 3,
    drift: float = 4.0,
    seed: int = 0,
) -> Iterator[tuple[Any, Any]]:
    """Rows in the order of a drifting stream with a long tail, one ``(X[i], y[i])`` at a time.

    Of K sorted labels the c-th keeps floor(max_count ratio^(c/(K-1))) random rows, but at least ``min_count`` and at
    most those there are. The rows come sorted by c + drift U(0, 1).

    Args:
        X: Rows ``[N, ...]``, array or tensor.
        y: Labels ``[N]``: integers or strings.
        ratio: Size of the smallest class over the largest, in (0, 1].
        max_count: Rows kept of the first class.
        min_count: No class keeps fewer rows, where it has them.
        drift: 0 gives class after class; the larger, the more the classes mix.
        seed: Draws the rows of each class and the order; the global random state is not touched.

    Raises:
        TypeError: X not an array or tensor, labels that are floating or boolean.
        ValueError: empty, of different lengths; a number out of range.

    Example:
        >>> X, y = torch.arange(8.0).reshape(8, 1), torch.tensor([5, 5, 5, 5, 2, 2, 2, 2])
        >>> stream = long_tailed_stream(X, y, ratio=0.5, max_count=4, min_count=1, drift=0.0)
        >>> [int(label) for _, label in stream]
        [2, 2, 2, 2, 5, 5]
    """
    if not isinstance(X, (np.ndarray, Tensor)):
        raise TypeError(f"X must be an array or a tensor, got {type(X).__name__}")
    if X.ndim < 1 or len(X) == 0:
        raise ValueError(f"X must hold at least one row, got shape {tuple(X.shape)}")
    labels = as_labels(y, "y", len(X))
    ratio = check_number(ratio, "ratio", low=0, high=1, open_low=True)
    max_count = check_number(max_count, "max_count", low=1, integer=True)
    min_count = check_number(min_count, "min_count", low=0, integer=True)
    drift = check_number(drift, "drift", low=0)
    generator = np.random.default_rng(check_number(seed, "seed", low=0, integer=True))
    classes = np.unique(labels)
    kept, numbers = [], []
    for number, label in enumerate(classes):
        share = ratio ** (number / max(1, len(classes) - 1))
        count = max(min_count, int(np.floor(max_count * share + 1e-9)))  # 100 * 0.01 shall be 1, not 0.99...
        rows = generator.permutation(np.flatnonzero(labels == label))[:count]
        kept.append(rows)
        numbers.append(np.full(len(rows), float(number)))
    rows = np.concatenate(kept)
    order = np.argsort(np.concatenate(numbers) + drift * generator.random(len(rows)), kind="stable")
    given = y if isinstance(y, Tensor) else labels
    return ((X[row], given[row]) for row in rows[order].tolist())
