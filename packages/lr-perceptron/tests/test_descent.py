"""The engine's other ways: few rows with weight, the Gram rows, looks every sixteen updates, many problems at once."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from offprints.lr_perceptron import METHODS, SeparationResult, separate, sweep, worst_case_dataset
from offprints.lr_perceptron._descent import Problems, descend, problems, products

STEP_SIZES = [0.1, 1.0, 10.0, 100.0, 1000.0]


def gaussian(n: int = 80, d: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return X, torch.where(X @ torch.randn(d, generator=generator, dtype=torch.float64) > 0, 1.0, -1.0).double()


def apart() -> tuple[Tensor, Tensor]:
    """Samples with a margin: separated before rounding errors have grown, as they do at moderate step sizes."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(400, 6, generator=generator, dtype=torch.float64)
    heights = X @ torch.randn(6, generator=generator, dtype=torch.float64)
    kept = heights.abs().argsort()[-80:]
    return X[kept], torch.where(heights[kept] > 0, 1.0, -1.0).double()


def made(method: str, *, sparse: bool, near: bool = False) -> Problems:
    X, y = gaussian() if near else apart()
    steps = torch.tensor(STEP_SIZES, dtype=torch.float64)
    theta = torch.zeros(len(steps), X.shape[1], dtype=torch.float64)
    return Problems(X, y.expand(len(steps), -1), method, steps, theta, sparse=sparse)


@cache
def one_by_one(method: str) -> list[SeparationResult]:
    X, y = apart()
    return [separate(X, y, method=method, step_size=step_size, max_iter=3000) for step_size in STEP_SIZES]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("check_every", [1, 16])
@pytest.mark.parametrize("sparse", [False, True])
def test_every_way_is_the_same(method: str, check_every: int, sparse: bool) -> None:
    found = descend(made(method, sparse=sparse), 3000, check_every=check_every)
    for place, (step_size, alone) in enumerate(zip(STEP_SIZES, one_by_one(method), strict=True)):
        assert int(found.n_iter[place]) == alone.n_iter
        assert bool(found.separated[place]) == alone.separated
        torch.testing.assert_close(found.theta[place], alone.theta, rtol=1e-8, atol=1e-8 * step_size)


@pytest.mark.parametrize("method", METHODS)
def test_rows_give_the_trajectory_of_full_products(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "CHEAP", 80)  # rows are bought at once
    dense, sparse = made(method, sparse=False, near=True), made(method, sparse=True, near=True)
    for t in range(15):
        dense.update(t)
        sparse.update(t)
        scale = 1 + dense.theta.abs().amax(1, keepdim=True)
        torch.testing.assert_close(sparse.theta / scale, dense.theta / scale, rtol=0, atol=1e-9)
        torch.testing.assert_close(sparse.margins / scale, dense.margins / scale, rtol=0, atol=1e-8)
    assert sparse.products is not None
    if method in ("batch_perceptron", "perceptron"):
        assert sparse.products.count > 0  # the way was taken


def test_large_sets_take_the_rows_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = gaussian(n=300, d=20)
    options = {"step_size": 1e5, "max_iter": 12}
    expected = {method: separate(X, y, method=method, **options).theta for method in METHODS}
    monkeypatch.setattr(problems, "LARGE", 1)
    for method in METHODS:
        found = separate(X, y, method=method, **options).theta
        torch.testing.assert_close(found, expected[method], rtol=0, atol=1e-8 * float(found.abs().max()))


def test_rows_that_do_not_fit_are_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "MEMORY", 3 * 80 * 8)
    limited = made("lr_gd", sparse=True)
    assert limited.products is not None
    found = descend(limited, 3000)
    assert limited.products.count <= 3
    assert torch.equal(found.n_iter, descend(made("lr_gd", sparse=False), 3000).n_iter)


def test_products_are_rows_of_the_gram_matrix() -> None:
    X, _ = gaussian()
    rows = products.Products(X)
    places = rows.places(torch.tensor([5, 7, 5]))
    assert places is not None
    torch.testing.assert_close(rows.rows[places], X[[5, 7, 5]] @ X.T)
    assert rows.places(torch.arange(40)) is None  # too many at once: rented first
    for _ in range(5):
        places = rows.places(torch.arange(40))
    assert places is not None
    torch.testing.assert_close(rows.rows[places], X[:40] @ X.T)
    assert rows.count == 40
    assert len(rows.rows) <= rows.capacity


def test_separation_is_never_the_work_of_rounding_errors() -> None:
    """Margins that sums of updates made positive are computed anew before they count."""
    state = made("lr_gd", sparse=True)
    state.margins = state.margins.abs() + 1
    state.fresh.fill_(False)
    assert state.n_misclassified().tolist() == [80] * len(STEP_SIZES)


def test_sweep() -> None:
    X, y = gaussian()
    integers = sweep(X, y, torch.tensor([1, 10]), max_iter=500)
    assert torch.equal(integers.theta, sweep(X, y, [1.0, 10.0], max_iter=500).theta)
    for sizes in (STEP_SIZES, torch.tensor(STEP_SIZES), tuple(STEP_SIZES)):
        found = sweep(X, y, sizes, max_iter=500)
        assert found.step_sizes.tolist() == pytest.approx(STEP_SIZES)
        alone = [separate(X, y, method="lr_gd", step_size=size, max_iter=500) for size in STEP_SIZES]
        assert found.n_iter.tolist() == [one.n_iter if one.separated else -1 for one in alone]
        assert -1 in found.n_iter.tolist()
        for theta, one in zip(found.theta, alone, strict=True):
            torch.testing.assert_close(theta, one.theta, rtol=1e-8, atol=1e-8)
    equal = sweep(*worst_case_dataset(100), [1.0, 2.0], method="batch_perceptron")
    assert equal.n_iter.tolist() == [31, 31]
    assert equal.theta.shape == (2, 2)
    assert sweep(X, y, [1.0], max_iter=0).n_iter.tolist() == [-1]
    assert sweep(X.bfloat16(), y, [1.0, 1e3], max_iter=20).theta.dtype == torch.bfloat16


@pytest.mark.gpu
def test_accelerator() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    X, y = gaussian()
    for method in METHODS:
        here, there = (sweep(X.to(d), y.to(d), STEP_SIZES, method=method, max_iter=3000) for d in ("cpu", "cuda"))
        assert torch.equal(here.n_iter, there.n_iter.cpu())
        torch.testing.assert_close(there.theta.cpu(), here.theta, rtol=1e-7, atol=1e-7)
