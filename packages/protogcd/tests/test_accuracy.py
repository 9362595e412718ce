"""Accuracy, splits and the sampler."""

from __future__ import annotations

import itertools
from collections import Counter
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offprints.protogcd import GCDAccuracy, balanced_sampler, gcd_accuracy, gcd_split
from offprints.shared.testing import check_arguments, check_split


def drawn(seed: int, size: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 5, size)
    return true, np.where(rng.random(size) < 0.6, true, rng.integers(0, 5, size))


@given(st.integers(0, 100), st.permutations(range(5)))
@settings(max_examples=20)
def test_names_of_the_clusters_do_not_matter(seed: int, names: list[int]) -> None:
    true, pred = drawn(seed)
    old = true < 2
    found = gcd_accuracy(true, pred, old)
    renamed = gcd_accuracy(true, np.array(names)[pred], old)
    assert renamed.all == found.all
    weighted = found.old * old.mean() + found.new * (1 - old.mean())
    assert found.all == pytest.approx(weighted)


def test_is_the_best_of_all_matchings() -> None:
    true, pred = drawn(3)
    best = max(float((np.array(names)[pred] == true).mean()) for names in itertools.permutations(range(5)))
    assert gcd_accuracy(true, pred, true < 2).all == best


def test_one_matching_for_all() -> None:
    """A new class under the name of an old one is wrong, though it is a cluster of its own."""
    true = [0, 0, 0, 1, 1]
    assert gcd_accuracy(true, [0, 0, 0, 0, 0], [True] * 3 + [False] * 2) == GCDAccuracy(0.6, 1.0, 0.0)


def test_empty_parts_and_more_clusters_than_classes() -> None:
    found = gcd_accuracy([0, 0, 0], [4, 7, 7], [True] * 3)
    assert (found.all, found.old) == (2 / 3, 2 / 3)
    assert np.isnan(found.new)
    assert np.isnan(gcd_accuracy([0], [0], [False]).old)


def test_large_and_sparse_ids() -> None:
    true, pred = drawn(1)
    expected = gcd_accuracy(true, pred, true < 2)
    assert gcd_accuracy(true * 10**15, pred * 10**12 + 5, true < 2) == expected
    assert gcd_accuracy(true + 1023, pred, true < 2) == expected


def test_kinds_of_labels() -> None:
    true, pred = drawn(2)
    old = true < 2
    expected = gcd_accuracy(true, pred, old)
    for kind in (
        torch.tensor, list, pd.Series, lambda x: pd.Series(x).astype("Int64") if x.dtype != bool else x,
        lambda x: x.astype(object), lambda x: x.astype(np.uint8) if x.dtype != bool else x,
        lambda x: x.astype(x.dtype.newbyteorder(">")), lambda x: np.ma.array(x), lambda x: np.stack([x, x])[:, ::1][0],
    ):  # fmt: skip
        assert gcd_accuracy(kind(true), kind(pred), kind(old)) == expected


def test_arguments() -> None:
    true, pred = drawn(4)
    check_arguments(
        gcd_accuracy,
        lambda g: (torch.tensor(true), torch.tensor(pred), torch.tensor(true < 2)),
        skip=dict.fromkeys(("old_mask: all", "old_mask: none"), "NaN where there are no samples"),
    )


LABELS = np.arange(60) % 5


def test_plain_numbers() -> None:
    found = gcd_accuracy(np.array([0, 0, 1]), torch.tensor([1, 1, 0]), np.array([True, True, False]))
    assert found == (1.0, 1.0, 1.0)
    assert {type(value) for value in found} == {float}


def test_split() -> None:
    split = partial(gcd_split, old_classes=[0, 1, 2])
    check_split(split, LABELS, counts=[18, 42])
    found = split(LABELS, seed=0)
    assert set(LABELS[found.labeled]) <= {0, 1, 2}
    assert (np.diff(found.labeled) > 0).all()
    assert (np.diff(found.unlabeled) > 0).all()
    whole = split(LABELS, labeled_fraction=1.0, seed=0)
    assert len(whole.labeled) == 36
    assert set(LABELS[whole.unlabeled]) == {3, 4}
    assert len(gcd_split([0, 0, 0], old_classes=[0], labeled_fraction=1.0, seed=0).unlabeled) == 0
    for old in (np.array([2, 0]), torch.tensor([0, 2]), (0, 2), range(0, 3, 2)):
        assert len(gcd_split(LABELS, old_classes=old, seed=0).labeled) == 12


def test_sampler() -> None:
    sampler = balanced_sampler(10, 990, generator=torch.Generator().manual_seed(0))
    first = list(sampler)
    assert len(first) == len(sampler) == 1000
    assert sum(i < 10 for i in first) == pytest.approx(500, abs=60)
    assert max(Counter(first).values()) > 10  # with replacement
    assert list(balanced_sampler(10, 990, generator=torch.Generator().manual_seed(0))) == first
    assert list(sampler) != first
    with torch.device("meta"):
        assert list(balanced_sampler(10, 990, generator=torch.Generator("cpu").manual_seed(0))) == first
