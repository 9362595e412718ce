"""The coupling is the exact optimum: against POT, against every permutation's properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offprints.lct import ot_couple, ot_permutation


def batches(seed: int, n: int, *shape: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x, noise = (torch.randn(n, *shape, generator=g, dtype=dtype) for _ in range(2))
    return x, noise


def cost(x: torch.Tensor, noise: torch.Tensor) -> float:
    return float((x.double() - noise.double()).square().sum())


@given(st.integers(0, 10_000), st.integers(1, 12))
def test_no_permutation_is_better(seed: int, n: int) -> None:
    x, noise = batches(seed, n, 2, 3)
    permutation = ot_permutation(x, noise)
    assert permutation.dtype == torch.int64
    assert permutation.sort().values.tolist() == list(range(n))
    best = cost(x, noise[permutation])
    g = torch.Generator().manual_seed(seed)
    assert all(best <= cost(x, noise[torch.randperm(n, generator=g)]) + 1e-9 for _ in range(20))


@given(st.integers(0, 10_000))
def test_equivariance(seed: int) -> None:
    x, noise = batches(seed, 9, 4)
    permutation = ot_permutation(x, noise)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(ot_permutation(x[order], noise), permutation[order])
    inverse = order.argsort()
    assert torch.equal(ot_permutation(x, noise[order]), inverse[permutation])


@pytest.mark.parametrize("n", [1, 2, 17, 128])
def test_cost_is_that_of_pot(n: int) -> None:
    import ot

    x, noise = batches(3, n, 4, 4, 4, dtype=torch.float32)
    squares = torch.cdist(x.flatten(1).double(), noise.flatten(1).double()).square().numpy()
    optimum = ot.emd2(np.full(n, 1 / n), np.full(n, 1 / n), squares)
    assert cost(x, ot_couple(x, noise)) / n == pytest.approx(float(optimum), rel=1e-6)


def test_one_dimension_sorts_both() -> None:
    x, noise = batches(0, 40, 1)
    coupled = ot_couple(x, noise)
    assert torch.equal(coupled[x[:, 0].argsort(), 0], noise[:, 0].sort().values)


def test_ties() -> None:
    x = torch.ones(6, 2)
    noise = batches(0, 6, 2, dtype=torch.float32)[1]
    assert ot_permutation(x, noise).sort().values.tolist() == list(range(6))


def test_large_finite_values() -> None:
    x, noise = batches(5, 12, 3, dtype=torch.float32)
    assert torch.equal(ot_permutation(x * 1e30, noise * 1e20), ot_permutation(x.double(), noise.double()))


def test_autocast_does_not_round_the_cost() -> None:
    x, noise = batches(7, 64, 30, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        permutation = ot_permutation(x + 100, noise)
    assert cost(x, noise[permutation]) == pytest.approx(cost(x, noise[ot_permutation(x, noise)]), rel=1e-6)
    assert ot_couple(x.bfloat16(), noise).dtype == torch.float32


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    x, noise = batches(1, 64, 4, 8, 8, dtype=torch.float32)
    permutation = ot_permutation(x.cuda(), noise.cuda())
    assert permutation.is_cuda
    assert torch.equal(permutation.cpu(), ot_permutation(x, noise))


@pytest.mark.parametrize("unit", [1e-40, 1e-25, 1e-10, 1e10])
def test_units_do_not_matter(unit: float) -> None:
    x, noise = batches(3, 16, 5)
    expected = cost(x, ot_couple(x, noise))
    for dtype in (torch.float32, torch.float64):
        permutation = ot_permutation((x * unit).to(dtype), (noise * unit).to(dtype))
        assert cost(x, noise[permutation]) == pytest.approx(expected, rel=1e-4 if unit == 1e-40 else 1e-6)


def test_noise_far_from_zero() -> None:
    x, noise = batches(3, 64, 8, dtype=torch.float32)
    expected = ot_permutation(x, (noise * 256).round())
    assert torch.equal(ot_permutation(x + 1e4, (noise * 256).round() + 1e6), expected)
