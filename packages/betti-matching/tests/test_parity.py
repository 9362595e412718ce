"""Matchings against the golden data: voxels exactly, values to 1e-12."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offprints.betti_matching import PairList, compute_matching

with np.load(Path(__file__).parent / "golden" / "matching.npz") as _file:
    GOLDEN = dict(_file)
CASES = sorted({key.split("/")[0] for key in GOLDEN})


def options(case: str) -> dict[str, Any]:
    pairs = dict(text.split("=") for text in GOLDEN[f"{case}/opts"])
    return {name: text == "True" if text in ("True", "False") else text for name, text in pairs.items()}


def rows(*columns: np.ndarray) -> np.ndarray:
    """Side by side, in lexicographic order."""
    table = np.column_stack(columns)
    return table[np.lexsort(table.T[::-1])]


def finite(*sides: PairList) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Voxels and values of birth and death of each side, without the essential pair."""
    keep = (sides[0].death >= 0).all(axis=1)
    voxels = [array[keep] for side in sides for array in (side.birth, side.death)]
    values = [array[keep] for side in sides for array in (side.birth_values, side.death_values)]
    return voxels, values


@pytest.mark.parametrize("case", CASES)
def test_matching_is_the_golden_one(case: str) -> None:
    matching = compute_matching(GOLDEN[f"{case}/pred"], GOLDEN[f"{case}/target"], **options(case))
    for k in range(GOLDEN[f"{case}/pred"].ndim):
        for name, sides in (
            ("matched", (matching.matched_pred[k], matching.matched_target[k])),
            ("unmatched_pred", (matching.unmatched_pred[k],)),
            ("unmatched_target", (matching.unmatched_target[k],)),
        ):
            voxels, values = finite(*sides)
            np.testing.assert_array_equal(rows(*voxels), GOLDEN[f"{case}/d{k}/{name}"])
            np.testing.assert_allclose(rows(*values), GOLDEN[f"{case}/d{k}/{name}_values"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_essential_pair_comes_first(case: str) -> None:
    opts = options(case)
    matching = compute_matching(GOLDEN[f"{case}/pred"], GOLDEN[f"{case}/target"], **opts)
    essential = [
        (sides[k].death < 0).all(axis=1).nonzero()[0].tolist()
        for sides in (
            matching.matched_pred,
            matching.matched_target,
            matching.unmatched_pred,
            matching.unmatched_target,
        )
        for k in range(len(sides))
    ]
    d = len(matching.shape)
    first = [] if opts.get("reduced", False) else [0]
    assert essential == [first, *[[]] * (d - 1)] * 2 + [[]] * 2 * d
