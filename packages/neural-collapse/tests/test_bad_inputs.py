"""Every bad input gets an error that names the argument."""

import math
from functools import partial

import numpy as np
import torch
from torch import nn

from offprints.neural_collapse import (
    DeepLinearUFM,
    FeatureStatistics,
    LinearHead,
    NCProbe,
    ce_etf_solution,
    collapse_threshold,
    global_minimizer,
    gof_solution,
    minimum_class_count,
    nc_metrics,
    nc_metrics_from_statistics,
    separate_decay,
    simplex_etf,
)
from offprints.neural_collapse.cross_entropy import ce_polygon_solution
from offprints.shared.testing import check_arguments, check_errors

DECAYS = {"weight_decay": [1e-3, 1e-3], "feature_decay": 1e-3}


def test_closed_forms() -> None:
    solve = partial(gof_solution, [5, 4], **DECAYS)
    check_errors(
        [
            (lambda: gof_solution([5], **DECAYS), ValueError, "class_counts"),
            (lambda: gof_solution([], **DECAYS), ValueError, "class_counts"),
            (lambda: gof_solution([5, 0], **DECAYS), ValueError, "class_counts"),
            (lambda: gof_solution([5, 4.0], **DECAYS), TypeError, "class_counts"),
            (lambda: gof_solution([5, True], **DECAYS), TypeError, "class_counts"),
            (lambda: gof_solution(np.array([5.0, 4.0]), **DECAYS), TypeError, "class_counts"),
            (lambda: gof_solution(torch.tensor([[5, 4]]), **DECAYS), TypeError, "class_counts"),
            (lambda: gof_solution("54", **DECAYS), TypeError, "class_counts"),
            (lambda: gof_solution({0: 5, 1: 4}, **DECAYS), TypeError, "class_counts"),
            (lambda: solve(weight_decay=0.0), ValueError, "weight_decay"),
            (lambda: solve(weight_decay=[1e-3, -1e-3]), ValueError, "weight_decay"),
            (lambda: solve(weight_decay=[]), ValueError, "weight_decay"),
            (lambda: solve(weight_decay=math.nan), ValueError, "weight_decay"),
            (lambda: solve(weight_decay="1e-3"), TypeError, "weight_decay"),
            (lambda: solve(weight_decay=True), TypeError, "weight_decay"),
            (lambda: solve(feature_decay=0), ValueError, "feature_decay"),
            (lambda: solve(feature_decay=math.inf), ValueError, "feature_decay"),
            (lambda: solve(rank=0), ValueError, "rank"),
            (lambda: solve(rank=1.0), TypeError, "rank"),
            (lambda: collapse_threshold(0), ValueError, "depth"),
            (lambda: collapse_threshold(1.5), TypeError, "depth"),
            (lambda: minimum_class_count(0, **DECAYS), ValueError, "num_samples"),
            (lambda: minimum_class_count(9, weight_decay=-1.0, feature_decay=1.0), ValueError, "weight_decay"),
            (lambda: minimum_class_count(9, weight_decay=1.0, feature_decay=-1.0), ValueError, "feature_decay"),
            (lambda: ce_etf_solution(1, 5, **DECAYS), ValueError, "num_classes"),
            (lambda: ce_etf_solution(3, 0, **DECAYS), ValueError, "samples_per_class"),
            (lambda: ce_etf_solution(3, 5, weight_decay=[0.0], feature_decay=1.0), ValueError, "weight_decay"),
            (lambda: ce_polygon_solution(2, 5, **DECAYS), ValueError, "num_classes"),
            (lambda: simplex_etf(1, 5), ValueError, "num_classes"),
            (lambda: simplex_etf(5, 3), ValueError, "dim"),
            (lambda: simplex_etf(5, 4, dtype=torch.int64), TypeError, "dtype"),
            (lambda: simplex_etf(5, 4, seed=-1), ValueError, "seed"),
        ]
    )


