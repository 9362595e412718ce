"""Proto-Triplet, distances, prototypes and logits: values, properties, precision."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offprints.susana import (
    ProtoTripletLoss,
    compute_prototypes,
    pairwise_distance,
    proto_triplet_loss,
    prototypical_logits,
)
from offprints.susana import distances as distances_module


def test_the_margin_where_all_prototypes_coincide() -> None:
    q = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    loss = proto_triplet_loss(q, torch.arange(6) % 4, torch.ones(4, 3), margin=0.7, reduction="none")
    torch.testing.assert_close(loss, torch.full((6,), 0.7))


def test_zero_where_the_gap_exceeds_the_margin() -> None:
    p = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 9.0]], requires_grad=True)
    q = torch.tensor([[0.1, 0.0], [2.9, 0.0], [0.0, 8.0], [1.4, 0.0]], requires_grad=True)
    losses = proto_triplet_loss(q, torch.tensor([0, 1, 2, 0]), p, reduction="none")
    torch.testing.assert_close(losses, torch.tensor([0, 0, 0, 0.3]), rtol=1e-5, atol=1e-5)
    loss = proto_triplet_loss(q, torch.tensor([0, 1, 2, 0]), p)
    assert loss.item() == pytest.approx(0.3 / 4, abs=1e-5)  # the mean is over all queries
    (gradient,) = torch.autograd.grad(loss, q)
    assert torch.equal(gradient[:3], torch.zeros(3, 2))


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.floats(0, 3))
def test_the_hinge_by_definition(seed: int, margin: float) -> None:
    g = torch.Generator().manual_seed(seed)
    q, p = torch.randn(8, 3, generator=g).double(), torch.randn(4, 3, generator=g).double()
    y, labels = torch.randint(4, (8,), generator=g), torch.tensor([3, 1, 0, 2])
    d = (torch.cdist(q, p).square() + 1e-6).sqrt()
    own = labels == y[:, None]
    expected = (d[own] - d.masked_fill(own, torch.inf).min(1).values + margin).clamp(min=0)
    found = proto_triplet_loss(q, y, p, labels, margin=margin, reduction="none")
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)
    module = ProtoTripletLoss(margin=margin, reduction="sum")(q, y, p, labels)
    torch.testing.assert_close(module, expected.sum(), rtol=1e-7, atol=1e-9)


def test_no_gap_without_eps() -> None:
    """A query on its prototype has a finite gradient, whatever eps."""
    q = torch.zeros(1, 2, requires_grad=True)
    loss = proto_triplet_loss(q, torch.tensor([0]), torch.tensor([[0.0, 0.0], [0.2, 0.0]]), eps=0.0)
    (gradient,) = torch.autograd.grad(loss, q)
    torch.testing.assert_close(gradient, torch.tensor([[1.0, 0.0]]))


@pytest.mark.parametrize("exact", [2**22, 0])
def test_distances_of_close_rows_far_away(exact: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances_module, "EXACT", exact)
    g = torch.Generator().manual_seed(0)
    x = (1e4 + torch.randn(20, 700, generator=g, dtype=torch.float64)).float()
    y = x[:7] + 0.01
    x.requires_grad_()
    expected = torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")
    found = pairwise_distance(x, y)
    torch.testing.assert_close(found.double(), (expected.square() + 1e-6).sqrt(), rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    (wanted,) = torch.autograd.grad(expected.sum(), x)
    torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-4)
    assert torch.autograd.gradcheck(pairwise_distance, (x[:3, :600].double(), y[:2, :600].double()))


def test_rows_that_coincide_have_no_gradient() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(pairwise_distance(x, torch.ones(1, 3)).sum(), x)
    assert torch.equal(gradient, torch.zeros(2, 3))
    (gradient,) = torch.autograd.grad(prototypical_logits(x, torch.ones(1, 3), metric="euclidean").sum(), x)
    assert torch.equal(gradient, torch.zeros(2, 3))


def test_prototypes_of_labels_in_any_order() -> None:
    """Class-major supports and sample-major ones, as the authors mix them, give the same."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 3, generator=g), torch.arange(4).repeat_interleave(3)
    expected = x.view(4, 3, 3).mean(1)
    torch.testing.assert_close(compute_prototypes(x, y), expected)
    order = torch.randperm(12, generator=g)
    torch.testing.assert_close(compute_prototypes(x[order], y[order].to(torch.int16)), expected)
    torch.testing.assert_close(compute_prototypes(x.half(), y, n_way=4), expected, rtol=1e-2, atol=1e-2)


def test_logits() -> None:
    g = torch.Generator().manual_seed(0)
    q, p = torch.randn(6, 5, generator=g), torch.randn(3, 5, generator=g)
    d = torch.cdist(q, p)
    torch.testing.assert_close(prototypical_logits(q, p, temperature=2.0), -d.square() / 2)
    torch.testing.assert_close(prototypical_logits(q, p, metric="euclidean"), -d)
    cosine = torch.nn.functional.cosine_similarity(q[:, None], p[None], dim=-1)
    torch.testing.assert_close(prototypical_logits(q, p, metric="cosine", temperature=0.1), 10 * cosine)
    torch.testing.assert_close(prototypical_logits(1e30 * q, 1e-30 * p, metric="cosine"), cosine)
    assert prototypical_logits(torch.zeros(1, 5), p, metric="cosine").abs().max() == 0
    assert prototypical_logits(200 * q.half(), p.half()).isfinite().all()  # beyond the largest float16
