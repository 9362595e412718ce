"""The photographs of the medium preset: CIFAR-10, whose raw pixels are poor features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offprints.protogcd.reproduce.training import (
    KMEANS,
    OURS,
    SIMGCD,
    TrainingSettings,
    kmeans,
    partly_labeled,
    scaled,
    train,
)
from offprints.shared.datasets import data_root, vision_dataset
from offprints.shared.device import make_generator

OLD, CLASSES = 5, 10
METHODS = (KMEANS, OURS, SIMGCD)
SUBSET = "cifar10_subset.npz"


def photos(data: Path | None, download: bool) -> tuple[np.ndarray, np.ndarray]:
    """Training images `(N, 32, 32, 3)` of uint8 and their classes: a subset that is at hand, or torchvision's."""
    subset = (data_root() if data is None else data) / SUBSET
    if subset.exists():
        with np.load(subset) as held:
            return held["x_train"], held["y_train"].astype(np.int64)
    found: Any = vision_dataset("cifar10", "train", download=download, root=data)
    return found.data, np.asarray(found.targets)


def pixels(images: int, data: Path | None, download: bool, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled pixels `(images, 3072)` of one draw, classes whose numbers are drawn, and the labels that are known."""
    pictures, labels = photos(data, download)
    generator = make_generator(seed)
    chosen = torch.randperm(len(pictures), generator=generator)[:images].numpy()
    true = torch.randperm(CLASSES, generator=generator)[torch.from_numpy(labels[chosen])]
    return scaled(torch.from_numpy(pictures[chosen]).flatten(1).float()), true, partly_labeled(true, OLD, seed)


def method_unit(
    name: str, training: TrainingSettings, images: int, data: Path | None, download: bool, seed: int
) -> dict[str, Any]:
    """One method on the pixels of one draw."""
    x, true, given = pixels(images, data, download, seed)
    if name == KMEANS:
        return kmeans(x, given, true, OLD, CLASSES, seed)
    torch.manual_seed(seed)
    return train(name, x, given, true, OLD, CLASSES, training)
