from __future__ import annotations

import contextlib
import copy
import itertools
import math
from typing import Any

import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn
from torch.testing import assert_close

from offprints.sp2ot import SP2OTLoss, knn_similarity, partial_ot, rho_schedule, semantic_partial_ot


def random_logits(seed: int, *shape: int) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def graph_of(n: int) -> Tensor:
    return knn_similarity(torch.randn(n, 4, generator=torch.Generator().manual_seed(n), dtype=torch.float64), k=3)


def by_definition(views: list[list[Tensor]], labels: list[list[Tensor]]) -> list[Tensor]:
    """The loss of every head, pair by pair."""
    heads = []
    for h in range(len(views[0])):
        pairs = itertools.permutations(range(len(views)), 2)
        terms = [-(labels[v][h] * views[u][h].log_softmax(1)).sum(1).mean() for u, v in pairs]
        heads.append(torch.stack(terms).sum())
    return heads


# ---- what is computed ------------------------------------------------------------------------------------------------


def test_partial_transport_of_one_batch() -> None:
    views = [random_logits(0, 20, 4), random_logits(1, 20, 4)]
    loss = SP2OTLoss(num_clusters=4, total_steps=10)
    output = loss(views)
    assert output.rho == rho_schedule(0, 10)
    labels = [[partial_ot(-view.log_softmax(1), rho=output.rho).pseudo_labels] for view in views]
    for found, expected in zip(output.pseudo_labels, labels, strict=True):
        assert_close(found[0], expected[0], atol=1e-9, rtol=0)
    (expected_loss,) = by_definition([[view] for view in views], labels)
    assert_close(output.loss, expected_loss)
    assert output.pseudo_labels[0][0].sum(1).max() < 1  # the rows keep their weights


def test_heads_and_views() -> None:
    views = [[random_logits(3 * v + h, 15, 4) for h in range(2)] for v in range(3)]
    loss = SP2OTLoss(num_clusters=4, total_steps=10, num_heads=2)
    output = loss(views)
    expected = by_definition(views, output.pseudo_labels)
    assert_close(output.per_head, torch.stack(expected))
    assert_close(output.loss, sum(expected))
    assert [len(heads) for heads in output.pseudo_labels] == [2, 2, 2]


def test_gradient_is_that_of_fixed_labels() -> None:
    views = [random_logits(v, 12, 3).requires_grad_() for v in range(2)]
    output = SP2OTLoss(num_clusters=3, total_steps=4)(views)
    assert not output.per_head.requires_grad
    assert not output.pseudo_labels[0][0].requires_grad
    gradients = torch.autograd.grad(output.loss, views)
    for u, v in ((0, 1), (1, 0)):
        y = output.pseudo_labels[v][0]
        softmax = views[u].softmax(1)
        assert_close(gradients[u], (y.sum(1, keepdim=True) * softmax - y) / 12, atol=1e-12, rtol=1e-9)


def test_semantic_labels() -> None:
    graph, index = graph_of(50), torch.arange(10, 30)
    views = [random_logits(v, 20, 4) for v in range(2)]
    loss = SP2OTLoss(num_clusters=4, total_steps=10, similarity=graph, semantic_weight=4.0)
    output = loss(views, index)
    sub = graph.to_dense()[index][:, index]
    expected = semantic_partial_ot(-views[1].log_softmax(1), sub, rho=output.rho, semantic_weight=4.0).pseudo_labels
    assert_close(output.pseudo_labels[1][0], expected, atol=1e-5, rtol=0)
    dense = SP2OTLoss(num_clusters=4, total_steps=10, similarity=graph.to_dense(), semantic_weight=4.0)
    assert_close(dense(views, index).loss, output.loss)


