"""How certain a mean over draws is."""

from __future__ import annotations

import numpy as np


def standard_error(values: np.ndarray) -> float | None:
    """Standard error of the mean, nothing of a single value."""
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
