"""Configurations: settings changed on the way, exchanged with diffusers' own schedulers, and tables assigned."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.configuration_utils import FrozenDict
from torch import Tensor

from offprints.pndm import AlphaSchedule, pndm_sample
from offprints.pndm.diffusers import PNDMScheduler

NOISE = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def network(x: Tensor, t: Tensor | float) -> Tensor:
    return 0.6 * torch.tanh(x) + 0.3 * x.roll(1, -1) + torch.sin(torch.as_tensor(t).double() / 150).reshape(-1, 1)


def loop(scheduler: Any, num_steps: int | None = None) -> Tensor:
    if num_steps is not None:
        scheduler.set_timesteps(num_steps)
    x = NOISE
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x).prev_sample
    return x


# ---- settings changed after construction (P1) ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"steps_offset": 1},
        {"timestep_spacing": "trailing"},
        {"timestep_spacing": "linspace"},
        {"method": "s-pndm"},
        {"prediction_type": "v_prediction"},
        {"set_alpha_to_one": True},
        {"beta_schedule": "scaled_linear"},
        {"beta_end": 0.03},
        {"step_to": "listed", "timestep_spacing": "linspace"},
        {"num_train_timesteps": 500},
        {"trained_betas": np.linspace(1e-4, 0.01, 1000).tolist()},
    ],
)
def test_a_changed_setting_is_a_fresh_scheduler(change: dict[str, Any]) -> None:
    scheduler, fresh = PNDMScheduler(method="plms"), PNDMScheduler(**{"method": "plms", **change})
    before = loop(scheduler, 12)
    scheduler.register_to_config(**change)
    after = loop(scheduler, 12)
    assert torch.equal(after, loop(fresh, 12))
    assert not torch.equal(after, before)
    assert torch.equal(scheduler.timesteps, fresh.timesteps)
    assert torch.equal(scheduler.alphas_cumprod, fresh.alphas_cumprod)


def test_the_times_after_a_change_of_the_offset() -> None:
    scheduler = PNDMScheduler(method="plms")
    scheduler.set_timesteps(10)
    scheduler.register_to_config(steps_offset=1)
    scheduler.set_timesteps(10)
    assert scheduler.timesteps.tolist() == [901, 801, 801, 701, 601, 501, 401, 301, 201, 101, 1]


def test_a_configuration_replaced_as_pipelines_do() -> None:
    scheduler = PNDMScheduler(method="plms")
    scheduler.set_timesteps(10)
    scheduler._internal_dict = FrozenDict({**dict(scheduler.config), "steps_offset": 1, "clip_sample": False})
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [751, 501, 501, 251, 1]


def test_a_prediction_type_changed_between_set_timesteps_and_the_run() -> None:
    scheduler = PNDMScheduler(method="plms")
    scheduler.set_timesteps(6)
    scheduler.register_to_config(prediction_type="v_prediction")
    assert torch.equal(loop(scheduler), loop(PNDMScheduler(method="plms", prediction_type="v_prediction"), 6))


def test_a_setting_changed_to_nonsense_is_refused() -> None:
    for change in ({"steps_offset": -1}, {"timestep_spacing": "karras"}, {"method": "euler"}, {"beta_end": 2.0}):
        scheduler = PNDMScheduler()
        scheduler.register_to_config(**change)
        with pytest.raises(ValueError, match=next(iter(change))):
            scheduler.set_timesteps(10)


# ---- tables (P9) -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skip", [True, False])
def test_an_assigned_table_counts_as_in_diffusers(skip: bool) -> None:
    table = diffusers.DDPMScheduler(beta_schedule="scaled_linear", beta_end=0.012).alphas_cumprod.double()
    ours = PNDMScheduler(method="plms" if skip else "f-pndm")
    theirs = diffusers.PNDMScheduler(skip_prk_steps=skip)
    plain = loop(ours, 10)
    ours.alphas_cumprod = theirs.alphas_cumprod = table
    expected = loop(theirs, 10)
    assert float((plain - expected).abs().max()) > 0.1
    torch.testing.assert_close(loop(ours, 10), expected, rtol=1e-6, atol=1e-6)
    ours.final_alpha_cumprod = theirs.final_alpha_cumprod = torch.tensor(0.5, dtype=torch.float64)
    torch.testing.assert_close(loop(ours, 10), loop(theirs, 10), rtol=1e-9, atol=1e-9)


def test_a_table_changed_in_place_and_in_a_run() -> None:
    table = AlphaSchedule.cosine().alpha_bar(torch.arange(1000))
    changed, assigned = PNDMScheduler(method="plms"), PNDMScheduler(method="plms")
    assigned.alphas_cumprod, assigned.final_alpha_cumprod = table.float(), table.float()[0]
    expected = loop(assigned, 8)
    changed.alphas_cumprod.copy_(table)
    torch.testing.assert_close(loop(changed, 8), expected, rtol=1e-6, atol=1e-6)
    late = PNDMScheduler(method="plms")
    late.set_timesteps(8)  # the table is read by the steps
    late.alphas_cumprod, late.final_alpha_cumprod = table.float(), table.float()[0]
    assert torch.equal(loop(late), expected)
    exact = PNDMScheduler(method="plms")  # moved, not changed: the levels stay exact
    exact.alphas_cumprod = exact.alphas_cumprod.clone()
    assert torch.equal(loop(exact, 8), loop(PNDMScheduler(method="plms"), 8))


def test_bad_tables() -> None:
    for table in (torch.ones(1000), torch.linspace(0.9, 0.1, 10), torch.full((1000,), torch.nan)):
        scheduler = PNDMScheduler()
        scheduler.alphas_cumprod = table
        with pytest.raises(ValueError, match="alphas_cumprod"):
            scheduler.set_timesteps(10)


def test_the_second_try_begins_at_zero_terminal_snr_too() -> None:
    """With 13 steps by the ratio, 76, the step that ends at the second time would begin at 998, not at 999."""
    scheduler = PNDMScheduler(
        method="plms", prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True
    )
    scheduler.set_timesteps(13)
    first, second = (scheduler.timesteps[i] for i in (0, 1))
    assert (int(first), int(second)) == (999, 922)
    tries = [network(NOISE, first)]
    x = scheduler.step(tries[0], first, NOISE).prev_sample
    tries.append(network(x, second))
    x = scheduler.step(tries[1], second, x).prev_sample
    a = float(AlphaSchedule.from_diffusers(scheduler.config).alpha_bar(922.0))
    expected = (1 - a) ** 0.5 * NOISE - a**0.5 * (tries[0] + tries[1]) / 2
    torch.testing.assert_close(x, expected)


@pytest.mark.parametrize("method", ["ddim", "s-pndm", "plms", "f-pndm"])
def test_zero_terminal_snr(method: str) -> None:
    """A table that ends at zero, with a model of v: against pndm_sample, and the setting taken over from DDIM's."""
    theirs = diffusers.DDIMScheduler(
        rescale_betas_zero_snr=True,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )
    ours = PNDMScheduler.from_config(theirs.config, method=method, step_to="listed")
    assert ours.alphas_cumprod[-1] == 0
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod, rtol=1e-4, atol=1e-6)
    schedule = AlphaSchedule.from_diffusers(theirs.config)
    out = loop(ours, 10)
    times = [*range(999, 0, -100), -1]
    # The last step is longer by one: the same numbers either way, since a plan is made of levels.
    expected = pndm_sample(
        network,
        NOISE,
        schedule=schedule,
        times=times,
        method=method,  # type: ignore[arg-type]
        prediction_type="v_prediction",
    )
    if method != "f-pndm":  # its half steps are whole here
        assert torch.equal(out, expected)
    assert out.isfinite().all()
    if method == "ddim":
        theirs.set_timesteps(10)
        x = NOISE
        for t in theirs.timesteps:
            x = theirs.step(network(x, t), t, x).prev_sample
        torch.testing.assert_close(out, x, rtol=1e-4, atol=1e-4)


