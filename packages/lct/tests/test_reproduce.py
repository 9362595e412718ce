"""The experiment through the real command line, and the paper's training on tiny images of the same format."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from offprints.lct.reproduce import experiment, generator, pictures
from offprints.lct.reproduce.generator import LatentSettings
from offprints.lct.reproduce.metrics import energy_distance, frechet_distance, recall
from offprints.lct.reproduce.networks import UNet
from offprints.shared.experiment.launch import execute
from offprints.shared.testing.runs import interrupted
from offprints.shared.usage import UsageError


def test_smoke(paper_run, tmp_path) -> None:
    run = paper_run("lct", "--preset", "smoke", out=tmp_path)
    assert run.figures == {
        "losses",
        "impulses",
        "coupling",
        "schedules",
        "contaminated",
        "contaminated-scores",
        "digits-scores",
    }
    assert all(np.isfinite(claim["measured"]) for claim in run.claims.values())
    # What does not depend on the length of training holds at any size of the experiment.
    for name in ("location", "impulses-latents", "impulses-kurtosis", "coupling-cost", "coupling-labels"):
        assert run.claims[name]["holds"], run.claims[name]


@pytest.fixture
def folder(tmp_path) -> Path:
    from PIL import Image

    rng = np.random.default_rng(0)
    (tmp_path / "faces" / "all").mkdir(parents=True)
    for i in range(24):
        pixels = rng.integers(0, 255, (40, 36, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "faces" / "all" / f"{i:03d}.png")
    return tmp_path / "faces"


@pytest.fixture
def autoencoder(tmp_path) -> Path:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        norm_num_groups=4,
        latent_channels=4,
    )
    vae.save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


TINY = LatentSettings(
    image_size=32,
    batch_size=8,
    epochs=5,
    channels=8,
    multipliers=(1, 2),
    blocks=1,
    attention=(8,),
    samples=0,
    sample_batch=8,
    log_every=2,
    checkpoint_every=4,
    final_scales=40,
)


def test_training_on_latents_of_images(tmp_path, folder, autoencoder) -> None:
    """Fifteen steps of each of two recipes; killed at the eighth of the second, and continued: the same result."""
    latents = replace(TINY, folder=folder, autoencoder=str(autoencoder))
    config = replace(experiment.presets["paper"], latents=latents)
    how = {"preset": "paper", "device": "cpu"}
    whole = execute(experiment, config, out=tmp_path / "whole", **how).dir
    assert {path.name for path in (whole / "figures").iterdir()} == {"samples.png"}
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [*range(2, 16, 2), 15] * 2
    scales = [line["full/num_scales"] for line in lines if "full/num_scales" in line]
    assert scales[0] == 11
    assert scales[-1] == 41
    assert all(np.isfinite(line["full/loss"]) for line in lines if "full/loss" in line)

    mortal = interrupted(experiment, checkpoints=6)
    with pytest.raises(KeyboardInterrupt):
        execute(mortal, config, out=tmp_path / "killed", **how)
    killed = next((tmp_path / "killed" / "lct").iterdir())
    execute(experiment, config, out=tmp_path, resume=killed, **how)
    for file in ("metrics.jsonl", "figures/samples.png"):
        assert (killed / file).read_bytes() == (whole / file).read_bytes()


def test_missing_data_is_a_usage_error(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        pictures.open_images("ffhq", tmp_path / "nowhere", 32)
    with pytest.raises(UsageError, match="download"):
        pictures.Autoencoder(str(tmp_path / "novae"), device=torch.device("cpu"), download=False)


class Features(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(3 * 8 * 8, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(nn.functional.adaptive_avg_pool2d(images.float() / 255, 8).flatten(1))


def test_scores_of_samples(folder, autoencoder, tmp_path) -> None:
    images = pictures.open_images("ffhq", folder, 32)
    device = torch.device("cpu")
    vae = pictures.Autoencoder(str(autoencoder), device=device, download=False)
    pictures.encode_all(images, vae, tmp_path / "latents", batch_size=8, seed=0)
    latents, normalizer = pictures.load_all(tmp_path / "latents", len(images))
    assert latents.shape == (24, 4, 16, 16)
    torch.testing.assert_close(latents.std(0), torch.full((4, 16, 16), 0.5))
    settings = generator.LatentSettings(samples=20, sample_batch=8, channels=8, multipliers=(1, 2), blocks=1)
    model = generator.build(settings, generator.Recipe(), latents.shape[1:])
    features = Features()
    with torch.no_grad():
        real = features(torch.cat([pictures.to_bytes(b) for b in pictures.batches(images, range(24), 8)]))
    found = generator.evaluate(settings, model, normalizer, vae.decode, features, real, seed=0, device=device)
    assert found["sheet_one"].shape == found["sheet_two"].shape == (16, 3, 32, 32)
    assert all(np.isfinite(found[f"fid_{steps}"]) and 0 <= found[f"recall_{steps}"] <= 1 for steps in ("one", "two"))


def test_frechet_distance_is_that_of_torchmetrics() -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    features = Features()
    features.num_features = 5
    fid = FrechetInceptionDistance(feature=features, input_img_size=(3, 16, 16))
    g = torch.Generator().manual_seed(0)
    real, fake = (torch.randint(lo, 255, (40, 3, 16, 16), generator=g, dtype=torch.uint8) for lo in (0, 60))
    fid.update(real, real=True)
    fid.update(fake, real=False)
    with torch.no_grad():
        ours = frechet_distance(features(real), features(fake))
    assert ours == pytest.approx(float(fid.compute()), rel=1e-3)


def test_distances() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(600, 3, generator=g) for _ in range(2))
    assert abs(energy_distance(a, b)) < 0.02
    assert energy_distance(a, b + 2) > 1
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert recall(a, a) == 1
    assert recall(a, b) > 0.8
    assert recall(a, 0.1 * b) < 0.2


def test_unet_at_the_size_of_the_paper() -> None:
    with torch.device("meta"):
        network = UNet()
        out = network(torch.empty(2, 4, 32, 32), torch.empty(2))
    assert out.shape == (2, 4, 32, 32)
    assert sum(p.numel() for p in network.parameters()) > 1e8
