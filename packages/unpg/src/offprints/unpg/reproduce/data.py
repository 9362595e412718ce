"""Images of identities: rotated scans of digits (bundled), handwritten characters (Omniglot)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from offprints.shared.datasets import data_root, digits, vision_dataset
from offprints.shared.extras import require

Source = Literal["digits", "omniglot"]
SMALL_OMNIGLOT = "omniglot_small.npz"  # 242 characters of torchvision's set in one file, if somebody has made it


@dataclass(frozen=True)
class Identities:
    """Images `(N, 1, S, S)` and labels of the identities that are trained on, and of novel ones."""

    images: Tensor
    labels: Tensor
    novel_images: Tensor
    novel_labels: Tensor


def load(source: Source, root: Path | None, download: bool) -> Identities:
    """The images of a source, split by identity."""
    return rotated_digits() if source == "digits" else characters(root, download)


def rotated_digits() -> Identities:
    """Digits that are another under no rotation, each rotation an identity: 24 to train on, 8 novel ones."""
    images, labels = digits(layout="image")
    parts = {}
    for name, chosen in (("known", (0, 2, 3, 5, 6, 7)), ("novel", (4, 9))):
        rotated, of = [], []
        for k in range(4):
            for number, digit in enumerate(chosen):
                rotated.append(images[labels == digit].rot90(k, (2, 3)))
                of.append(torch.full((len(rotated[-1]),), 4 * number + k))
        parts[name] = (torch.cat(rotated), torch.cat(of))
    return Identities(*parts["known"], *parts["novel"])


def characters(root: Path | None, download: bool) -> Identities:
    """Drawings of characters at 28 x 28, ink as 1; each character is an identity, every third a novel one."""
    folder = data_root() if root is None else root
    if (folder / SMALL_OMNIGLOT).is_file():
        with np.load(folder / SMALL_OMNIGLOT, allow_pickle=False) as file:
            packed, labels = file["packed"], torch.from_numpy(file["label"].astype(np.int64))
        pixels = np.unpackbits(packed, axis=1)[:, : 105 * 105].reshape(-1, 1, 105, 105)
        images = _reduced(torch.from_numpy(pixels))
    else:
        found: Any = vision_dataset("omniglot", "train", download=download, root=root)
        # Its labels follow the order in which the file system lists the characters; these are sorted.
        files = sorted(Path(found.target_folder).glob("*/*/*.png"))
        classes = {folder: label for label, folder in enumerate(sorted({file.parent for file in files}))}
        images = torch.cat([_ink(file) for file in files])
        labels = torch.tensor([classes[file.parent] for file in files])
    novel = labels % 3 == 2
    known_labels = labels[~novel].unique(return_inverse=True)[1]
    return Identities(images[~novel], known_labels, images[novel], labels[novel])


def _ink(file: Path) -> Tensor:
    pillow = require("PIL.Image", package="unpg", extra="claims")
    with pillow.open(file) as image:
        paper = np.asarray(image.convert("L"))
    return _reduced(torch.from_numpy(paper < 128)[None, None])


def _reduced(images: Tensor) -> Tensor:
    return F.interpolate(images.float(), size=(28, 28), mode="area")
