"""The scheduler's run: times told by value, begun in the middle, listed by the user; what users read of it."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from offprints.pndm import AlphaSchedule, pndm_sample, transfer
from offprints.pndm.diffusers import PNDMScheduler

METHODS = ["ddim", "s-pndm", "f-pndm", "plms", "fon"]
NOISE = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SCHEDULE = AlphaSchedule.linear(final="first", interpolation="floor")


def network(x: Tensor, t: Tensor | float) -> Tensor:
    return 0.6 * torch.tanh(x) + 0.3 * x.roll(1, -1) + torch.sin(torch.as_tensor(t).double() / 150).reshape(-1, 1)


def loop(scheduler: Any, times: Any = None, x: Tensor = NOISE) -> Tensor:
    for t in scheduler.timesteps if times is None else times:
        x = scheduler.step(network(x, t), t, x).prev_sample
    return x


def ready(n: int = 10, **options: Any) -> PNDMScheduler:
    scheduler = PNDMScheduler(**options)
    scheduler.set_timesteps(n)
    return scheduler


# ---- times by value (P4, P6, P7) -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [1, -1, 7])
def test_shifted_times_are_refused(shift: int) -> None:
    scheduler = ready(method="plms")
    scheduler.timesteps += shift
    with pytest.raises(ValueError, match="timestep must be"):
        loop(scheduler)
    scheduler = ready(method="plms")
    x = loop(scheduler, scheduler.timesteps[:3])
    scheduler.timesteps.add_(shift)
    with pytest.raises(ValueError, match="timestep must be 700"):
        loop(scheduler, scheduler.timesteps[3:], x)
    replaced = ready(method="ddim")
    replaced.timesteps = replaced.timesteps[4:]  # a shorter list is a later beginning
    assert torch.equal(loop(replaced), loop(ready(method="ddim"), [500, 400, 300, 200, 100, 0]))


@pytest.mark.parametrize("method", METHODS)
def test_a_run_by_numbers_is_the_run_by_elements(method: str) -> None:
    scheduler = ready(method=method)
    expected = loop(scheduler)
    for kind in (int, float, np.int64, np.float32, torch.tensor, lambda t: torch.tensor([float(t)])):
        scheduler.set_timesteps(10)
        assert torch.equal(loop(scheduler, [kind(t) for t in scheduler.timesteps.tolist()]), expected)


@pytest.mark.parametrize("method", ["s-pndm", "plms"])
def test_begun_at_the_second_of_two_equal_times(method: str) -> None:
    """By value: the run that begins with the one-call step at 800."""
    scheduler = ready(method=method)
    numbers = scheduler.timesteps.tolist()
    assert numbers[1] == numbers[2] == 800
    actual = loop(scheduler, numbers[2:])
    told = ready(method=method)
    told.set_begin_index(2)
    assert torch.equal(actual, loop(told, numbers[2:]))
    elements = ready(method=method)
    assert torch.equal(actual, loop(elements, elements.timesteps[2:]))


def test_the_other_of_two_equal_times_is_out_of_turn() -> None:
    """Told by the element of `timesteps` that it is; by value it could be either."""
    scheduler = ready(method="plms")
    times = scheduler.timesteps
    x = scheduler.step(network(NOISE, times[0]), times[0], NOISE).prev_sample
    with pytest.raises(ValueError, match="entry 2 of timesteps"):
        scheduler.step(network(x, times[2]), times[2], x)
    assert scheduler.step(network(x, times[1]), times[1], x).prev_sample.isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_every_beginning_by_number_is_right_or_refused(method: str) -> None:
    eps = NOISE.flip(0)
    numbers = ready(method=method).timesteps.tolist()

    def run(begin: int) -> None:
        scheduler, x, times, samples = ready(method=method), NOISE, numbers[begin:], []
        for t in times:
            x = scheduler.step(eps, t, x).prev_sample
            samples.append(x)
        for sample, following in zip(samples, [*times[1:], -1], strict=True):
            levels = SCHEDULE.alpha_bar(torch.tensor([times[0], following])).tolist()
            assert method == "fon" or torch.allclose(sample, transfer(NOISE, eps, *levels))

    for begin, number in enumerate(numbers):
        if begin == len(numbers) - 1 or number in numbers[begin + 1 :]:  # it could be another one
            with pytest.raises(ValueError, match="set_begin_index"):
                run(begin)
        else:
            run(begin)


def test_fon_begun_inside_of_a_step_moves_along_the_prediction() -> None:
    """What is left of a step of several calls only leads to where the next one is asked."""
    scheduler, eps = ready(method="fon"), NOISE.flip(0)
    assert scheduler.timesteps[:4].tolist() == [900, 850, 850, 800]
    scheduler.set_begin_index(2)
    levels = SCHEDULE.alpha_bar(torch.tensor([850, 800])).tolist()
    torch.testing.assert_close(scheduler.step(eps, 850, NOISE).prev_sample, transfer(NOISE, eps, *levels))


@pytest.mark.parametrize("offset", [0, 1])
def test_indices_of_a_loop_are_no_times(offset: int) -> None:
    for index in (offset, np.int64(offset), float(offset), torch.tensor(offset)):
        scheduler = ready(method="plms", steps_offset=offset)
        with pytest.raises(ValueError, match="index of a loop"):
            scheduler.step(NOISE, index, NOISE)
    told = ready(method="plms", steps_offset=offset)
    told.set_begin_index(10)  # there is a way to mean it
    levels = SCHEDULE.alpha_bar(torch.tensor([offset, -1])).tolist()
    torch.testing.assert_close(told.step(NOISE, offset, NOISE).prev_sample, transfer(NOISE, NOISE, *levels))
    one = ready(1, method="ddim")  # a run of one call begins at its first time, which is also the last
    assert torch.equal(one.step(NOISE, 0, NOISE).prev_sample, NOISE)


def test_bad_times() -> None:
    for bad in (None, "900", True, torch.tensor(True), torch.tensor([900, 800]), [900]):
        with pytest.raises(TypeError, match="timestep"):
            ready().step(NOISE, bad, NOISE)  # type: ignore[arg-type]
    for bad in (float("nan"), 900.5, torch.tensor(float("nan")), -1):
        with pytest.raises(ValueError, match="timestep"):
            ready().step(NOISE, bad, NOISE)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.float32, torch.float64, torch.bfloat16])
def test_add_noise_at_times_of_any_type(dtype: torch.dtype) -> None:
    scheduler, clean = PNDMScheduler(), NOISE.flip(0)
    times = torch.tensor([1, 0, 200])
    expected = scheduler.add_noise(clean, NOISE, times)
    assert torch.equal(scheduler.add_noise(clean, NOISE, times.to(dtype)), expected)
    assert torch.equal(scheduler.add_noise(clean, NOISE, times.numpy()), expected)  # type: ignore[arg-type]
    assert torch.equal(scheduler.add_noise(clean, NOISE, times.tolist()), expected)  # type: ignore[arg-type]
    for bad, kind in (
        (torch.tensor([0.5, 1, 2]), ValueError),
        (torch.tensor([torch.nan, 1, 2]), ValueError),
        (torch.tensor([0, 1, 1000]), ValueError),
        (torch.tensor([True, False, True]), TypeError),
        (None, TypeError),
    ):
        with pytest.raises(kind, match="timesteps"):
            scheduler.add_noise(clean, NOISE, bad)  # type: ignore[arg-type]


# ---- image-to-image begins at the level of the picture (P5) ----------------------------------------------------------


@pytest.mark.parametrize("method", ["ddim", "s-pndm", "f-pndm", "plms", "foreign"])
@pytest.mark.parametrize("strength", [0.5, 0.8, 1.0])
def test_image_to_image_asks_at_the_level_of_the_sample(method: str, strength: float) -> None:
    """The pipeline's loop with an exact model of one picture: the sample stays on its line of noise at every call."""
    if method == "foreign":
        scheduler = PNDMScheduler.from_config(diffusers.DDIMScheduler(steps_offset=1).config)
        assert scheduler.config.method == "plms"
    else:
        scheduler = PNDMScheduler(method=method, steps_offset=1)  # type: ignore[arg-type]
    scheduler.set_timesteps(10)
    begin = 10 - int(10 * strength)
    times = scheduler.timesteps[begin:]
    if method == "foreign" and strength == 0.5:
        assert times[0] == 501
    scheduler.set_begin_index(begin)
    picture, eps = NOISE.flip(0), NOISE
    x = scheduler.add_noise(picture, eps, times[:1])
    for t in times:
        a = float(SCHEDULE.alpha_bar(float(t)))
        torch.testing.assert_close(x, a**0.5 * picture + (1 - a) ** 0.5 * eps, rtol=1e-5, atol=1e-5)
        x = scheduler.step(eps, t, x).prev_sample
    a = float(SCHEDULE.alpha_bar(-1.0))
    torch.testing.assert_close(x, a**0.5 * picture + (1 - a) ** 0.5 * eps, rtol=1e-5, atol=1e-5)


