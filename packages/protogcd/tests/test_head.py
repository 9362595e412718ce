"""The head: common promises, what its outputs are, prototypes from outside, DDP; the backbone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from offprints.protogcd import ProtoGCDLoss, PrototypeHead, dino_backbone
from offprints.shared.testing import check_module


def small() -> PrototypeHead:
    torch.manual_seed(0)
    return PrototypeHead(5, 4, hidden=6, projection_dim=3)


def test_conformance() -> None:
    check_module(small(), lambda g: (torch.randn(6, 5, generator=g),))


def test_outputs() -> None:
    head, features = small(), torch.randn(6, 5)
    projections, logits, prototypes = head(features)
    assert_close(prototypes, torch.nn.functional.normalize(head.weight))
    assert torch.equal(prototypes, head.prototypes)
    assert_close(logits, torch.nn.functional.cosine_similarity(features[:, None], head.weight[None], dim=2))
    assert_close(projections, head.projector(features))
    assert torch.equal(head.cosines(features), logits)
    assert float(logits.detach().abs().max()) <= 1 + 1e-6
    scales = 10.0 ** torch.linspace(-20, 18, 6)[:, None]
    assert_close(head(scales * features)[1], logits)
    assert_close(head(features[:0])[1], torch.zeros(0, 4), check_dtype=False)
    assert_close(head(features.double())[1], logits)


def test_layers_of_the_projector() -> None:
    for layers, widths in ((1, [2]), (2, [7, 2]), (3, [7, 7, 2])):
        head = PrototypeHead(5, 4, hidden=7, projection_dim=2, layers=layers)
        linear = [part for part in head.projector if isinstance(part, torch.nn.Linear)]
        assert [part.out_features for part in linear] == widths
        assert isinstance(head.projector[-1], torch.nn.Linear)
        assert all(bool((part.bias == 0).all()) for part in linear)
    wide = PrototypeHead(512, 4)
    assert [part.out_features for part in wide.projector if hasattr(part, "out_features")] == [2048, 2048, 256]
    assert float(wide.projector[0].weight.detach().std()) == pytest.approx(0.02, rel=0.02)


def test_set_prototypes() -> None:
    head = small()
    before = head.prototypes.detach().clone()
    means = torch.tensor([[2.0, 0, 0, 0, 0], [0, 0, 1e30, 0, 0]])
    head.set_prototypes(means)
    assert_close(head.prototypes[:2], torch.eye(5)[[0, 2]])
    assert torch.equal(head.prototypes[2:], before[2:])
    head.set_prototypes(means.double()[:1], start=3)
    assert_close(head.prototypes[3], torch.eye(5)[0])
    assert head.weight.requires_grad
    assert head.weight.grad_fn is None
    with torch.inference_mode():
        inside = torch.eye(5)[:1] * 2
    head.set_prototypes(inside, start=1)
    head(torch.randn(2, 5))[1].sum().backward()


def test_gradient_is_orthogonal_to_the_weight() -> None:
    """A unit prototype does not change with the length of its weight, so that its gradient has no part along it."""
    head = small()
    head(torch.randn(6, 5))[1].square().sum().backward()
    assert head.weight.grad is not None
    assert_close((head.weight.grad * head.weight).sum(1), torch.zeros(4), atol=1e-6, rtol=0)


def test_autocast() -> None:
    """Cosines keep their precision: they are divided by 0.05."""
    head, features = small(), torch.randn(6, 5)
    _, expected, unit = head(features)
    with torch.autocast("cpu", torch.bfloat16):
        projections, logits, prototypes = head(features)
    assert projections.dtype == torch.bfloat16
    assert_close(logits, expected)
    assert_close(prototypes, unit)
    half = copy.deepcopy(head).bfloat16()
    assert half(features)[1].dtype == half.prototypes.dtype == torch.float32
    assert half(features)[0].dtype == torch.bfloat16


def one_rank(rank: int) -> list[torch.Tensor]:
    """A step of two ranks, of which the second one has no labeled sample."""
    torch.manual_seed(0)
    head = DistributedDataParallel(small())
    features = torch.randn(8, 5, generator=torch.Generator().manual_seed(rank))
    projections, logits, prototypes = head(features)
    labeled = torch.tensor([rank == 0] * 4)
    ProtoGCDLoss()(logits, projections, prototypes, torch.arange(4) % 2, labeled, epoch=0).loss.backward()
    return [p.grad for p in head.parameters()]  # type: ignore[misc]


def test_a_rank_without_labels(two_processes) -> None:
    """Every parameter has a gradient on both ranks, and the same one."""
    first, second = two_processes(one_rank)
    for a, b in zip(first, second, strict=True):
        assert_close(a, b)
        assert bool(a.isfinite().all())


def test_backbone() -> None:
    pytest.importorskip("timm", reason="needs the extra timm")
    backbone = dino_backbone(pretrained=False, trainable_blocks=2)
    trained = {name.split(".")[1] for name, p in backbone.named_parameters() if p.requires_grad}
    assert trained == {"10", "11"}
    assert all(name.startswith("blocks.") for name, p in backbone.named_parameters() if p.requires_grad)
    features = backbone.eval()(torch.zeros(1, 3, 224, 224))
    assert features.shape == (1, 768)
    assert features.requires_grad
