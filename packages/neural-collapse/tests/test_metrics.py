"""The metrics: values, invariances, what is 0/0, and both ways to them."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offprints.neural_collapse import (
    FeatureStatistics,
    NCMetrics,
    gof_solution,
    nc_metrics,
    nc_metrics_from_statistics,
    reference,
    simplex_etf,
)
from offprints.neural_collapse.frames import orthonormal

TARGET = gof_solution([12, 9, 7, 4], weight_decay=[5e-3, 5e-3], feature_decay=5e-3)
GEOMETRIES = ("etf", "of", "gof")


def problem(seed: int = 0, d: int = 10, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(4).repeat_interleave(torch.tensor([12, 9, 7, 4]))
    labels = labels[torch.randperm(32, generator=generator)]
    centers = torch.randn(4, d, generator=generator, dtype=torch.float64)
    features = 2 * centers[labels] + torch.randn(32, d, generator=generator, dtype=torch.float64)
    return features.to(dtype), labels, torch.randn(4, d, generator=generator, dtype=torch.float64).to(dtype)


def values(metrics: NCMetrics) -> Tensor:
    return torch.tensor(list(vars(metrics).values()), dtype=torch.float64)


def both(features: Tensor, labels: Tensor, weight: Tensor, geometry: str) -> tuple[Tensor, Tensor]:
    stats = FeatureStatistics(len(weight), features.shape[1])
    for rows, its in zip(features.split(5), labels.split(5), strict=True):
        stats.update(rows, its)
    at_once = nc_metrics(features, labels, weight, geometry=geometry, target=TARGET)
    streamed = nc_metrics_from_statistics(stats, weight, geometry=geometry, target=TARGET)
    return values(at_once), values(streamed)


@pytest.mark.parametrize("d", [1, 2, 3, 4, 10, 40])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_both_ways_agree(d: int, geometry: str) -> None:
    """Also where there are fewer dimensions than classes, and fewer samples than dimensions."""
    features, labels, weight = problem(d=d)
    at_once, streamed = both(features, labels, weight, geometry)
    torch.testing.assert_close(streamed, at_once, rtol=1e-9, atol=1e-13)
    if geometry != "gof":
        plain = reference.metrics(features, labels, weight, geometry)
        torch.testing.assert_close(
            at_once, torch.tensor(list(plain.values()), dtype=torch.float64), rtol=1e-8, atol=1e-12
        )


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from(GEOMETRIES), st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_rotation_and_scale_change_nothing(seed: int, geometry: str, of_features: float, of_weight: float) -> None:
    features, labels, weight = problem(seed)
    expected = values(nc_metrics(features, labels, weight, geometry=geometry, target=TARGET))
    R = orthonormal(10, 10, torch.Generator().manual_seed(seed))
    moved = (of_features * features @ R, labels, of_weight * weight @ R)
    torch.testing.assert_close(
        values(nc_metrics(*moved, geometry=geometry, target=TARGET)), expected, rtol=1e-8, atol=1e-12
    )


@pytest.mark.parametrize("geometry", ["etf", "of"])
def test_order_of_classes_and_samples_changes_nothing(geometry: str) -> None:
    features, labels, weight = problem()
    expected = values(nc_metrics(features, labels, weight, geometry=geometry))
    order = torch.tensor([2, 0, 3, 1])  # the new class of each old one
    samples = torch.randperm(32, generator=torch.Generator().manual_seed(1))
    renamed = nc_metrics(features[samples], order[labels][samples], weight[order.argsort()], geometry=geometry)
    torch.testing.assert_close(values(renamed), expected, rtol=1e-10, atol=1e-14)


def test_a_common_shift_changes_nothing_of_the_centered_geometry() -> None:
    features, labels, weight = problem()
    expected = values(nc_metrics(features, labels, weight))
    for shift in (1e3, 1e6):
        for ours in both(features + shift, labels, weight, "etf"):
            torch.testing.assert_close(ours, expected, rtol=1e-13 * shift**1.2, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_types_of_the_features(dtype: torch.dtype) -> None:
    """In memory all is computed in float64; streamed products of float32 features are rounded."""
    features, labels, weight = problem(dtype=dtype)
    expected = values(nc_metrics(features.double(), labels, weight.double()))
    at_once, streamed = both(features, labels, weight, "etf")
    assert torch.equal(at_once, expected)
    torch.testing.assert_close(streamed, expected, rtol=2e-6, atol=1e-12)
    torch.testing.assert_close(values(nc_metrics(features, labels.int(), weight)), expected)


def test_collapse_in_float32_is_seen_to_the_last_digit() -> None:
    """Far classes, tiny variability: nothing is lost to the distance of the classes or of the origin."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(200)
    centers = 100 * torch.randn(3, 16, generator=generator)
    for size in (1e-2, 1e-4):
        features = (centers[labels] + size * torch.randn(600, 16, generator=generator)).float()
        weight = torch.randn(3, 16, generator=generator)
        expected = reference.metrics(features.double(), labels, weight.double())["nc1"]
        assert expected < 1e-6
        for ours in both_nc1(features, labels, weight):
            assert ours == pytest.approx(expected, rel=1e-5)


def both_nc1(features: Tensor, labels: Tensor, weight: Tensor) -> tuple[float, float]:
    stats = FeatureStatistics(len(weight), features.shape[1])
    for rows, its in zip(features.split(50), labels.split(50), strict=True):
        stats.update(rows, its)
    return nc_metrics(features, labels, weight).nc1, nc_metrics_from_statistics(stats, weight).nc1


