"""The scheduler beside diffusers' own, in diffusers' pipelines, and as a state machine."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from offprints.pndm import AlphaSchedule, adams_bashforth, num_model_calls, pndm_sample, transfer
from offprints.pndm.diffusers import PNDMScheduler

METHODS = ["ddim", "s-pndm", "f-pndm", "plms", "fon"]
NOISE = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def network(x: Tensor, t: Tensor | float) -> Tensor:
    return 0.6 * torch.tanh(x) + 0.3 * x.roll(1, -1) + torch.sin(torch.as_tensor(t).double() / 150).reshape(-1, 1)


def loop(scheduler: Any, num_steps: int | None, noise: Tensor = NOISE, begin: int = 0) -> Tensor:
    if num_steps is not None:
        scheduler.set_timesteps(num_steps)
    x = noise
    for t in scheduler.timesteps[begin:]:
        x = scheduler.step(network(x, t), t, x).prev_sample
    return x


# ---- beside diffusers and pndm_sample --------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize(
    ("n", "one", "offset", "betas"),  # 7 and 30: an odd number of training steps each
    [(4, False, 1, "scaled_linear"), (7, True, 0, "linear"), (30, False, 0, "squaredcos_cap_v2")],
)
def test_diffusers_own(spacing: str, skip: bool, n: int, one: bool, offset: int, betas: str) -> None:
    theirs = diffusers.PNDMScheduler(
        timestep_spacing=spacing, skip_prk_steps=skip, set_alpha_to_one=one, steps_offset=offset, beta_schedule=betas
    )
    ours = PNDMScheduler.from_config(theirs.config)
    assert ours.config.method == ("plms" if skip else "f-pndm")
    actual, expected = loop(ours, n), loop(theirs, n)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    # Their table is in float32.
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    exact = AlphaSchedule.from_betas(theirs.betas, interpolation="floor")
    theirs.alphas_cumprod = exact.alpha_bar(torch.arange(1000))
    theirs.final_alpha_cumprod = torch.tensor(1.0) if one else theirs.alphas_cumprod[0]
    same, expected = PNDMScheduler.from_config(theirs.config, trained_betas=theirs.betas), loop(theirs, n)
    torch.testing.assert_close(loop(same, n), expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_it_is_pndm_sample_bit_for_bit(method: Any, prediction: Any) -> None:
    scheduler = PNDMScheduler(method=method, prediction_type=prediction)
    schedule = AlphaSchedule.linear(final="first", interpolation="floor")
    options: Any = {"schedule": schedule, "method": method, "prediction_type": prediction}
    for n in (4, 10):
        assert torch.equal(loop(scheduler, n), pndm_sample(network, NOISE, num_steps=n, **options))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_timesteps(method: str, n: int) -> None:
    scheduler = PNDMScheduler(method=method)
    scheduler.set_timesteps(n)
    assert scheduler.timesteps.dtype == torch.int64
    assert len(scheduler.timesteps) == num_model_calls(n, method)  # type: ignore[arg-type]
    assert scheduler.timesteps.min() == 0
    assert loop(scheduler, n).isfinite().all()
    assert len(scheduler) == 1000


def test_first_timesteps() -> None:
    scheduler = PNDMScheduler(method="s-pndm")
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [750, 500, 500, 250, 0]
    odd = PNDMScheduler()
    odd.set_timesteps(30)
    assert odd.timesteps.tolist()[:5] == [957, 924 + 16, 924 + 16, 924, 924]


# ---- state -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_run_leaves_nothing_behind(method: str) -> None:
    scheduler = PNDMScheduler(method=method)
    first = loop(scheduler, 12)
    scheduler.set_timesteps(5)
    scheduler.step(NOISE, scheduler.timesteps[0], NOISE)  # broken off
    assert torch.equal(loop(scheduler, 12), first)
    with pytest.raises(ValueError, match="set_timesteps"):
        loop(scheduler, None)


def test_the_next_time_only() -> None:
    scheduler = PNDMScheduler(method="plms")
    scheduler.set_timesteps(10)
    scheduler.step(NOISE, scheduler.timesteps[0], NOISE)
    scheduler.step(NOISE, 800, NOISE)  # 800 is there twice: a number may be either
    with pytest.raises(ValueError, match="timestep must be 800"):
        scheduler.step(NOISE, scheduler.timesteps[1], NOISE)  # a tensor is told by its place
    scheduler.step(NOISE, scheduler.timesteps[2], NOISE, return_dict=False)
    assert scheduler.step_index == 3


def test_return_values_and_extra_arguments() -> None:
    scheduler = PNDMScheduler()
    scheduler.set_timesteps(10)
    out = scheduler.step(NOISE, 900, NOISE, generator=torch.Generator(), eta=0.0)
    scheduler.set_timesteps(10)
    (same,) = scheduler.step(NOISE, 900, NOISE, return_dict=False)
    assert torch.equal(out.prev_sample, same)
    assert scheduler.scale_model_input(NOISE, 900) is NOISE
    assert (scheduler.init_noise_sigma, scheduler.order) == (1.0, 1)


def test_types_and_gradients() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        scheduler = PNDMScheduler(method="plms")
        scheduler.set_timesteps(6)
        x = NOISE.to(dtype)
        for t in scheduler.timesteps:
            x = scheduler.step(0.3 * x.float(), t, x).prev_sample
            assert x.dtype == dtype
    start = NOISE.clone().requires_grad_()
    loop(PNDMScheduler(), 5, start).sum().backward()
    assert start.grad is not None
    assert start.grad.isfinite().all()


def test_add_noise() -> None:
    ours, theirs = PNDMScheduler(), diffusers.PNDMScheduler()
    times = torch.tensor([3, 500, 999])
    clean = NOISE.float().flip(0)
    for given in (times, times[:1]):
        torch.testing.assert_close(
            ours.add_noise(clean, NOISE.float(), given), theirs.add_noise(clean, NOISE.float(), given)
        )
    assert ours.add_noise(clean.half(), NOISE.half(), times).dtype == torch.float16
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod)
    torch.testing.assert_close(ours.betas, theirs.betas, rtol=1e-4, atol=0)


# ---- beginning in the middle -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("told", [True, False])
def test_every_beginning(method: str, told: bool) -> None:
    """The network is asked for a sample at the level of the time that is asked: a constant prediction makes this exact,
    but for the classical method."""
    eps = NOISE.flip(0)
    schedule = AlphaSchedule.linear(final="first", interpolation="floor")
    scheduler = PNDMScheduler(method=method)
    scheduler.set_timesteps(10)
    for begin in range(len(scheduler.timesteps)):
        scheduler.set_timesteps(10)
        if told:
            scheduler.set_begin_index(begin)
            assert scheduler.begin_index == begin
        x, times = NOISE, scheduler.timesteps[begin:]
        for t, following in zip(times, [*times[1:], torch.tensor(-1)], strict=True):
            x = scheduler.step(eps, t, x).prev_sample
            levels = schedule.alpha_bar(torch.stack([times[0], following])).tolist()
            assert x.isfinite().all() if method == "fon" else torch.allclose(x, transfer(NOISE, eps, *levels))


def test_the_history_begins_there_too() -> None:
    scheduler = PNDMScheduler(method="plms")
    scheduler.set_timesteps(10)
    scheduler.set_begin_index(5)
    x = loop(scheduler, None, begin=5)
    # Adams steps of the orders 1, 2, 3, 4, 4 ... from the first one on
    schedule, past, y = AlphaSchedule.linear(final="first", interpolation="floor"), [], NOISE
    for t in (500, 400, 300, 200, 100, 0):
        past.insert(0, network(y, t))
        weights = adams_bashforth(min(4, len(past)))  # type: ignore[arg-type]
        e = sum(w * g for w, g in zip(weights, past, strict=False))
        y = transfer(y, e, schedule.alpha_bar(t).item(), schedule.alpha_bar(t - 100).item())  # type: ignore[arg-type]
    torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


# ---- configuration ---------------------------------------------------------------------------------------------------


def test_configuration_round_trip(tmp_path: Path) -> None:
    betas = np.linspace(1e-4, 0.03, 50)
    for given in (
        {"method": "s-pndm", "beta_schedule": "scaled_linear"},
        {"trained_betas": betas, "num_train_timesteps": 50},
    ):
        scheduler = PNDMScheduler(**given, set_alpha_to_one=True, steps_offset=1)  # type: ignore[arg-type]
        scheduler.save_config(tmp_path)
        scheduler.set_timesteps(5)
        for copy in (PNDMScheduler.from_pretrained(tmp_path), PNDMScheduler.from_config(scheduler.config)):
            assert {k: v for k, v in copy.config.items() if k[0] != "_"} == {
                k: v for k, v in scheduler.config.items() if k[0] != "_"
            }
            copy.set_timesteps(5)
            assert torch.equal(copy.timesteps, scheduler.timesteps)
            assert torch.equal(copy.alphas_cumprod, scheduler.alphas_cumprod)
    changed = PNDMScheduler.from_config(scheduler.config, method="ddim")
    assert changed.config.method == "ddim"


def test_from_the_configuration_of_another_scheduler(tmp_path: Path) -> None:
    diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction").save_config(tmp_path)
    ours = PNDMScheduler.from_pretrained(tmp_path)
    assert (ours.config.method, ours.config.prediction_type) == ("plms", "v_prediction")
    assert ours.config.beta_schedule == "squaredcos_cap_v2"


def test_without_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.delitem(sys.modules, "offprints.pndm.diffusers")
    with pytest.raises(ImportError, match=r"offprints-pndm\[diffusers\]"):
        importlib.import_module("offprints.pndm.diffusers")


# ---- pipelines -------------------------------------------------------------------------------------------------------


def unet() -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
    ).eval()


@pytest.mark.parametrize("method", METHODS)
def test_ddpm_pipeline(method: str, tmp_path: Path) -> None:
    pipeline = diffusers.DDPMPipeline(unet(), PNDMScheduler(method=method))
    pipeline.set_progress_bar_config(disable=True)

    def run(pipe: Any) -> np.ndarray:
        out = pipe(2, generator=torch.Generator().manual_seed(1), num_inference_steps=6, output_type="np")
        return np.asarray(out.images)

    images = run(pipeline)
    assert np.array_equal(images, run(pipeline))  # the same scheduler again
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    net = pipeline.unet
    samples = pndm_sample(
        lambda x, t: net(x, t).sample,
        noise,
        schedule=AlphaSchedule.linear(final="first", interpolation="floor"),
        num_steps=6,
        method=method,  # type: ignore[arg-type]
    )
    expected = (samples / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(images, expected, atol=2e-5)
    if method == "f-pndm":
        pipeline.save_pretrained(tmp_path)
        loaded = diffusers.DDPMPipeline.from_pretrained(tmp_path)
        assert type(loaded.scheduler) is PNDMScheduler
        loaded.set_progress_bar_config(disable=True)
        assert np.array_equal(run(loaded), images)


def stable_diffusion(pipeline: Any, scheduler: Any) -> Any:
    """Stable Diffusion in miniature: random weights, prompts given as embeddings."""
    torch.manual_seed(0)
    net = diffusers.UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, sample_size=8)
    pipe = pipeline(
        vae=vae.eval(),
        unet=net.eval(),
        scheduler=scheduler,
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def prompts() -> dict[str, Tensor]:
    draws = torch.randn(2, 1, 5, 8, generator=torch.Generator().manual_seed(2))
    return {"prompt_embeds": draws[0], "negative_prompt_embeds": draws[1]}


CONFIG: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}


@pytest.mark.parametrize("skip", [True, False])
def test_stable_diffusion(skip: bool) -> None:
    """Classifier-free guidance: ours and diffusers' own scheduler give the same image."""
    theirs = diffusers.PNDMScheduler(skip_prk_steps=skip, **CONFIG)
    pipe = stable_diffusion(diffusers.StableDiffusionPipeline, theirs)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))

    def run() -> np.ndarray:
        out = pipe(**prompts(), latents=latents, num_inference_steps=6, guidance_scale=3.0, output_type="latent")
        return out.images.numpy()

    expected = run()
    pipe.scheduler = PNDMScheduler.from_config(pipe.scheduler.config)
    np.testing.assert_allclose(run(), expected, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("method", ["plms", "f-pndm", "s-pndm"])
def test_image_to_image(method: str) -> None:
    scheduler = PNDMScheduler(method=method, **CONFIG)
    pipe = stable_diffusion(diffusers.StableDiffusionImg2ImgPipeline, scheduler)
    picture = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(4))

    def run(strength: float) -> Tensor:
        options = {**prompts(), "num_inference_steps": 10, "output_type": "latent"}
        out = pipe(image=picture, strength=strength, generator=torch.Generator().manual_seed(5), **options).images
        assert scheduler.begin_index == 10 - int(10 * strength)
        return out

    asked: list[tuple[int, float]] = []
    forward = pipe.unet.forward

    def watched(sample: Tensor, t: Tensor, **options: Any) -> Any:
        """The spread of the sample tells its level: without a prediction it is the noised picture, carried along."""
        asked.append((int(t), float(sample.std())))
        out = forward(sample, t, **options)
        return (torch.zeros_like(sample),) if isinstance(out, tuple) else type(out)(sample=torch.zeros_like(sample))

    pipe.unet.forward = watched
    table = AlphaSchedule.from_diffusers(scheduler.config)
    for strength in (0.5, 0.8, 1.0):
        asked.clear()
        run(strength)
        assert [t for t, _ in asked] == scheduler.timesteps[10 - int(10 * strength) :].tolist()
        first = asked[0][1] / float(table.alpha_bar(asked[0][0])) ** 0.5
        for t, spread in asked:  # phi without a prediction scales by the square root of the level
            assert spread == pytest.approx(first * float(table.alpha_bar(t)) ** 0.5, rel=1e-4)
    assert torch.equal(run(0.8), run(0.8))
