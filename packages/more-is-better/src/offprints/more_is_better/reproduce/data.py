"""The data: Gaussian ones of a given spectrum, digits, torchvision's images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from offprints.shared.datasets import digits, vision_dataset

Task = Literal["digits", "fashion_mnist", "mnist", "svhn", "cifar10"]
BINARY = {"digits": (1, 3, 5, 7, 9), "cifar10": (2, 3, 4, 5, 6)}  # the classes with the label -1


def load(name: Task, points: int, *, data: Path | None, download: bool, seed: int) -> tuple[Tensor, Tensor]:
    """Images ``[N, C, s, s]`` in float64, standardized by one mean and one deviation, and labels.

    A random subset of the training set; digits are in [0, 1] and not standardized. Sides that are not a power of two
    are padded with the value of the background, 28 to 32.
    """
    if name == "digits":
        images, labels = digits(layout="image", dtype=torch.float64)
    else:
        found: Any = vision_dataset(name, "train", download=download, root=data)
        raw = np.asarray(found.data)
        labels = torch.as_tensor(np.asarray(found.labels if name == "svhn" else found.targets), dtype=torch.int64)
        images = torch.from_numpy(raw)
        if name in ("mnist", "fashion_mnist"):
            images = images.unsqueeze(1)
        elif name == "cifar10":
            images = images.permute(0, 3, 1, 2)
    chosen = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels))[: points or len(labels)])
    images, labels = images[chosen].to(torch.float64), labels[chosen]
    if name != "digits":
        images = F.pad(images, (2, 2, 2, 2)) if images.shape[-1] == 28 else images
        images = (images - images.mean()) / images.std()
    return images, labels


def shrunk(images: Tensor, side: int) -> Tensor:
    """Images averaged down to a side that divides theirs; 0 leaves them."""
    return images if not side or side >= images.shape[-1] else F.avg_pool2d(images, images.shape[-1] // side)


def signs(name: Task, labels: Tensor) -> Tensor:
    """The binary task: +1 and -1 ``[N, 1]``."""
    negative = torch.tensor(BINARY[cast(str, name)])
    return torch.where(torch.isin(labels, negative), -1.0, 1.0).to(torch.float64)[:, None]


def one_hot(labels: Tensor) -> Tensor:
    """Centered one-hot labels of unit length ``[N, 10]``: classes are equally far from one another."""
    codes = F.one_hot(labels, 10).to(torch.float64) - 0.1
    return codes / codes.norm(dim=1, keepdim=True)


def add_noise(y: Tensor, variance: float, generator: torch.Generator, *, renormalize: bool) -> Tensor:
    """Noise of a variance that the outputs share. The official code then renormalizes the labels, which is optional."""
    noisy = y + (variance / y.shape[1]) ** 0.5 * torch.randn(y.shape, generator=generator, dtype=y.dtype)
    return noisy / noisy.norm(dim=1, keepdim=True) if renormalize else noisy