# ---- times of the user's own, and the next listed one ----------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:times are not equally spaced")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("times", [[900, 600, 300, 100, 0], [999, 998, 700, 400, 50, 3], [500]])
def test_own_times(method: Any, times: list[int]) -> None:
    scheduler = PNDMScheduler(method=method)
    scheduler.set_timesteps(timesteps=times)
    assert scheduler.num_inference_steps == len(times)
    assert scheduler.timesteps[0] == times[0]
    assert sorted(set(times) - set(scheduler.timesteps.tolist())) == []

    def floor(x: Tensor, t: Tensor) -> Tensor:
        return network(x, t.floor().clamp(min=0))

    if method in ("ddim", "s-pndm", "plms"):
        expected = pndm_sample(floor, NOISE, schedule=SCHEDULE, times=[*times, -1], method=method)
        assert torch.equal(loop(scheduler), expected)
    assert loop(ready(5, method=method)).isfinite().all()  # a spaced run after it
    for kind in (np.array, torch.tensor, tuple):
        again = PNDMScheduler(method=method)
        again.set_timesteps(timesteps=kind(times))
        assert torch.equal(again.timesteps, scheduler.timesteps)


def test_bad_own_times() -> None:
    for bad in ([], [0, 500], [500, 500], [1000, 0], [500, -1], [500.5, 0], [[500, 0]]):
        with pytest.raises(ValueError, match="timesteps"):
            PNDMScheduler().set_timesteps(timesteps=bad)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="timesteps"):
        PNDMScheduler().set_timesteps(timesteps="late")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="timesteps"):
        PNDMScheduler().set_timesteps(5, timesteps=[500, 0])
    with pytest.raises(TypeError, match="num_inference_steps"):
        PNDMScheduler().set_timesteps()


