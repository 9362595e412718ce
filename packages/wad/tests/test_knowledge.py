from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from offprints.shared.testing import check_arguments
from offprints.wad import teacher_knowledge
from offprints.wad.knowledge import REDUCTIONS


def inputs(seed: int = 0, *, unlabeled: int = 40, labeled: int = 15, classes: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z_unlabeled = torch.randn(unlabeled, 6, generator=generator, dtype=torch.float64)
    z_labeled = torch.randn(labeled, 6, generator=generator, dtype=torch.float64)
    return z_unlabeled, z_labeled, torch.arange(labeled) % classes


@settings(max_examples=15)
@given(seed=st.integers(0, 999), exponent=st.integers(-150, 150))
def test_lengths_do_not_matter(seed: int, exponent: int) -> None:
    z_u, z_l, y = inputs(seed)
    lengths = torch.rand(len(z_u), 1, dtype=torch.float64) + 0.1
    expected = teacher_knowledge(z_u, z_l, y, num_classes=3)
    found = teacher_knowledge(z_u * lengths * 2.0**exponent, z_l * 2.0**-exponent, y, num_classes=3)
    assert_close(found, expected, rtol=0, atol=1e-12)


@settings(max_examples=15)
@given(seed=st.integers(0, 999))
def test_symmetries(seed: int) -> None:
    z_u, z_l, y = inputs(seed)
    expected = teacher_knowledge(z_u, z_l, y, num_classes=3)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    assert_close(teacher_knowledge(z_u, z_l[order], y[order], num_classes=3), expected, rtol=0, atol=1e-12)
    classes = torch.tensor([2, 0, 1])  # the new number of each class
    found = teacher_knowledge(z_u, z_l, classes[y], num_classes=3)
    assert_close(found.scores[:, classes], expected.scores, rtol=0, atol=1e-12)
    assert torch.equal(found.pseudo_labels, classes[expected.pseudo_labels])
    assert_close(found.weights, expected.weights, rtol=0, atol=1e-12)
    rows = torch.randperm(len(z_u), generator=torch.Generator().manual_seed(seed))
    assert_close(
        teacher_knowledge(z_u[rows], z_l, y, num_classes=3).weights, expected.weights[rows], rtol=0, atol=1e-12
    )


@settings(max_examples=15)
@given(seed=st.integers(0, 999), label=st.integers(0, 2))
def test_more_anchors_of_a_class_can_only_raise_its_score(seed: int, label: int) -> None:
    z_u, z_l, y = inputs(seed)
    before = teacher_knowledge(z_u, z_l, y, num_classes=3).scores
    more = torch.cat([z_l, z_u[:4]])
    after = teacher_knowledge(z_u, more, torch.cat([y, torch.full((4,), label)]), num_classes=3).scores
    assert (after >= before - 1e-12).all()
    others = [k for k in range(3) if k != label]
    assert_close(after[:, others], before[:, others], rtol=0, atol=1e-12)
    assert_close(after[:4, label], torch.ones(4, dtype=torch.float64))


@settings(max_examples=15)
@given(seed=st.integers(0, 999), reduction=st.sampled_from(REDUCTIONS))
def test_weights_are_the_margin(seed: int, reduction: str) -> None:
    known = teacher_knowledge(*inputs(seed), num_classes=3, reduction=reduction)
    ordered = known.scores.sort(1, descending=True).values
    assert_close(known.weights, ordered[:, 0] - ordered[:, 1], rtol=0, atol=0)
    assert (known.weights >= 0).all()
    assert (known.weights <= 2).all()
    assert torch.equal(known.pseudo_labels, known.scores.argmax(1))


def test_reductions() -> None:
    z_u, z_l, y = inputs()
    unit = z_u / z_u.norm(dim=1, keepdim=True), z_l / z_l.norm(dim=1, keepdim=True)
    cosines = unit[0] @ unit[1].T
    for reduction, expected in (
        ("mean", lambda c: c.mean(1)),
        ("topk_mean", lambda c: c.sort(1, descending=True).values[:, :2].mean(1)),
        ("max", lambda c: c.max(1).values),
    ):
        found = teacher_knowledge(z_u, z_l, y, num_classes=3, reduction=reduction, topk=2).scores
        for k in range(3):
            assert_close(found[:, k], expected(cosines[:, y == k]), rtol=0, atol=1e-12)
    fewer = teacher_knowledge(z_u, z_l, y, num_classes=3, reduction="topk_mean", topk=99)
    assert_close(fewer.scores, teacher_knowledge(z_u, z_l, y, num_classes=3, reduction="mean").scores)


def test_negative_and_zero_largest_scores() -> None:
    """The margin ratio of the paper divides by the largest score; the difference does not."""
    z_l, y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
    known = teacher_knowledge(torch.tensor([[-1.0, 0.0], [-3.0, -3.0], [-1.0, -2.0]]), z_l, y, num_classes=2)
    root = 0.5**0.5
    assert_close(known.scores, torch.tensor([[-1.0, 0.0], [-root, -root], [-(0.2**0.5), -2 * 0.2**0.5]]))
    assert_close(known.weights, torch.tensor([1.0, 0.0, 0.2**0.5]))
    assert known.pseudo_labels.tolist() == [1, 0, 0]  # of equal scores the first


def test_extremes() -> None:
    """Opposite anchors give the largest weight; cosines stay within [-1, 1] whatever rounding does."""
    z = torch.full((3, 7), 0.1)
    known = teacher_knowledge(z, torch.cat([z[:1] * 3, -z[:1] / 7]), torch.tensor([0, 1]), num_classes=2)
    assert known.scores[:, 0].max() <= 1
    assert known.scores[:, 1].min() >= -1
    assert_close(known.weights, torch.full((3,), 2.0))


@pytest.mark.parametrize("chunk_size", [1, 7, 40, 2**62])
def test_chunks(chunk_size: int) -> None:
    z_u, z_l, y = inputs()
    found = teacher_knowledge(z_u, z_l, y, num_classes=3, chunk_size=chunk_size)
    assert_close(found, teacher_knowledge(z_u, z_l, y, num_classes=3), rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types(dtype: torch.dtype) -> None:
    z_u, z_l, y = inputs()
    z_u, z_l = z_u.to(dtype), z_l.to(dtype)
    known = teacher_knowledge(z_u, z_l, y, num_classes=3)
    assert known.scores.dtype == known.weights.dtype == torch.float32
    assert_close(known, teacher_knowledge(z_u.float(), z_l.float(), y, num_classes=3), rtol=0, atol=0)


def test_regions() -> None:
    """Autocast, inference mode and other defaults change nothing, and no graph is made."""
    z_u, z_l, y = (x.float() if x.is_floating_point() else x for x in inputs())
    expected = teacher_knowledge(z_u, z_l, y, num_classes=3)
    for region in (torch.autocast("cpu", torch.bfloat16), torch.inference_mode(), torch.device("meta")):
        with region:
            assert_close(teacher_knowledge(z_u, z_l, y, num_classes=3), expected, rtol=0, atol=0)
    with_graph = teacher_knowledge(z_u.clone().requires_grad_(), z_l.clone().requires_grad_(), y, num_classes=3)
    assert not with_graph.scores.requires_grad
    assert not with_graph.weights.requires_grad
    strided = z_u.repeat_interleave(2, 1)[:, ::2]
    assert_close(teacher_knowledge(strided, z_l.T.contiguous().T, y.int(), num_classes=3), expected, rtol=0, atol=1e-6)
    compiled = torch.compile(lambda z: teacher_knowledge(z, z_l, y, num_classes=3).weights + 0, backend="eager")
    assert_close(compiled(z_u), expected.weights, rtol=0, atol=0)


def test_one_unlabeled_sample_and_unequal_classes() -> None:
    z_u, z_l, _ = inputs()
    y = torch.tensor([0] * 13 + [1, 1])
    whole = teacher_knowledge(z_u, z_l, y, num_classes=2)
    alone = teacher_knowledge(z_u[3:4], z_l, y, num_classes=2)
    assert_close(alone.weights, whole.weights[3:4], rtol=0, atol=1e-12)


def test_arguments() -> None:
    check_arguments(
        teacher_knowledge,
        lambda g: {
            "z_unlabeled": torch.randn(8, 4, generator=g),
            "z_labeled": torch.randn(6, 4, generator=g),
            "y_labeled": torch.arange(6) % 3,
            "num_classes": 3,
            "topk": 2,
        },
    )


def test_no_cosine_is_above_one() -> None:
    """Nor any weight above 2, for samples that are anchors of one class and the opposite of those of the other."""
    z = torch.randn(500, 37, generator=torch.Generator().manual_seed(0))
    scores = teacher_knowledge(z, z, torch.arange(500) % 2, num_classes=2).scores
    assert scores.max() == 1
    for row in z[:50]:
        known = teacher_knowledge(row[None], torch.stack([row, -row]), torch.arange(2), num_classes=2)
        assert 2 - 1e-6 < known.weights <= 2
