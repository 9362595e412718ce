"""The brute-force oracle itself, against the golden matchings and losses."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

GOLDEN = np.load(Path(__file__).parent / "golden" / "matching.npz")
CASES = sorted({key.split("/")[0] for key in GOLDEN if GOLDEN[key.split("/")[0] + "/pred"].size <= 4000})


def options(case: str) -> dict[str, Any]:
    pairs = dict(item.split("=") for item in GOLDEN[f"{case}/opts"])
    return {name: text == "True" if text in ("True", "False") else text for name, text in pairs.items()}


def coordinates(rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Flat indices ``[n, m]`` as the golden rows of coordinates ``[n, m * d]``, sorted."""
    finite = rows[(rows >= 0).all(axis=1)]
    full = np.stack(np.unravel_index(finite, shape), axis=-1).reshape(len(finite), rows.shape[1] * len(shape))
    return full[np.lexsort(full.T[::-1])]


@pytest.mark.parametrize("case", CASES)
def test_oracle_matches_golden_data(case: str, oracle: ModuleType) -> None:
    pred, target, opts = GOLDEN[f"{case}/pred"], GOLDEN[f"{case}/target"], options(case)
    shape = tuple(n + 2 * opts.get("relative", False) for n in pred.shape)
    for k, lists in enumerate(oracle.oracle_matching(pred, target, **opts)):
        for name, rows in zip(("matched", "unmatched_pred", "unmatched_target"), lists, strict=True):
            np.testing.assert_array_equal(coordinates(rows, shape), GOLDEN[f"{case}/d{k}/{name}"])
    if pred.size < 1000:
        np.testing.assert_allclose(
            oracle.oracle_loss(pred, target, **opts), GOLDEN[f"{case}/loss"], rtol=1e-9, atol=1e-12
        )