# ---- the exchange with diffusers' own (P2, P3) -----------------------------------------------------------------------


@pytest.mark.parametrize(("method", "skip"), [("plms", True), ("f-pndm", False)])
def test_diffusers_reads_our_configuration(method: str, skip: bool, tmp_path: Path) -> None:
    ours = PNDMScheduler(method=method, steps_offset=1, beta_schedule="scaled_linear")  # type: ignore[arg-type]
    ours.save_pretrained(tmp_path)
    ours.set_timesteps(11)
    for theirs in (diffusers.PNDMScheduler.from_config(ours.config), diffusers.PNDMScheduler.from_pretrained(tmp_path)):
        assert theirs.config.skip_prk_steps == skip
        theirs.set_timesteps(11)
        assert torch.equal(theirs.timesteps, ours.timesteps)
        back = PNDMScheduler.from_config(theirs.config)
        assert back.config.method == method
        assert torch.equal(loop(back, 7), loop(PNDMScheduler.from_pretrained(tmp_path), 7))


def test_methods_without_an_equivalent_warn(tmp_path: Path) -> None:
    for method in ("s-pndm", "ddim", "fon"):
        scheduler = PNDMScheduler(method=method)  # type: ignore[arg-type]
        with pytest.warns(UserWarning, match=method):
            diffusers.PNDMScheduler.from_config(scheduler.config)
        with warnings.catch_warnings():  # our own reading, copies and the text do not
            warnings.simplefilter("error")
            assert PNDMScheduler.from_config(scheduler.config).config.method == method
            assert copy.deepcopy(scheduler).config.method == method
            assert method in repr(scheduler)
            assert dict(scheduler.config.items())["method"] == method
            scheduler.save_config(tmp_path)
            assert PNDMScheduler.from_pretrained(tmp_path).config.method == method


