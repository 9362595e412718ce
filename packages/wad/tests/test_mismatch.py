from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offprints.shared.testing import check_arguments, check_split
from offprints.wad import error_decomposition, mismatch_split, rectify_labels

LABELS = np.random.default_rng(0).integers(0, 6, 300)


@pytest.mark.parametrize("balanced", [False, True])
def test_split(balanced: bool) -> None:
    fn = partial(mismatch_split, target_classes=[4, 1], num_labeled=10, mismatch=0.5, balanced=balanced)
    known = int(np.isin(LABELS, [1, 4]).sum()) - 10
    counts = [{1: 5, 4: 5} if balanced else 10, 2 * known]
    check_split(fn, LABELS, cover=False, counts=counts)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 999),
    mismatch=st.sampled_from([0.0, 0.1, 0.2, 0.4, 0.6, 2 / 3]),
    num_labeled=st.integers(2, 60),
    targets=st.sampled_from([(0, 1), (5, 3), (1, 2)]),
)
def test_what_a_split_holds(seed: int, mismatch: float, num_labeled: int, targets: tuple[int, int]) -> None:
    split = mismatch_split(LABELS, target_classes=targets, num_labeled=num_labeled, mismatch=mismatch, seed=seed)
    is_target = np.isin(LABELS, targets)
    assert len(split.labeled) == num_labeled
    assert set(LABELS[split.labeled]) == set(targets)
    assert not set(split.labeled) & set(split.unlabeled)
    assert (split.is_target_unlabeled == is_target[split.unlabeled]).all()
    known = int(split.is_target_unlabeled.sum())
    assert known == is_target.sum() - num_labeled
    unknown = len(split.unlabeled) - known
    assert (unknown - 1) / (known + unknown - 1) < mismatch + 1e-9 or unknown == 0
    assert unknown / (known + unknown) >= mismatch - 1e-9
    for part in (split.labeled, split.unlabeled):
        assert (np.diff(part) > 0).all()


def test_every_seed_has_every_class() -> None:
    labels = np.repeat([0, 1, 2], [5, 500, 100])
    for seed in range(20):
        split = mismatch_split(labels, target_classes=[0, 1], num_labeled=2, mismatch=0.1, seed=seed)
        assert sorted(labels[split.labeled]) == [0, 1]


def test_all_labeled_leaves_none() -> None:
    split = mismatch_split([0, 1, 2], target_classes=[0, 1], num_labeled=2, mismatch=0.5, seed=0)
    assert split.labeled.tolist() == [0, 1]
    assert len(split.unlabeled) == len(split.is_target_unlabeled) == 0


def test_split_arguments() -> None:
    check_arguments(
        mismatch_split,
        lambda g: {
            "labels": torch.randint(4, (60,), generator=g),
            "target_classes": [0, 1],
            "num_labeled": 4,
            "mismatch": 0.2,
            "seed": 0,
            "balanced": False,
        },
        skip={"labels: huge": "a class like any other", "labels: -1": "a class like any other"},
    )


def test_rectify() -> None:
    labels = np.array([[7, 3], [9, 7]])
    found = rectify_labels(labels, [9, 3, 7])
    assert found.tolist() == [[2, 1], [0, 2]]
    assert found.dtype == np.int64
    tensor = rectify_labels(torch.from_numpy(labels).to(torch.uint8), (9, 3, 7))
    assert tensor.dtype == torch.int64
    assert tensor.tolist() == found.tolist()
    assert rectify_labels([9, 9, 7], np.array([7, 9])).tolist() == [1, 1, 0]
    assert rectify_labels(labels.astype(">i2"), torch.tensor([9, 3, 7])).tolist() == found.tolist()


def test_rectify_arguments() -> None:
    skip = {f"labels: {case}": "labels of any shape" for case in ("one more axis", "one axis fewer")}
    check_arguments(
        rectify_labels,
        lambda g: {"labels": torch.randint(3, (6,), generator=g), "target_classes": [0, 1, 2]},
        skip=skip,
    )


def test_errors() -> None:
    pseudo, weights, true = [0, 1, 1, 0, 2], [0.5, 0.25, 0.25, 1.0, 0.0], [0, 0, -1, -1, -1]
    expected = (0.25 / 2, 1.25 / 2)
    for make in (list, np.array, torch.tensor):
        assert error_decomposition(make(pseudo), make(weights), make(true)) == pytest.approx(expected)
    assert error_decomposition(pseudo, np.zeros(5), true) == (0.0, 0.0)
    assert error_decomposition(pseudo, np.full(5, 1e308), true) == pytest.approx((0.2, 0.6))
    assert error_decomposition([1, 0], [1.0, 3.0], [1, 0]) == (0.0, 0.0)


def test_error_arguments() -> None:
    check_arguments(
        error_decomposition,
        lambda g: {
            "pseudo_labels": torch.randint(3, (6,), generator=g),
            "weights": torch.rand(6, generator=g),
            "true_labels": torch.randint(3, (6,), generator=g) - 1,
        },
    )


def test_the_share_is_exact() -> None:
    """0.8 * 137 / (1 - 0.8) is a hair above 548 in floating point."""
    labels = np.repeat([0, 1, 2], [70, 69, 600])
    split = mismatch_split(labels, target_classes=[0, 1], num_labeled=2, mismatch=0.8, seed=0)
    assert split.is_target_unlabeled.sum() == 137
    assert len(split.unlabeled) == 137 + 548
