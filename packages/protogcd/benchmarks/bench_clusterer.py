"""A fit beside scikit-learn's clusterers, on the same features; one thread.

These learn something else: what is compared is how long a user waits.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture
from sklearn.semi_supervised import LabelSpreading
from threadpoolctl import threadpool_limits

from offprints.protogcd import ProtoGCDClusterer, estimate_num_classes
from offprints.shared.benchmark import Case, compare

RESULTS = Path(__file__).parent / "results" / "clusterer.json"


def cases(n: int, d: int, epochs: int) -> list[Case]:
    rng = np.random.default_rng(0)
    true = rng.integers(0, 10, n)
    x = (2 * rng.normal(size=(10, d))[true] + rng.normal(size=(n, d))).astype(np.float32)
    y = np.where((true < 5) & (rng.random(n) < 0.5), true, -1)
    return [
        Case(
            f"fit, {n} x {d}, 10 classes, {epochs} epochs",
            ours=lambda: ProtoGCDClusterer(10, epochs=epochs, random_state=0).fit(x, y),
            peers={
                "scikit-learn, k-means, 10 starts": lambda: KMeans(10, n_init=10, random_state=0).fit(x),
                "scikit-learn, Gaussian mixture": lambda: GaussianMixture(10, random_state=0).fit(x),
                "scikit-learn, label spreading (old classes alone)": lambda: LabelSpreading("knn").fit(x, y),
            },
        ),
        Case(
            f"number of classes, {n} x {d}, candidates 5 to 15, 3 starts",
            ours=lambda: estimate_num_classes(x, y, max_classes=15),
            peers={
                "scikit-learn, k-means for each": lambda: [
                    KMeans(k, n_init=3, random_state=0).fit(x) for k in range(5, 16)
                ]
            },
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="tiny sizes, nothing is written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        if options.small:
            compare(cases(60, 4, 1), rounds=1, seconds=0.01, threads=1)
        else:
            compare(cases(2000, 64, 10), RESULTS, rounds=3, threads=1)


if __name__ == "__main__":
    main()
