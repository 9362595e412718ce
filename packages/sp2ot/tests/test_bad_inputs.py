"""Every bad input that the specification lists, and its neighbors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from offprints.shared.estimators import NotFittedError
from offprints.shared.testing import check_errors
from offprints.sp2ot import (
    CosineHead,
    LogitBank,
    SP2OTClusterer,
    SP2OTLoss,
    cluster_scores,
    knn_similarity,
    long_tailed_counts,
    long_tailed_indices,
    partial_ot,
    rho_schedule,
    semantic_partial_ot,
)

COST = torch.rand(6, 3)
SIMILARITY = torch.eye(6)
NAN, INF = math.nan, math.inf


def spoiled(x: Tensor, value: float) -> Tensor:
    x = x.clone()
    x.view(-1)[1] = value
    return x


def semantic(cost: Tensor = COST, similarity: Tensor = SIMILARITY, **options: object) -> object:
    return semantic_partial_ot(cost, similarity, **{"rho": 0.5, **options})


@pytest.mark.parametrize("solve", [partial_ot, semantic])
def test_transport(solve) -> None:
    def call(cost: object = COST, **options: object):
        return lambda: solve(cost, **{"rho": 0.5, **options})

    check_errors(
        [
            (call(spoiled(COST, NAN)), ValueError, "cost"),
            (call(spoiled(COST, INF)), ValueError, "cost"),
            (call(torch.rand(6)), ValueError, "cost"),
            (call(torch.rand(1, 2, 6, 3)), ValueError, "cost"),
            (call(torch.rand(0, 3)), ValueError, "cost"),
            (call(torch.rand(6, 0)), ValueError, "cost"),
            (call(torch.ones(6, 3, dtype=torch.int64)), TypeError, "cost"),
            (call(torch.ones(6, 3, dtype=torch.bool)), TypeError, "cost"),
            (call(COST.numpy()), TypeError, "cost"),
            (call(rho=0.0), ValueError, "rho"),
            (call(rho=-0.1), ValueError, "rho"),
            (call(rho=1.01), ValueError, "rho"),
            (call(rho=NAN), ValueError, "rho"),
            (call(epsilon=0.0), ValueError, "epsilon"),
            (call(epsilon=-1.0), ValueError, "epsilon"),
            (call(epsilon=INF), ValueError, "epsilon"),
            (call(gamma=0.0), ValueError, "gamma"),
            (call(gamma=-1.0), ValueError, "gamma"),
            (call(gamma=NAN), ValueError, "gamma"),
            (call(method="simplex"), ValueError, "method"),
            (call(tol=-1e-9), ValueError, "tol"),
            (call(max_iterations=0), ValueError, "max_iterations"),
            (call(max_iterations=2.5), TypeError, "max_iterations"),
            (call(prior=torch.full((4,), 0.25)), ValueError, "prior"),
            (call(prior=torch.full((1, 3), 1 / 3)), ValueError, "prior"),
            (call(prior=torch.tensor([-0.2, 0.6, 0.6])), ValueError, "prior"),
            (call(prior=torch.zeros(3)), ValueError, "prior"),
            (call(prior=torch.tensor([True, True, False])), TypeError, "prior"),
            (call(epsilon=1e-14), ValueError, "epsilon"),
            (call(prior=torch.tensor([NAN, 0.5, 0.5])), ValueError, "prior"),
            (call(prior=[0.2, 0.4, 0.4]), TypeError, "prior"),
        ]
    )


def test_start() -> None:
    check_errors(
        [
            (lambda: partial_ot(COST, rho=0.5, init=torch.zeros(3)), ValueError, "init"),
            (lambda: partial_ot(COST[None], rho=0.5, init=torch.zeros(4)), ValueError, "init"),
            (lambda: partial_ot(COST, rho=0.5, init=torch.zeros(4, dtype=torch.int64)), TypeError, "init"),
            (lambda: semantic(init_plan=torch.rand(6, 4)), ValueError, "init_plan"),
            (lambda: semantic(init_plan=-COST), ValueError, "init_plan"),
            (lambda: semantic(init_plan=spoiled(COST, NAN)), ValueError, "init_plan"),
        ]
    )


@pytest.mark.filterwarnings("ignore:Sparse")
def test_similarity() -> None:
    sparse = torch.eye(6).to_sparse_coo()
    block = torch.eye(6).to_sparse_bsr((2, 2))
    check_errors(
        [
            (lambda: semantic(similarity=torch.eye(5)), ValueError, "similarity"),
            (lambda: semantic(similarity=torch.rand(6, 5)), ValueError, "similarity"),
            (lambda: semantic(similarity=torch.rand(6)), ValueError, "similarity"),
            (lambda: semantic(similarity=spoiled(SIMILARITY, NAN)), ValueError, "similarity"),
            (lambda: semantic(similarity=sparse * NAN), ValueError, "similarity"),
            (lambda: semantic(similarity=(sparse * INF).to_sparse_csr()), ValueError, "similarity"),
            (lambda: semantic(similarity=torch.eye(5).to_sparse_coo()), ValueError, "similarity"),
            (lambda: semantic(similarity=block), ValueError, "similarity"),
            (lambda: semantic(similarity=torch.ones(6, 6, dtype=torch.int64)), TypeError, "similarity"),
            (lambda: semantic(similarity=np.eye(6)), TypeError, "similarity"),
            (lambda: semantic(semantic_weight=-1.0), ValueError, "semantic_weight"),
            (lambda: semantic(outer_iterations=0), ValueError, "outer_iterations"),
            (lambda: semantic(outer_tol=-1.0), ValueError, "outer_tol"),
            (lambda: semantic(damping=0.0), ValueError, "damping"),
            (lambda: semantic(damping=1.5), ValueError, "damping"),
        ]
    )


def test_schedule_and_tails() -> None:
    labels = [0, 0, 1, 1]
    check_errors(
        [
            (lambda: rho_schedule(-1, 10), ValueError, "step"),
            (lambda: rho_schedule(0, 0), ValueError, "total_steps"),
            (lambda: rho_schedule(0, 10, base=0.0), ValueError, "base"),
            (lambda: rho_schedule(0, 10, base=0.5, upper=0.4), ValueError, "upper"),
            (lambda: rho_schedule(0, 10, upper=1.1), ValueError, "upper"),
            (lambda: rho_schedule(0, 10, kind="cosine"), ValueError, "kind"),
            (lambda: long_tailed_counts(0, 3, ratio=0.1), ValueError, "max_count"),
            (lambda: long_tailed_counts(5, 0, ratio=0.1), ValueError, "num_classes"),
            (lambda: long_tailed_counts(5, 3, ratio=0.0), ValueError, "ratio"),
            (lambda: long_tailed_counts(5, 3, ratio=1.5), ValueError, "ratio"),
            (lambda: long_tailed_counts(5, 3, ratio=0.5, kind="pareto"), ValueError, "kind"),
            (lambda: long_tailed_indices(labels, ratio=-0.5), ValueError, "ratio"),
            (lambda: long_tailed_indices(labels, ratio=0.5, kind="pareto"), ValueError, "kind"),
            (lambda: long_tailed_indices(labels, ratio=0.5, max_count=3), ValueError, "counts"),
            (lambda: long_tailed_indices([0.5, 1.5], ratio=0.5), TypeError, "labels"),
        ]
    )


def test_graph() -> None:
    x = torch.rand(6, 3)
    check_errors(
        [
            (lambda: knn_similarity(x, k=0), ValueError, "k"),
            (lambda: knn_similarity(x, k=6), ValueError, "k"),
            (lambda: knn_similarity(x), ValueError, "k"),
            (lambda: knn_similarity(x, k=2, kernel="abel"), ValueError, "kernel"),
            (lambda: knn_similarity(x, k=2, bandwidth=0.0), ValueError, "bandwidth"),
            (lambda: knn_similarity(x, k=2, bandwidth="wide"), ValueError, "bandwidth"),
            (lambda: knn_similarity(spoiled(x, NAN), k=2), ValueError, "features"),
            (lambda: knn_similarity(spoiled(x, INF), k=2), ValueError, "features"),
            (lambda: knn_similarity(x[0], k=2), ValueError, "features"),
            (lambda: knn_similarity(x.long(), k=2), TypeError, "features"),
        ]
    )


def test_scores() -> None:
    empty = np.zeros(0, dtype=np.int64)
    check_errors(
        [
            (lambda: cluster_scores([0, 1], [0, 1, 1]), ValueError, "length"),
            (lambda: cluster_scores(empty, empty), ValueError, "labels_true"),
            (lambda: cluster_scores([[0, 1]], [0]), ValueError, "labels_true"),
            (lambda: cluster_scores([0, -1], [0, 1]), ValueError, "labels_true"),
            (lambda: cluster_scores([0, 1], [0.5, 1.0]), TypeError, "labels_pred"),
            (lambda: cluster_scores([0, 1], [0, 3], num_clusters=3), ValueError, "num_clusters"),
            (lambda: cluster_scores([0, 1], [0, 1], split=(0.5, 0.5, 0.5)), ValueError, "split"),
            (lambda: cluster_scores([0, 1], [0, 1], split=(-0.1, 0.5, 0.5)), ValueError, "split"),
        ]
    )


def test_bank_and_head() -> None:
    def bank() -> LogitBank:
        filled = LogitBank(3, 4)
        filled.push(torch.zeros(2, 3), torch.arange(2))
        return filled

    head = CosineHead(3, 2)
    check_errors(
        [
            (lambda: LogitBank(0, 4), ValueError, "num_clusters"),
            (lambda: LogitBank(3, 0), ValueError, "size"),
            (lambda: bank().push(torch.zeros(2, 4), torch.arange(2)), ValueError, "logits"),
            (lambda: bank().push(torch.zeros(5, 3), torch.arange(5)), ValueError, "logits"),
            (lambda: bank().push(torch.full((2, 3), NAN), torch.arange(2)), ValueError, "logits"),
            (lambda: bank().push(torch.zeros(2, 3).long(), torch.arange(2)), TypeError, "logits"),
            (lambda: bank().push(torch.zeros(2, 3), torch.arange(3)), ValueError, "index"),
            (lambda: bank().push(torch.zeros(2, 3), torch.rand(2)), TypeError, "index"),
            (lambda: bank().push(torch.zeros(2, 3), torch.ones(2, 1).long()), ValueError, "index"),
            (lambda: bank().push(torch.zeros(3, 3), torch.arange(3), replace_last=True), ValueError, "last push"),
            (lambda: CosineHead(0, 2), ValueError, "in_features"),
            (lambda: CosineHead(3, 0), ValueError, "num_clusters"),
            (lambda: CosineHead(3, 2, scale=0.0), ValueError, "scale"),
            (lambda: head(torch.rand(4, 5)), ValueError, "features"),
            (lambda: head(torch.ones(4, 3).long()), TypeError, "features"),
            (lambda: head.reset_prototypes(torch.rand(2, 4)), ValueError, "centers"),
            (lambda: head.reset_prototypes(torch.zeros(2, 3)), ValueError, "centers"),
            (lambda: head.reset_prototypes(torch.full((2, 3), NAN)), ValueError, "centers"),
        ]
    )


def test_rejected_batch_changes_no_state() -> None:
    loss = SP2OTLoss(num_clusters=3, total_steps=5, bank_size=8)
    good, index = torch.rand(4, 3), torch.arange(4)
    loss([good, good], index)
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    with pytest.raises(ValueError, match="logits"):
        loss([good, spoiled(good, NAN)], index)
    for name, value in loss.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_loss() -> None:
    def new(**options: object):
        return lambda: SP2OTLoss(**{"num_clusters": 3, "total_steps": 5, **options})

    a, index = torch.rand(4, 3), torch.arange(4)
    plain, graph = SP2OTLoss(num_clusters=3, total_steps=5), new(similarity=torch.eye(6))()
    bank, heads = new(bank_size=8)(), new(num_heads=2)()
    check_errors(
        [
            (new(num_clusters=0), ValueError, "num_clusters"),
            (new(total_steps=0), ValueError, "total_steps"),
            (new(num_heads=0), ValueError, "num_heads"),
            (new(semantic_weight=-1.0), ValueError, "semantic_weight"),
            (new(epsilon=0.0), ValueError, "epsilon"),
            (new(gamma=NAN), ValueError, "gamma"),
            (new(rho_base=0.0), ValueError, "rho_base"),
            (new(rho_base=0.5, rho_upper=0.4), ValueError, "rho_upper"),
            (new(rho_kind="cosine"), ValueError, "rho_kind"),
            (new(bank_size=-1), ValueError, "bank_size"),
            (new(outer_iterations=0), ValueError, "outer_iterations"),
            (new(max_iterations=0), ValueError, "max_iterations"),
            (new(similarity=torch.rand(6, 5)), ValueError, "similarity"),
            (new(similarity=torch.full((6, 6), NAN)), ValueError, "similarity"),
            (lambda: plain([a]), ValueError, "two views"),
            (lambda: plain([]), ValueError, "two views"),
            (lambda: plain(a), TypeError, "logits"),
            (lambda: plain([a, a.numpy()]), TypeError, "logits"),
            (lambda: plain([a, a.long()]), TypeError, "logits"),
            (lambda: plain([a, a[:3]]), ValueError, "logits"),
            (lambda: plain([a, torch.rand(4, 2)]), ValueError, "logits"),
            (lambda: plain([a[0], a[0]]), ValueError, "logits"),
            (lambda: plain([a[:0], a[:0]]), ValueError, "logits"),
            (lambda: plain([a, spoiled(a, NAN)]), ValueError, "logits"),
            (lambda: plain([a, spoiled(a, INF)]), ValueError, "logits"),
            (lambda: heads([a, a]), ValueError, "heads"),
            (lambda: heads([[a, a], [a]]), ValueError, "heads"),
            (lambda: heads([[a, a], [a, a[:3]]]), ValueError, "logits"),
            (lambda: bank([a, a]), ValueError, "index"),
            (lambda: graph([a, a]), ValueError, "index"),
            (lambda: graph([a, a], torch.tensor([0, 1, 2, 6])), ValueError, "index"),
            (lambda: graph([a, a], torch.rand(4)), TypeError, "index"),
            (lambda: graph([a, a], [0, 1, 2, 3]), TypeError, "index"),
            (lambda: bank([a, a], index[:3]), ValueError, "index"),
            (lambda: bank([a, a], index[:, None]), ValueError, "index"),
            (lambda: bank([torch.rand(9, 3)] * 2, torch.arange(9)), ValueError, "bank_size"),
        ]
    )


def test_clusterer() -> None:
    def new(**options: object):
        return lambda: SP2OTClusterer(**{"n_clusters": 2, "max_steps": 1, **options})

    x = torch.rand(6, 3)
    changed = new()().set_params(lr=-1.0)
    check_errors(
        [
            (new(n_clusters=0), ValueError, "n_clusters"),
            (lambda: new(n_clusters=7)().fit(x), ValueError, "n_clusters"),
            (new(semantic_weight=-1.0), ValueError, "semantic_weight"),
            (new(semantic_weight="paper"), ValueError, "semantic_weight"),
            (new(n_neighbors=0), ValueError, "n_neighbors"),
            (new(epsilon=0.0), ValueError, "epsilon"),
            (new(gamma=0.0), ValueError, "gamma"),
            (new(rho_base=0.0), ValueError, "rho_base"),
            (new(rho_upper=0.01), ValueError, "rho_upper"),
            (new(max_steps=0), ValueError, "max_steps"),
            (new(lr=0.0), ValueError, "lr"),
            (new(batch_size=0), ValueError, "batch_size"),
            (new(init="spectral"), ValueError, "init"),
            (new(init=torch.rand(3, 3)), ValueError, "init"),
            (lambda: new(init=torch.rand(2, 4))().fit(x), ValueError, "init"),
            (new(noise=-0.1), ValueError, "noise"),
            (new(encoder="resnet"), TypeError, "encoder"),
            (new(n_heads=0), ValueError, "n_heads"),
            (new(random_state=-1), ValueError, "random_state"),
            (lambda: new(device="abacus")().fit(x), ValueError, "device"),
            (lambda: changed.fit(x), ValueError, "lr"),
            (lambda: new()().fit(spoiled(x, NAN)), ValueError, "X"),
            (lambda: new()().fit(spoiled(x, INF).numpy()), ValueError, "X"),
            (lambda: new()().fit(x[0]), ValueError, "X"),
            (lambda: new()().fit(x.to(torch.complex64)), TypeError, "X"),
            (lambda: new()().fit("x"), TypeError, "X"),
            (new(epsilon=1e-30), ValueError, "epsilon"),
            (new(init=3), ValueError, "init"),
            (new(prior=[1.0, 2.0, 3.0]), ValueError, "prior"),
            (lambda: new()().fit(x).predict(torch.rand(6, 4)), ValueError, "X"),
            (lambda: new()().predict(x), NotFittedError, "fit"),
            (lambda: new()().predict_proba(x), NotFittedError, "fit"),
        ]
    )
