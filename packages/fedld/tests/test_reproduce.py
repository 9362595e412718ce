"""The experiment through the real command line, and the loaders of the larger presets on tiny files. REPLACE."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from offprints.fedld.reproduce.data import load_images


def test_smoke(paper_run, tmp_path) -> None:
    run = paper_run("fedld", "--preset", "smoke", out=tmp_path)
    assert run.result["preset"] == "smoke"
    assert set(run.claims) == {"robust"}
    assert run.figures == {"centers"}


def test_the_mechanism_makes_the_difference(paper_run, tmp_path) -> None:
    claim = paper_run("fedld", "--seed", "5", out=tmp_path).claims["robust"]
    assert claim["holds"]
    assert claim["control"] > 5 * claim["measured"]


def test_loads_the_files_of_the_larger_presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 28, 28), dtype=np.uint8)
    labels = np.array([0, 3, 0, 9, 0], dtype=np.uint8)
    raw = next(iter(_raw_folders(tmp_path, monkeypatch)))
    for split in ("train", "t10k"):
        (raw / f"{split}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, 5, 28, 28) + images.tobytes())
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, 5) + labels.tobytes())
    loaded = load_images("fashion_mnist", 2, download=False)
    torch.testing.assert_close(loaded, torch.from_numpy(images[[0, 2]]).flatten(1) / 255)


def _raw_folders(root: Path, monkeypatch: pytest.MonkeyPatch):
    """Where torchvision looks for the raw files, under the root that the environment names."""
    from offprints.shared.datasets import data_root

    monkeypatch.setenv("OFFPRINTS_DATA", str(root))
    folder = data_root("fashion_mnist") / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    yield folder
