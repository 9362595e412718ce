"""Metrics and closed form beside what else there is; results go to benchmarks/results/collapse.json.

``--library FOLDER`` is a checkout of github.com/rhubarbwu/neural-collapse, which is on no package index; without it
that peer is left out. The official code is a research repository without a license: its algorithm is that of
`reference.py`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offprints.neural_collapse import (
    FeatureStatistics,
    NCMetrics,
    gof_solution,
    nc_metrics,
    nc_metrics_from_statistics,
    reference,
)
from offprints.shared.benchmark import Case, compare

LIBRARY = "rhubarbwu/neural-collapse, two passes"
BATCH = 1000


def problem(N: int, d: int, K: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(N) % K
    features = 2 * torch.randn(K, d, generator=generator)[labels] + torch.randn(N, d, generator=generator)
    return features, labels, torch.randn(K, d, generator=generator)


def streamed(features: Tensor, labels: Tensor, weight: Tensor) -> NCMetrics:
    stats = FeatureStatistics(len(weight), features.shape[1])
    for rows, its in zip(features.split(BATCH), labels.split(BATCH), strict=True):
        stats.update(rows, its)
    return nc_metrics_from_statistics(stats, weight)


def by_library(features: Tensor, labels: Tensor, weight: Tensor) -> dict[str, float]:
    from neural_collapse.accumulate import CovarAccumulator, MeanAccumulator  # type: ignore[import-not-found]
    from neural_collapse.measure import covariance_ratio, structure_error  # type: ignore[import-not-found]

    K, d = weight.shape
    batches = list(zip(features.split(BATCH), labels.split(BATCH), strict=True))
    of_means = MeanAccumulator(K, d, "cpu")
    for rows, its in batches:
        of_means.accumulate(rows, its)
    means, overall = of_means.compute()
    of_covariance = CovarAccumulator(K, d, "cpu", M=means)
    for rows, its in batches:
        of_covariance.accumulate(rows, its, means)
    centered = means - overall
    return {
        "nc1": covariance_ratio(of_covariance.compute(), means, overall),
        "nc2_w": float(structure_error(weight, weight)),
        "nc2_h": float(structure_error(centered, centered)),
        "nc3_wh": float(structure_error(weight, centered)),
    }


def agree(ours: Any, theirs: Any) -> None:
    found = vars(theirs) if isinstance(theirs, NCMetrics) else theirs
    assert abs(ours.nc1 - found["nc1"]) < 1e-3 * ours.nc1, (ours, theirs)


def closed_form(counts: list[int], decays: list[float]) -> Callable[[], Any]:
    return lambda: gof_solution(counts, weight_decay=decays, feature_decay=decays[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", type=Path, help="checkout of the library")
    parser.add_argument("--busy", action="store_true", help="count the processor's time, on a machine that is not idle")
    options = parser.parse_args()
    library, clock = options.library, time.process_time if options.busy else None
    if library is not None:
        sys.path.insert(0, str(library))
    cases = []
    large, small = problem(20_000, 512, 100), problem(2000, 512, 100)
    peers = {} if library is None else {LIBRARY: lambda: by_library(*large)}
    name = "20 000 x 512, 100 classes"
    cases.append(Case(f"nc_metrics, {name}", lambda: nc_metrics(*large), peers, agree))
    cases.append(Case(f"FeatureStatistics, batches of {BATCH}, {name}", lambda: streamed(*large), peers, agree))
    official = {"official algorithm, sample by sample": lambda: reference.metrics(*small)}
    cases.append(Case("FeatureStatistics, 2000 x 512, 100 classes", lambda: streamed(*small), official, agree))
    counts, decays = [n % 977 + 100 for n in range(1000)], [1e-7] * 3
    one_by_one = {"reference, class by class": lambda: reference.general_orthogonal_frame(counts, decays, 1e-7)}
    cases.append(Case("gof_solution, 1000 classes, 3 layers", closed_form(counts, decays), one_by_one))
    cases.append(Case("gof_solution, 100 000 classes, 3 layers", closed_form(counts * 100, [1e-9] * 3)))
    compare(cases, Path(__file__).parent / "results" / "collapse.json", rounds=5, seconds=0.02, threads=1, clock=clock)


if __name__ == "__main__":
    main()
