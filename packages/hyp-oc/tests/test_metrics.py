"""Metrics: known values, the exact threshold and the grid, invariances, what is refused."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from offprints.hyp_oc import spoof_metrics
from offprints.shared.testing import check_arguments, check_errors


def test_names_of_the_errors() -> None:
    """APCER counts attacks accepted, BPCER live faces rejected; they are not exchanged as in the official code."""
    scores, labels = [0.1, 0.2, 0.7, 0.3, 0.9], [0, 0, 0, 1, 1]
    found = spoof_metrics(scores, labels, threshold=0.6)
    assert found.apcer == 0.5
    assert found.bpcer == pytest.approx(1 / 3)
    assert found.hter == found.acer == pytest.approx(5 / 12)
    assert found.accuracy == pytest.approx(3 / 5)
    assert found.threshold == 0.6
    assert found.auc == pytest.approx(5 / 6)
    assert spoof_metrics(scores, labels, threshold=0.3).apcer == 0  # a score at the threshold is called spoof


def by_hand(scores: np.ndarray, labels: np.ndarray, thresholds: np.ndarray) -> tuple[float, float]:
    """EER and threshold, one threshold at a time, in exact fractions; the last of equal ones."""
    best, eer, at = Fraction(2), 0.0, 0.0
    for t in thresholds:
        far = Fraction(int((scores[labels == 1] < t).sum()), int((labels == 1).sum()))
        frr = Fraction(int((scores[labels == 0] >= t).sum()), int((labels == 0).sum()))
        if abs(far - frr) <= best:
            best, eer, at = abs(far - frr), float(far + frr) / 2, t
    return eer, at


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), n=st.integers(2, 30), levels=st.integers(1, 20), grid=st.sampled_from([1, 7, 100]))
def test_against_a_loop(seed: int, n: int, levels: int, grid: int) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(n) % 2)
    # With ties, and exact: the map below keeps all differences.
    scores = (generator.integers(0, levels + 1, n) + levels // 3 * labels) / 32
    found = spoof_metrics(scores, labels)
    exact = np.append(np.unique(scores), math.nextafter(scores.max(), math.inf))
    assert (found.eer, found.threshold) == pytest.approx(by_hand(scores, labels, exact), abs=1e-12)
    assert found.auc == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert found.hter == pytest.approx(found.eer, abs=1e-12)
    official = np.append(np.arange(grid + 1) / grid, 1.1)
    on_grid = spoof_metrics(scores, labels, grid=grid)
    assert (on_grid.eer, on_grid.threshold) == pytest.approx(by_hand(scores, labels, official), abs=1e-12)
    monotone = spoof_metrics(np.exp(3 * scores) - 7, labels)
    assert (monotone.eer, monotone.auc) == pytest.approx((found.eer, found.auc), abs=1e-12)
    turned = spoof_metrics(-scores, 1 - labels)
    assert turned.auc == pytest.approx(found.auc, abs=1e-12)


def test_ends() -> None:
    perfect = spoof_metrics([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1])
    assert perfect[:5] == (0.0, 0.8, 0.0, 1.0, 0.0)
    assert perfect.accuracy == 1
    worst = spoof_metrics([0.9, 0.8, 0.1], [0, 0, 1])
    assert worst.eer == 1.0
    assert worst.auc == 0.0
    assert spoof_metrics([0.5, 0.5], [0, 1]).auc == 0.5


def test_kinds_of_arrays() -> None:
    scores, labels = np.linspace(0, 1, 8), np.arange(8) % 2
    expected = spoof_metrics(scores, labels)
    for s, y in (
        (scores.tolist(), labels.tolist()),
        (torch.from_numpy(scores), torch.from_numpy(labels)),
        (scores, labels.astype(bool)),
        (scores[::-1][::-1], labels.astype(np.uint8)),
        (scores.astype(">f8"), labels.astype(float)),
        (torch.from_numpy(scores).requires_grad_(), torch.from_numpy(labels) > 0),
    ):
        assert spoof_metrics(s, y) == expected
    assert all(type(value) is float for value in expected)
    read_only = scores.copy()
    read_only.flags.writeable = False
    assert spoof_metrics(read_only, labels) == expected
    half = torch.from_numpy(scores).bfloat16()
    assert spoof_metrics(half, labels) == spoof_metrics(half.double(), labels)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_threshold_decides_in_the_type_of_the_scores(dtype: torch.dtype) -> None:
    """The user's own comparison gives the same decisions, where no score is called spoof too."""
    labels = torch.tensor([0, 0, 1, 1])
    for values in ([0.5, 0.5, 0.5, 0.5], [0.1, 0.7, 0.7, 0.9], [0.0, 0.0, 0.0, 0.0], [-3.0, -3.0, -3.0, -3.0]):
        scores = torch.tensor(values, dtype=dtype)
        arrays = (scores,) if dtype == torch.bfloat16 else (scores, scores.numpy())
        for array in arrays:
            found = spoof_metrics(array, labels)
            spoof = torch.as_tensor(array >= found.threshold)
            assert found.apcer == float((~spoof[2:]).float().mean()), values
            assert found.bpcer == float(spoof[:2].float().mean()), values


def test_bad_inputs() -> None:
    scores, labels = [0.1, 0.9], [0, 1]
    check_errors(
        [
            (lambda: spoof_metrics([], []), ValueError, "scores"),
            (lambda: spoof_metrics(scores, [0]), ValueError, "length"),
            (lambda: spoof_metrics([0.1, math.nan], labels), ValueError, "scores"),
            (lambda: spoof_metrics([0.1, math.inf], labels), ValueError, "scores"),
            (lambda: spoof_metrics(scores, [0, 2]), ValueError, "labels"),
            (lambda: spoof_metrics(scores, [-1, 1]), ValueError, "labels"),
            (lambda: spoof_metrics(scores, [1, 1]), ValueError, "both classes"),
            (lambda: spoof_metrics(scores, [0, 0]), ValueError, "both classes"),
            (lambda: spoof_metrics([scores], [labels]), ValueError, "dimensions"),
            (lambda: spoof_metrics("ab", labels), TypeError, "scores"),
            (lambda: spoof_metrics(["a", "b"], labels), TypeError, "scores"),
            (lambda: spoof_metrics(scores, labels, threshold="0.5"), TypeError, "threshold"),
            (lambda: spoof_metrics(scores, labels, threshold=math.nan), ValueError, "threshold"),
            (lambda: spoof_metrics(scores, labels, grid=0), ValueError, "grid"),
            (lambda: spoof_metrics(np.ma.masked_array([0.1, 0.9], [True, False]), labels), ValueError, "masked"),
        ]
    )
    check_arguments(spoof_metrics, lambda g: (torch.rand(8, generator=g), torch.arange(8) % 2))
