"""What `HypOCDetector` takes as X: tensors, arrays, lists and data frames of numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from offprints.shared.tables import as_table

LARGEST = 1e34  # float32 layers hold sums of such features


def training_rows(estimator: Any, X: Any, *, device: torch.device, reset: bool) -> Tensor:
    """`feature_rows` of at least two samples, which Hyp-PC pairs."""
    rows = feature_rows(estimator, X, device=device, reset=reset)
    if len(rows) < 2:
        raise ValueError(f"X must have at least 2 samples, got {len(rows)} sample")
    return rows


def feature_rows(estimator: Any, X: Any, *, device: torch.device, reset: bool = False) -> Tensor:
    """X as float32 `(n, d)` on the device.

    With `reset` the estimator learns the width and the names of the columns; without, X must have them.

    Raises:
        TypeError: X does not hold numbers, or is sparse.
        ValueError: X is not 2-D, empty, masked, NaN or infinite, too large for float32, or of another width.
    """
    table = as_table(X, estimator=estimator, reset=reset)
    if bool((table.abs() > LARGEST).any()):
        raise ValueError(f"X must lie within {LARGEST:g} of 0, got {float(table.abs().max()):g}")
    return table.to(device=device, dtype=torch.float32)
