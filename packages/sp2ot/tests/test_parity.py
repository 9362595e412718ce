"""Outputs of the official implementation and of an independent solver; tolerances as golden/README.md states them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from offprints.sp2ot import cluster_scores, knn_similarity, partial_ot, rho_schedule, semantic_partial_ot


@pytest.fixture(scope="module")
def data(golden) -> dict[str, Tensor]:
    return golden("transport")


@pytest.mark.parametrize("i", range(4))
@pytest.mark.parametrize("method", ["newton", "sinkhorn"])
def test_optimum(data: dict[str, Tensor], i: int, method: str) -> None:
    result = partial_ot(data["cost"], rho=float(data["rhos"][i]), method=method, max_iterations=20_000)
    assert result.converged
    assert_close(result.pseudo_labels, data[f"optimum_{i}"], atol=2e-6, rtol=0)


@pytest.mark.parametrize("i", range(4))
def test_scaling_iterates(data: dict[str, Tensor], i: int) -> None:
    result = partial_ot(data["cost"], rho=float(data["rhos"][i]), method="sinkhorn", tol=0, max_iterations=300)
    assert result.iterations == 300
    assert_close(result.pseudo_labels, data[f"sinkhorn300_{i}"], atol=3e-6, rtol=0)


def test_other_smoothing_and_weight(data: dict[str, Tensor]) -> None:
    epsilon, gamma = data["eps_gamma"].tolist()
    result = partial_ot(data["cost"], rho=float(data["rhos"][1]), epsilon=epsilon, gamma=gamma)
    assert_close(result.pseudo_labels, data["optimum_eg"], atol=2e-6, rtol=0)


def test_hard_columns(data: dict[str, Tensor]) -> None:
    result = partial_ot(data["cost"], rho=float(data["rhos"][1]), gamma=math.inf)
    assert_close(result.pseudo_labels, data["optimum_hard"], atol=2e-6, rtol=0)


@pytest.mark.parametrize("steps", [1, 4])
def test_semantic_steps(data: dict[str, Tensor], steps: int) -> None:
    result = semantic_partial_ot(
        data["cost"],
        data["similarity"],
        rho=float(data["rhos"][1]),
        semantic_weight=float(data["semantic_weight"]),
        outer_iterations=steps,
        outer_tol=0,
    )
    assert result.outer_iterations == steps
    assert_close(result.pseudo_labels, data[f"semantic_{steps}"], atol=2e-5, rtol=0)


def test_graph(data: dict[str, Tensor]) -> None:
    graph = knn_similarity(data["features"], k=int(data["k"]))
    assert graph.is_sparse
    assert_close(graph.to_dense(), data["similarity"], atol=1e-6, rtol=0)


def test_scores(data: dict[str, Tensor]) -> None:
    scores = cluster_scores(data["y"], data["pred"])
    names = ("balanced_accuracy", "f1", "ari", "nmi", "head", "medium", "tail")
    found = torch.tensor([scores[name] for name in names], dtype=torch.float64)
    assert_close(found, data["scores"], atol=2e-4, rtol=0)


def test_schedule(data: dict[str, Tensor]) -> None:
    values = [rho_schedule(step, 1000) for step in data["rho_steps"].tolist()]
    assert_close(torch.tensor(values, dtype=torch.float64), data["rho_values"], atol=1e-12, rtol=0)