def test_values_of_perfect_collapse_and_of_none() -> None:
    E = simplex_etf(4, 6)
    labels = torch.arange(4).repeat(3)
    collapsed = nc_metrics(3 * E[labels] + 5, labels, 0.1 * E)
    assert max(vars(collapsed).values()) < 1e-12
    # The opposite classifier: everything but the alignment is collapsed.
    opposite = nc_metrics(E[labels], labels, -E)
    assert (opposite.nc2_w, opposite.nc2_h) == pytest.approx((0, 0), abs=1e-12)
    assert (opposite.nc3_wh, opposite.nc3_w_h) == pytest.approx((2, 2))
    # Two classes on a line, mean 0 and 2, variance 1 each: Sigma_B = 1, and NC1 = 1 / 2.
    features = torch.tensor([[-1.0], [1.0], [1.0], [3.0]])
    assert nc_metrics(features, torch.tensor([0, 0, 1, 1]), torch.tensor([[1.0], [-1.0]])).nc1 == pytest.approx(0.5)


def test_what_is_zero_by_zero() -> None:
    features, labels, weight = problem()
    with pytest.warns(RuntimeWarning, match="nc2_w, nc3_wh, nc3_w_h"):
        found = nc_metrics(features, labels, 0 * weight)
    assert math.isfinite(found.nc1)
    assert math.isfinite(found.nc2_h)
    assert all(math.isnan(value) for value in (found.nc2_w, found.nc3_wh, found.nc3_w_h))
    # All class means coincide: pinv(0) = 0 would give a perfect NC1. Also with a large common mean in float32.
    for shift in (0.0, 1.0, 1234.5678):
        same = torch.cat([features.float()[:8] + shift] * 4)
        its = torch.arange(4).repeat_interleave(8)
        with pytest.warns(RuntimeWarning, match="nc1"):
            found = nc_metrics(same, its, weight.float())
        assert math.isnan(found.nc1)
        assert math.isnan(found.nc2_h)
        assert math.isfinite(found.nc2_w)
    with pytest.warns(RuntimeWarning, match="nc2_h"):
        found = nc_metrics(torch.cat([features[:8], -features[:8]] * 4), torch.arange(4).repeat_interleave(16), weight)
    assert math.isnan(found.nc1)
    # They coincide up to rounding: the same rows, summed in another order.
    rows, its = features[:7] ** 5, torch.arange(4).repeat_interleave(7)
    rolled = torch.cat([rows.roll(k, 0) for k in range(4)])
    with pytest.warns(RuntimeWarning, match="nc1") as told:
        found = nc_metrics(rolled, its, weight)
    assert told[0].filename == __file__
    assert math.isnan(found.nc1)
    assert math.isnan(found.nc2_h)
    # A target whose classes have all collapsed.
    nothing = gof_solution([4, 4, 4, 4], weight_decay=[0.5, 0.5], feature_decay=0.5)
    with pytest.warns(RuntimeWarning, match="target"):
        found = nc_metrics(features, labels, weight, geometry="gof", target=nothing)
    assert all(math.isnan(value) for value in (found.nc2_w, found.nc2_h, found.nc3_wh, found.nc3_w_h))


def test_inputs_are_left_alone_and_may_be_strided_or_read_only() -> None:
    features, labels, weight = problem()
    expected = values(nc_metrics(features, labels, weight))
    before = [x.clone() for x in (features, labels, weight)]
    wide = torch.stack([features, features], -1)[..., 0]
    assert not wide.is_contiguous()
    leaf = features.clone().requires_grad_()
    with torch.inference_mode():
        inference = features + 0
    for kind in (wide, leaf, inference, features.T.contiguous().T):
        torch.testing.assert_close(values(nc_metrics(kind, labels, weight)), expected, rtol=1e-12, atol=0)
        stats = FeatureStatistics(4, 10)
        stats.update(kind, labels)
        assert not stats.means.requires_grad
    array = features.numpy()
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of what is read-only
        read_only = torch.from_numpy(array)
    torch.testing.assert_close(values(nc_metrics(read_only, labels, weight)), expected, rtol=1e-12, atol=0)
    for x, y in zip(before, (features, labels, weight), strict=True):
        assert torch.equal(x, y)


def test_collapsed_target_scales() -> None:
    """The row of a collapsed class has the scale N lambda_H: its mean is 0 at the minimum and counts elsewhere."""
    counts, decay = [200, 100, 3], 5e-3
    target = gof_solution(counts, weight_decay=[decay] * 2, feature_decay=decay)
    assert target.collapsed.tolist() == [False, False, True]
    features, labels = torch.eye(3, dtype=torch.float64).repeat(4, 1), torch.arange(3).repeat(4)
    scales = torch.where(target.collapsed, 303 * decay, target.ww + 303 * decay)
    found = nc_metrics(features, labels, scales.diag(), geometry="gof", target=target)
    assert found.nc3_w_h < 1e-12


@pytest.mark.parametrize("scale", [1e-160, 1e160])
def test_features_of_any_size(scale: float) -> None:
    features, labels, weight = problem()
    expected = vars(nc_metrics(features.double(), labels, weight))
    assert vars(nc_metrics(features.double() * scale, labels, weight)) == pytest.approx(expected, rel=1e-9)
