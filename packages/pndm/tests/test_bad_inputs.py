"""Every bad input gets an error that names the argument."""

from __future__ import annotations

import math
from typing import Any

import torch

from offprints.pndm import (
    AlphaSchedule,
    GaussianMixtureEps,
    adams_bashforth,
    inference_times,
    num_model_calls,
    pndm_sample,
    transfer,
)
from offprints.pndm.diffusers import PNDMScheduler
from offprints.shared.testing import check_errors

LINEAR, SDE = AlphaSchedule.linear(), AlphaSchedule.continuous_linear()
NOISE = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))


def run(noise: Any = NOISE, model: Any = lambda x, t: x, **options: Any) -> Any:
    return lambda: pndm_sample(model, noise, **({"schedule": LINEAR, "num_steps": 5} | options))


def spoiled(value: float) -> torch.Tensor:
    noise = NOISE.clone()
    noise[1, 2, 3] = value
    return noise


def test_sampler() -> None:
    check_errors(
        [
            (run(method="pndm"), ValueError, "method"),
            (run(prediction_type="score"), ValueError, "prediction_type"),
            (run(num_steps=0), ValueError, "num_steps"),
            (run(num_steps=1001), ValueError, "num_steps"),
            (run(num_steps=5.0), TypeError, "num_steps"),
            (run(times=[500]), ValueError, "times"),
            (run(times=[500, 500, 0]), ValueError, "times"),
            (run(times=[0, 500]), ValueError, "times"),
            (run(times=[1000, 0]), ValueError, "times"),
            (run(times=[math.nan, 0]), ValueError, "times"),
            (run(times=[[500, 0]]), ValueError, "times"),
            (run(times="late"), TypeError, "times"),
            (run(num_steps=1000, schedule=AlphaSchedule.linear(offset=1)), ValueError, "times"),
            (run(schedule=SDE), ValueError, "times"),
            (run(schedule=SDE, times=[1.5, 0]), ValueError, "times"),
            (run(schedule=SDE, times=[1, 0], method="fon"), ValueError, "fon"),
            (run(schedule=torch.ones(3)), TypeError, "schedule"),
            (
                run(schedule=AlphaSchedule.linear(interpolation="floor"), method="f-pndm-sigma"),
                ValueError,
                "interpolation",
            ),
            (run(NOISE.long()), TypeError, "noise"),
            (run(NOISE[:0]), ValueError, "noise"),
            (run(NOISE[0, 0]), ValueError, "noise"),
            (run(spoiled(math.nan)), ValueError, "noise"),
            (run(spoiled(math.inf)), ValueError, "noise"),
            (run(None), TypeError, "noise"),
            (run(model="unet"), TypeError, "model"),
            (run(model_kwargs=[1]), TypeError, "model_kwargs"),
            *((run(**{name: "no"}), TypeError, name) for name in ("return_trajectory", "validate", "differentiable")),
            (run(model=lambda x, t: x[:1]), ValueError, "model"),
            (run(model=lambda x, t: torch.cat([x, x], 1)), ValueError, "learned variance"),
            (run(model=lambda x, t: (x,)), TypeError, "model"),
            (run(model=lambda x, t: x.long()), TypeError, "model"),
            # asked at the final target, where the level is 1
            *((run(num_steps=n, prediction_type="sample"), ValueError, "alpha_bar 1") for n in (1, 2, 3)),
            (run(num_steps=1, prediction_type="sample", method="s-pndm"), ValueError, "alpha_bar 1"),
            (run(num_steps=1, prediction_type="sample", method="plms"), ValueError, "alpha_bar 1"),
        ]
    )
    run(num_steps=3, prediction_type="sample", schedule=AlphaSchedule.linear(final="first"))()


