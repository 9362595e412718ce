"""The fast code equals the paper's algorithm, and both the official outputs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from offprints.sp2ot import SP2OTLoss, knn_similarity, partial_ot, reference, rho_schedule, semantic_partial_ot


def problem(seed: int, n: int = 40, k: int = 5) -> Tensor:
    logits = 2 * torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return -logits.log_softmax(1)


@pytest.mark.parametrize(("epsilon", "gamma"), [(0.1, 1.0), (0.3, 0.2), (0.2, math.inf)])
@pytest.mark.parametrize("rho", [0.15, 0.5, 0.9])
def test_partial_transport(rho: float, epsilon: float, gamma: float) -> None:
    cost = problem(0)
    expected = reference.partial_transport(cost, rho, epsilon, gamma, iterations=6000, tol=1e-13)
    assert_close(partial_ot(cost, rho=rho, epsilon=epsilon, gamma=gamma).plan, expected, atol=1e-9, rtol=0)


def test_unfinished_scaling() -> None:
    cost = problem(1)
    expected = reference.partial_transport(cost, 0.3, iterations=7)
    found = partial_ot(cost, rho=0.3, method="sinkhorn", tol=0, max_iterations=7)
    assert_close(found.plan, expected, atol=1e-14, rtol=0)


def test_semantic_transport() -> None:
    cost = problem(2)
    graph = knn_similarity(torch.randn(40, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64), k=4)
    expected = reference.semantic_transport(
        cost, graph.to_dense(), 0.4, 6.0, outer_iterations=4, iterations=4000, tol=1e-15
    )
    found = semantic_partial_ot(cost, graph, rho=0.4, semantic_weight=6.0, outer_iterations=4, outer_tol=0)
    assert_close(found.plan, expected, atol=1e-8, rtol=0)
    plain = partial_ot(cost, rho=0.4).plan
    assert (plain - expected).abs().max() > 1e-3  # the term acts


def test_loss() -> None:
    views = [-problem(4), -problem(5)]
    loss = SP2OTLoss(num_clusters=5, total_steps=3)
    for step in range(3):
        assert loss.rho == pytest.approx(reference.share(step, 3), abs=1e-15) == rho_schedule(step, 3)
        expected = reference.self_labeling_loss(*views, rho=reference.share(step, 3), iterations=6000, tol=1e-13)
        assert_close(loss(views).loss, expected, atol=1e-8, rtol=0)


def test_official_iterates() -> None:
    path = Path(__file__).parent / "golden" / "transport.npz"
    with np.load(path) as arrays:
        cost, rhos = torch.from_numpy(arrays["cost"]).double(), arrays["rhos"]
        for i, rho in enumerate(rhos):
            labels = len(cost) * reference.partial_transport(cost, float(rho), iterations=300)
            assert_close(labels, torch.from_numpy(arrays[f"sinkhorn300_{i}"]).double(), atol=3e-6, rtol=0)
