"""Matchings of 3-D images beside Betti-Matching-3D, barcodes beside gudhi: wall time and CPU time.

Betti-Matching-3D (C++) is not on PyPI; build its extension module `betti_matching` from nstucki/Betti-Matching-3D and
put it on the path to include it. Sizes are arguments, by default 32 48 64.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import gudhi
import numpy as np
from scipy.ndimage import gaussian_filter

from offprints.betti_matching import Matching, compute_barcode, compute_matching
from offprints.shared.benchmark import Case, compare

try:
    import betti_matching as official
except ImportError:
    official: ModuleType | None = None  # type: ignore[no-redef]

OURS = {"filtration": "sublevel", "reduced": True}


def images(kind: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    f, g = rng.random((2, n, n, n))
    if kind == "noise":
        return f, g
    f, g = (gaussian_filter(x, 2.0) for x in (f, g))
    return (f, g) if kind == "smooth" else (f, (g > np.median(g)).astype(float))


def same_counts(ours: Matching, theirs: object) -> None:
    for name, counts in (
        ("num_matched", ours.num_matched),
        ("num_unmatched_input1", ours.num_unmatched_pred),
        ("num_unmatched_input2", ours.num_unmatched_target),
    ):
        if list(getattr(theirs, name)) != list(counts):
            raise AssertionError(f"{name}: ours {counts}, theirs {list(getattr(theirs, name))}")


def gudhi_barcode(image: np.ndarray) -> object:
    complex_ = gudhi.CubicalComplex(vertices=image)
    complex_.compute_persistence()
    return complex_


def cpu_table(cases: list[Case], repeats: int = 3) -> None:
    """CPU time of all threads, best of the repeats."""

    def best(call: Callable[[], object]) -> float:
        times = []
        for _ in range(repeats):
            start = time.process_time()
            call()
            times.append(time.process_time() - start)
        return min(times)

    print("\nCPU time of all threads")
    for case in cases:
        ours = best(case.ours)
        for name, call in case.peers.items():
            theirs = best(call)
            print(f"{case.name:34} ours {1e3 * ours:8.1f} ms  {name} {1e3 * theirs:8.1f} ms  ratio {theirs / ours:.2f}")


def main() -> None:
    sizes = [int(size) for size in sys.argv[1:]] or [32, 48, 64]
    cases = []
    for n in sizes:
        for kind in ("noise", "smooth", "smooth vs binary"):
            f, g = images(kind, n)
            if official is not None:
                cases.append(
                    Case(
                        f"matching, {kind}, {n}³",
                        ours=lambda f=f, g=g: compute_matching(f, g, **OURS),
                        peers={"Betti-Matching-3D": lambda f=f, g=g: official.compute_matching(f, g)},
                        agree=same_counts,
                    )
                )
            if kind != "smooth vs binary":
                cases.append(
                    Case(
                        f"barcode, {kind}, {n}³",
                        ours=lambda f=f: compute_barcode(f, **OURS),
                        peers={"gudhi": lambda f=f: gudhi_barcode(f)},
                    )
                )
    compare(cases, Path(__file__).parent / "results" / "matching_3d.json", rounds=3, seconds=0.01)
    cpu_table(cases)


if __name__ == "__main__":
    main()