@pytest.mark.filterwarnings("ignore:times are not equally spaced")
@pytest.mark.parametrize("spacing", ["linspace", "trailing", "leading"])
@pytest.mark.parametrize("method", ["ddim", "s-pndm", "plms"])
def test_to_the_next_listed_time(spacing: Any, method: Any) -> None:
    """n = 13 does not divide 1000: by the ratio the sample and the network drift apart, by the list they do not."""
    scheduler = PNDMScheduler(method=method, timestep_spacing=spacing, step_to="listed")
    scheduler.set_timesteps(13)
    times = sorted(set(scheduler.timesteps.tolist()), reverse=True)
    assert len(times) == 13
    expected = pndm_sample(network, NOISE, schedule=SCHEDULE, times=[*times, -1], method=method)
    assert torch.equal(loop(scheduler), expected)
    constant = PNDMScheduler(method=method, timestep_spacing=spacing, step_to="listed")
    constant.set_timesteps(13)
    x, eps = NOISE, NOISE.flip(0)
    for t in constant.timesteps:
        x = constant.step(eps, t, x).prev_sample
    levels = SCHEDULE.alpha_bar(torch.tensor([times[0], -1])).tolist()
    torch.testing.assert_close(x, transfer(NOISE, eps, *levels))


# ---- what is read of a scheduler, and what is done to its tensors ----------------------------------------------------