def test_bank_of_more_than_a_batch() -> None:
    """The problem of the second step: both batches, the second view in the place of the first."""
    graph, size = graph_of(40), 24
    loss = SP2OTLoss(num_clusters=4, total_steps=10, similarity=graph, semantic_weight=4.0, bank_size=size)
    batches = [(torch.arange(10), 0), (torch.arange(10, 20), 2), (torch.arange(20, 30), 4)]
    outputs = [loss([random_logits(s, 10, 4), random_logits(s + 1, 10, 4)], index) for index, s in batches]
    # After three batches of ten, the bank of 24 has lost the first six samples.
    logits, index = loss.banks[0].snapshot()
    assert sorted(index.tolist()) == list(range(6, 30))
    assert_close(logits[index.argsort()][-10:], random_logits(5, 10, 4).float())
    sub = graph.to_dense()[index][:, index]
    expected = semantic_partial_ot(
        -logits.double().log_softmax(1), sub, rho=outputs[2].rho, semantic_weight=4.0
    ).pseudo_labels
    assert_close(outputs[2].pseudo_labels[1][0], expected[index.argsort()][-10:], atol=1e-5, rtol=0)


def test_repeated_samples_in_the_bank() -> None:
    loss = SP2OTLoss(num_clusters=4, total_steps=10, similarity=graph_of(12), semantic_weight=4.0, bank_size=24)
    for step in range(3):
        output = loss([random_logits(step, 10, 4), random_logits(step + 9, 10, 4)], torch.arange(10))
    assert output.loss.isfinite()
    assert output.pseudo_labels[0][0].shape == (10, 4)


# ---- state -----------------------------------------------------------------------------------------------------------


def stateful() -> SP2OTLoss:
    return SP2OTLoss(num_clusters=4, total_steps=6, num_heads=2, similarity=graph_of(40), bank_size=24)


def steps(loss: SP2OTLoss, numbers: range) -> list[Tensor]:
    results = []
    for s in numbers:
        views = [[random_logits(4 * s + 2 * v + h, 10, 4) for h in range(2)] for v in range(2)]
        results.append(loss(views, (torch.arange(10) + 10 * s) % 40).loss)
    return results


@pytest.mark.filterwarnings("ignore:semantic", "ignore:partial")
def test_resume_is_exact() -> None:
    whole = steps(stateful(), range(8))
    first, second = stateful(), stateful()
    before = steps(first, range(3))
    second.load_state_dict(first.state_dict())
    assert torch.equal(torch.stack(before + steps(second, range(3, 8))), torch.stack(whole))
    assert second.rho == 1.0
    assert int(second.step) == 8


@pytest.mark.parametrize("refused", ["too large for the bank", "reward"])
def test_a_refused_call_changes_nothing(refused: str) -> None:
    """Also where the first view was stored already."""
    graph = torch.eye(20) * (1e30 if refused == "reward" else 1.0)
    loss = SP2OTLoss(num_clusters=3, total_steps=5, bank_size=8, similarity=graph, semantic_weight=1.0)
    logits = random_logits(0, 4, 3).double()
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    with pytest.raises(ValueError, match="semantic_weight" if refused == "reward" else "logits in the bank's float32"):
        loss([logits, logits if refused == "reward" else 1e200 * logits], torch.arange(4))
    for name, value in loss.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_evaluation_changes_nothing() -> None:
    loss = stateful()
    steps(loss, range(2))
    state = copy.deepcopy(loss.state_dict())
    loss.eval()
    once, again = steps(loss, range(2, 3)), steps(loss, range(2, 3))
    assert torch.equal(once[0], again[0])
    for name, value in loss.state_dict().items():
        assert torch.equal(value, state[name]), name
    loss.train()
    assert torch.equal(steps(loss, range(2, 3))[0], once[0])  # what training would have seen


