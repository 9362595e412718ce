"""The pieces around the transport: schedule, graph, long tails, scores, memory, head."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score
from torch.testing import assert_close

from offprints.shared.testing import check_schedule, check_split
from offprints.sp2ot import (
    CosineHead,
    LogitBank,
    cluster_scores,
    knn_similarity,
    long_tailed_counts,
    long_tailed_indices,
    rho_schedule,
)

# ---- schedule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "start", "end"), [("sigmoid", 0.1 + 0.9 * math.exp(-5), 1), ("linear", 0.1, 1)])
def test_schedule(kind: str, start: float, end: float) -> None:
    check_schedule(partial(rho_schedule, total_steps=30, kind=kind), 30, start=start, end=end, monotone="increasing")


def test_schedule_ends() -> None:
    check_schedule(partial(rho_schedule, total_steps=5, kind="constant", base=0.3), 5, start=0.3, end=0.3)
    assert rho_schedule(50, 10) == 1.0
    assert rho_schedule(10, 10, base=0.2, upper=0.7) == pytest.approx(0.7)


# ---- graph -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["gauss", "cosine", "laplace"])
def test_graph_by_its_definition(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from offprints.sp2ot import graph as module

    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3
    distance = torch.cdist(x, x)
    full = {
        "gauss": (-distance.square() / (2 * 1.5**2 * 5)).exp(),
        "laplace": (-distance / (1.5 * 5)).exp(),
        "cosine": torch.nn.functional.cosine_similarity(x[:, None], x[None], dim=2),
    }[kernel].fill_diagonal_(-2)
    value, column = full.topk(4, dim=1)
    expected = torch.zeros(30, 30, dtype=torch.float64).scatter(1, column, value)
    graph = knn_similarity(x, k=4, kernel=kernel, bandwidth=1.5)
    assert_close(graph.to_dense(), expected, atol=1e-9, rtol=0)
    assert graph.is_coalesced()
    assert_close(graph.coalesce().to_dense(), expected, atol=1e-9, rtol=0)
    assert (graph.indices()[0].bincount() == 4).all()
    monkeypatch.setattr(module, "BLOCK_ENTRIES", 7 * 30)  # rows in blocks of seven
    assert_close(knn_similarity(x, k=4, kernel=kernel, bandwidth=1.5).to_dense(), expected, atol=1e-9, rtol=0)


def test_graph_of_repeated_samples() -> None:
    graph = knn_similarity(torch.ones(6, 3), k=2)
    assert (graph.values() == 1).all()
    assert graph.to_dense().diagonal().sum() == 0
    assert knn_similarity(torch.randn(6, 3).half(), k=2).dtype == torch.float16


# ---- long tails ------------------------------------------------------------------------------------------------------


def test_counts_of_the_paper() -> None:
    counts = long_tailed_counts(500, 100, ratio=0.01)
    assert (counts[0], counts[-1], sum(counts)) == (500, 5, 10_847)
    assert counts == sorted(counts, reverse=True)
    assert long_tailed_counts(100, 5, ratio=0.1, kind="step") == [100, 100, 10, 10, 10]
    assert long_tailed_counts(7, 1, ratio=0.1) == [7]
    assert long_tailed_counts(7, 3, ratio=1.0) == [7, 7, 7]
    for huge in ({"max_count": 2**60, "num_classes": 3}, {"max_count": 3, "num_classes": 2**62}):
        with pytest.raises(ValueError, match=max(huge, key=huge.__getitem__)):
            long_tailed_counts(**huge, ratio=0.1)


def test_indices() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [60, 50, 40]))
    counts = dict(enumerate(long_tailed_counts(40, 3, ratio=0.2)))
    check_split(partial(long_tailed_indices, ratio=0.2), labels, cover=False, counts=[counts])
    step = {0: 30, 1: 6, 2: 6}
    check_split(partial(long_tailed_indices, ratio=0.2, max_count=30, kind="step"), labels, cover=False, counts=[step])


# ---- scores ----------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(seed=st.integers(0, 2**31), classes=st.integers(2, 9))
def test_scores_by_scikit_learn(seed: int, classes: int) -> None:
    generator = np.random.default_rng(seed)
    true = np.concatenate([np.arange(classes), generator.integers(classes, size=60)])
    noisy = np.where(generator.random(len(true)) < 0.3, generator.integers(classes, size=len(true)), true)
    names = generator.permutation(classes)
    scores = cluster_scores(true, names[noisy])
    matched = np.array([scores["mapping"][cluster] for cluster in names[noisy]])
    assert sorted(scores["mapping"].values()) == sorted(set(scores["mapping"].values()))
    assert scores["accuracy"] == pytest.approx((matched == true).mean())
    assert scores["accuracy"] >= (noisy == true).mean()  # the best of all matchings
    assert scores["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(true, matched))
    labels = np.union1d(true, matched)
    assert scores["f1"] == pytest.approx(f1_score(true, matched, average="macro", labels=labels, zero_division=0))


def test_scores_of_a_perfect_clustering() -> None:
    true = torch.arange(10).repeat_interleave(3)
    scores = cluster_scores(true, 9 - true)
    mapping = scores.pop("mapping")
    assert mapping == {i: 9 - i for i in range(10)}
    assert set(scores.values()) == {1.0}


def test_scores_with_missing_classes() -> None:
    """Ten classes of which the last two have no sample: their recall does not count."""
    true = np.repeat(np.arange(8), 4)
    pred = np.where(true < 4, true, 4)
    scores = cluster_scores(true, pred, num_clusters=10)
    assert scores["balanced_accuracy"] == pytest.approx(5 / 8)
    assert scores["head"] == 1
    assert scores["medium"] == pytest.approx(2 / 4)
    assert scores["tail"] == 0
    assert math.isnan(cluster_scores([0, 0], [0, 0], num_clusters=10)["tail"])
    assert cluster_scores([0, 0, 1], [2, 2, 0])["accuracy"] == 1


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_bank_goes_around() -> None:
    bank = LogitBank(2, 5)
    stored: dict[int, float] = {}
    for step in range(7):
        index = torch.arange(step * 3, step * 3 + 3)
        logits = torch.full((3, 2), float(step)) + torch.arange(3)[:, None]
        rows = bank.push(logits, index)
        stored |= dict(zip(rows.tolist(), logits[:, 0].tolist(), strict=True))
        found, found_index = bank.snapshot()
        assert_close(found[rows], logits)
        assert torch.equal(found_index[rows], index)
        assert found[:, 0].tolist() == [stored[row] for row in range(len(found))]
        assert len(found) == min(5, 3 * (step + 1))
    # the last five samples are there, and no other
    assert sorted(found_index.tolist()) == list(range(16, 21))


def test_bank_replaces_the_last() -> None:
    bank = LogitBank(2, 5)
    bank.push(torch.zeros(4, 2), torch.arange(4))
    rows = bank.push(torch.ones(3, 2), torch.arange(4, 7))
    again = bank.push(torch.full((3, 2), 2.0), torch.arange(4, 7), replace_last=True)
    assert torch.equal(rows, again)
    assert rows.tolist() == [4, 0, 1]
    logits, index = bank.snapshot()
    assert logits[:, 0].tolist() == [2, 2, 0, 0, 2]
    assert index.tolist() == [5, 6, 2, 3, 4]
    assert bank.push(torch.ones(1, 2), torch.tensor([7])).tolist() == [2]


def test_bank_continues_from_its_state() -> None:
    bank, other = LogitBank(3, 4), LogitBank(3, 4)
    bank.push(torch.randn(3, 3).requires_grad_(), torch.arange(3))
    other.load_state_dict(bank.state_dict())
    rows = [b.push(torch.ones(2, 3), torch.tensor([8, 9])) for b in (bank, other)]
    assert torch.equal(*rows)
    for a, b in zip(bank.snapshot(), other.snapshot(), strict=True):
        assert torch.equal(a, b)
        assert not a.requires_grad


# ---- head ------------------------------------------------------------------------------------------------------------


def test_head_is_a_cosine() -> None:
    head = CosineHead(5, 3, scale=4.0).double()
    centers = torch.randn(3, 5, dtype=torch.float64)
    head.reset_prototypes(7 * centers)
    assert_close(head.prototypes.norm(dim=1), torch.ones(3, dtype=torch.float64))
    x = torch.randn(6, 5, dtype=torch.float64)
    expected = 4 * torch.nn.functional.cosine_similarity(x[:, None], centers[None], dim=2)
    assert_close(head(x), expected)
    assert_close(head(100 * x), head(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_cosine_has_no_unit(dtype: torch.dtype) -> None:
    """Squares of such features leave the type, or fall below the smallest norm that torch divides by."""
    head = CosineHead(5, 3).to(dtype)
    centers, x = torch.randn(3, 5, dtype=dtype), torch.randn(6, 5, dtype=dtype)
    head.reset_prototypes(centers)
    expected, prototypes = head(x), head.prototypes
    for factor in (1e-30, 1e-14, 1e25) if dtype == torch.float32 else (1e-300, 1e-30, 1e200):
        assert_close(head(factor * x), expected)
        scaled = (factor * x).requires_grad_()
        head(scaled).sum().backward()
        plain = x.clone().requires_grad_()
        head(plain).sum().backward()
        assert scaled.grad is not None
        assert plain.grad is not None
        if factor > 1e-30:
            assert_close(factor * scaled.grad, plain.grad)
        head.reset_prototypes(factor * centers)
        assert_close(head.prototypes, prototypes)


def test_a_half_head() -> None:
    head = CosineHead(3, 2).half()
    head.reset_prototypes(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    x = torch.tensor([[0.0, 0.0, 0.0], [6e4, 0.0, 0.0], [300.0, 400.0, 0.0]], dtype=torch.half)
    expected = torch.tensor([[0.0, 0.0], [10.0, 0.0], [6.0, 8.0]], dtype=torch.half)
    assert_close(head(x), expected, atol=1e-2, rtol=0)


# ---- what users hand over --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kernel", "power"), [("gauss", 2), ("laplace", 1)])
@pytest.mark.parametrize("factor", [1.0, 100.0, 1e-15, 1e25])
def test_a_bandwidth_without_a_unit(kernel: str, power: int, factor: float) -> None:
    """The typical distance to the last neighbor is the unit."""
    x = torch.randn(25, 3, generator=torch.Generator().manual_seed(0)) + 7
    distance = torch.cdist(x.double(), x.double()).fill_diagonal_(math.inf)
    nearest, column = distance.topk(6, largest=False)
    value = (-((nearest / nearest[:, -1].median()) ** power) / power).exp()
    expected = torch.zeros(25, 25, dtype=torch.float64).scatter(1, column, value)
    graph = knn_similarity(factor * x, k=6, kernel=kernel, bandwidth="auto")
    assert_close(graph.to_dense().double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("factor", [60.0, 3e4, 1e30])
def test_similarities_that_would_vanish(factor: float) -> None:
    """The paper's bandwidth is made for unit variance: another unit is said, and the graph is that of unit variance."""
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    x = x / x.var(0, correction=0).mean().sqrt()
    expected = knn_similarity(x, k=5)
    with pytest.warns(UserWarning, match="bandwidth"):
        found = knn_similarity(factor * x, k=5)
    assert_close(found.to_dense(), expected.to_dense(), atol=1e-5, rtol=0)


