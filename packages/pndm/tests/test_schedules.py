"""Levels by time in the three conventions, and the grid of times."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offprints.pndm import AlphaSchedule, inference_times

BETAS = [0.1, 0.2, 0.3, 0.4]
TABLE = [0.9, 0.72, 0.504, 0.3024]


def levels(schedule: AlphaSchedule, *times: float) -> list[float]:
    return schedule.alpha_bar(torch.tensor(times, dtype=torch.float64)).tolist()


def test_ours() -> None:
    schedule = AlphaSchedule.from_betas(BETAS)
    assert levels(schedule, -1, 0, 1, 3) == pytest.approx([1, *TABLE[:2], TABLE[3]])
    assert levels(schedule, 0.5, 2.25) == pytest.approx([math.sqrt(0.9 * 0.72), 0.504**0.75 * 0.3024**0.25])
    assert schedule.num_train_timesteps == 4


def test_official() -> None:
    schedule = AlphaSchedule.from_betas(BETAS, offset=1, interpolation="floor")
    assert levels(schedule, -1, 0, 1, 2) == pytest.approx(TABLE)
    assert levels(schedule, -0.5, 0.5, 1.5) == pytest.approx([TABLE[1], TABLE[1], TABLE[2]])  # truncated toward zero


@pytest.mark.parametrize(("final", "level"), [("one", 1.0), ("first", 0.9)])
def test_diffusers(final: str, level: float) -> None:
    schedule = AlphaSchedule(TABLE, final=final, interpolation="floor")  # type: ignore[arg-type]
    assert levels(schedule, -20, -1, 0, 3) == pytest.approx([level, level, 0.9, 0.3024])


def test_shapes_types_and_sources() -> None:
    schedule = AlphaSchedule(TABLE)
    assert schedule.alpha_bar(2).shape == ()
    assert schedule.alpha_bar(2).dtype == torch.float64
    assert schedule.alpha_bar(torch.tensor([[1, 2]])).shape == (1, 2)
    for source in (np.array(TABLE), torch.tensor(TABLE, dtype=torch.float64), tuple(TABLE)):
        assert torch.equal(AlphaSchedule(source).alpha_bar(torch.arange(4)), schedule.alpha_bar(torch.arange(4)))
    # Python's numbers do not pass through float32.
    assert AlphaSchedule([0.1]).alpha_bar(0.0).item() == 0.1
    half = AlphaSchedule(torch.tensor([0.75, 0.5], dtype=torch.float16))
    assert levels(half, 0, 1) == [0.75, 0.5]


def test_the_table_is_a_copy() -> None:
    table = torch.tensor(TABLE, dtype=torch.float64)
    schedule = AlphaSchedule(table)
    table.zero_()
    assert schedule.alpha_bar(0).item() == 0.9


@settings(max_examples=30)
@given(st.floats(-0.999, 998.9))
def test_log_interpolation_lies_between_its_neighbors(t: float) -> None:
    schedule = AlphaSchedule.linear(offset=1 if t < 0 else 0)
    left, here, right = levels(schedule, math.floor(t), t, math.floor(t) + 1)
    assert right <= here <= left
    share = t - math.floor(t)
    assert math.log(here) == pytest.approx((1 - share) * math.log(left) + share * math.log(right), rel=1e-9)


def test_the_square_root_falls_linearly_to_zero_terminal_snr() -> None:
    schedule = AlphaSchedule.linear(rescale_zero_snr=True)
    last = schedule.alpha_bar(998).item()
    assert last > 0
    assert levels(schedule, 998.25, 998.5, 999) == pytest.approx([last * 0.75**2, last * 0.5**2, 0], abs=1e-15)


@settings(max_examples=30)
@given(st.floats(1e-4, 1.0), st.sampled_from([(0.1, 20.0), (3.0, 3.0), (5.0, 0.5)]))
def test_continuous(t: float, rates: tuple[float, float]) -> None:
    schedule = AlphaSchedule.continuous_linear(beta_0=rates[0], beta_1=rates[1])
    level = schedule.alpha_bar(t)
    times = np.linspace(0, t, 2001)
    integral = np.trapezoid(rates[0] + times * (rates[1] - rates[0]), times)
    assert level.item() == pytest.approx(math.exp(-integral), rel=1e-9)
    assert schedule._time_of(level).item() == pytest.approx(t, rel=1e-9)
    assert levels(schedule, -0.3, 0) == [1, 1]
    assert schedule.num_train_timesteps == 0


def test_linear_is_the_continuous_one_discretized() -> None:
    table, exact = AlphaSchedule.linear(), AlphaSchedule.continuous_linear()
    for t in (300, 999):
        discrete = math.log(table.alpha_bar(t).item())
        assert discrete == pytest.approx(math.log(exact.alpha_bar((t + 1) / 1000).item()), rel=0.02)


def test_times_of_levels() -> None:
    schedule = AlphaSchedule.cosine(offset=1)
    times = torch.tensor([-0.75, 3.0, 400.25, 998.0], dtype=torch.float64)
    torch.testing.assert_close(schedule._time_of(schedule.alpha_bar(times)), times, rtol=1e-9, atol=1e-9)
    above = torch.tensor([0.99999999], dtype=torch.float64)
    assert AlphaSchedule.linear()._time_of(above).tolist() == [0]


@pytest.mark.parametrize("n", [1, 3, 30, 50, 999, 1000])
def test_inference_times(n: int) -> None:
    times = inference_times(n)
    assert times.dtype == torch.float64
    ratio = 1000 // n
    assert times.tolist() == [float(ratio * i) for i in reversed(range(n))] + [-1.0]
