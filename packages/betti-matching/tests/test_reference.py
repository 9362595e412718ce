"""The fast code is the paper's algorithm as reference.py writes it down."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from offprints.betti_matching import betti_matching_loss, compute_barcode, compute_matching, reference

with np.load(Path(__file__).parent / "golden" / "matching.npz") as _file:
    GOLDEN = dict(_file)
CASES = sorted({key.split("/")[0] for key in GOLDEN})
SHAPES = [(11,), (6, 5), (1, 7), (3, 4, 3)]
OPTIONS = list(product(("superlevel", "sublevel"), ("V", "T")))


def images(shape: tuple[int, ...], *, levels: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, levels + 1, (2, *shape)) / levels


@pytest.mark.parametrize(("filtration", "construction"), OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("levels", [1, 4, 1000])
def test_loss_and_matching(shape: tuple[int, ...], levels: int, filtration: str, construction: str) -> None:
    options = {"filtration": filtration, "construction": construction}
    pred, target = images(shape, levels=levels, seed=len(shape))
    loss = betti_matching_loss(*torch.from_numpy(np.stack((pred, target)))[:, None, None], **options)  # type: ignore[arg-type]
    assert loss.item() == pytest.approx(reference.betti_matching_loss(pred, target, **options), abs=1e-12)

    matching = compute_matching(pred, target, reduced=True, **options)  # type: ignore[arg-type]
    sign = -1 if filtration == "superlevel" else 1
    below = sign * pred, sign * target
    f, g, c = (reference.filtered_complex(x, construction) for x in (*below, np.minimum(*below)))
    for k in range(len(shape)):
        pairs = reference.induced_matching(f, g, c, k)
        expected = sorted([*(sign * f.value[x] for x in p), *(sign * g.value[x] for x in q)] for p, q in pairs)
        found = [
            getattr(getattr(matching, side)[k], end)
            for side in ("matched_pred", "matched_target")
            for end in ("birth_values", "death_values")
        ]
        assert sorted(np.stack(found, axis=1).tolist()) == expected
        bars = compute_barcode(pred, reduced=True, **options)[k]  # type: ignore[arg-type]
        values = sorted([sign * f.value[b], sign * f.value[d]] for b, d in reference.barcode(f, k))
        assert sorted(zip(bars.birth_values.tolist(), bars.death_values.tolist(), strict=True)) == [*map(tuple, values)]


SMALL = [
    case
    for case in CASES
    if GOLDEN[f"{case}/pred"].size <= 150
    and not any(text in ("relative=True", "reduced=True", "comparison=intersection") for text in GOLDEN[f"{case}/opts"])
]


@pytest.mark.parametrize("case", SMALL)
def test_golden_loss(case: str) -> None:
    options = dict(text.split("=") for text in GOLDEN[f"{case}/opts"])
    chosen = {name: options[name] for name in ("filtration", "construction") if name in options}
    loss = reference.betti_matching_loss(GOLDEN[f"{case}/pred"], GOLDEN[f"{case}/target"], **chosen)
    assert loss == pytest.approx(float(GOLDEN[f"{case}/loss"].sum()), rel=1e-9)
