"""Properties of the transfer part."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offprints.pndm import transfer

level = st.floats(1e-5, 1.0)


def pair(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, 3, 5, generator=generator, dtype=torch.float64).to(dtype))  # type: ignore[return-value]


def close(actual: Tensor, expected: Tensor) -> bool:
    return torch.allclose(actual, expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))


@settings(max_examples=30)
@given(level, level)
def test_it_is_ddim_without_noise(a: float, b: float) -> None:
    x, e = pair()
    clean = (x - math.sqrt(1 - a) * e) / math.sqrt(a)
    ddim = math.sqrt(b) * clean + math.sqrt(1 - b) * e
    assert torch.allclose(transfer(x, e, a, b), ddim, rtol=1e-9, atol=1e-9 * float(clean.abs().max()))


@settings(max_examples=30)
@given(level)
def test_no_way_is_no_move(a: float) -> None:
    x, e = pair()
    assert torch.equal(transfer(x, e, a, a), x)


@settings(max_examples=30)
@given(level, level, level)
def test_moves_compose_and_go_back(a: float, m: float, b: float) -> None:
    x, e = pair()
    assert close(transfer(transfer(x, e, a, m), e, m, b), transfer(x, e, a, b)) or max(a, m, b) / min(a, m, b) > 1e4
    there = transfer(x, e, a, b)
    assert torch.allclose(transfer(there, e, b, a), x, rtol=1e-9, atol=1e-8)


@settings(max_examples=30)
@given(level, level, st.floats(-3, 3))
def test_it_is_linear(a: float, b: float, factor: float) -> None:
    (x, e), (y, f) = pair(0), pair(1)
    combined = transfer(x + factor * y, e + factor * f, a, b)
    assert close(combined, transfer(x, e, a, b) + factor * transfer(y, f, a, b))


def test_no_cancellation_for_near_levels() -> None:
    """For a step of 1e-12 in the level the factor of eps is right to 12 digits; the difference of roots has 4."""
    x, e = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    a, width = 0.5, 2.0**-40
    derivative = -1 / (2 * a * math.sqrt(1 - a))
    moved = transfer(x, e, a, a + width).item()
    assert abs(moved / width / derivative - 1) < 1e-11


@settings(max_examples=30)
@given(st.lists(level, min_size=3, max_size=3), level)
def test_one_level_for_each_row(levels: list[float], b: float) -> None:
    x, e = pair()
    rows = torch.cat([transfer(x[i : i + 1], e[i : i + 1], a, b) for i, a in enumerate(levels)])
    assert close(transfer(x, e, torch.tensor(levels, dtype=torch.float64), b), rows)


def test_levels_are_not_rounded_to_float32() -> None:
    x, e = pair()
    a, b = 0.1, 0.7
    assert torch.equal(transfer(x, e, torch.tensor(a, dtype=torch.float64), b), transfer(x, e, a, b))


def test_end_of_the_way() -> None:
    x, e = pair()
    assert torch.equal(transfer(x, e, 1.0, 1.0), x)
    ones = torch.ones(3, dtype=torch.float64)
    assert torch.equal(transfer(x, e, ones, ones), x)
    assert transfer(x, e, 0.5, 1.0).isfinite().all()


def test_types() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        x, e = pair(0, dtype)
        before = x.clone(), e.clone()
        for a in (0.3, torch.full((3,), 0.3)):
            moved = transfer(x, e, a, 0.6)
            assert moved.dtype == dtype
            exact = transfer(x.double(), e.double(), 0.3, 0.6)
            assert torch.allclose(moved.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
        assert torch.equal(x, before[0])
        assert torch.equal(e, before[1])


def test_gradient() -> None:
    x, e = (tensor.requires_grad_() for tensor in pair())
    assert torch.autograd.gradcheck(lambda x, e: transfer(x, e, 0.2, 0.4), (x, e))


@pytest.mark.parametrize("per_row", [False, True])
def test_nan_and_infinity_stay_where_they_are(per_row: bool) -> None:
    """In either argument, along any way; also where there is no way to go."""
    for a, b in ((0.3, 0.6), (0.6, 0.3), (0.5, 1.0), (0.4, 0.4), (1.0, 1.0)):
        levels: Any = (torch.full((3,), a), torch.full((3,), b)) if per_row else (a, b)
        for value in (math.nan, math.inf):
            for which in (0, 1):
                tensors = list(pair())
                clean = transfer(*tensors, *levels)
                tensors[which] = tensors[which].clone()
                tensors[which][1, 2] = value
                out = transfer(*tensors, *levels)
                assert not out[1, 2].isfinite()
                out[1, 2] = clean[1, 2]
                assert torch.equal(out, clean)


def test_levels_of_every_kind() -> None:
    x, e = pair()
    levels = [0.1, 0.4, 0.7]
    expected = transfer(x, e, torch.tensor(levels, dtype=torch.float64), 0.9)
    for kind in (levels, tuple(levels), np.array(levels), np.array(levels, dtype=">f8")):
        assert torch.equal(transfer(x, e, kind, 0.9), expected)
    for scalar in (np.float64(0.1), np.array(0.1), torch.tensor(0.1, dtype=torch.float64)):
        assert torch.equal(transfer(x, e, scalar, 0.9), transfer(x, e, 0.1, 0.9))
    for bad in ([True, False, True], torch.tensor([True]), torch.tensor(0.5j), np.ma.masked_array(levels, [1, 0, 0])):
        with pytest.raises(TypeError, match="alpha_bar_t"):
            transfer(x, e, bad, 0.9)
    with pytest.raises(ValueError, match="alpha_bar_next"):
        transfer(x, e, 0.1, [[0.9]])  # type: ignore[list-item]


def test_every_path_gives_the_same() -> None:
    """torch.compile and vmap, with numbers and with a level for each row."""
    x, e = pair()
    rows = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    for levels in ((0.2, 0.5), (rows, 0.7), (rows, rows)):
        expected = transfer(x, e, *levels)  # type: ignore[arg-type]
        compiled = torch.compile(lambda x, e, levels=levels: transfer(x, e, *levels), backend="eager")  # type: ignore[misc]
        torch.testing.assert_close(compiled(x, e), expected, rtol=1e-12, atol=1e-12)
    mapped = torch.func.vmap(lambda x, e, a: transfer(x[None], e[None], a, 0.7)[0])(x, e, rows)
    torch.testing.assert_close(mapped, transfer(x, e, rows, 0.7), rtol=1e-12, atol=1e-12)
