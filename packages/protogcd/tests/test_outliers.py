"""Outlier scores and their measures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from offprints.protogcd import ood_measures, ood_score
from offprints.protogcd.outliers import KINDS
from offprints.shared.testing import check_arguments

LOGITS = torch.randn(12, 5, generator=torch.Generator().manual_seed(0)).tanh()


@pytest.mark.parametrize("kind", KINDS)
def test_values(kind) -> None:
    p = (LOGITS.double() / 0.2).softmax(1).sort(1, descending=True)[0]
    expected = {
        "msp": -p[:, 0],
        "mls": -LOGITS.amax(1),
        "energy": -LOGITS.logsumexp(1),
        "margin": p[:, 1] - p[:, 0],
        "proto": -p[:, 0] / (p[:, 1] + 1e-6),
        "xent": LOGITS.mean(1) / 0.2 - (LOGITS / 0.2).logsumexp(1),
    }[kind]
    found = ood_score(LOGITS, kind=kind, temperature=0.2)
    assert_close(found, expected.float(), rtol=1e-4, atol=1e-5)
    assert ood_score(LOGITS.bfloat16(), kind=kind).dtype == torch.float32
    assert ood_score(LOGITS.double(), kind=kind).dtype == torch.float64
    flat = ood_score(torch.zeros(1, 5), kind=kind)
    peak = ood_score(torch.eye(5)[:1] * 0.9, kind=kind)
    assert float(flat) > float(peak)


def test_arguments() -> None:
    for kind in ("msp", "energy", "xent"):
        check_arguments(ood_score, lambda g: (torch.randn(6, 4, generator=g),), kwargs={"kind": kind})


def test_measures() -> None:
    found = ood_measures([1.0, 2.0, 3.0, 4.0], [3.5, 5.0])
    assert found["auroc"] == pytest.approx(7 / 8)
    assert found["aupr_in"] == pytest.approx((1 + 1 + 1 + 4 / 5) / 4)
    assert found["aupr_out"] == pytest.approx((1 + 2 / 3) / 2)
    same = np.random.default_rng(0).normal(size=50)
    assert ood_measures(same, same)["auroc"] == 0.5
    assert ood_measures([0.0] * 3, [1.0] * 2) == {"auroc": 1.0, "aupr_in": 1.0, "aupr_out": 1.0, "fpr95": 0.0}
    for kind in (torch.tensor, list, np.array, lambda x: np.array(x, dtype=">f4")):
        assert ood_measures(kind([1.0, 2.0, 3.0, 4.0]), kind([3.5, 5.0])) == found
    assert ood_measures([1, 2], [3])["auroc"] == 1.0


def test_the_threshold_of_the_false_positive_rate() -> None:
    samples = np.arange(20.0)
    outliers = np.array([0.5, 17.5, 17.7, 18.5, 18.7, 30.0])
    assert ood_measures(samples, outliers)["fpr95"] == 5 / 6  # recall 0.95 exactly; up to 18.7
    # Recalls 0.9 and 1.0 are equally close to 0.95: the higher one, though rounding would have the other.
    assert ood_measures(np.arange(10.0), [8.5, 9.5, 11.0])["fpr95"] == pytest.approx(1 / 3)
    assert ood_measures(np.arange(10.0), [8.5, 9.5, 11.0], recall=0.9)["fpr95"] == pytest.approx(1 / 3)
    assert ood_measures(np.arange(10.0), [8.5, 9.5, 11.0], recall=0.8)["fpr95"] == 0.0
    # After full recall no threshold counts; equal scores are taken in together.
    assert ood_measures([1.0, 1.0], [1.0, 2.0])["fpr95"] == 0.5


def test_float32_scores_and_thresholds() -> None:
    """Scores that differ in the last bit of float32 are different."""
    x = np.float32(1.0)
    assert ood_measures(np.array([x]), np.array([np.nextafter(x, np.float32(2))]))["auroc"] == 1.0
