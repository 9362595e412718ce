"""The experiment: its command line, its network, its training on small data of the real formats."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage.io import imsave
from torch import nn

from offprints.betti_matching import betti_matching_error
from offprints.betti_matching.baselines import wasserstein_loss
from offprints.betti_matching.reproduce.data import Samples
from offprints.betti_matching.reproduce.experiment import PRESETS, Config, broken_ring, experiment, repair
from offprints.betti_matching.reproduce.networks import UNet
from offprints.betti_matching.reproduce.training import (
    balanced_crops,
    centerline_dice,
    image_scores,
    mean_dice,
    mean_scores,
    sliding_window,
    training_loss,
)
from offprints.shared.experiment.launch import Outcome, execute
from offprints.shared.extras import MissingData
from offprints.shared.testing.runs import FinishedRun, interrupted

TINY = {
    "channels": (2, 4),
    "epochs": 2,
    "train_images": 3,
    "test_images": 2,
    "patch": 16,
    "pictures": 0,
    "batch_size": 2,
}


def test_smoke(paper_run: Callable[..., FinishedRun], tmp_path: Path) -> None:
    run = paper_run("betti-matching", "--preset", "smoke", out=tmp_path)
    assert (run.result["preset"], run.result["seed"]) == ("smoke", 0)
    claims, folder = run.claims, run.folder
    assert set(claims) == {
        *("indistinguishable", "right_features", "wrong_features", "ring"),
        *("digits_errors", "digits_dice", "upper_bound"),
    }
    # what is exact holds at any size
    for name in ("indistinguishable", "right_features", "wrong_features", "ring", "upper_bound"):
        assert claims[name]["holds"], claims[name]
    assert len(run.figures) == 5
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in logged) == 8
    assert "Dice + clDice" in (folder / "report.md").read_text()


def test_presets() -> None:
    assert set(PRESETS) == {"smoke", "quick", "medium", "paper"}
    paper = PRESETS["paper"]
    assert paper.alpha == 0.5
    assert paper.relative
    assert paper.losses[0] == "dice"
    assert paper.losses[-1] == "betti_matching"


# ---- network ---------------------------------------------------------------------------------------------------------


def test_unet_has_the_parameters_of_monai() -> None:
    """Counted in MONAI 1.6.1, whose outputs with these weights are the same bit for bit."""
    count = sum(p.numel() for p in UNet(3, 1).parameters())
    assert count == 1_625_420
    small = UNet(3, 1, channels=(8, 8, 16), strides=(2, 2))
    assert sum(p.numel() for p in small.parameters()) == 8_900


def test_unet_keeps_the_resolution() -> None:
    net = UNet(2, 3, channels=(4, 6, 8), strides=(2, 2), num_res_units=1)
    assert net(torch.randn(2, 2, 12, 20)).shape == (2, 3, 12, 20)
    with pytest.raises(ValueError, match="one entry more"):
        UNet(channels=(4, 8), strides=(2, 2))


@pytest.mark.parametrize("name", ["dice", "cldice", "wasserstein", "betti_matching"])
def test_training_losses(name: Any) -> None:
    logits = torch.randn(2, 1, 12, 12, generator=torch.Generator().manual_seed(0), requires_grad=True)
    masks = (torch.rand(2, 1, 12, 12, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    plain, value = (training_loss(name, alpha=alpha, relative=True)(logits, masks) for alpha in (0.0, 0.5))
    value.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    dice = training_loss("dice", alpha=0.5, relative=True)(logits, masks)
    assert torch.equal(plain, dice)
    assert (value > dice) == (name != "dice")


# ---- crops, windows, scores ------------------------------------------------------------------------------------------


def test_crops_are_balanced() -> None:
    mask = torch.zeros(1, 40, 50)
    mask[0, 20, 25] = 1
    image = torch.arange(2000.0).view(1, 40, 50)
    torch.manual_seed(0)
    images, masks = balanced_crops(image, mask, size=8, count=200)
    assert images.shape == masks.shape == (200, 1, 8, 8)
    assert 0.4 < masks.flatten(1).any(1).float().mean() < 0.65  # the one foreground pixel: half of the crops
    places = images[:, 0, 0, 0].long()
    for crop, place in zip(images, places, strict=True):
        row, column = divmod(int(place), 50)
        assert torch.equal(crop, image[:, row : row + 8, column : column + 8])
    images, masks = balanced_crops(image[:, :5], mask[:, :5], size=8, count=3)  # no foreground, and too small
    assert images.shape == (3, 1, 8, 8)
    assert not masks.any()


@pytest.mark.parametrize("shape", [(48, 48), (50, 71), (20, 60), (9, 7)])
def test_sliding_window_covers_the_image(shape: tuple[int, int]) -> None:
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sliding_window(nn.Identity(), image, size=16, batch_size=5), image.sigmoid())


class Position(nn.Module):
    """Logits that tell how many windows there are: the place in the batch of each."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.arange(len(x)).view(-1, 1, 1, 1).expand_as(x).float()


def test_sliding_window_averages_logits() -> None:
    out = sliding_window(Position(), torch.zeros(1, 16, 28), size=16, overlap=0.25).logit()
    torch.testing.assert_close(out[0, 0], torch.tensor([0.0] * 12 + [0.5] * 4 + [1.0] * 12))


