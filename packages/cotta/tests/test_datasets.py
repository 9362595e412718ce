"""Public data in its own layouts, made tiny here."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from offprints.cotta import ACDC, ImageNetC, load_cifar_c, mean_iou


def write_cifar_c(root: Path, names: list[str], classes: int = 10, rows: int = 4) -> np.ndarray:
    draws = np.random.default_rng(0)
    root.mkdir(parents=True)
    images = draws.integers(0, 256, (5 * rows, 32, 32, 3), dtype=np.uint8)
    for name in names:
        np.save(root / f"{name}.npy", images)
    np.save(root / "labels.npy", np.tile(draws.integers(0, classes, rows), 5))
    return images


def write_acdc(root: Path, condition: str, count: int, size: tuple[int, int] = (24, 48)) -> None:
    draws = np.random.default_rng(0)
    for i in range(count):
        for kind, name, shape in (("rgb_anon", "rgb_anon", (*size, 3)), ("gt", "gt_labelTrainIds", size)):
            folder = root / kind / condition / "train" / "GOPR0001"
            folder.mkdir(parents=True, exist_ok=True)
            values = draws.integers(0, 256 if kind == "rgb_anon" else 19, shape, dtype=np.uint8)
            if kind == "gt":
                values[0] = 255
            Image.fromarray(values).save(folder / f"GOPR0001_frame_{i:06}_{name}.png")


def test_cifar_c(tmp_path: Path) -> None:
    images = write_cifar_c(tmp_path / "CIFAR-10-C", ["fog"])
    for root in (tmp_path, tmp_path / "CIFAR-10-C"):
        x, y = load_cifar_c(root, "fog", 2)
        assert torch.equal(x, torch.from_numpy(images[4:8]).permute(0, 3, 1, 2) / 255)
        assert y.dtype == torch.int64
        assert y.tolist() == np.load(tmp_path / "CIFAR-10-C" / "labels.npy")[4:8].tolist()
    with pytest.raises(FileNotFoundError, match="snow"):
        load_cifar_c(tmp_path, "snow", 2)
    with pytest.raises(FileNotFoundError, match="zenodo"):
        load_cifar_c(tmp_path / "nowhere", "fog", 2)
    labels = tmp_path / "CIFAR-10-C" / "labels.npy"
    np.save(labels, np.maximum(np.load(labels), np.eye(1, len(images), dtype=np.int64)[0] * 10))
    with pytest.raises(ValueError, match="labels below 10"):
        load_cifar_c(tmp_path, "fog", 2)
    write_cifar_c(tmp_path / "other" / "CIFAR-100-C", ["fog"], classes=100)
    assert int(load_cifar_c(tmp_path / "other", "fog", 5, num_classes=100)[1].max()) > 9
    with pytest.raises(ValueError, match="labels"):
        load_cifar_c(tmp_path / "other" / "CIFAR-100-C", "fog", 5, num_classes=10)


def test_imagenet_c(tmp_path: Path) -> None:
    for label in ("n01", "n02"):
        folder = tmp_path / "snow" / "3" / label
        folder.mkdir(parents=True)
        Image.new("RGB", (224, 224), (255, 0, 51)).save(folder / "ILSVRC2012_val_00000001.png")
    images = ImageNetC(tmp_path, "snow", 3)
    assert len(images) == 2
    x, y = images[1]
    assert y == 1
    assert x.shape == (3, 224, 224)
    assert x[:, 5, 5].tolist() == pytest.approx([1.0, 0.0, 0.2])
    assert ImageNetC(tmp_path, "snow", 3, transform=lambda image: image.size)[0] == ((224, 224), 0)
    with pytest.raises(FileNotFoundError):
        ImageNetC(tmp_path, "snow", 4)


def test_acdc(tmp_path: Path) -> None:
    write_acdc(tmp_path, "fog", 2)
    images = ACDC(tmp_path, "fog", "train", size=(12, 20))
    assert len(images) == 2
    x, labels = images[0]
    assert x.shape == (3, 12, 20)
    assert 0 <= x.min() < x.max() <= 1
    assert labels.shape == (24, 48)
    assert (labels[0] == 255).all()
    assert labels[1:].max() < 19
    (tmp_path / "gt/fog/train/GOPR0001/GOPR0001_frame_000001_gt_labelTrainIds.png").unlink()
    with pytest.raises(FileNotFoundError, match="frame_000001"):
        ACDC(tmp_path, "fog", "train")


def test_mean_iou() -> None:
    target = torch.tensor([[0, 0, 1, 1], [2, 255, 255, 1]])
    prediction = torch.tensor([[0, 1, 1, 1], [2, 0, 3, 0]])
    # class 0: 1 of 3; class 1: 2 of 4; class 2: 1 of 1; class 3 occurs at ignored pixels alone
    assert mean_iou(prediction, target, 5) == pytest.approx((1 / 3 + 2 / 4 + 1) / 3)
    assert mean_iou(target.clamp(max=2), target, 5) == 1.0
    assert math.isnan(mean_iou(prediction, torch.full_like(target, 255), 5))
