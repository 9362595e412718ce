"""The experiment through the command line, and the loaders of the larger presets on tiny data of the same form."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from offprints.more_is_better.reproduce import experiment
from offprints.more_is_better.reproduce.data import add_noise, load, one_hot, shrunk, signs
from offprints.shared.experiment.launch import execute
from offprints.shared.extras import MissingData
from offprints.shared.testing.pictures import write_clothes

pytest.importorskip("torchvision", reason="needs the extra vision")


def test_smoke(paper_run, tmp_path) -> None:
    run = paper_run("more-is-better", "--preset", "smoke", out=tmp_path)
    assert {"double-descent", "more-images", "theory-images", "interpolate-digits-ntk"} <= set(run.claims)
    assert all(claim["control_name"] for claim in run.claims.values() if claim["kind"] == "claim")
    assert run.claims["theorem-1"]["holds"]
    assert run.figures == {"features", "fitting"}


@pytest.fixture(scope="module")
def few_clothes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clothes(tmp_path_factory.mktemp("data"), 60, 20)


def test_medium_on_a_few_images(few_clothes: Path, tmp_path: Path) -> None:
    medium = experiment.presets["medium"]
    fitting = replace(medium.fitting, points=50, samples=40, trials=1, exponent_trials=1, ridges=8, fit_from=8)
    config = replace(medium, fitting=fitting, data=few_clothes)
    outcome = execute(experiment, config, preset="medium", device="cpu", out=tmp_path)
    claims = {claim["id"] for claim in outcome.result["claims"]}
    kernels = ("ntk", "myrtle5")
    assert claims == {f"{word}-fashion-mnist-{kernel}" for word in ("interpolate", "obligatory") for kernel in kernels}
    assert {Path(figure).stem for figure in outcome.result["figures"]} == {"fitting"}


def test_loaders(few_clothes: Path, tmp_path: Path) -> None:
    images, labels = load("fashion_mnist", 30, data=few_clothes, download=False, seed=0)
    assert images.shape == (30, 1, 32, 32)
    assert images.dtype == torch.float64
    assert float(images.mean()) == pytest.approx(0, abs=1e-12)
    assert shrunk(images, 8).shape == (30, 1, 8, 8)
    torch.testing.assert_close(shrunk(images, 8)[:, :, 0, 0], images[:, :, :4, :4].mean((2, 3)))
    codes = one_hot(labels)
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(30, dtype=torch.float64))
    assert torch.equal(codes.argmax(1), labels)
    with pytest.raises(MissingData):
        load("mnist", 30, data=tmp_path, download=False, seed=0)
    images, labels = load("digits", 0, data=None, download=False, seed=3)
    assert images.shape == (1797, 1, 8, 8)
    assert torch.equal(signs("digits", labels)[:, 0], torch.where(labels % 2 == 0, 1.0, -1.0).double())


def test_noise_is_additive_and_shared_by_the_outputs() -> None:
    """Not renormalized unless asked for (trap 6)."""
    y = torch.zeros(20_000, 10, dtype=torch.float64)
    y[:, 0] = 1
    noise = add_noise(y, 0.7, torch.Generator().manual_seed(0), renormalize=False) - y
    assert float(noise.square().sum(1).mean()) == pytest.approx(0.7, rel=0.02)
    scaled = add_noise(y, 0.7, torch.Generator().manual_seed(0), renormalize=True)
    torch.testing.assert_close(scaled.norm(dim=1), torch.ones(20_000, dtype=torch.float64))