@pytest.mark.parametrize("skip", [True, False])
def test_attributes_as_in_diffusers(skip: bool) -> None:
    theirs = diffusers.PNDMScheduler(skip_prk_steps=skip)
    ours = PNDMScheduler.from_config(theirs.config)
    torch.testing.assert_close(ours.alphas, theirs.alphas)
    torch.testing.assert_close(ours.final_alpha_cumprod, theirs.final_alpha_cumprod)
    assert ours.pndm_order == theirs.pndm_order
    assert PNDMScheduler(set_alpha_to_one=True).final_alpha_cumprod == 1
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(10)
    assert ours.prk_timesteps.tolist() == theirs.prk_timesteps.tolist()
    assert ours.plms_timesteps.tolist() == theirs.plms_timesteps.tolist()
    x = y = NOISE
    for t in ours.timesteps[:-1]:
        x = ours.step(network(x, t), t, x).prev_sample
        y = theirs.step(network(y, t), t, y).prev_sample
        assert ours.counter == theirs.counter
        if len(ours.ets) == 3:
            for mine, other in zip(ours.ets, theirs.ets[-3:], strict=True):
                torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_a_buffer_for_the_sample(method: str) -> None:
    """The caller keeps the sample in one tensor: the start of a step of several calls is not lost."""
    scheduler = ready(method=method)
    expected = loop(scheduler)
    scheduler.set_timesteps(10)
    x = NOISE.clone()
    for t in scheduler.timesteps:
        x.copy_(scheduler.step(network(x, t), t, x).prev_sample)
    assert torch.equal(x, expected)


@pytest.mark.parametrize("method", ["s-pndm", "plms", "f-pndm"])
def test_an_output_that_is_changed_later_is_refused(method: str) -> None:
    scheduler, buffer, x = ready(method=method), torch.empty_like(NOISE), NOISE
    with pytest.raises(ValueError, match="output of the model"):
        for t in scheduler.timesteps:
            buffer.copy_(network(x, t))
            x = scheduler.step(buffer, t, x).prev_sample
    # Rows of one tensor are changed beside each other.
    scheduler, x = ready(method=method), NOISE
    rows = torch.empty(len(scheduler.timesteps), *NOISE.shape, dtype=NOISE.dtype)
    for row, t in zip(rows, scheduler.timesteps, strict=True):
        row.copy_(network(x, t))
        x = scheduler.step(row, t, x).prev_sample
    assert torch.equal(x, loop(ready(method=method)))


def test_inference_mode() -> None:
    expected = loop(ready(method="plms"))
    with torch.inference_mode():
        assert torch.equal(loop(ready(method="plms")), expected)
    scheduler = ready(method="plms")
    with torch.inference_mode():
        assert torch.equal(loop(scheduler), expected)


def test_switches_and_devices() -> None:
    for bad in ("no", 0, None, torch.tensor([])):
        with pytest.raises(TypeError, match="return_dict"):
            ready().step(NOISE, 900, NOISE, return_dict=bad)  # type: ignore[arg-type]
    for device in ("quantum", "cuda:99"):
        with pytest.raises(ValueError, match="device"):
            PNDMScheduler().set_timesteps(5, device=device)
    everything = PNDMScheduler(
        1000,
        1e-4,
        0.02,
        "linear",
        None,
        "plms",
        "epsilon",
        False,
        "leading",
        0,
        skip_prk_steps=True,
        rescale_betas_zero_snr=False,
        step_to="ratio",
    )  # no default is left
    assert torch.equal(loop(ready(5, method="plms")), (everything.set_timesteps(5), loop(everything))[1])
    with pytest.raises(TypeError, match="model_output"):
        ready().step(None, 900, NOISE)  # type: ignore[arg-type]
