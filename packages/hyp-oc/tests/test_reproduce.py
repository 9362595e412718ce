"""The experiment through the command line; the larger presets' loaders and loops on tiny files of the same form."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from offprints.hyp_oc.reproduce import experiment
from offprints.hyp_oc.reproduce.fits import float32_error
from offprints.hyp_oc.reproduce.paper import FaceImages
from offprints.hyp_oc.vgg import MEAN
from offprints.shared.experiment.launch import execute
from offprints.shared.testing import check_errors
from offprints.shared.testing.pictures import write_clothes


def test_smoke(paper_run, tmp_path) -> None:
    run = paper_run("hyp-oc", "--preset", "smoke", out=tmp_path)
    assert set(run.claims) == {"displaced", "compact", "float32"}
    assert run.figures == {"disc", "scores", "roc"}
    assert run.claims["float32"]["holds"]


def test_the_check_of_exactness_can_fail() -> None:
    """It is an error of float32's size, not 0 because both sides were rounded alike."""
    assert 0 < float32_error(1e-3, 0) < 1e-6


def test_medium_on_tiny_files(tmp_path) -> None:
    write_clothes(tmp_path / "data", 400, 400)
    medium = experiment.presets["medium"].medium
    fit = replace(medium.fit, epochs=2)
    small = replace(medium, networks=1, width=2, epochs=1, live=64, test=20, fit=fit)
    config = replace(experiment.presets["medium"], medium=small, data=tmp_path / "data")
    outcome = execute(experiment, config, preset="medium", device="cpu", out=tmp_path / "runs")
    assert {claim["id"] for claim in outcome.result["claims"]} == {"fashion-displaced", "fashion-compact"}
    report = (outcome.dir / "report.md").read_text(encoding="utf-8")
    assert sum(f"\n| {label} |" in report for label in range(10)) == 5


def write_faces(root: Path, name: str, n: int = 8) -> None:
    """Images and their tables, live ones darker."""
    rng = np.random.default_rng(len(name))
    for split in ("train", "test"):
        (root / name / split).mkdir(parents=True)
        with (root / name / f"{split}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["path", "label"])
            for i in range(n):
                pixels = rng.integers(0, 120, (40, 30, 3), dtype=np.uint8) + np.uint8(100 * (i % 2))
                Image.fromarray(pixels).save(root / name / split / f"{i}.png")
                table.writerow([f"{split}/{i}.png", i % 2])


def test_paper_preset_on_tiny_images(tmp_path) -> None:
    """One data set left out, a development set for the threshold; what is stored is taken up again."""
    for name in ("one", "two", "left-out"):
        write_faces(tmp_path / "data", name)
    small = replace(
        experiment.presets["paper"].paper,
        train=("one", "two"),
        test="left-out",
        development="one",
        batch_size=2,
        epochs=2,
        width=1,
        features=8,
        hidden=(6, 4),
        workers=0,
    )
    config = replace(experiment.presets["paper"], paper=small, data=tmp_path / "data")
    outcome = execute(experiment, config, preset="paper", device="cpu", out=tmp_path / "runs")
    values = {value["id"]: value["value"] for value in outcome.result["values"]}
    assert set(values) == {"hter", "auc", "eer", "apcer", "bpcer"}
    assert values["hter"] == pytest.approx((values["apcer"] + values["bpcer"]) / 2)
    assert len((outcome.dir / "metrics.jsonl").read_text().splitlines()) == 2


def test_images_and_their_normalization(tmp_path) -> None:
    """The encoder's scale is 0 to 255; the official code subtracts its means from images in [0, 1]."""
    write_faces(tmp_path, "one", n=4)
    ours = FaceImages(tmp_path / "one" / "train.csv")
    theirs = FaceImages(tmp_path / "one" / "train.csv", reference_normalization=True)
    mean = torch.tensor(MEAN)[:, None, None]
    image, label = ours[1]
    assert image.shape == (3, 224, 224)
    assert label == 1
    with Image.open(tmp_path / "one" / "train" / "1.png") as file:
        pixels = torch.from_numpy(np.array(file.resize((224, 224), Image.Resampling.BICUBIC))).permute(2, 0, 1)
    torch.testing.assert_close(image + mean, pixels.float(), atol=1e-3, rtol=0)
    torch.testing.assert_close(theirs[1][0] + mean, pixels / 255, atol=1e-4, rtol=0)
    assert len(ours.live()) == 2
    assert all(label == 0 for _, label in ours.live())


def test_tables_are_checked(tmp_path) -> None:
    for name, text in {
        "empty": "path,label\n",
        "columns": "file,label\na.png,0\n",
        "labels": "path,label\na.png,live\n",
    }.items():
        (tmp_path / f"{name}.csv").write_text(text)
    check_errors(
        [
            (lambda: FaceImages(tmp_path / "none.csv"), FileNotFoundError, "none.csv"),
            (lambda: FaceImages(tmp_path / "empty.csv"), ValueError, "columns"),
            (lambda: FaceImages(tmp_path / "columns.csv"), ValueError, "columns"),
            (lambda: FaceImages(tmp_path / "labels.csv"), ValueError, "line 2"),
        ]
    )