def test_centerline_dice() -> None:
    line, thick = np.zeros((2, 20, 30), dtype=bool)
    line[10, 3:27] = True
    thick[8:13, 3:27] = True
    empty = np.zeros_like(line)
    assert centerline_dice(line, line) == 1
    assert centerline_dice(line, thick) > 0.9  # each center line lies in the other mask, but for its ends
    assert centerline_dice(empty, empty) == 1
    assert centerline_dice(line, empty) == 0
    assert centerline_dice(line, np.roll(line, 5, axis=0)) == 0
    half = line.copy()
    half[:, 15:] = False
    assert centerline_dice(half, line) == pytest.approx(2 * 1 * 0.5 / 1.5)


def some_samples() -> Samples:
    rng = np.random.default_rng(0)
    images = [torch.from_numpy(rng.normal(size=(1, 20, 24))).float() for _ in range(5)]
    return Samples(images, [(image.roll(1, 1) > 0).float() for image in images])


def test_scores_of_a_network_are_the_means_of_its_images() -> None:
    samples, device = some_samples(), torch.device("cpu")
    net = nn.Identity().train()
    means = mean_scores(net, samples, size=16, relative=True, device=device)
    assert net.training
    one = image_scores(torch.stack(samples.images).sigmoid(), torch.stack(samples.masks), relative=True)
    assert means == pytest.approx({name: float(values.mean()) for name, values in one.items()})
    assert means["dice"] == pytest.approx(mean_dice(net, samples, size=16, device=device))
    p, t = torch.stack(samples.images).sigmoid(), torch.stack(samples.masks)
    assert means["betti_matching_error"] == pytest.approx(float(betti_matching_error(p, t, relative=True)))


def share_of_scores(rank: int) -> dict[str, float]:
    return mean_scores(nn.Identity(), some_samples(), size=16, relative=True, device=torch.device("cpu"))


def test_two_processes_score_as_one(two_processes: Callable[..., list[dict[str, float]]]) -> None:
    alone = share_of_scores(0)
    for result in two_processes(share_of_scores):
        assert result == pytest.approx(alone)


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    """Five slices with round cells between membranes, in the format of the real stack."""
    y, x = np.mgrid[:32, :40]
    labels = np.stack([np.hypot((y + i) % 16 - 8, x % 20 - 10) < 7 for i in range(5)]).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 60, labels.shape)
    np.savez(tmp_path / "stack.npz", images=(120 * labels + noise).astype(np.uint8), labels=labels)
    return tmp_path / "stack.npz"


def launch(config: Config, out: Path, *, preset: str = "medium", **options: Any) -> Outcome:
    return execute(experiment, config, preset=preset, device="cpu", out=out, **options)


def test_membranes(stack: Path, tmp_path: Path) -> None:
    config = replace(PRESETS["medium"], data=stack, validate_every=1, **TINY)
    outcome = launch(config, tmp_path / "a")
    result = outcome.result
    assert [claim["id"] for claim in result["claims"]] == ["membrane_errors", "membrane_dice"]
    assert result["figures"] == ["figures/membrane_errors.png", "figures/membrane_example.png"]
    again = launch(config, tmp_path / "b").result
    assert again["claims"] == result["claims"]  # bit for bit


def test_a_killed_training_goes_on_from_its_checkpoint(stack: Path, tmp_path: Path) -> None:
    config = replace(PRESETS["medium"], data=stack, validate_every=1, **TINY)
    whole = launch(config, tmp_path / "whole")
    mortal = interrupted(experiment, checkpoints=3)  # after the first epoch of the second network
    with pytest.raises(KeyboardInterrupt):
        execute(mortal, config, preset="medium", device="cpu", out=tmp_path / "killed")
    folder = next((tmp_path / "killed" / "betti-matching").iterdir())
    resumed = launch(config, tmp_path, resume=folder)
    assert resumed.result["claims"] == whole.result["claims"]
    assert (folder / "metrics.jsonl").read_text() == (whole.dir / "metrics.jsonl").read_text()


def test_paper_preset_on_small_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for folder in ("roads/images", "roads/labels"):
        (tmp_path / folder).mkdir(parents=True)
    for i in range(5):
        mask = np.zeros((24, 30), dtype=np.uint8)
        mask[:, 10 + i] = 255
        imsave(tmp_path / "roads/labels" / f"label_{i}.png", mask, check_contrast=False)
        photograph = (mask[..., None] // 2 + rng.integers(0, 80, (24, 30, 3))).astype(np.uint8)
        imsave(tmp_path / "roads/images" / f"image_{i}.png", photograph, check_contrast=False)
    config = replace(PRESETS["paper"], datasets=("roads",), data=tmp_path, patches_per_image=1, **TINY)
    result = launch(config, tmp_path / "runs", preset="paper").result
    assert [claim["id"] for claim in result["claims"]] == ["roads_errors", "roads_dice"]
    report = next((tmp_path / "runs" / "betti-matching").iterdir()) / "report.md"
    assert "Dice + Wasserstein" in report.read_text()


def test_missing_data_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFPRINTS_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(MissingData, match=r"isbi_membrane\.npz"):
        launch(PRESETS["medium"], tmp_path)
    with pytest.raises(FileNotFoundError, match=r"cremi/labels/\*\.png"):
        launch(replace(PRESETS["paper"], datasets=("cremi",), pictures=0), tmp_path, preset="paper")


def test_descent_mends_a_ring() -> None:
    picture, target = broken_ring()
    repaired, errors = repair(picture, target)
    assert errors[0] == 4  # a component and a loop on either side
    assert errors[-1] == 0
    assert (repaired >= 0.5)[0, 0, 15, [4, 6, 24, 26]].any()  # mended where it was broken
    _, by_value = repair(picture, target, loss=wasserstein_loss)
    assert by_value[-1] >= 2  # the ring beside it is taken for the broken one