def test_schedules() -> None:
    table = [0.9, 0.5, 0.1]
    check_errors(
        [
            (lambda: AlphaSchedule(table, final="zero"), ValueError, "final"),  # type: ignore[arg-type]
            (lambda: AlphaSchedule(table, interpolation="cubic"), ValueError, "interpolation"),  # type: ignore[arg-type]
            (lambda: AlphaSchedule(table, offset=-1), ValueError, "offset"),
            (lambda: AlphaSchedule(table, offset=0.5), TypeError, "offset"),  # type: ignore[arg-type]
            (lambda: AlphaSchedule([table]), ValueError, "alphas_cumprod"),  # type: ignore[list-item]
            (lambda: AlphaSchedule([]), ValueError, "alphas_cumprod"),
            (lambda: AlphaSchedule([[1], [1, 2]]), TypeError, "alphas_cumprod"),  # type: ignore[list-item]
            (lambda: AlphaSchedule([0.9, 0.9]), ValueError, "alphas_cumprod"),
            (lambda: AlphaSchedule([0.1, 0.9]), ValueError, "alphas_cumprod"),
            (lambda: AlphaSchedule([1.1, 0.9]), ValueError, "alphas_cumprod"),
            (lambda: AlphaSchedule([0.9, 0.0]), ValueError, "alphas_cumprod"),
            (lambda: AlphaSchedule([0.9, math.nan]), ValueError, "alphas_cumprod"),
            (lambda: AlphaSchedule("linear"), TypeError, "alphas_cumprod"),
            (lambda: AlphaSchedule.from_betas([0.1, 1.0]), ValueError, "betas"),
            (lambda: AlphaSchedule.from_betas([0.0, 0.1]), ValueError, "betas"),
            (lambda: AlphaSchedule.linear(0), ValueError, "num_train_timesteps"),
            (lambda: AlphaSchedule.linear(beta_end=1.0), ValueError, "beta_end"),
            (lambda: AlphaSchedule.quadratic(beta_start=-0.1), ValueError, "beta_start"),
            (lambda: AlphaSchedule.cosine(max_beta=1.0), ValueError, "max_beta"),
            (lambda: AlphaSchedule.continuous_linear(beta_0=0.0), ValueError, "beta_0"),
            (lambda: AlphaSchedule.continuous_linear(beta_1=-1.0), ValueError, "beta_1"),
            (lambda: LINEAR.alpha_bar(999.5), ValueError, "t must"),
            (lambda: LINEAR.alpha_bar(torch.tensor([0.0, math.nan])), ValueError, "t must"),
            (lambda: LINEAR.alpha_bar("0"), TypeError, "t must"),  # type: ignore[arg-type]
            (lambda: LINEAR.alpha_bar(torch.tensor([True])), TypeError, "t must"),
            (lambda: SDE.alpha_bar(1.01), ValueError, "t must"),
            (lambda: inference_times(0), ValueError, "num_steps"),
            (lambda: inference_times(1001), ValueError, "num_steps"),
            (lambda: inference_times(5, 0), ValueError, "num_train_timesteps"),
            (lambda: adams_bashforth(5), ValueError, "order"),  # type: ignore[arg-type]
            (lambda: adams_bashforth(0), ValueError, "order"),  # type: ignore[arg-type]
            (lambda: num_model_calls(0), ValueError, "num_steps"),
            (lambda: num_model_calls(5, "euler"), ValueError, "method"),  # type: ignore[arg-type]
        ]
    )


def test_transfer() -> None:
    levels = torch.tensor([0.2, 0.4, 0.6])
    check_errors(
        [
            (lambda: transfer(NOISE, NOISE, 0.0, 0.5), ValueError, "alpha_bar_t"),
            (lambda: transfer(NOISE, NOISE, 0.5, 1.5), ValueError, "alpha_bar_next"),
            (lambda: transfer(NOISE, NOISE, 0.5, math.nan), ValueError, "alpha_bar_next"),
            (lambda: transfer(NOISE, NOISE, levels, 0.5), ValueError, "alpha_bar_t"),
            (lambda: transfer(NOISE, NOISE, 0.5, torch.tensor([0.5, 1.2])), ValueError, "alpha_bar_next"),
            (lambda: transfer(NOISE, NOISE, 1e-300, 0.5), ValueError, "alpha_bar_t"),
            (lambda: transfer(NOISE, NOISE, [[0.1], [0.2, 0.3]], 0.5), TypeError, "alpha_bar_t"),  # type: ignore[list-item]
            (lambda: transfer(NOISE, NOISE, "low", 0.5), TypeError, "alpha_bar_t"),  # type: ignore[arg-type]
            (lambda: transfer(NOISE, NOISE[:, :1], 0.2, 0.5), ValueError, "eps"),
            (lambda: transfer(NOISE.long(), NOISE, 0.2, 0.5), TypeError, "x must"),
        ]
    )