def test_models() -> None:
    make = partial(DeepLinearUFM, [5, 4], [6, 6], **DECAYS)
    minimum = partial(global_minimizer, [5, 5, 5], [6, 6], **DECAYS)
    check_errors(
        [
            (lambda: make(loss="hinge"), ValueError, "loss"),
            (lambda: make(bias=1), TypeError, "bias"),
            (lambda: make(init_std=-1.0), ValueError, "init_std"),
            (lambda: make(feature_decay=0.0), ValueError, "feature_decay"),
            (lambda: make(weight_decay=1e-3), ValueError, "dims"),
            (lambda: DeepLinearUFM([5, 4], [6], **DECAYS), ValueError, "dims"),
            (lambda: DeepLinearUFM([5, 4], [6, 0], **DECAYS), ValueError, "dims"),
            (lambda: DeepLinearUFM([5, 4], 6, **DECAYS), TypeError, "dims"),
            (lambda: DeepLinearUFM([5], [6, 6], **DECAYS), ValueError, "class_counts"),
            (lambda: make(dtype="float32"), TypeError, "dtype"),
            (lambda: make().product(2), ValueError, "start"),
            (lambda: make().product(-1), ValueError, "start"),
            (lambda: minimum(loss="hinge"), ValueError, "loss"),
            (lambda: global_minimizer([5, 4], [6, 6], **DECAYS, bias=True), ValueError, "class_counts"),
            (lambda: global_minimizer([5, 4], [6, 6], **DECAYS, loss="ce"), ValueError, "class_counts"),
            (lambda: global_minimizer([5, 5, 5], [6, 1], **DECAYS, loss="ce"), ValueError, "dims"),
            (lambda: global_minimizer([5, 5, 5], [6], **DECAYS), ValueError, "dims"),
            (lambda: minimum(weight_decay=[1e-3, 0.0]), ValueError, "weight_decay"),
            (lambda: minimum(seed=0.5), TypeError, "seed"),
        ]
    )
    # What `global_minimizer` refuses, the model takes.
    assert DeepLinearUFM([5, 4], [6, 6], **DECAYS, bias=True, loss="ce").objective() > 0


def test_metrics() -> None:
    generator = torch.Generator().manual_seed(0)
    H, y, W = torch.randn(8, 5, generator=generator), torch.arange(8) % 3, torch.randn(3, 5, generator=generator)
    target = gof_solution([3, 3, 2], **DECAYS)
    two = gof_solution([3, 3], **DECAYS)
    stats = FeatureStatistics(3, 5)
    stats.update(H, y)
    some = FeatureStatistics(3, 5)
    some.update(H[:2], y[:2])
    bad = H.clone()
    bad[0, 0] = math.nan
    check_errors(
        [
            (lambda: nc_metrics(H[0], y, W), ValueError, "features"),
            (lambda: nc_metrics(bad, y, W), ValueError, "features"),
            (lambda: nc_metrics(H / 0, y, W), ValueError, "features"),
            (lambda: nc_metrics(H.long(), y, W), TypeError, "features"),
            (lambda: nc_metrics(H, y[:-1], W), ValueError, "labels"),
            (lambda: nc_metrics(H, y - 1, W), ValueError, "labels"),
            (lambda: nc_metrics(H, y + 1, W), ValueError, "labels"),
            (lambda: nc_metrics(H, y.float(), W), TypeError, "labels"),
            (lambda: nc_metrics(H, y % 2, W), ValueError, "labels"),
            (lambda: nc_metrics(H, y[:, None], W), ValueError, "labels"),
            (lambda: nc_metrics(H, y, W[:, :4]), ValueError, "weight"),
            (lambda: nc_metrics(H, y * 0, W[:1]), ValueError, "weight"),
            (lambda: nc_metrics(H, y, W * math.inf), ValueError, "weight"),
            (lambda: nc_metrics(H, y, W, num_classes=4), ValueError, "num_classes"),
            (lambda: nc_metrics(H, y, W, geometry="cube"), ValueError, "geometry"),
            (lambda: nc_metrics(H, y, W, geometry="gof"), ValueError, "target"),
            (lambda: nc_metrics(H, y, W, geometry="gof", target=two), ValueError, "target"),
            (lambda: nc_metrics(H, y, W, geometry="gof", target=[1, 2, 3]), TypeError, "target"),
            (lambda: nc_metrics_from_statistics(H, W), TypeError, "stats"),
            (lambda: nc_metrics_from_statistics(some, W), ValueError, "labels"),
            (lambda: nc_metrics_from_statistics(stats, W[:2]), ValueError, "weight"),
            (lambda: nc_metrics_from_statistics(stats, W[:, :2]), ValueError, "weight"),
            (lambda: nc_metrics_from_statistics(stats, W, geometry="gof"), ValueError, "target"),
            (lambda: FeatureStatistics(1, 5), ValueError, "num_classes"),
            (lambda: FeatureStatistics(3, 0), ValueError, "dim"),
            (lambda: stats.update(H[:, :4], y), ValueError, "features"),
            (lambda: stats.update(bad, y), ValueError, "features"),
            (lambda: stats.update(H[:0], y[:0]), ValueError, "features"),
            (lambda: stats.update(H, y + 1), ValueError, "labels"),
            (lambda: stats.update(H, y[:2]), ValueError, "labels"),
            (lambda: stats.update(H, y.bool()), TypeError, "labels"),
            (lambda: stats.merge(FeatureStatistics(4, 5)), ValueError, "other"),
            (lambda: stats.merge(H), TypeError, "other"),
            (lambda: stats.load_state_dict({}), ValueError, "state"),
            (lambda: stats.load_state_dict(FeatureStatistics(4, 5).state_dict()), ValueError, "state"),
        ]
    )
    nc_metrics(H, y, W, geometry="gof", target=target, num_classes=3)


