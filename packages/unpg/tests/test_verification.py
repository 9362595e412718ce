"""Verification metrics against scikit-learn, plain loops and known cases; pooling of templates."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from offprints.shared.testing import check_arguments
from offprints.unpg import tar_at_far, template_features, verification_accuracy

FARS = (1e-6, 0.01, 0.1, 0.25, 0.5, 0.9)


def drawn(seed: int, n: int, decimals: int) -> tuple[np.ndarray, np.ndarray]:
    """Similarities with ties, pairs of both kinds."""
    rng = np.random.default_rng(seed)
    same = np.append(rng.integers(0, 2, n - 2), [0, 1])
    return (rng.normal(size=n) + same).round(decimals), same


def folds_by_loops(scores: np.ndarray, same: np.ndarray, folds: int) -> tuple[list[float], list[float]]:
    parts = np.array_split(np.arange(len(scores)), folds)
    accuracies, thresholds = [], []
    for part in parts:
        others = np.setdiff1d(np.arange(len(scores)), part)
        best = (-1.0, 0.0)
        for threshold in np.unique(scores):
            accuracy = ((scores[others] >= threshold) == same[others]).mean()
            if accuracy > best[0] + 1e-12:
                best = (accuracy, threshold)
        accuracies.append(((scores[part] >= best[1]) == same[part]).mean())
        thresholds.append(best[1])
    return accuracies, thresholds


@given(st.integers(0, 10**6), st.integers(4, 40), st.integers(0, 2))
@settings(max_examples=40)
def test_equals_loops_and_scikit_learn(seed: int, n: int, decimals: int) -> None:
    scores, same = drawn(seed, n, decimals)
    folds = min(n, 2 + seed % 5)
    found = verification_accuracy(scores, same, folds=folds)
    accuracies, thresholds = folds_by_loops(scores, same, folds)
    np.testing.assert_allclose(found.per_fold, accuracies)
    np.testing.assert_array_equal(found.thresholds, thresholds)
    assert found.accuracy == pytest.approx(np.mean(accuracies))
    assert found.std == pytest.approx(np.std(accuracies))
    best = verification_accuracy(scores, same, method="best_threshold")
    every = [((scores >= t) == same).mean() for t in np.unique(scores)]
    assert best.accuracy == pytest.approx(max(every))
    assert best.thresholds[0] == np.unique(scores)[int(np.argmax(every))]
    assert (best.std, len(best.per_fold)) == (0, 1)

    false_rate, true_rate, _ = roc_curve(same, scores)
    nearest = [true_rate[::-1][np.argmin(np.abs(false_rate[::-1] - far))] for far in FARS]
    np.testing.assert_allclose(tar_at_far(scores, same, far=FARS), nearest)
    false_rate, true_rate, _ = roc_curve(same, scores, drop_intermediate=False)
    at_most = [true_rate[false_rate <= far].max() for far in FARS]
    np.testing.assert_allclose(tar_at_far(scores, same, far=FARS, method="at_most"), at_most)


def test_equals_scikit_learn_on_many_pairs() -> None:
    scores, same = drawn(0, 200_000, 6)
    false_rate, true_rate, _ = roc_curve(same, scores)
    expected = [true_rate[::-1][np.argmin(np.abs(false_rate[::-1] - far))] for far in (1e-5, 1e-3, 1e-1)]
    np.testing.assert_allclose(tar_at_far(scores, same, far=(1e-5, 1e-3, 1e-1)), expected)
    assert len(tar_at_far(scores, same)) == 6


def test_the_nearest_rate_may_lie_above_the_target() -> None:
    scores, same = np.array([5.0, 4, 3, 2, 1, 0]), np.array([1, 0, 1, 0, 0, 0])
    assert tar_at_far(scores, same, far=0.2) == [1.0]  # at a FAR of 0.25
    assert tar_at_far(scores, same, far=0.2, method="at_most") == [0.5]
    # As near to 0 as to 0.25: the larger.
    assert tar_at_far(scores, same, far=0.125) == [1.0]
    assert tar_at_far(scores, same, far=0.25, method="at_most") == [1.0]


def test_perfect_reversed_and_constant() -> None:
    same = np.array([True, True, False, False])
    assert verification_accuracy(np.array([4.0, 3, 2, 1]), same, method="best_threshold").accuracy == 1
    assert verification_accuracy(np.array([1.0, 2, 3, 4]), same, method="best_threshold").accuracy == 0.5
    assert verification_accuracy(np.ones(4), same, method="best_threshold").accuracy == 0.5
    assert tar_at_far(np.ones(4), same, far=0.4) == [0.0]
    assert tar_at_far(np.ones(4), same, far=0.6) == [1.0]
    assert tar_at_far(np.array([4.0, 3, 2, 1]), same, far=1e-6, method="at_most") == [1.0]


def test_arrays_of_every_kind() -> None:
    scores, same = drawn(1, 60, 1)
    expected = verification_accuracy(scores, same).per_fold
    fixed = scores.copy()
    fixed.flags.writeable = False
    kinds = [
        (scores.astype(">f8"), same.astype(bool)),
        (fixed, same.astype(np.uint8)),
        (np.repeat(scores, 2)[::2], same.astype(np.uint64)),
        (torch.from_numpy(scores), torch.from_numpy(same).bool()),
        (torch.from_numpy(scores).requires_grad_(), torch.from_numpy(same)),
        (scores.tolist(), same.tolist()),
    ]
    for values, labels in kinds:
        np.testing.assert_array_equal(verification_accuracy(values, labels).per_fold, expected)
        np.testing.assert_array_equal(tar_at_far(values, labels), tar_at_far(scores, same))
    for dtype in (torch.float16, torch.bfloat16):
        rounded = torch.from_numpy(scores).to(dtype)
        found = verification_accuracy(rounded, same).per_fold
        np.testing.assert_array_equal(found, verification_accuracy(rounded.double(), same).per_fold)


def test_arguments() -> None:
    def pairs(generator: torch.Generator):
        return {"similarities": torch.randn(30, generator=generator).numpy(), "same": np.arange(30) % 2}

    check_arguments(verification_accuracy, pairs)
    check_arguments(tar_at_far, pairs)


def test_template_features_equal_loops() -> None:
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, generator=draws, dtype=torch.float64)
    templates, media = torch.randint(-3, 4, (40,), generator=draws), torch.randint(0, 5, (40,), generator=draws) * 1000
    found, names = template_features(x, templates, media)
    assert names.tolist() == sorted(set(templates.tolist()))
    for row, name in zip(found, names, strict=True):
        mine = templates == name
        parts = [x[mine & (media == m)].mean(0) for m in media[mine].unique()]
        total = torch.stack(parts).sum(0)
        torch.testing.assert_close(row, total / total.norm())


def test_template_features_of_half_types_and_of_a_zero_sum() -> None:
    x = torch.tensor([[300.0, 0.0]]).repeat(400, 1).half()  # their sum overflows
    found, _ = template_features(x, torch.zeros(400, dtype=torch.int32), torch.zeros(400, dtype=torch.uint8))
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0]]))
    found, _ = template_features(torch.tensor([[1.0], [-1.0]]), torch.tensor([5, 5]), torch.tensor([0, 1]))
    assert found.tolist() == [[0]]
    x = torch.randn(3, 2, requires_grad=True)
    template_features(x, torch.tensor([1, 1, 0]), torch.tensor([1, 2, 1]))[0].sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("factor", [1e-37, 1.0, 3e38])
def test_template_features_of_every_size(factor: float) -> None:
    """Neither sums nor squares overflow or vanish, in templates of unlike sizes beside each other."""
    x = torch.tensor([[1.0, 0.5], [1.0, -0.5], [0.25, 1.0], [1.0, 1.0]])
    x[:3] *= factor
    found, _ = template_features(x, torch.tensor([3, 3, 3, 9]), torch.tensor([0, 0, 1, 0]))
    expected = torch.tensor([[1.25, 1.0], [1.0, 1.0]])
    torch.testing.assert_close(found, expected / expected.norm(dim=1, keepdim=True))


def test_template_arguments() -> None:
    def rows(generator: torch.Generator):
        groups = [torch.randint(3, (8,), generator=generator) for _ in range(2)]
        return torch.randn(8, 4, generator=generator), *groups

    check_arguments(template_features, rows)
