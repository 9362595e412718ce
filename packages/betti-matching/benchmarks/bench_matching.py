"""CPU time of matchings of 2-D images beside Betti-Matching-3D, of barcodes beside gudhi's two ways, and of batches.

gudhi's fast way is `gudhi.sklearn.cubical_persistence.CubicalPersistence` of top-dimensional cells (T). Barcodes of
vertices (V) are those of T of the negated image in a frame, read the other way round; gudhi's complex of vertices is
the general algorithm.

Betti-Matching-3D (C++) is not on PyPI; build its extension module `betti_matching` from nstucki/Betti-Matching-3D and
put it on the path to include it. Sizes are arguments, by default 64 128 256 512.
"""

import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import gudhi
import numpy as np
from gudhi.sklearn.cubical_persistence import CubicalPersistence
from scipy.ndimage import gaussian_filter

from offprints.betti_matching import Matching, PairList, compute_barcode, compute_matching, compute_matching_batch
from offprints.shared.benchmark import Case, compare

try:
    import betti_matching as official
except ImportError:
    official: ModuleType | None = None  # type: ignore[no-redef]

OURS: dict[str, Any] = {"filtration": "sublevel", "reduced": True}
KINDS = ("noise", "smooth", "smooth vs binary")
BATCH = 16


def images(kind: str, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    f, g = np.random.default_rng((n, seed)).random((2, n, n))
    if kind == "noise":
        return f, g
    f, g = (gaussian_filter(x, 2.0) for x in (f, g))
    return (f, g) if kind == "smooth" else (f, (g > np.median(g)).astype(float))


def same_pairs(ours: Matching, theirs: Any) -> None:
    """Equal voxels: matched pairs side by side, unmatched ones of either image."""

    def check(name: str, mine: list[np.ndarray], other: list[np.ndarray]) -> None:
        a, b = (np.concatenate(columns, axis=1) for columns in (mine, other))
        if sorted(a.tolist()) != sorted(b.tolist()):
            raise AssertionError(f"{name}: {len(a)} pairs of ours are not the {len(b)} of theirs")

    def ends(pairs: PairList) -> list[np.ndarray]:
        return [pairs.birth, pairs.death]

    for k in range(len(ours.shape)):
        columns = [
            getattr(theirs, f"{image}_matched_{end}_coordinates")[k].reshape(-1, 2)
            for image in ("input1", "input2")
            for end in ("birth", "death")
        ]
        check(f"matched, dimension {k}", ends(ours.matched_pred[k]) + ends(ours.matched_target[k]), columns)
        for image, pairs in (("input1", ours.unmatched_pred[k]), ("input2", ours.unmatched_target[k])):
            columns = [
                getattr(theirs, f"{image}_unmatched_{end}_coordinates")[k].reshape(-1, 2) for end in ("birth", "death")
            ]
            check(f"unmatched, dimension {k}", ends(pairs), columns)


def gudhi_barcode(image: np.ndarray) -> gudhi.CubicalComplex:
    cubes = gudhi.CubicalComplex(vertices=image)
    cubes.compute_persistence(homology_coeff_field=2, min_persistence=0)
    return cubes


FAST = CubicalPersistence(homology_dimensions=[0, 1])


def gudhi_fast_barcode(image: np.ndarray) -> list[np.ndarray]:
    return FAST.fit_transform([image])[0]  # type: ignore[no-any-return]


def gudhi_dual_barcode(image: np.ndarray) -> list[np.ndarray]:
    framed = np.full([n + 2 for n in image.shape], -np.inf)
    framed[1:-1, 1:-1] = -image
    loops, components = FAST.fit_transform([framed])[0]
    return [-components[:, ::-1], -loops[loops[:, 1] < np.inf][:, ::-1]]


def same_bars(ours: tuple[PairList, ...], theirs: gudhi.CubicalComplex | list[np.ndarray]) -> None:
    for k, pairs in enumerate(ours):
        found = theirs[k] if isinstance(theirs, list) else theirs.persistence_intervals_in_dimension(k)
        expected = [bar for bar in map(tuple, found) if np.isfinite(bar).all()]
        if sorted(zip(pairs.birth_values, pairs.death_values, strict=True)) != sorted(expected):
            raise AssertionError(f"dimension {k}: the bars differ")


def main() -> None:
    sizes = [int(size) for size in sys.argv[1:]] or [64, 128, 256, 512]
    if official is None:
        print("Betti-Matching-3D is not importable: matchings are left out")
    cases = []
    for n in sizes:
        for kind in KINDS:
            f, g = images(kind, n)
            if official is not None:
                cases.append(
                    Case(
                        f"matching, {kind}, {n}²",
                        ours=lambda f=f, g=g: compute_matching(f, g, **OURS),
                        peers={"Betti-Matching-3D": lambda f=f, g=g: official.compute_matching(f, g)},
                        agree=same_pairs,
                    )
                )
        for kind in KINDS[:2]:
            f, _ = images(kind, n)
            cases.append(
                Case(
                    f"barcode T, {kind}, {n}²",
                    ours=lambda f=f: compute_barcode(f, construction="T", **OURS),
                    peers={"gudhi CubicalPersistence": lambda f=f: gudhi_fast_barcode(f)},
                    agree=same_bars,
                )
            )
            general = {"gudhi CubicalComplex": lambda f=f: gudhi_barcode(f)} if kind == "noise" else {}
            cases.append(
                Case(
                    f"barcode V, {kind}, {n}²",
                    ours=lambda f=f: compute_barcode(f, **OURS),
                    peers={"gudhi CubicalPersistence, dual": lambda f=f: gudhi_dual_barcode(f)} | general,
                    agree=same_bars,
                )
            )
    results = Path(__file__).parent / "results"
    compare(cases, results / "matching.json", rounds=5, seconds=0.05, clock=time.process_time)

    n = sizes[-1] // 2
    preds, targets = zip(*(images("smooth", n, seed) for seed in range(BATCH)), strict=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    batch = Case(
        f"batch of {BATCH}, smooth, {n}², {cores} threads",
        ours=lambda: compute_matching_batch(preds, targets, **OURS),
        peers={"one thread": lambda: compute_matching_batch(preds, targets, num_workers=1, **OURS)},
    )
    compare([batch], results / "batch.json", rounds=7, seconds=0.05)  # on the wall


if __name__ == "__main__":
    main()