@pytest.mark.parametrize("skip", [True, False])
def test_diffusers_spelling(skip: bool, tmp_path: Path) -> None:
    method = "plms" if skip else "f-pndm"
    foreign = diffusers.DDIMScheduler().config
    assert PNDMScheduler.from_config(foreign, skip_prk_steps=skip).config.method == method
    assert PNDMScheduler(skip_prk_steps=skip).config.method == method
    assert PNDMScheduler(skip_prk_steps=skip).config.skip_prk_steps == skip
    theirs = diffusers.PNDMScheduler(skip_prk_steps=skip)
    theirs.save_pretrained(tmp_path)
    assert PNDMScheduler.from_config(theirs.config).config.method == method
    assert PNDMScheduler.from_pretrained(tmp_path).config.method == method
    # A keyword overrides, and what is written then agrees.
    other = PNDMScheduler.from_config(theirs.config, method="plms" if not skip else "f-pndm")
    assert other.config.skip_prk_steps != skip
    own = PNDMScheduler.from_config(PNDMScheduler(method="s-pndm").config, skip_prk_steps=skip)
    assert own.config.method == method
    with pytest.raises(ValueError, match="skip_prk_steps"):
        PNDMScheduler(method="s-pndm", skip_prk_steps=skip)


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"]
)
def test_foreign_configurations_give_plms(name: str) -> None:
    assert PNDMScheduler.from_config(getattr(diffusers, name)().config).config.method == "plms"


# ---- a fresh process (P8) --------------------------------------------------------------------------------------------

FRESH = """
import sys
import diffusers
import torch
{line}
pipe = diffusers.DDPMPipeline.from_pretrained(sys.argv[1])
pipe.set_progress_bar_config(disable=True)
images = pipe(1, generator=torch.Generator().manual_seed(1), num_inference_steps=5, output_type="np").images
print(type(pipe.scheduler).__module__, pipe.scheduler.config.method, images.sum())
"""


def test_a_saved_pipeline_in_a_fresh_process(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    pipe = diffusers.DDPMPipeline(net.eval(), PNDMScheduler(method="s-pndm"))
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path)
    images = pipe(1, generator=torch.Generator().manual_seed(1), num_inference_steps=5, output_type="np").images

    program = FRESH.format(line="import offprints.pndm.diffusers")
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True, timeout=300
    )
    module, method, total = done.stdout.split()[-3:]
    assert (module, method) == ("offprints.pndm.diffusers", "s-pndm")
    assert float(total) == pytest.approx(float(images.sum()), rel=1e-5)
