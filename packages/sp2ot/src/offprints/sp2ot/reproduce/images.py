"""The paper's image collections: long-tailed training images and balanced test images, classes from head to tail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from offprints.shared.datasets import data_root, image_folder, vision_dataset
from offprints.shared.extras import require, require_folder
from offprints.sp2ot.longtail import long_tailed_indices

Collection = Literal["cifar100", "imagenet-r", "inature100", "inature500", "inature1000"]
FOLDERS = ("imagenet-r", "inature100", "inature500", "inature1000")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HEAD_COUNT = 500  # of CIFAR-100


@dataclass(frozen=True)
class Images:
    """One collection.

    Attributes:
        train, test: data sets of ``(picture, label)``.
        train_index, test_index: Rows that are in use.
        train_labels, test_labels: Their labels, the largest class 0.
    """

    train: Any
    test: Any
    train_index: np.ndarray
    test_index: np.ndarray
    train_labels: Tensor
    test_labels: Tensor

    @property
    def num_classes(self) -> int:
        """Of training and test images together."""
        return int(max(self.train_labels.max(), self.test_labels.max())) + 1


def load_images(name: Collection, *, root: Path | None, ratio: float, download: bool) -> Images:
    """A collection by its name.

    CIFAR-100 comes from torchvision and is made long-tailed with seed 0. The others are long-tailed themselves: folders
    ``train`` and ``test`` with one subfolder a class; their classes are put in the order of their numbers.

    Raises:
        FileNotFoundError: the data is not there; the expected tree is shown.
        ValueError: a folder of test images with a class that has no training images.
    """
    if name == "cifar100":
        train, test = (vision_dataset("cifar100", split, download=download) for split in ("train", "test"))
        labels = np.asarray(train.targets)  # type: ignore[attr-defined]
        index = long_tailed_indices(labels, ratio=ratio, seed=0, max_count=min(HEAD_COUNT, np.bincount(labels).min()))
        test_labels = torch.tensor(test.targets)  # type: ignore[attr-defined]
        return Images(train, test, index, np.arange(len(test_labels)), torch.from_numpy(labels[index]), test_labels)
    folder = require_folder(
        (root or data_root()) / name, f"{name}/train/<class>/<image>.jpg\n{name}/test/<class>/<image>.jpg"
    )
    train, test = (image_folder(folder / split) for split in ("train", "test"))
    counts = np.bincount(np.asarray(train.targets))  # type: ignore[attr-defined]
    order = np.argsort(-counts, kind="stable")
    place = {train.classes[class_]: rank for rank, class_ in enumerate(order)}  # type: ignore[attr-defined]
    if unknown := set(test.classes) - set(place):  # type: ignore[attr-defined]
        raise ValueError(f"{folder / 'test'} has classes without training images: {', '.join(sorted(unknown))}")
    labels_of = [
        torch.tensor([place[part.classes[target]] for target in part.targets])  # type: ignore[attr-defined]
        for part in (train, test)
    ]
    rows = [np.arange(len(labels)) for labels in labels_of]
    return Images(train, test, rows[0], rows[1], labels_of[0], labels_of[1])


def training_transform(image_size: int) -> Callable[[Any], Tensor]:
    """The paper's augmentation: resize, random crop, flip."""
    v2 = require("torchvision.transforms.v2", package="sp2ot", extra="timm")
    return v2.Compose(
        [
            *_resized(v2, image_size),
            v2.RandomCrop(image_size),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


def evaluation_transform(image_size: int) -> Callable[[Any], Tensor]:
    """The same with a crop of the center."""
    v2 = require("torchvision.transforms.v2", package="sp2ot", extra="timm")
    return v2.Compose(
        [
            *_resized(v2, image_size),
            v2.CenterCrop(image_size),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


def _resized(v2: Any, image_size: int) -> list[Any]:
    side = round(image_size * 256 / 224)
    return [
        v2.RGB(),
        v2.Resize((side, side), interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
        v2.ToImage(),
    ]


class Views(Dataset[tuple[Tensor, Tensor]]):
    """Rows of a data set as ``(views, number)``: ``views`` pictures, each transformed anew."""

    def __init__(self, pictures: Any, rows: np.ndarray, transform: Callable[[Any], Tensor], views: int) -> None:
        self.pictures, self.rows, self.transform, self.views = pictures, rows, transform, views

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        picture = self.pictures[int(self.rows[number])][0]
        return torch.stack([self.transform(picture) for _ in range(self.views)]), torch.tensor(number)