def test_labels_far_apart_take_no_table_of_all() -> None:
    """74 GiB it would be. The matching of what occurs is that of the same labels renumbered."""
    rng = np.random.default_rng(0)
    true, pred = rng.integers(0, 6, 400), rng.integers(0, 6, 400)
    far = np.array([3, 500, 9_000, 20_000, 77_777, 99_999])
    expected, found = cluster_scores(true, pred), cluster_scores(far[true], far[pred])
    for name in ("accuracy", "balanced_accuracy", "f1", "nmi", "ari"):
        assert found[name] == pytest.approx(expected[name], abs=1e-12), name
    assert {int(far[c]): int(far[t]) for c, t in expected["mapping"].items()}.items() <= found["mapping"].items()
    assert sorted(found["mapping"].values()) == list(range(100_000))


def test_matching_of_many_labels_is_the_best_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from offprints.sp2ot import scores as module

    rng = np.random.default_rng(1)
    true = rng.integers(0, 40, 600)
    pred = np.where(rng.random(600) < 0.6, (true + 1) % 40, rng.integers(0, 40, 600))
    expected = cluster_scores(true, pred)
    monkeypatch.setattr(module, "LARGEST_TABLE", 3)  # by the matching of a sparse graph
    found = cluster_scores(true, pred)
    assert found["accuracy"] == pytest.approx(expected["accuracy"], abs=1e-12)


def test_head_and_tail_go_by_size() -> None:
    """Class 2 is the largest and found; class 0 is the smallest and missed."""
    true = np.repeat([0, 1, 2], [2, 8, 30])
    pred = np.where(true == 0, 1, true)
    scores = cluster_scores(true, pred, split=(0.34, 0.34, 0.34 - 0.02))
    assert (scores["head"], scores["medium"]) == (1.0, 1.0)
    for split in ((0.3, 0.3, 0.4), np.array([0.3, 0.3, 0.4])):
        assert cluster_scores(true, pred, split=split)["tail"] == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_bank_keeps_its_range(dtype: torch.dtype) -> None:
    bank = LogitBank(2, 3).to(dtype)
    bank.push(torch.tensor([[1e5, -3.0]]), torch.tensor([0]))
    assert bank.snapshot()[0].tolist() == [[1e5, -3.0]]
    with pytest.raises(ValueError, match="logits"):
        bank.push(torch.tensor([[1e300, 0.0]], dtype=torch.float64), torch.tensor([0]))
    assert bank.double().snapshot()[0].dtype == torch.float64
