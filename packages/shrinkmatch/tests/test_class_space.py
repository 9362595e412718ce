"""The shrunk class space: values, properties, ties, thresholds, types, and every way of calling it."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offprints.shared.testing import check_arguments
from offprints.shrinkmatch import ShrunkSpace, shrink_class_space

SEEDS = st.integers(0, 10_000)


def draw(seed: int, batch: int, classes: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Rows from nearly certain to nearly uniform."""
    generator = torch.Generator().manual_seed(seed)
    sharpness = 6 * torch.rand(batch, 1, generator=generator, dtype=torch.float64)
    logits = sharpness * torch.randn(batch, classes, generator=generator, dtype=torch.float64)
    return logits.softmax(1).to(dtype)


def test_by_hand() -> None:
    probs = torch.tensor(
        [
            [0.50, 0.30, 0.15, 0.05],  # {0, 3}: 0.909; {0, 2, 3}: 0.714
            [0.96, 0.02, 0.01, 0.01],  # certain
            [0.02, 0.06, 0.44, 0.48],  # {3, 1, 0}: 0.857, {3, 0}: 0.96
            [0.25, 0.25, 0.25, 0.25],  # {0, 3}: 0.5, not enough
        ]
    )
    space = shrink_class_space(probs, threshold=0.9)
    assert space.uncertain.tolist() == [True, False, True, True]
    assert space.first_kept.tolist() == [3, 2, 3, 3]
    assert space.confidence.tolist() == pytest.approx([0.5 / 0.55, 0.96 / 0.98, 0.96, 0.5])
    assert space.reached.tolist() == [True, False, True, False]
    assert space.kept.long().tolist() == [[1, 0, 0, 1], [1, 0, 1, 1], [1, 0, 0, 1], [1, 0, 0, 1]]
    assert space.order.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [3, 2, 1, 0], [0, 1, 2, 3]]
    assert isinstance(space, ShrunkSpace)
    assert (space.first_kept.dtype, space.order.dtype) == (torch.int64, torch.int64)
    assert (space.uncertain.dtype, space.reached.dtype, space.kept.dtype) == (torch.bool,) * 3


@settings(max_examples=25)
@given(SEEDS, st.integers(3, 12), st.floats(0.3, 0.99))
def test_as_few_as_needed(seed: int, classes: int, threshold: float) -> None:
    """The kept set reaches the threshold, and with one more class it does not; the confidence grows with c."""
    probs = draw(seed, 20, classes)
    space = shrink_class_space(probs, threshold=threshold)
    ordered = probs.gather(1, space.order)
    for i in range(len(probs)):
        p, c = ordered[i], int(space.first_kept[i])
        grows = [float(p[0] / (p[0] + p[k:].sum())) for k in range(2, classes)]
        assert all(a <= b + 1e-15 for a, b in pairwise(grows))
        assert grows[c - 2] == pytest.approx(float(space.confidence[i]), rel=1e-12)
        assert all(value < threshold for value in grows[: c - 2])
        assert c == classes - 1 or grows[c - 2] >= threshold
        assert int(space.kept[i].sum()) == 1 + classes - c
        assert bool(space.reached[i]) == (float(p[0]) < threshold <= grows[c - 2])


@settings(max_examples=15)
@given(SEEDS, st.floats(0.3, 0.9), st.floats(0.0, 0.09))
def test_a_higher_threshold_removes_no_fewer(seed: int, threshold: float, more: float) -> None:
    probs = draw(seed, 20, 8)
    low = shrink_class_space(probs, threshold=threshold)
    high = shrink_class_space(probs, threshold=threshold + more)
    assert (high.first_kept >= low.first_kept).all()
    assert (low.kept | ~high.kept).all()


@settings(max_examples=15)
@given(SEEDS)
def test_classes_may_be_renamed(seed: int) -> None:
    probs = draw(seed, 20, 9)
    renamed = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    space, other = shrink_class_space(probs), shrink_class_space(probs[:, renamed])
    assert torch.equal(other.kept, space.kept[:, renamed])
    assert torch.equal(other.first_kept, space.first_kept)
    assert torch.equal(renamed[other.order], space.order)