def test_mixtures() -> None:
    means, stds, weights = [[0.0, 1.0], [1.0, 0.0]], [0.1, 0.2], [0.5, 0.5]

    def make(**options: Any) -> Any:
        given = {"means": means, "stds": stds, "weights": weights, "schedule": SDE} | options
        return GaussianMixtureEps(**given)

    x, t = torch.zeros(3, 2), torch.full((3,), 0.5)
    check_errors(
        [
            (lambda: make(weights=[0.6, 0.5]), ValueError, "weights"),
            (lambda: make(weights=[1.5, -0.5]), ValueError, "weights"),
            (lambda: make(weights=[1.0]), ValueError, "weights"),
            (lambda: make(stds=[0.0, 0.2]), ValueError, "stds"),
            (lambda: make(stds=[0.1, 0.2, 0.3]), ValueError, "stds"),
            (lambda: make(means=[0.0, 1.0]), ValueError, "means"),
            (lambda: make(schedule=0.5), TypeError, "schedule"),
            (lambda: make()(torch.zeros(3, 4), t), ValueError, "x must"),
            (lambda: make()(x, t[:2]), ValueError, "t must"),
            (lambda: make()(x.long(), t), TypeError, "x must"),
            (lambda: make()(x, t + 1), ValueError, "t must"),
        ]
    )
    assert torch.equal(make(weights=[0.5, 0.5 + 5e-7])(x, t), make(weights=[0.5, 0.5 + 5e-7])(x, t))


def test_scheduler() -> None:
    def ready(**options: Any) -> PNDMScheduler:
        scheduler = PNDMScheduler(**options)
        scheduler.set_timesteps(10)
        return scheduler

    def finished() -> PNDMScheduler:
        scheduler = ready(method="ddim")
        for t in scheduler.timesteps:
            scheduler.step(NOISE, t, NOISE)
        return scheduler

    def begun() -> PNDMScheduler:
        scheduler = ready(method="ddim")
        scheduler.step(NOISE, 900, NOISE)
        return scheduler

    times = torch.tensor([0, 5])
    check_errors(
        [
            (lambda: PNDMScheduler(method="f-pndm-sigma"), ValueError, "method"),
            (lambda: PNDMScheduler(beta_schedule="sigmoid"), ValueError, "beta_schedule"),
            (lambda: PNDMScheduler(prediction_type="flow"), ValueError, "prediction_type"),
            (lambda: PNDMScheduler(timestep_spacing="karras"), ValueError, "timestep_spacing"),
            (lambda: PNDMScheduler(steps_offset=-1), ValueError, "steps_offset"),
            (lambda: PNDMScheduler(beta_end=1.5), ValueError, "beta_end"),
            (lambda: PNDMScheduler(trained_betas=[0.1, 0.2]), ValueError, "trained_betas"),
            (lambda: PNDMScheduler(num_train_timesteps=2, trained_betas=[0.1, 2.0]), ValueError, "betas"),
            (lambda: PNDMScheduler().set_timesteps(0), ValueError, "num_inference_steps"),
            (lambda: PNDMScheduler().set_timesteps(1001), ValueError, "num_inference_steps"),
            (lambda: PNDMScheduler(steps_offset=1).set_timesteps(1000), ValueError, "steps_offset"),
            (lambda: PNDMScheduler().step(NOISE, 0, NOISE), ValueError, "set_timesteps"),
            (lambda: finished().step(NOISE, 900, NOISE), ValueError, "set_timesteps"),
            (lambda: begun().step(NOISE, 900, NOISE), ValueError, "set_timesteps"),
            (lambda: begun().set_begin_index(3), ValueError, "begin_index"),
            (lambda: ready().set_begin_index(99), ValueError, "begin_index"),
            (lambda: ready().step(NOISE, 901, NOISE), ValueError, "timestep"),
            (lambda: ready().step(NOISE[:, :1], 900, NOISE), ValueError, "model"),
            (lambda: ready().step(torch.cat([NOISE, NOISE], 1), 900, NOISE), ValueError, "learned variance"),
            (lambda: ready().step(NOISE, 900, NOISE.long()), TypeError, "sample"),
            (lambda: ready().add_noise(NOISE, NOISE[:1], times), ValueError, "noise"),
            (lambda: ready().add_noise(NOISE, NOISE, times - 1), ValueError, "timesteps"),
            (lambda: ready().add_noise(NOISE, NOISE, torch.zeros(3, dtype=torch.int64)), ValueError, "timesteps"),
        ]
    )

    def few(n: int, method: str) -> None:
        scheduler = PNDMScheduler(prediction_type="sample", set_alpha_to_one=True, method=method)
        scheduler.set_timesteps(n)
        scheduler.step(NOISE, scheduler.timesteps[0], NOISE)

    cases = [(3, "f-pndm"), (1, "f-pndm"), (1, "s-pndm"), (1, "plms")]
    check_errors([(lambda n=n, m=m: few(n, m), ValueError, "alpha_bar 1") for n, m in cases])  # type: ignore[misc]
