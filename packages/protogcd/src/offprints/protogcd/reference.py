"""The paper's algorithm as the paper writes it: slow and plain, to be read first.

The tests show that the package's fast code equals it; nothing else uses it. REPLACE.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt


def pseudo_huber(preds: Sequence[float], targets: Sequence[float], scale: float) -> float:
    """The loss of one batch, number by number."""
    total = 0.0
    for pred, target in zip(preds, targets, strict=True):
        residual = (pred - target) / scale  # 1. the residual in units of the scale
        total += scale**2 * (sqrt(1 + residual**2) - 1)  # 2. equation (1)
    return total / len(preds)  # 3. the mean over the batch
