"""Matchings of 3-D images beside Betti-Matching-3D, barcodes beside gudhi: wall time and CPU time.

Betti-Matching-3D (C++) is not on PyPI; build its extension module `betti_matching` from nstucki/Betti-Matching-3D and
put it on the path to include it. Sizes are arguments, by default 32 48 64.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import gudhi
import numpy as np
from scipy.ndimage import gaussian_filter

from offprints.betti_matching import Matching, compute_barcode, compute_matching
from offprints.shared.benchmark import Case, machine, version

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


def clock(call: Callable[[], object]) -> tuple[float, float]:
    """Wall time and CPU time of all threads, in milliseconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)


def measure(case: Case, rounds: int) -> dict[str, object]:
    """Medians over interleaved calls; the first call of each, untimed, is for compilation and for agreement."""
    ours = case.ours()
    for call in case.peers.values():
        theirs = call()
        if case.agree is not None:
            case.agree(ours, theirs)
    contenders = {"ours": case.ours, **case.peers}
    times = [{name: clock(call) for name, call in contenders.items()} for _ in range(rounds)]
    medians = {name: [statistics.median(t[name][i] for t in times) for i in range(2)] for name in contenders}
    (wall, cpu), peer = medians["ours"], next(iter(case.peers))
    their_wall, their_cpu = medians[peer]
    print(
        f"{case.name:32}{wall:9.1f}{cpu:9.1f}   {peer:18}{their_wall:9.1f}{their_cpu:9.1f}"
        f"   {their_wall / wall:6.2f}{their_cpu / cpu:6.2f}",
        flush=True,
    )
    names = ("wall_ms", "cpu_ms")
    return {"case": case.name, "timings": {name: dict(zip(names, m, strict=True)) for name, m in medians.items()}}


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
    print(f"{'case':32}{'wall ms':>9}{'CPU ms':>9}   {'peer':18}{'wall ms':>9}{'CPU ms':>9}   {'ratios':>12}")
    record = {
        "benchmark": "matching_3d",
        "machine": machine(),
        "peers": {"gudhi": version("gudhi"), "Betti-Matching-3D": None},
        "cases": [measure(case, rounds=3) for case in cases],
    }
    output = Path(__file__).parent / "results" / "matching_3d.json"
    output.parent.mkdir(exist_ok=True)
    output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
