"""The experiment through the command line; the larger presets' loaders and loops on tiny files of the same form."""

from __future__ import annotations

import csv
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from offprints.hyp_oc.reproduce.fits import float32_error
from offprints.hyp_oc.reproduce.paper import FaceImages
from offprints.hyp_oc.vgg import MEAN
from offprints.shared.testing import check_errors


def test_smoke(paper_run, tmp_path) -> None:
    run = paper_run("hyp-oc", "--preset", "smoke", out=tmp_path)
    assert set(run.claims) == {"displaced", "compact", "float32"}
    assert run.figures == {"disc", "scores", "roc"}
    assert run.claims["float32"]["holds"]


def test_the_check_of_exactness_can_fail() -> None:
    """It is an error of float32's size, not 0 because both sides were rounded alike."""
    assert 0 < float32_error(1e-3, 0) < 1e-6


def write_clothing(root: Path, n: int = 400) -> None:
    """Random images in the files of Fashion-MNIST; class k is brighter in column 2 k."""
    rng = np.random.default_rng(0)
    raw = root / "fashion_mnist" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        labels = (np.arange(n) % 10).astype(np.uint8)
        images = rng.integers(0, 80, (n, 28, 28), dtype=np.uint8)
        images[np.arange(n), :, 2 * labels] += 150
        (raw / f"{split}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, n, 28, 28) + images.tobytes())
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, n) + labels.tobytes())


def test_medium_on_tiny_files(paper_run, tmp_path) -> None:
    write_clothing(tmp_path / "data")
    size = {"networks": "1", "width": "2", "epochs": "1", "live": "64", "test": "20", "fit.epochs": "2"}
    small = [word for name, value in size.items() for word in (f"--medium.{name}", value)]
    run = paper_run(
        "hyp-oc", "--preset", "medium", *small, "--data", tmp_path / "data", out=tmp_path / "runs", status=(0, 1)
    )
    assert set(run.claims) == {"fashion-displaced", "fashion-compact"}
    report = (run.folder / "report.md").read_text(encoding="utf-8")
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


def test_paper_preset_on_tiny_images(paper_run, tmp_path) -> None:
    """One data set left out, a development set for the threshold; what is stored is taken up again."""
    for name in ("one", "two", "left-out"):
        write_faces(tmp_path / "data", name)
    options = {
        "train": ("one", "two"), "test": ("left-out",), "development": ("one",), "batch-size": ("2",), "epochs": ("2",),
        "width": ("1",), "features": ("8",), "hidden": ("6", "4"), "workers": ("0",),
    }  # fmt: skip
    flags = [word for name, values in options.items() for word in (f"--paper.{name}", *values)]
    run = paper_run("hyp-oc", "--preset", "paper", *flags, "--data", tmp_path / "data", out=tmp_path / "runs")
    values = {value["id"]: value["value"] for value in run.result["values"]}
    assert set(values) == {"hter", "auc", "eer", "apcer", "bpcer"}
    assert values["hter"] == pytest.approx((values["apcer"] + values["bpcer"]) / 2)
    assert len((run.folder / "metrics.jsonl").read_text().splitlines()) == 2


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
