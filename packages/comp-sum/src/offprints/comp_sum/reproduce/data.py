"""The data of the presets, as tensors in [0, 1]: training, validation and test."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from offprints.shared.datasets import digits, vision_dataset
from offprints.shared.device import make_generator

Source = Literal["digits", "fashion_mnist", "cifar10", "cifar100", "svhn"]
Pictures = Literal["fashion_mnist", "cifar10", "cifar100", "svhn"]
Pair = tuple[Tensor, Tensor]


def pictures(source: Pictures, split: str, data: Path | None, download: bool) -> Pair:
    """All pictures ``[N, C, H, W]`` of one of torchvision's sets, and their labels."""
    found: Any = vision_dataset(source, split, download=download, root=data)
    x = torch.as_tensor(np.asarray(found.data))
    if source == "fashion_mnist":
        x = x.unsqueeze(1)
    elif source != "svhn":  # which has its channels first already
        x = x.permute(0, 3, 1, 2)
    labels = found.labels if source == "svhn" else found.targets
    return x.float().div(255).contiguous(), torch.as_tensor(np.asarray(labels)).to(torch.int64)


def splits(
    source: Source, sizes: tuple[int, int], *, seed: int, data: Path | None, download: bool
) -> tuple[Pair, Pair, Pair]:
    """Training and validation data of the given sizes, drawn by the seed, and the test data.

    The digits have no test set of their own: what is left is theirs.
    """
    x, y = digits() if source == "digits" else pictures(source, "train", data, download)
    order = torch.randperm(len(y), generator=make_generator(seed))
    first, second, rest = order[: sizes[0]], order[sizes[0] : sum(sizes)], order[sum(sizes) :]
    test = (x[rest], y[rest]) if source == "digits" else pictures(source, "test", data, download)
    return (x[first], y[first]), (x[second], y[second]), test
