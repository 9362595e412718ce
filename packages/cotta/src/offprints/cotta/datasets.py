"""The paper's data sets in their public layouts, from local folders; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from offprints.cotta.corruptions import CORRUPTIONS
from offprints.shared.datasets import image_folder
from offprints.shared.extras import MissingData, require, require_folder
from offprints.shared.validation import check_choice, check_number

CONDITIONS = ("fog", "night", "rain", "snow")


def load_cifar_c(
    root: str | Path, corruption: str, severity: int, *, num_classes: Literal[10, 100] = 10
) -> tuple[Float[Tensor, "N 3 32 32"], Int[Tensor, " N"]]:
    """One severity of one corruption of CIFAR-10-C or CIFAR-100-C: images in [0, 1] and labels.

    Args:
        root: The folder of ``<corruption>.npy`` and ``labels.npy``, or the one around ``CIFAR-10-C`` or
            ``CIFAR-100-C``. Each file holds the severities 1 to 5 one after the other, 10,000 rows each.
        corruption: One of ``CORRUPTIONS``.
        severity: 1 to 5.
        num_classes: Which of the two.

    Raises:
        MissingData: the folder or a file is missing.
        ValueError: an unknown corruption, a severity outside 1..5, files that do not fit each other.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> for name, rows in (("fog", np.zeros((10, 32, 32, 3), np.uint8)), ("labels", np.zeros(10, int))):
        ...     np.save(f"{folder}/{name}.npy", rows)  # as the public files, two images of each severity
        >>> load_cifar_c(folder, "fog", 5)[0].shape
        torch.Size([2, 3, 32, 32])
    """
    check_choice(corruption, "corruption", CORRUPTIONS)
    check_number(severity, "severity", low=1, high=5, integer=True)
    check_choice(num_classes, "num_classes", (10, 100))
    name = f"CIFAR-{num_classes}-C"
    record = {10: 2535967, 100: 3555552}[num_classes]
    layout = f"{name}/<corruption>.npy\n{name}/labels.npy\n(zenodo.org/records/{record})"
    folder = require_folder(root, layout)
    folder = folder / name if (folder / name).is_dir() else folder
    files = [folder / f"{corruption}.npy", folder / "labels.npy"]
    for file in files:
        if not file.is_file():
            raise MissingData(f"{file} does not exist; expected:\n{layout}")
    images, labels = (np.load(file, mmap_mode="r", allow_pickle=False) for file in files)
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or len(images) % 5:
        raise ValueError(f"{files[0]} must hold uint8 [5 N, 32, 32, 3], got {images.dtype} {images.shape}")
    if len(labels) != len(images) or int(np.max(labels)) >= num_classes:
        raise ValueError(f"{files[1]} must hold {len(images)} labels below {num_classes}, got {labels.shape}")
    count = len(images) // 5
    part = slice((severity - 1) * count, severity * count)
    x = torch.from_numpy(np.array(images[part])).permute(0, 3, 1, 2)
    return x.float() / 255, torch.from_numpy(np.array(labels[part], dtype=np.int64))


class ImageNetC(Dataset[tuple[Any, int]]):
    """One severity of one corruption of ImageNet-C: ``root/<corruption>/<severity>/<class>/<image>.JPEG``.

    Args:
        root: The folder of the corruptions.
        corruption: One of ``CORRUPTIONS``.
        severity: 1 to 5.
        transform: Of the Pillow image; default: a tensor in [0, 1], ``[3, 224, 224]``.

    Raises:
        MissingExtra: torchvision is not installed.
        MissingData: the folder is missing.
        ValueError: an unknown corruption, a severity outside 1..5.

    Example:
        >>> import pathlib, tempfile, PIL.Image
        >>> folder = pathlib.Path(tempfile.mkdtemp())  # as the public folders, with one image
        >>> (folder / "fog/5/n01").mkdir(parents=True)
        >>> PIL.Image.new("RGB", (224, 224)).save(folder / "fog/5/n01/one.png")
        >>> len(ImageNetC(folder, "fog", 5))
        1
    """

    def __init__(
        self, root: str | Path, corruption: str, severity: int, *, transform: Callable[[Any], Any] | None = None
    ) -> None:
        check_choice(corruption, "corruption", CORRUPTIONS)
        check_number(severity, "severity", low=1, high=5, integer=True)
        layout = "<root>/<corruption>/<severity>/<class>/<image>.JPEG\n(zenodo.org/records/2235448)"
        folder = require_folder(Path(root) / corruption / str(severity), layout)
        self.folder = cast("Any", image_folder(folder, transform=to_tensor if transform is None else transform))
        self.classes: list[str] = self.folder.classes
        self.files: list[str] = [Path(path).name for path, _ in self.folder.samples]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.folder)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Image and class."""
        return self.folder[index]


class ACDC(Dataset[tuple[Tensor, Tensor]]):
    """Driving scenes in bad conditions with the labels of Cityscapes' 19 classes; 255 is to be ignored.

    ``root/rgb_anon/<condition>/<split>/<sequence>/<frame>_rgb_anon.png`` and
    ``root/gt/<condition>/<split>/<sequence>/<frame>_gt_labelTrainIds.png``.

    Args:
        root: The folder of ``rgb_anon`` and ``gt``.
        condition: fog, night, rain or snow.
        split: train or val.
        size: Height and width to which images are resized; labels keep theirs.

    Raises:
        MissingData: a folder is missing or empty.
        ValueError: an unknown condition or split.

    Example:
        >>> try:
        ...     scenes = ACDC("nowhere", "fog", "train")
        ... except FileNotFoundError as error:  # the message shows the expected folders
        ...     print(str(error).splitlines()[1])
        <root>/rgb_anon/<condition>/<split>/<sequence>/<frame>_rgb_anon.png
    """

    def __init__(self, root: str | Path, condition: str, split: str, *, size: tuple[int, int] = (540, 960)) -> None:
        check_choice(condition, "condition", CONDITIONS)
        check_choice(split, "split", ("train", "val"))
        layout = (
            "<root>/rgb_anon/<condition>/<split>/<sequence>/<frame>_rgb_anon.png\n"
            "<root>/gt/<condition>/<split>/<sequence>/<frame>_gt_labelTrainIds.png\n(acdc.vision.ee.ethz.ch)"
        )
        folder = require_folder(Path(root) / "rgb_anon" / condition / split, layout)
        require_folder(Path(root) / "gt" / condition / split, layout)
        self.size = size
        self.images = sorted(folder.glob("*/*_rgb_anon.png"))
        if not self.images:
            raise MissingData(f"{folder} holds no images; expected:\n{layout}")
        gt = Path(root) / "gt" / condition / split
        self.labels = [
            gt / file.parent.name / file.name.replace("_rgb_anon.png", "_gt_labelTrainIds.png") for file in self.images
        ]
        missing = [file for file in self.labels if not file.is_file()]
        if missing:
            raise MissingData(f"{missing[0]} and {len(missing) - 1} more are missing; expected:\n{layout}")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "3 H W"], Int[Tensor, "h w"]]:
        """Image in [0, 1] and labels."""
        pillow = require("PIL.Image", package="cotta", extra="vision")
        with pillow.open(self.images[index]) as file:
            image = file.convert("RGB").resize((self.size[1], self.size[0]), pillow.Resampling.BILINEAR)
        with pillow.open(self.labels[index]) as file:
            labels = torch.from_numpy(np.asarray(file, dtype=np.int64).copy())
        return to_tensor(image), labels


def to_tensor(image: Any) -> Float[Tensor, "3 H W"]:
    """A Pillow image as a tensor in [0, 1]."""
    return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1).float() / 255
