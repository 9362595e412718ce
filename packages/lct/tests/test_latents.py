"""Latent statistics: normalizer and box plot."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kurtosis
from torch.testing import assert_close

from offprints.lct import LatentNormalizer, impulse_statistics


def latents(n: int = 60, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return (5 * torch.randn(n, 2, 3, 4, generator=g, dtype=torch.float64) + 40).to(dtype)


def fitted(x: torch.Tensor, **options: float) -> LatentNormalizer:
    normalizer = LatentNormalizer(x.shape[1:], **options)
    normalizer.update(x)
    return normalizer


@given(st.integers(0, 1000), st.floats(0.1, 3.0))
def test_round_trip(seed: int, target: float) -> None:
    x = latents(seed=seed)
    normalizer = fitted(x, target_std=target)
    y = normalizer(x)
    assert_close(y.mean(0), torch.zeros(2, 3, 4, dtype=torch.float64), rtol=0, atol=1e-12)
    assert_close(y.std(0), torch.full((2, 3, 4), target, dtype=torch.float64))
    assert_close(normalizer.inverse(y), x)
    assert_close(normalizer.mean, x.mean(0))
    assert_close(normalizer.std, x.std(0))


def test_constant_positions_give_zero() -> None:
    x = latents(dtype=torch.float32)
    x[:, 0, 1] = 0.1
    normalizer = fitted(x)
    y = normalizer(x)
    assert (y[:, 0, 1] == 0).all()
    assert y.isfinite().all()
    assert_close(normalizer.inverse(y), x)
    assert (normalizer.std[0, 1] == normalizer.eps).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_types(dtype: torch.dtype) -> None:
    x = latents(dtype=dtype)
    normalizer = fitted(x).to(dtype)
    assert normalizer.mean.dtype == torch.float64
    assert normalizer(x).dtype == dtype
    assert normalizer.inverse(x).dtype == dtype
    other = LatentNormalizer((2, 3, 4))
    other.load_state_dict(normalizer.state_dict())
    assert torch.equal(other(x), normalizer(x))


def test_scaled_latents_normalize_alike() -> None:
    x = latents()
    assert_close(fitted(x * 0.18215)(x * 0.18215), fitted(x)(x))


@given(st.integers(1, 60), st.integers(0, 1000))
def test_box_plot(n: int, seed: int) -> None:
    x = latents(n, seed)
    found = impulse_statistics(x)
    values = x.numpy().ravel()
    q1, median, q3 = np.quantile(values, [0.25, 0.5, 0.75])
    for name, expected in (("q1", q1), ("median", median), ("q3", q3), ("iqr", q3 - q1)):
        assert found[name] == pytest.approx(expected, rel=1e-12)
    for name, k in (("inner", 1.5), ("outer", 3.0)):
        low, high = q1 - k * (q3 - q1), q3 + k * (q3 - q1)
        assert found[name] == pytest.approx((low, high), rel=1e-9)
        assert found[f"{name}_fraction"] == pytest.approx(((values < low) | (values > high)).mean())
    assert found["excess_kurtosis"] == pytest.approx(kurtosis(values), rel=1e-9, abs=1e-9)
    assert found["max_abs"] == np.abs(values).max()


def test_box_plot_of_impulses_and_of_constants() -> None:
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    calm = impulse_statistics(x)
    x[::100] *= 50
    loud = impulse_statistics(x.half())
    assert calm["outer_fraction"] < 1e-3 < 5e-3 < loud["outer_fraction"] < 0.011
    assert calm["excess_kurtosis"] < 1 < 100 < loud["excess_kurtosis"]
    constant = impulse_statistics(torch.ones(5))
    assert constant["inner_fraction"] == 0
    assert math.isnan(constant["excess_kurtosis"])


def test_per_channel_at_any_resolution() -> None:
    small, large = (3 * torch.randn(40, 2, side, side) + 1 for side in (4, 6))
    normalizer = LatentNormalizer((2, 4, 4), per_channel=True)
    for part in small.split(7):
        normalizer.update(part)
    flat = small.movedim(1, 0).flatten(1).double()
    assert_close(normalizer.mean, flat.mean(1).view(2, 1, 1))
    assert_close(normalizer.std, flat.std(1).view(2, 1, 1))
    expected = (large.double() - flat.mean(1).view(2, 1, 1)) / flat.std(1).view(2, 1, 1) * 0.5
    assert_close(normalizer(large), expected.float())
    assert_close(normalizer.inverse(normalizer(large)), large)
    again = LatentNormalizer((2, 4, 4), per_channel=True)
    again.load_state_dict(normalizer.state_dict())
    assert torch.equal(again(large), normalizer(large))
    for other in (LatentNormalizer((2, 4, 4)), LatentNormalizer((3, 4, 4), per_channel=True)):
        with pytest.raises(ValueError, match="other must"):
            normalizer.merge_(other)
    with pytest.raises(ValueError, match="x must have shape"):
        normalizer(large[:, :1])


@pytest.mark.parametrize("unit", [1e-200, 1e-30, 1.0, 1e30, 1e200])
def test_kurtosis_has_no_unit(unit: float) -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 3
    expected = impulse_statistics(x)["excess_kurtosis"]
    assert impulse_statistics(x * unit)["excess_kurtosis"] == pytest.approx(expected)


def test_squares_beyond_float64_are_refused() -> None:
    normalizer = LatentNormalizer((1,))
    normalizer.update(torch.ones(3, 1))
    with pytest.raises(ValueError, match=r"batch must .* 1e\+200"):
        normalizer.update(torch.tensor([[1e200], [-1e200]], dtype=torch.float64))
    assert float(normalizer.count) == 3


def test_fences_are_not_rounded() -> None:
    x = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.7], dtype=torch.float32)
    q1, q3 = (float(v) for v in x[[1, 3]])
    edge = np.nextafter(np.float32(q3 + 1.5 * (q3 - q1)), np.float32(0))
    for value in (edge, np.nextafter(edge, np.float32(1)), np.nextafter(edge, np.float32(0))):
        x[4] = float(value)
        found = impulse_statistics(x)
        assert found["inner_fraction"] == (0.2 if float(value) > found["inner"][1] else 0.0)
