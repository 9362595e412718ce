"""One pass: any split, any order, merged or reduced, one result."""

import pytest
import torch
from torch import Tensor

from offprints.neural_collapse import FeatureStatistics
from offprints.shared.testing import check_arguments, check_streaming


def batches(dtype: torch.dtype = torch.float64, shift: float = 3.0, K: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for size in (5, 1, 12, 7):
        labels = torch.randint(K, (size,), generator=generator)
        centers = 2 * torch.eye(K, 6)[labels]
        found.append(((shift + centers + torch.randn(size, 6, generator=generator)).to(dtype), labels))
    return found


def results(stats: FeatureStatistics) -> tuple[Tensor, ...]:
    return stats.counts, stats.means, stats.global_mean, stats.within_covariance


@pytest.mark.parametrize("K", [4, 30])
def test_streaming(K: int) -> None:
    """With few classes and with more classes than rows."""
    check_streaming(lambda: FeatureStatistics(K, 6), batches(K=K), result=results, skip=None if K == 4 else SKIP)


SKIP = {"two processes": "shown with four classes"}


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 2e-6)])
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_values(dtype: torch.dtype, rtol: float, shift: float) -> None:
    stats = FeatureStatistics(4, 6)
    data = batches(dtype, shift)
    for features, labels in data:
        stats.update(features, labels)
    X, y = (torch.cat(columns) for columns in zip(*data, strict=True))
    X = X.double()
    means = torch.stack([X[y == k].mean(0) for k in range(4)])
    residual = X - means[y]
    assert stats.counts.tolist() == y.bincount(minlength=4).tolist()
    torch.testing.assert_close(stats.means, means, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(stats.global_mean, X.mean(0), rtol=1e-13, atol=1e-14)
    expected = residual.T @ residual / len(X)
    error = (stats.within_covariance - expected).abs().max() / expected.diagonal().mean().clamp(min=1e-30)
    assert error < rtol * (1 + shift * (dtype == torch.float64))
    assert torch.equal(stats.within_covariance, stats.within_covariance.T)


def test_large_batches_and_wide_features() -> None:
    """More rows than a chunk, more columns than a block."""
    generator = torch.Generator().manual_seed(0)
    X, y = torch.randn(5000, 300, generator=generator), torch.randint(7, (5000,), generator=generator)
    stats = FeatureStatistics(7, 300)
    stats.update(X, y)
    means = torch.stack([X.double()[y == k].mean(0) for k in range(7)])
    residual = X.double() - means[y]
    torch.testing.assert_close(stats.means, means, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(stats.within_covariance, residual.T @ residual / 5000, rtol=0, atol=2e-7)
    exact = FeatureStatistics(7, 300)
    exact.update(X.double(), y)
    torch.testing.assert_close(exact.within_covariance, residual.T @ residual / 5000, rtol=1e-11, atol=1e-13)


def test_reduced_precision_of_the_process_is_not_used() -> None:
    """Autocast and a lower precision of float32 products change nothing."""
    expected = FeatureStatistics(4, 6)
    for features, labels in batches(torch.float32):
        expected.update(features, labels)
    casted = FeatureStatistics(4, 6)
    with torch.autocast("cpu", torch.bfloat16):
        for features, labels in batches(torch.float32):
            casted.update(features, labels)
    assert torch.equal(casted.within_covariance, expected.within_covariance)
    lowered = FeatureStatistics(4, 6)
    torch.set_float32_matmul_precision("medium")
    try:
        for features, labels in batches(torch.float32):
            lowered.update(features, labels)
    finally:
        torch.set_float32_matmul_precision("highest")
    torch.testing.assert_close(lowered.within_covariance, expected.within_covariance, rtol=1e-5, atol=1e-7)


def test_nothing_seen_and_classes_that_come_later() -> None:
    stats = FeatureStatistics(3, 2)
    assert stats.counts.tolist() == [0, 0, 0]
    assert not stats.global_mean.any()
    stats.update(torch.tensor([[4.0, 2.0]]), torch.tensor([2]))
    assert stats.means.tolist() == [[0, 0], [0, 0], [4, 2]]
    assert stats.global_mean.tolist() == [4, 2]
    assert not stats.within_covariance.any()
    stats.update(torch.tensor([[6.0, 2.0], [1.0, 1.0]]), torch.tensor([2, 0]))
    assert stats.means.tolist() == [[1, 1], [0, 0], [5, 2]]
    torch.testing.assert_close(stats.within_covariance, torch.tensor([[2 / 3, 0], [0, 0]], dtype=torch.float64))


def test_what_is_returned_is_a_copy() -> None:
    stats = FeatureStatistics(4, 6)
    stats.update(*batches()[0])
    before = [value.clone() for value in results(stats)]
    for value in results(stats):
        value.zero_()
    for value, expected in zip(results(stats), before, strict=True):
        assert torch.equal(value, expected)


def test_saved_and_loaded(tmp_path) -> None:
    one = FeatureStatistics(4, 6)
    for batch in batches()[:2]:
        one.update(*batch)
    torch.save(one.state_dict(), tmp_path / "state.pt")
    other = FeatureStatistics(4, 6)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for stats in (one, other):
        for batch in batches()[2:]:
            stats.update(*batch)
    for ours, theirs in zip(results(other), results(one), strict=True):
        assert torch.equal(ours, theirs)


def test_merge_returns_itself() -> None:
    one, other = FeatureStatistics(4, 6), FeatureStatistics(4, 6)
    other.update(*batches()[0])
    assert one.merge(other) is one
    assert torch.equal(one.counts, other.counts)
    one.all_reduce()  # alone: nothing
    assert torch.equal(one.counts, other.counts)


def test_arguments() -> None:
    check_arguments(FeatureStatistics, lambda g: (4, 6))
    check_arguments(
        FeatureStatistics(4, 6).update, lambda g: batches()[0], skip={"features: huge": "1e60, accumulated"}
    )


@pytest.mark.parametrize("scale", [2.0**-100, 2.0**-60, 2.0**60, 2.0**100, 2.0**126])
def test_float32_of_any_size(scale: float) -> None:
    """No square overflows or underflows."""
    plain, scaled = FeatureStatistics(4, 6), FeatureStatistics(4, 6)
    for features, labels in batches(torch.float32, 0.0):
        plain.update(features / 16, labels)
        scaled.update(features / 16 * scale, labels)
    found = scaled.within_covariance / scale / scale
    torch.testing.assert_close(found, plain.within_covariance, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(scaled.means / scale, plain.means, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_first_sample_that_lies_far_off_costs_no_digits(dtype: torch.dtype) -> None:
    """Its class is centered anew when there are more samples; also where others come later, class by class."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(3000, 5, generator=generator, dtype=torch.float64).to(dtype)
    y = torch.arange(3).repeat_interleave(1000)
    X[0] += 300
    stats = FeatureStatistics(3, 5)
    for rows, its in zip(X.split([1, 30, *[499] * 5, 474]), y.split([1, 30, *[499] * 5, 474]), strict=True):
        stats.update(rows, its)
    means = torch.stack([X.double()[y == k].mean(0) for k in range(3)])
    residual = X.double() - means[y]
    expected = residual.T @ residual / 3000
    torch.testing.assert_close(stats.means, means, rtol=1e-12, atol=1e-13)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(stats.within_covariance, expected, rtol=0, atol=tolerance * expected.max().item())


def test_made_in_inference_mode_and_used_outside() -> None:
    data = batches()
    expected = FeatureStatistics(4, 6)
    for batch in data:
        expected.update(*batch)
    with torch.inference_mode():
        made = FeatureStatistics(4, 6)
        made.update(*data[0])
        merged = FeatureStatistics(4, 6).merge(made)
        loaded = FeatureStatistics(4, 6)
        loaded.load_state_dict(made.state_dict())
        made.all_reduce()
    for stats in (made, merged, loaded):
        for batch in data[1:]:
            stats.update(*batch)
        for ours, theirs in zip(results(stats), results(expected), strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_on_a_gpu(dtype: torch.dtype) -> None:
    """The accumulators lie where the first batch lies, and hold the same."""
    on_cpu, on_gpu = FeatureStatistics(4, 6), FeatureStatistics(4, 6)
    for features, labels in batches(dtype):
        on_cpu.update(features, labels)
        on_gpu.update(features.cuda(), labels.cuda())
    assert on_gpu.means.is_cuda
    for ours, theirs in zip(results(on_gpu), results(on_cpu), strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-5, atol=1e-6)
    on_cpu.merge(on_gpu)
    assert torch.equal(on_cpu.counts, 2 * on_gpu.counts.cpu())
