"""The combinations of losses: each term against its own function, the mean, the weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from offprints.susana import (
    FewShotLoss,
    compute_prototypes,
    icnn_loss,
    proto_triplet_loss,
    prototypical_logits,
)

ALL = ("cross_entropy", "support_icnn", "query_icnn", "full_icnn", "proto_triplet")


def episode(way: int, shot: int, query: int, seed: int = 0, d: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Supports class by class, queries sample by sample, as in the authors' code."""
    g = torch.Generator().manual_seed(seed)
    ys, yq = torch.arange(way).repeat_interleave(shot), torch.arange(way).repeat(query)
    centers = 2 * torch.randn(way, d, generator=g, dtype=torch.float64)
    draw = [centers[y] + torch.randn(len(y), d, generator=g, dtype=torch.float64) for y in (ys, yq)]
    return draw[0], ys, draw[1], yq


def one_by_one(s: Tensor, ys: Tensor, q: Tensor, yq: Tensor, window: int) -> dict[str, Tensor]:
    p = compute_prototypes(s, ys)
    return {
        "cross_entropy": F.cross_entropy(prototypical_logits(q, p), yq),
        "support_icnn": icnn_loss(s, ys),
        "query_icnn": icnn_loss(q, yq, target=s, target_labels=ys),
        "full_icnn": icnn_loss(torch.cat([s, q]), torch.cat([ys, yq]), window=window),
        "proto_triplet": proto_triplet_loss(q, yq, p),
    }


@pytest.mark.parametrize(("way", "shot", "query"), [(5, 5, 5), (5, 1, 15), (8, 1, 2), (3, 2, 1), (2, 10, 10)])
def test_every_term(way: int, shot: int, query: int) -> None:
    inputs = episode(way, shot, query)
    # The largest class, raised to k = 4 where it is smaller, lowered to what there is.
    total = way * (shot + query)
    expected = one_by_one(*inputs, window=min(max(shot + query, 4), total - 1))
    leaves = [inputs[0].requires_grad_(), inputs[2].requires_grad_()]
    loss, parts = FewShotLoss(ALL)(*inputs)
    assert list(parts) == list(ALL)
    for name, value in parts.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-12, msg=name)
    torch.testing.assert_close(loss, sum(expected.values()) / 5)
    fresh = one_by_one(*inputs, window=min(max(shot + query, 4), total - 1))
    wanted = torch.autograd.grad(sum(fresh.values()) / 5, leaves)
    for found, gradient in zip(torch.autograd.grad(loss, leaves), wanted, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-8, atol=1e-12)


def test_unequal_classes() -> None:
    s, ys, q, yq = episode(4, 3, 6)
    keep = torch.tensor([i for i, label in enumerate(yq.tolist()) if label != 2 or i < 8])
    q, yq = q[keep], yq[keep]
    largest = int(torch.bincount(torch.cat([ys, yq])).max())
    _, parts = FewShotLoss(("full_icnn",))(s, ys, q, yq)
    expected = icnn_loss(torch.cat([s, q]), torch.cat([ys, yq]), window=largest)
    torch.testing.assert_close(parts["full_icnn"], expected)


def test_weights() -> None:
    inputs = episode(5, 2, 3)
    loss, parts = FewShotLoss(("cross_entropy", "proto_triplet"), weights=(1.0, -0.5))(*inputs)
    torch.testing.assert_close(loss, parts["cross_entropy"] - 0.5 * parts["proto_triplet"])
    mean, same = FewShotLoss(("cross_entropy", "proto_triplet"))(*inputs)
    torch.testing.assert_close(mean, (parts["cross_entropy"] + parts["proto_triplet"]) / 2)
    torch.testing.assert_close(same, parts)


def test_settings_reach_their_terms() -> None:
    s, ys, q, yq = episode(5, 3, 4)
    p = compute_prototypes(s, ys)
    made = FewShotLoss(ALL, margin=2.0, k=2, query_reference="prototypes", metric="cosine", temperature=0.1)
    _, parts = made(s, ys, q, yq)
    logits = prototypical_logits(q, p, metric="cosine", temperature=0.1)
    torch.testing.assert_close(parts["cross_entropy"], F.cross_entropy(logits, yq))
    torch.testing.assert_close(parts["support_icnn"], icnn_loss(s, ys, k=2))
    torch.testing.assert_close(
        parts["query_icnn"], icnn_loss(q, yq, target=p, target_labels=torch.arange(5), k=2), rtol=1e-9, atol=1e-12
    )
    torch.testing.assert_close(parts["proto_triplet"], proto_triplet_loss(q, yq, p, margin=2.0))


def test_the_order_of_an_episode_does_not_matter() -> None:
    s, ys, q, yq = episode(5, 3, 4)
    g = torch.Generator().manual_seed(1)
    a, b = torch.randperm(len(s), generator=g), torch.randperm(len(q), generator=g)
    loss = FewShotLoss(ALL)
    torch.testing.assert_close(loss(s[a], ys[a], q[b], yq[b]).loss, loss(s, ys, q, yq).loss)


def test_compiled_without_a_break() -> None:
    inputs = episode(5, 3, 4)
    loss = FewShotLoss(ALL, n_way=5)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs).loss, loss(*inputs).loss)


def test_one_step_of_training_in_half_precision() -> None:
    s, ys, q, yq = episode(5, 3, 4)
    model = torch.nn.Linear(6, 4)
    with torch.autocast("cpu", torch.bfloat16):
        features = model(torch.cat([s, q]).float())
        assert features.dtype == torch.bfloat16
        loss, parts = FewShotLoss(ALL)(features[: len(s)], ys, features[len(s) :], yq)
    assert loss.dtype == torch.float32
    assert all(part.dtype == torch.float32 for part in parts.values())
    loss.backward()
    assert model.weight.grad is not None
    assert model.weight.grad.abs().max() > 0