def test_probe_and_head() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    probe = partial(NCProbe, num_classes=3)
    check_errors(
        [
            (lambda: probe(model.forward), TypeError, "model"),
            (lambda: probe(model, "7"), ValueError, "layer"),
            (lambda: probe(model, "1"), ValueError, "layer"),
            (lambda: probe(nn.Sequential(nn.Linear(5, 8), nn.Linear(4, 3)), "0"), ValueError, "layer"),
            (lambda: probe(model, 2), TypeError, "layer"),
            (lambda: probe(nn.ReLU()), ValueError, "layer"),
            (lambda: NCProbe(model, num_classes=4), ValueError, "layer"),
            (lambda: NCProbe(model, num_classes=1), ValueError, "num_classes"),
            (lambda: probe(nn.Sequential(nn.LazyLinear(3))), ValueError, "layer"),
            (lambda: probe(model).run([torch.zeros(2, 5)]), ValueError, "loader"),
            (lambda: probe(model).run([(torch.zeros(2, 5), torch.tensor([0.0, 1.0]))]), TypeError, "labels"),
            (lambda: probe(model).run([(torch.full((2, 5), math.nan), torch.tensor([0, 1]))]), ValueError, "features"),
            (lambda: probe(model).run([], device="no such device"), ValueError, "device"),
            (lambda: probe(model).compute(), ValueError, "labels"),
            (lambda: LinearHead(0, 3), ValueError, "in_dim"),
            (lambda: LinearHead(5, 1), ValueError, "num_classes"),
            (lambda: LinearHead(5, 3, depth=0), ValueError, "depth"),
            (lambda: LinearHead(5, 3, width=0), ValueError, "width"),
            (lambda: LinearHead(5, 3, bias=None), TypeError, "bias"),
            (lambda: LinearHead(5, 3).product(1), ValueError, "start"),
            (lambda: separate_decay(nn.ReLU(), torch.ones(2, 5), **ONE), ValueError, "head"),
            (lambda: separate_decay([1], torch.ones(2, 5), **ONE), TypeError, "head"),
            (lambda: separate_decay(model, torch.ones(2, 5).long(), **ONE), TypeError, "features"),
            (lambda: separate_decay(model, torch.ones(0, 5), **ONE), ValueError, "features"),
            (lambda: separate_decay(model, torch.ones(2, 5) / 0, **ONE), ValueError, "features"),
            (lambda: separate_decay(model, torch.ones(2, 5), **{**ONE, "weight_decay": 0}), ValueError, "weight_decay"),
            (
                lambda: separate_decay(model, torch.ones(2, 5), **{**ONE, "feature_decay": -1}),
                ValueError,
                "feature_decay",
            ),
        ]
    )


ONE = {"weight_decay": 1.0, "feature_decay": 1.0}


def test_arguments() -> None:
    check_arguments(collapse_threshold, lambda g: (3,))
    check_arguments(gof_solution, lambda g: ([20, 10, 5],), kwargs={**DECAYS, "rank": 2})
    check_arguments(gof_solution, lambda g: ([20, 10, 5],), kwargs=ONE, skip={"weight_decay: a list": "one per layer"})
    check_arguments(minimum_class_count, lambda g: (100,), kwargs=DECAYS)
    check_arguments(ce_etf_solution, lambda g: (4, 10), kwargs=DECAYS)
    check_arguments(
        ce_polygon_solution, lambda g: (4, 10), kwargs=DECAYS, skip={"num_classes: huge": "a sum of K terms"}
    )
    memory = {"class_counts: huge inside": "memory", "dims: huge inside": "memory"}
    check_arguments(global_minimizer, lambda g: ([5, 5], [4, 4]), kwargs=DECAYS, skip=memory)
    check_arguments(DeepLinearUFM, lambda g: ([5, 5], [4, 4]), kwargs=DECAYS, skip=memory)

    def inputs(g: torch.Generator) -> tuple[torch.Tensor, ...]:
        features = torch.randn(8, 5, generator=g, dtype=torch.float64)
        return features, torch.arange(8) % 3, torch.randn(3, 5, generator=g, dtype=torch.float64)

    nans = {"features: zeros": "0/0 is NaN, and warned of", "weight: zeros": "the same"}
    check_arguments(nc_metrics, inputs, skip=nans)
