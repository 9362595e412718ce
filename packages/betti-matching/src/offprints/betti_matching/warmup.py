"""Compile everything once: ``python -m offprints.betti_matching.warmup``.

Compiled code is kept in ``__pycache__`` beside the package, or, where that is not writable, in the user's cache
directory (``NUMBA_CACHE_DIR`` sets another). Later processes load it from there, so that their first call is fast.
"""

import time
from itertools import product
from typing import get_args

import numpy as np

from offprints.betti_matching.cycles import representative_cycles
from offprints.betti_matching.matching import betti_numbers, compute_barcode, compute_matching
from offprints.betti_matching.options import Comparison, Construction


def warm_up() -> None:
    """Call every compiled function once, on images of 1 to 3 axes."""
    rng = np.random.default_rng(0)
    for ndim, construction in product((1, 2, 3), get_args(Construction)):
        f, g = rng.random((2, *(4,) * ndim))
        for comparison in get_args(Comparison):
            compute_matching(f, g, construction=construction, comparison=comparison)
        betti_numbers(f, construction=construction)
        for dim, pairs in enumerate(compute_barcode(f, construction=construction)):
            representative_cycles(f, pairs, dim=dim, construction=construction)


def main() -> None:
    """Warm up and say how long it took."""
    start = time.perf_counter()
    warm_up()
    print(f"betti-matching: compiled and ready in {time.perf_counter() - start:.1f} s")  # noqa: T201


if __name__ == "__main__":
    main()
