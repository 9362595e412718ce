"""Small data sets in the files of MNIST's family, as torchvision lays them out: what `vision_dataset` reads."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

_FOLDERS = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}


def write_pictures(root: Path, name: str, split: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Write a split of ``mnist`` or ``fashion_mnist`` below ``root``, as ``OFFPRINTS_DATA`` would hold it.

    Args:
        root: What the experiments take as the folder of data sets.
        name: ``mnist`` or ``fashion_mnist``.
        split: ``train`` or ``test``.
        images: Bytes, (N, 28, 28).
        labels: N classes from 0 to 9.
    """
    raw = root / name / _FOLDERS[name] / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    prefix = {"train": "train", "test": "t10k"}[split]
    count, rows, columns = images.shape
    head = struct.pack(">iiii", 0x803, count, rows, columns)
    (raw / f"{prefix}-images-idx3-ubyte").write_bytes(head + images.astype(np.uint8).tobytes())
    head = struct.pack(">ii", 0x801, len(labels))
    (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(head + labels.astype(np.uint8).tobytes())


def write_clothes(root: Path, train: int, test: int, *, noise: int = 160) -> Path:
    """Fashion-MNIST with few images: ten classes, as many of each, told by the rows that are bright; returns ``root``.

    ``noise`` is how bright the other pixels are at most, of 255.
    """
    for seed, (split, count) in enumerate((("train", train), ("test", test))):
        draws = np.random.default_rng(seed)
        labels = draws.permutation(np.arange(count) % 10)
        images = draws.integers(0, noise, (count, 28, 28))
        images[np.arange(count), 2 * labels + 4] += 250 - noise
        write_pictures(root, "fashion_mnist", split, images, labels)
    return root