def test_everything_transported_at_the_end() -> None:
    loss = SP2OTLoss(num_clusters=4, total_steps=2)
    views = [random_logits(v, 12, 4) for v in range(2)]
    sums = [loss(views).pseudo_labels[0][0].sum(1) for _ in range(4)]
    assert sums[0].mean() < 0.5
    assert_close(sums[3], torch.ones(12, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("semantic", [False, True])
def test_half_logits_are_computed_in_float32(dtype: torch.dtype, semantic: bool) -> None:
    """The loss and the labels of the same rounded numbers."""
    options = {"similarity": graph_of(12), "semantic_weight": 2.0} if semantic else {}
    rounded = [random_logits(v, 12, 4).to(dtype) for v in range(2)]
    index = torch.arange(12)
    expected = SP2OTLoss(num_clusters=4, total_steps=2, **options)([view.float() for view in rounded], index)
    for context in (contextlib.nullcontext(), torch.autocast("cpu", torch.bfloat16)):
        with context:
            output = SP2OTLoss(num_clusters=4, total_steps=2, **options)(rounded, index)
        assert output.loss.dtype == output.pseudo_labels[0][0].dtype == torch.float32
        assert_close(output.loss, expected.loss, rtol=1e-6, atol=0)
        assert_close(output.pseudo_labels[1][0], expected.pseudo_labels[1][0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("bank_size", [0, 20])
def test_a_half_module_keeps_its_range(bank_size: int) -> None:
    """Potentials and memory of logits that float16 cannot hold: the loss of the module that was not made half."""
    plain = SP2OTLoss(num_clusters=4, total_steps=5, bank_size=bank_size)
    half = nn.ModuleList([copy.deepcopy(plain)]).half()[0]
    for step in range(3):
        views = [3e4 * random_logits(2 * step + v, 10, 4).float() for v in range(2)]
        assert views[0].abs().max() > 1e5
        expected, found = plain(views, torch.arange(10)), half(views, torch.arange(10))
        assert found.loss.isfinite()
        assert torch.equal(found.loss, expected.loss)
    assert half.column_potential.dtype == torch.float32
    assert plain.double().column_potential.dtype == torch.float64


def test_a_prior_of_the_loss() -> None:
    """Relative sizes, however given, and enforced where gamma says so."""
    views = [random_logits(v, 40, 3) for v in range(2)]
    for prior in (torch.tensor([6, 3, 1]), torch.tensor([0.6, 0.3, 0.1]), torch.tensor([60.0, 30.0, 10.0])):
        loss = SP2OTLoss(num_clusters=3, total_steps=1, rho_kind="constant", rho_base=0.5, gamma=math.inf, prior=prior)
        masses = loss(views).pseudo_labels[0][0].mean(0)
        assert_close(masses, torch.tensor([0.3, 0.15, 0.05], dtype=torch.float64), atol=1e-7, rtol=0)


def test_unsolved_problems_are_said() -> None:
    loss = SP2OTLoss(num_clusters=4, total_steps=2, max_iterations=1)
    with pytest.warns(ConvergenceWarning, match="residual"):
        loss([random_logits(v, 12, 4) for v in range(2)])


# ---- many processes --------------------------------------------------------------------------------------------------


def one_rank(rank: int) -> dict[str, Any]:
    torch.manual_seed(0)
    graph = graph_of(40)
    loss = SP2OTLoss(num_clusters=4, total_steps=6, similarity=graph, semantic_weight=4.0, bank_size=24)
    for s in range(2):
        views = [random_logits(2 * s + v, 10, 4)[5 * rank : 5 * rank + 5] for v in range(2)]
        output = loss(views, torch.arange(5 * rank, 5 * rank + 5) + 10 * s)
    return {"loss": float(output.loss), "labels": output.pseudo_labels[1][0]}


def test_two_processes_solve_one_problem(two_processes) -> None:
    results = two_processes(one_rank)
    loss = SP2OTLoss(num_clusters=4, total_steps=6, similarity=graph_of(40), semantic_weight=4.0, bank_size=24)
    for s in range(2):
        output = loss([random_logits(2 * s + v, 10, 4) for v in range(2)], torch.arange(10) + 10 * s)
    assert_close(torch.cat([r["labels"] for r in results]), output.pseudo_labels[1][0], atol=1e-9, rtol=0)
    assert (results[0]["loss"] + results[1]["loss"]) / 2 == pytest.approx(float(output.loss), abs=1e-9)