def test_ties_go_to_the_first_class() -> None:
    probs = torch.tensor([[0.1, 0.4, 0.1, 0.4], [0.25, 0.25, 0.25, 0.25]])
    for rows in (probs, probs.double(), probs.bfloat16(), probs.half()):
        assert shrink_class_space(rows, threshold=0.7).order.tolist() == [[1, 3, 0, 2], [0, 1, 2, 3]]


@pytest.mark.parametrize("classes", [1, 2])
def test_fewer_than_three_classes(classes: int) -> None:
    probs = torch.tensor([[0.4, 0.6]])[:, :classes]
    probs = probs / probs.sum(1, keepdim=True)
    space = shrink_class_space(probs)
    assert space.first_kept.tolist() == [classes]
    assert space.confidence.tolist() == [1.0]
    assert space.reached.tolist() == [False]
    assert space.uncertain.tolist() == [classes == 2]
    assert space.kept.tolist() == [[False, True][-classes:]]


def test_three_classes_keep_the_first_and_the_last() -> None:
    space = shrink_class_space(torch.tensor([[0.5, 0.1, 0.4]]), threshold=0.8)
    assert space.first_kept.tolist() == [2]
    assert space.kept.tolist() == [[True, True, False]]
    assert space.reached.tolist() == [True]


def test_a_threshold_of_one() -> None:
    """Nothing is certain but a probability of 1, and what underflows to 0 reaches it."""
    space = shrink_class_space(torch.tensor([[0.6, 0.4, 0.0], [1.0, 0.0, 0.0], [0.6, 0.3, 0.1]]), threshold=1.0)
    assert space.uncertain.tolist() == [True, False, True]
    assert space.reached.tolist() == [True, False, False]


def test_sums_begin_at_the_small_end() -> None:
    """Differences of sums from the large end lose small probabilities: 1e-9 is below float32's digits beside 0.5."""
    probs = torch.tensor([[0.5, 0.5 - 3e-9, 2e-9, 1e-9]])
    space = shrink_class_space(probs, threshold=1 - 5e-8)
    exact = 0.5 / (0.5 + 3e-9)
    assert space.confidence.item() == pytest.approx(exact, abs=6e-8)
    confidences = [
        shrink_class_space(probs, threshold=threshold).confidence.item() for threshold in (0.6, 0.9, 0.999, 1.0)
    ]
    assert confidences == sorted(confidences)


def test_half_types_are_compared_in_float32() -> None:
    """In bfloat16 the confidence of 0.9483 rounds to 0.9492 and up to 0.953: beyond a threshold of 0.95."""
    probs = torch.tensor([[0.55, 0.42, 0.03]]).bfloat16()
    wide = probs.float()
    confidence = float(wide[0, 0] / (wide[0, 0] + wide[0, 2]))
    threshold = confidence + 1e-4
    assert float(torch.tensor(confidence).bfloat16()) >= float(torch.tensor(threshold).bfloat16())
    space = shrink_class_space(probs, threshold=threshold)
    assert not space.reached.item()
    assert space.confidence.dtype == torch.float32
    assert space.confidence.item() == pytest.approx(confidence, abs=1e-7)


def test_every_way_of_calling() -> None:
    """Compiled in one graph, mapped over a batch, strided, under inference mode: the same, bit for bit."""
    probs = draw(3, 12, 7, torch.float32)
    expected = shrink_class_space(probs)
    compiled = torch.compile(shrink_class_space, backend="aot_eager", fullgraph=True)(probs)
    strided = shrink_class_space(torch.stack([probs, probs], 2)[..., 0])
    mapped = torch.func.vmap(lambda row: tuple(x[0] for x in shrink_class_space(row[None])))(probs)
    with torch.inference_mode():
        inference = shrink_class_space(probs)
    for found in (compiled, strided, mapped, inference):
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b)


def test_no_graph() -> None:
    probs = draw(0, 4, 5).requires_grad_()
    assert not any(x.requires_grad for x in shrink_class_space(probs))


def test_arguments() -> None:
    check_arguments(shrink_class_space, lambda g: (torch.randn(6, 5, generator=g).softmax(1),))
