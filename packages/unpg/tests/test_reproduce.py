"""The experiment through the command line, and the loops of the larger presets on a few images of the same format."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from offprints.shared.datasets import digits
from offprints.shared.experiment.launch import execute
from offprints.shared.extras import MissingData
from offprints.unpg.reproduce import experiment
from offprints.unpg.reproduce.data import characters, rotated_digits
from offprints.unpg.reproduce.experiment import _training
from offprints.unpg.reproduce.paper import Faces, lfw_accuracy, mirrored, rate
from offprints.unpg.reproduce.small import BINS, train

CLAIMS = {"arcface-tar", "arcface-gap", "cosface-gap"}


def test_smoke(paper_run, tmp_path) -> None:
    run = paper_run("unpg", "--preset", "smoke", out=tmp_path, status=(0, 1))  # too short for the claims
    assert set(run.claims) == CLAIMS
    assert run.figures == {"similarities", "gap"}
    for claim in run.claims.values():
        assert math.isfinite(claim["measured"])
        assert claim["control_name"] == "class weights alone"


def test_rotated_digits() -> None:
    data = rotated_digits()
    images, labels = digits(layout="image")
    assert data.labels.unique().tolist() == list(range(24))
    assert data.novel_labels.unique().tolist() == list(range(8))
    assert len(data.labels) + len(data.novel_labels) == 4 * sum(
        int((labels == digit).sum()) for digit in (0, 2, 3, 4, 5, 6, 7, 9)
    )
    sevens = images[labels == 7]
    torch.testing.assert_close(data.images[data.labels == 4 * 5 + 1], sevens.rot90(1, (2, 3)))


def few_characters(folder: Path, count: int = 6) -> np.ndarray:
    """Drawings in the layout of the small file: ink in one corner each."""
    pixels = np.zeros((4 * count, 105, 105), dtype=np.uint8)
    labels = np.arange(4 * count, dtype=np.int16) % count
    for drawing, label in zip(pixels, labels, strict=True):
        drawing[: 10 * (label + 1), :30] = 1
    packed = np.packbits(pixels.reshape(len(pixels), -1), axis=1)
    np.savez(folder / "omniglot_small.npz", packed=packed, label=labels, character=np.array(["a"] * len(labels)))
    return pixels


def test_characters_of_one_file(tmp_path: Path) -> None:
    pixels = few_characters(tmp_path)
    data = characters(tmp_path, False)
    assert data.images.shape == (16, 1, 28, 28)
    assert data.labels.unique().tolist() == [0, 1, 2, 3]
    assert data.novel_labels.unique().tolist() == [2, 5]
    assert data.images.sum() / 28**2 == pytest.approx(pixels[np.arange(24) % 6 % 3 != 2].sum() / 105**2, rel=1e-5)


def test_characters_of_torchvision(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="needs the extra vision")
    with pytest.raises(MissingData, match="omniglot"):
        characters(tmp_path, False)
    folder = tmp_path / "omniglot" / "omniglot-py" / "images_background"
    for number in range(3):
        (folder / "Alphabet" / f"character{number}").mkdir(parents=True)
        for drawing in range(2):
            paper = np.full((105, 105), 255, dtype=np.uint8)
            paper[: 35 * (number + 1)] = 0
            image.fromarray(paper).convert("1").save(folder / "Alphabet" / f"character{number}" / f"{drawing}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchvision.datasets.Omniglot._check_integrity", lambda self: True)
        data = characters(tmp_path, False)
    assert (data.labels.tolist(), data.novel_labels.tolist()) == ([0, 0, 1, 1], [2, 2])
    assert data.images[0].mean().item() == pytest.approx(1 / 3, abs=0.01)  # ink counts as 1
    assert data.novel_images[0].mean().item() == pytest.approx(1, abs=0.01)


def test_medium_on_a_few_images(tmp_path: Path) -> None:
    few_characters(tmp_path, 9)
    config = replace(experiment.presets["medium"], epochs=2, width=4, embedding=8, batch_size=12, root=tmp_path)
    outcome = execute(experiment, config, preset="medium", device="cpu", out=tmp_path / "runs")
    report = (outcome.dir / "report.md").read_text()
    assert all(name in report for name in ("CosFace+UNPG", "ArcFace+UNPG", "MagFace+UNPG"))
    shown = {value["id"] for value in outcome.result["values"]}
    assert {f"{head}-novel-{key}" for head in ("cosface", "arcface", "magface") for key in ("tar", "gap")} <= shown


def test_trainings_are_reproducible_and_differ_in_the_pairs_alone() -> None:
    config = experiment.presets["smoke"]
    results = [train(_training(config, "arcface", unified, "cpu"), 3) for unified in (False, True, True)]
    assert results[1] == results[2]
    assert results[0]["history"]["loss"][0] < results[1]["history"]["loss"][0]
    for key in ("positive", "clpg", "mlpg", "all"):
        density = np.array(results[0][f"histogram {key}"])
        assert density.sum() * 2 / BINS == pytest.approx(1, abs=0.01)


def test_learning_rate_of_the_paper() -> None:
    rates = [rate(step, 100, 20) for step in range(100)]
    assert rates[0] == pytest.approx(0.05)
    assert rates[19] == rates[20] == 1
    assert rates[60] == pytest.approx(0.5)
    assert rates[99] < 0.001


def faces(folder: Path) -> None:
    """Identities that differ in their color."""
    image = pytest.importorskip("PIL.Image", reason="needs the extra vision")
    draws = np.random.default_rng(0)
    for identity in range(3):
        (folder / f"person{identity}").mkdir(parents=True)
        for number in range(4):
            pixels = draws.integers(0, 120, (20, 20, 3), dtype=np.uint8)
            pixels[..., identity] += 130
            image.fromarray(pixels).save(folder / f"person{identity}" / f"{number}.png")


def test_paper_on_a_few_images(tmp_path: Path) -> None:
    faces(tmp_path / "faces")
    small = Faces(
        depth=34, image_size=16, embedding=8, epochs=2, warmup=1, batch_size=6, scale=8.0, num_workers=0, lfw=False
    )
    config = replace(experiment.presets["paper"], heads=("magface",), faces=small, root=tmp_path)
    outcome = execute(experiment, config, preset="paper", device="cpu", out=tmp_path / "runs")
    assert "MagFace+UNPG" in (outcome.dir / "report.md").read_text()
    lines = (outcome.dir / "metrics.jsonl").read_text().splitlines()
    assert sum("MagFace+UNPG/loss" in line for line in lines) == 2


def test_accuracy_on_pairs() -> None:
    network = torch.nn.Flatten()
    images = torch.randn(20, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    same = [(images[i], images[i] + 0.01, 1) for i in range(10)]
    others = [(images[i], images[i + 1], 0) for i in range(10)]
    pairs = [pair for both in zip(same, others, strict=True) for pair in both]
    # Every other pair lies below every same one. But the fold with the highest of them has a threshold that is best
    # without it, and that is the lowest such similarity: this pair itself.
    assert lfw_accuracy(network, pairs, torch.device("cpu")) == pytest.approx(0.95)  # type: ignore[arg-type]
    torch.testing.assert_close(mirrored(network, images).norm(dim=1), torch.ones(20))
    # A mirror swaps the two halves, so that it is as similar to a third as the image, half by half.
    left, right = mirrored(network, images).chunk(2, 1)
    torch.testing.assert_close(mirrored(network, images.flip(3)), torch.cat([right, left], 1))
