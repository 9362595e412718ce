"""The class count: its curve, pinned samples, degenerate data."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from offprints.protogcd import estimate_num_classes
from offprints.protogcd._rows import unit_rows
from offprints.protogcd.class_count import pinned_kmeans, silhouette
from offprints.shared.testing import check_arguments


def clusters(seed: int, count: int = 8, each: int = 20, dim: int = 10) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(count, dim))
    true = np.repeat(np.arange(count), each)
    x = centers[true] + 0.25 * rng.normal(size=(len(true), dim))
    given = np.where((true < 4) & (rng.random(len(true)) < 0.5), true, -1)
    return x, true, given


@pytest.mark.parametrize("criterion", ["silhouette", "product"])
def test_clear_clusters(criterion) -> None:
    for seed in range(3):
        x, _, given = clusters(seed)
        found = estimate_num_classes(x, given, max_classes=14, criterion=criterion, seed=seed)
        assert 7 <= found.n_classes <= 9
        assert found.candidates == list(range(4, 15))
        assert found.scores[found.candidates.index(found.n_classes)] == max(found.scores)
        assert all(0 <= score <= 1 for score in found.scores)


def test_accuracy_finds_withheld_classes() -> None:
    x, _, given = clusters(0)
    found = estimate_num_classes(x, given, max_classes=12, criterion="accuracy")
    scores = dict(zip(found.candidates, found.scores, strict=True))
    assert scores[8] > 0.95
    equal = [k for k, score in scores.items() if score == max(found.scores)]
    assert found.n_classes == equal[0] < 8  # too few classes are not seen by this criterion


def test_labeled_samples_stay_in_their_class() -> None:
    x, _, given = clusters(1)
    moved = given.copy()
    moved[np.flatnonzero(given < 0)[-1]] = 0  # of the last cluster, and named class 0
    rows = unit_rows(torch.from_numpy(x).float())
    ((centers, assigned),) = pinned_kmeans(rows, torch.from_numpy(moved), [8], n_init=2, seed=0)
    known = torch.from_numpy(moved) >= 0
    assert torch.equal(assigned[known], torch.from_numpy(moved)[known])
    assert centers.shape == (8, 10)
    assert float(centers.norm(dim=1).sub(1).abs().max()) < 1e-5
    nearest = (rows @ centers.T).argmax(1)
    assert torch.equal(assigned[~known], nearest[~known])


def test_silhouette() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    assert silhouette(x, torch.eye(2)) == pytest.approx((1 + 1 + (0.4 - 0.2) / 0.4) / 3, abs=1e-5)
    assert silhouette(x, torch.ones(2, 2)) == 0.0  # two centers in one place


def test_seeds_and_kinds_of_data() -> None:
    x, _, given = clusters(2)
    x = x.astype(np.float32)
    expected = estimate_num_classes(x, given, max_classes=10)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    for table, labels in (
        (torch.from_numpy(x), torch.from_numpy(given)),
        (torch.from_numpy(x).requires_grad_(), given.astype(np.int8)),
        (pd.DataFrame(x), pd.Series(given)),
        (x.tolist(), given.tolist()),
        (x.astype(">f4"), given.astype(">i8")),
        (1e20 * x, given * 1),
        (x, np.where(given >= 0, 7 * given + 3, -1)),  # any numbers name the old classes
    ):
        found = estimate_num_classes(table, labels, max_classes=10)
        assert found.candidates == expected.candidates
        assert found.scores == pytest.approx(expected.scores, abs=1e-5)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        assert estimate_num_classes(x, given, max_classes=10) == expected


def test_degenerate_data() -> None:
    y = np.array([0, -1, -1, -1, -1])
    assert estimate_num_classes(np.ones((5, 2)), y, max_classes=4).scores == [0.0, 0.0, 0.0]
    assert estimate_num_classes(np.zeros((5, 2)), y, max_classes=3).n_classes == 2
    none_old = estimate_num_classes(np.eye(5), np.full(5, -1), max_classes=5)
    assert none_old.candidates == [2, 3, 4, 5]
    assert none_old.scores[-1] == pytest.approx(1.0)
    assert estimate_num_classes(np.eye(5), y, max_classes=5, min_classes=3).candidates == [3, 4, 5]


def test_arguments() -> None:
    x, _, given = clusters(0, each=4)
    check_arguments(
        estimate_num_classes,
        lambda g: {"features": torch.from_numpy(x), "labels": torch.from_numpy(given), "max_classes": 4},
    )
