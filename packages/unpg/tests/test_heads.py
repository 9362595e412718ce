"""The three heads: their values, their safety where the angle is 0 or pi, their conformance."""

import math

import pytest
import torch
from packages.unpg.tests.cases import HEADS, make_batch, make_head
from torch import Tensor

from offprints.shared.testing import check_arguments, check_module
from offprints.unpg import ArcFaceHead, CosFaceHead, MagFaceHead, MarginHead, MarginLoss, UNPGLoss, reference
from offprints.unpg.heads import add_angle


@pytest.mark.parametrize("name", HEADS)
def test_equals_the_reference(name: str) -> None:
    head = make_head(name, 5, 4)
    x, y = make_batch(12, 5, 4)
    margin = getattr(head, "margin", 0.0)
    torch.testing.assert_close(head(x, y).cosine, reference.margin_cosines(x, y, head.weight, name, margin))


def test_margins_at_known_angles() -> None:
    x = torch.tensor([[math.cos(a), math.sin(a)] for a in (0.3, 1.2, 2.9)], dtype=torch.float64)
    y = torch.zeros(3, dtype=torch.int64)
    cosines = {}
    for name, options in (("cosface", {"margin": 0.4}), ("arcface", {"margin": 0.5}), ("magface", {})):
        head = make_head(name, 2, 2, **options)
        head.weight.data.copy_(torch.eye(2))
        cosines[name] = head(x, y).cosine[:, 0].tolist()
    assert cosines["cosface"] == pytest.approx([math.cos(a) - 0.4 for a in (0.3, 1.2, 2.9)])
    # No easy margin: beyond pi the value rises again.
    assert cosines["arcface"] == pytest.approx([math.cos(0.8), math.cos(1.7), math.cos(3.4)])
    assert cosines["arcface"][2] > -1
    # MagFace: the margin of the shortest embeddings, and none where the cosine is negative.
    assert cosines["magface"] == pytest.approx([math.cos(0.75), math.cos(1.65), math.cos(2.9)])


def test_magface_margin_and_regularizer_by_length() -> None:
    head = make_head("magface", 2, 2)
    head.weight.data.copy_(torch.eye(2))
    lengths = torch.tensor([1.0, 10.0, 60.0, 110.0, 500.0], dtype=torch.float64)
    x = (lengths[:, None] * torch.tensor([[math.cos(0.2), math.sin(0.2)]])).requires_grad_()
    output = head(x, torch.zeros(5, dtype=torch.int64))
    margins = [0.45, 0.45, 0.625, 0.8, 0.8]
    assert output.cosine[:, 0].tolist() == pytest.approx([math.cos(0.2 + m) for m in margins])
    clamped = [10, 10, 60, 110, 110]
    assert output.regularizer.item() == pytest.approx(35 * sum(a / 110**2 + 1 / a for a in clamped) / 5)
    (gradient,) = torch.autograd.grad(output.regularizer, x)
    along = (gradient * x.detach()).sum(1) / lengths  # the derivative by the length
    assert along[[0, 4]].tolist() == [0, 0]
    assert along[2].item() == pytest.approx(35 * (1 / 110**2 - 1 / 60**2) / 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", HEADS)
def test_parallel_and_opposite_rows(name: str, dtype: torch.dtype) -> None:
    """Rounding takes their cosines beyond 1, where the arc cosine is NaN and its derivative infinite."""
    head = make_head(name, 7, 3, dtype)
    x = (torch.cat([head.weight, -head.weight, 1e3 * head.weight]).detach()).requires_grad_()
    y = torch.arange(3).repeat(3)
    for chunk in (None, 2):
        for kind in (MarginLoss, UNPGLoss):
            loss = kind(head, class_chunk=chunk)(x, y)
            gradients = torch.autograd.grad(loss, [x, head.weight], create_graph=True)
            second = torch.autograd.grad(sum(g.square().sum() for g in gradients), [x, head.weight])
            for value in (loss, *gradients, *second):
                assert value.isfinite().all()


def test_angles_are_added_without_an_arc_cosine() -> None:
    c = torch.linspace(-0.99, 0.99, 41, dtype=torch.float64, requires_grad=True)
    expected = torch.cos(torch.acos(c) + 0.5)
    found = add_angle(c, 0.5)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(value.sum(), c)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)
    ends = torch.tensor([-1.5, -1.0, 1.0, 1.0000001], dtype=torch.float32, requires_grad=True)
    value = add_angle(ends, 0.5)
    torch.testing.assert_close(value, torch.cos(torch.tensor([math.pi, math.pi, 0, 0]) + 0.5), rtol=0, atol=5e-4)
    assert torch.autograd.grad(value.sum(), ends)[0].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("name", HEADS)
