"""The drifting, long-tailed stream, and the metrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from offprints.aef_ocl import average_mean_class_accuracy, long_tailed_stream, mean_class_accuracy
from offprints.shared.testing import check_arguments


def stream(**options):
    y = np.repeat(np.arange(10), 200)
    X = np.arange(2000.0)[:, None]
    rows, labels = zip(*long_tailed_stream(X, y, **options), strict=True)
    return np.concatenate(rows).astype(int), np.array(labels)


def test_counts() -> None:
    rows, labels = stream(ratio=0.6**9)
    assert np.bincount(labels).tolist() == [100, 60, 36, 21, 12, 7, 4, 3, 3, 3]
    assert len(np.unique(rows)) == 249
    assert (labels == rows // 200).all()
    assert np.bincount(stream(ratio=0.01, min_count=1)[1]).tolist() == [100, 59, 35, 21, 12, 7, 4, 2, 1, 1]
    assert np.bincount(stream(ratio=1.0, max_count=7)[1]).tolist() == [7] * 10
    assert np.bincount(stream(ratio=1.0, max_count=900)[1]).tolist() == [200] * 10  # at most what there is
    assert np.bincount(stream(ratio=0.01, max_count=100, min_count=0)[1]).tolist()[-1] == 1  # 100 * 0.01, not 0.99...


def test_order() -> None:
    assert (np.diff(stream(drift=0.0)[1]) >= 0).all()
    labels = stream(drift=1.0)[1]
    assert (np.diff(labels) >= -1).all()
    places = [np.flatnonzero(stream(ratio=1.0, drift=1e6)[1] == c).mean() for c in range(10)]
    assert np.std(places) < 40  # of 1000: shuffled


def test_draws_are_the_seeds() -> None:
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    assert stream(seed=3)[0].tolist() == stream(seed=3)[0].tolist()
    assert stream(seed=3)[0].tolist() != stream(seed=4)[0].tolist()
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state()[1] == state[1]).all()  # noqa: NPY002


def test_kinds() -> None:
    """Tensors give tensors; pictures and text labels pass; one class is a stream too."""
    X, y = torch.rand(20, 2, 3, 3), torch.tensor([4, 9]).repeat(10)
    items = list(long_tailed_stream(X, y, ratio=0.5, max_count=6))
    assert [len([1 for _, label in items if label == c]) for c in (4, 9)] == [6, 3]
    assert items[0][0].shape == (2, 3, 3)
    assert isinstance(items[0][1], torch.Tensor)
    words = np.array(["b", "a"] * 10)
    assert [label for _, label in long_tailed_stream(X, words, ratio=0.5, max_count=6, drift=0.0)] == ["a"] * 6 + [
        "b"
    ] * 3
    assert len(list(long_tailed_stream(X, np.zeros(20, int), max_count=5))) == 5


def test_mean_class_accuracy() -> None:
    generator = np.random.default_rng(0)
    true, predicted = generator.choice([3, 3, 3, 8, -1], 50), generator.choice([3, 8, -1], 50)
    value = mean_class_accuracy(true, predicted)
    assert value == pytest.approx(balanced_accuracy_score(true, predicted))
    assert mean_class_accuracy(torch.from_numpy(true), torch.from_numpy(predicted).int()) == value
    assert mean_class_accuracy(["a", "a", "b"], ["a", "b", "c"]) == 0.25  # a class that only predictions have
    assert mean_class_accuracy(true.astype(np.uint64) + np.uint64(2**63), predicted) == 0.0
    assert average_mean_class_accuracy([0.25, 0.75, 0.8]) == pytest.approx(0.6)
    assert average_mean_class_accuracy(np.array([0.5, 1.0])) == 0.75


def test_arguments() -> None:
    def labels(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randint(3, (9,), generator=generator), torch.randint(3, (9,), generator=generator)

    check_arguments(mean_class_accuracy, labels)
    check_arguments(average_mean_class_accuracy, lambda g: ([0.5, 0.25],))
    check_arguments(
        lambda X, y, **options: [x for x, _ in long_tailed_stream(X, y, **options)],
        lambda g: (torch.randn(9, 2, generator=g), torch.randint(3, (9,), generator=g)),
        kwargs={"ratio": 0.5, "max_count": 4, "min_count": 1, "drift": 1.0, "seed": 0},
        skip={"X: NaN*": "rows pass as they are", "X: *inf*": "the same"},
    )
