"""The experiment: through the real command line, and the paper's part on small data of the real formats."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image

from offprints.pndm import AlphaSchedule, inference_times
from offprints.pndm.reproduce import experiment
from offprints.pndm.reproduce.digits import EpsilonMLP, energy_v_statistic, steps_for
from offprints.pndm.reproduce.exact import random_mixture, solve_reference
from offprints.pndm.reproduce.fashion import images
from offprints.pndm.reproduce.paper import schedule_for
from offprints.shared.experiment.launch import execute
from offprints.shared.extras import MissingData
from offprints.shared.testing.pictures import write_clothes
from offprints.shared.testing.runs import FinishedRun


def test_smoke(paper_run: Callable[..., FinishedRun], tmp_path: Path) -> None:
    run = paper_run("pndm", "--preset", "smoke", out=tmp_path)
    assert run.figures == {"errors", "digits", "digits_error", "manifold"}
    claims = run.claims
    assert all(math.isfinite(claim["measured"]) for claim in claims.values())
    # The exact part is small, not weaker.
    for name in ("order-ddim", "order-s-pndm", "order-f-pndm-sigma", "equal-cost"):
        assert claims[name]["holds"], claims[name]


def test_the_reference_of_one_gaussian() -> None:
    schedule = AlphaSchedule.continuous_linear()
    model = random_mixture(0, schedule)
    model.weights = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    noise = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a, b = schedule.alpha_bar(torch.tensor([0.7, 0.02], dtype=torch.float64))
    ratio = (b * model.stds[1] ** 2 + 1 - b) / (a * model.stds[1] ** 2 + 1 - a)
    exact = model.means[1] * b.sqrt() + (noise - model.means[1] * a.sqrt()) * ratio.sqrt()
    assert torch.allclose(solve_reference(model, noise, 0.7, 0.02), exact, rtol=1e-9, atol=1e-9)


def test_parts_of_the_digits() -> None:
    assert [steps_for(50, method) for method in ("ddim", "s-pndm", "f-pndm")] == [50, 49, 41]  # type: ignore[arg-type]
    x, y = torch.randn(2, 300, 5, generator=torch.Generator().manual_seed(0))
    assert energy_v_statistic(x, x) == 0
    assert energy_v_statistic(x, y) < 0.05 < energy_v_statistic(x, y + 1)
    net = EpsilonMLP(16)
    assert net(torch.zeros(3, 64), torch.tensor([0.0, 500.0, 999.0])).shape == (3, 64)


def test_conventions_of_the_paper() -> None:
    for n in (10, 250, 500):
        schedule = schedule_for("linear", n)
        assert (schedule.offset, schedule.interpolation) == (1, "floor")
        assert schedule.alpha_bar(inference_times(n)).isfinite().all()
    assert schedule_for("cosine", 1000).offset == 0


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    """A network as diffusers saves it, and a folder of images."""
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    net.save_pretrained(tmp_path / "net")
    (tmp_path / "images" / "all").mkdir(parents=True)
    for i in range(6):
        pixels = torch.randint(256, (12, 10, 3), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / "images" / "all" / f"{i}.png")
    return {
        "checkpoint": str(tmp_path / "net"),
        "cosine_checkpoint": str(tmp_path / "net"),
        "data": tmp_path / "images",
    }


def test_paper_on_small_files(files: dict[str, Any], tmp_path: Path) -> None:
    config = experiment.presets["paper"]
    assert config.paper.steps == (10, 20, 50, 100, 250, 1000)
    small = {"images": 6, "batch_size": 4, "steps": (4,), "methods": ("ddim", "f-pndm"), "features": "pixels"}
    config = replace(config, paper=replace(config.paper, **files, **small))
    outcome = execute(experiment, config, preset="paper", device="cpu", out=tmp_path)
    report = (outcome.dir / "report.md").read_text()
    assert report.count("| f-pndm |") == 2
    assert "nan" not in report
    figures = {Path(figure).stem for figure in outcome.result["figures"]}
    assert figures == {"fid_linear", "samples_linear", "fid_cosine", "samples_cosine"}
    assert len(list((outcome.dir / "units").glob("*.json"))) == 4


@pytest.fixture
def few_clothes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clothes(tmp_path / "data", 40, 40)
    monkeypatch.setenv("OFFPRINTS_DATA", str(tmp_path / "data"))


@pytest.mark.usefixtures("few_clothes")
def test_medium_on_a_few_images(tmp_path: Path) -> None:
    config = experiment.presets["medium"]
    assert config.fashion.steps > 0
    small = replace(config.fashion, steps=4, batch_size=4, width=8, samples=4, reference_steps=30, every=2)
    config = replace(config, fashion=replace(small, evaluations=(12, 20)))
    outcome = execute(experiment, config, preset="medium", device="cpu", out=tmp_path)
    claims = {claim["id"]: claim for claim in outcome.result["claims"]}
    assert set(claims) == {"fashion-f-pndm-20", "fashion-plms-12"}
    assert all(math.isfinite(claim["measured"]) for claim in claims.values())
    assert {Path(figure).stem for figure in outcome.result["figures"]} == {"fashion", "fashion_error"}


def test_medium_without_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFPRINTS_DATA", str(tmp_path / "nothing"))
    with pytest.raises(MissingData, match="fashion_mnist"):
        images("train", download=False)