def test_zero_rows(name: str) -> None:
    head = make_head(name, 4, 3, torch.float32)
    head.weight.data[1] = 0
    x = torch.zeros(3, 4, requires_grad=True)
    y = torch.tensor([0, 1, 2])
    for chunk in (None, 2):
        loss = UNPGLoss(head, class_chunk=chunk)(x, y)
        gradients = torch.autograd.grad(loss, [x, head.weight])
        assert all(value.isfinite().all() for value in (loss, *gradients))


@pytest.mark.parametrize("name", HEADS)
def test_half_types(name: str) -> None:
    """Computed and returned in float32, with autocast and without: a scaled loss would overflow a half type."""
    head = make_head(name, 6, 4, torch.float32)
    x, y = make_batch(8, 6, 4, size=40)
    for dtype in (torch.float16, torch.bfloat16):
        half = x.to(dtype)
        expected = head(half.float(), y)
        for context in (torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False)):
            with context:
                found = head(half, y)
                losses = [kind(head, class_chunk=c)(half, y) for kind in (MarginLoss, UNPGLoss) for c in (None, 3)]
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
            assert {loss.dtype for loss in losses} == {torch.float32}
            torch.testing.assert_close(losses[2], UNPGLoss(head)(half.float(), y), rtol=0, atol=0)
            torch.testing.assert_close(losses[3], losses[2])
    bf16 = make_head(name, 6, 4, torch.bfloat16)
    assert MarginLoss(bf16)(x.bfloat16(), y).dtype == torch.float32


def inputs(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return 6 * torch.randn(7, 5, generator=generator), torch.randint(4, (7,), generator=generator)


@pytest.mark.parametrize("name", HEADS)
def test_conformance(name: str) -> None:
    check_module(make_head(name, 5, 4, torch.float32), inputs, nan="raise")


@pytest.mark.parametrize("kind", [MarginHead, *HEADS.values()])
def test_constructor_arguments(kind: type[MarginHead]) -> None:
    check_arguments(kind, lambda g: {"in_features": 4, "num_classes": 3})


def test_a_head_without_a_margin_is_a_normalized_softmax() -> None:
    head = MarginHead(5, 4, scale=3.0).double()
    x, y = make_batch(6, 5, 4)
    cosine = torch.nn.functional.cosine_similarity(x[:, None], head.weight[None], dim=2)
    torch.testing.assert_close(head(x, y).cosine, cosine)
    expected = torch.nn.functional.cross_entropy(3 * cosine, y)
    torch.testing.assert_close(MarginLoss(head)(x, y), expected)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    bound = math.sqrt(6 / (30 + 70))
    for kind in (CosFaceHead, ArcFaceHead):
        weight = kind(30, 70).weight
        assert 0.95 * bound < weight.abs().max() <= bound
    torch.testing.assert_close(MagFaceHead(30, 70).weight.norm(dim=1), torch.ones(70))


def test_representation() -> None:
    assert "margin=0.3" in repr(ArcFaceHead(4, 3, margin=0.3))
    assert "lambda_g=35" in repr(MagFaceHead(4, 3))
    assert "whisker=None" in repr(UNPGLoss(CosFaceHead(4, 3), whisker=None))
