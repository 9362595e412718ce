"""Real data: what ships with a dependency, torchvision's data sets behind one root, a user's own images.

Everything returns tensors or index arrays, nothing is downloaded unless ``download=True``, and the global random
streams are not touched.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from offprints.shared.extras import MissingData, require, require_folder
from offprints.shared.validation import check_choice, check_number, check_same_length

if TYPE_CHECKING:
    from torch.utils.data import Dataset

Name = Literal["cifar10", "cifar100", "mnist", "fashion_mnist", "svhn", "stl10", "eurosat", "omniglot", "lfw_pairs"]


def digits(
    *,
    layout: Literal["flat", "image"] = "flat",
    value_range: tuple[float, float] = (0.0, 1.0),
    size: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Float[Tensor, "1797 ..."], Int[Tensor, " 1797"]]:
    """scikit-learn's 1797 scans of handwritten digits, 8 x 8 pixels, and their labels 0..9.

    Args:
        layout: ``"flat"`` for ``[1797, size * size]``, ``"image"`` for ``[1797, 1, size, size]``.
        value_range: Values of paper and of full ink.
        size: Side of the images, enlarged (or reduced) bilinearly; default 8.
        dtype: Type of the images.

    Raises:
        ValueError: an unknown layout, ``size`` < 1, a ``value_range`` that is not two different numbers.

    Example:
        >>> images, labels = digits(layout="image", size=16)
        >>> images.shape, labels.shape
        (torch.Size([1797, 1, 16, 16]), torch.Size([1797]))
    """
    check_choice(layout, "layout", ("flat", "image"))
    low, high = value_range
    check_number(low, "value_range")
    check_number(high, "value_range")
    if low == high:
        raise ValueError(f"value_range must be two different numbers, got {value_range}")
    from sklearn.datasets import load_digits

    bundle: Any = load_digits()
    images = torch.from_numpy(bundle.images).unsqueeze(1) / 16
    labels = torch.from_numpy(np.asarray(bundle.target, dtype=np.int64))
    if size is not None:
        check_number(size, "size", low=1, integer=True)
        images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False, antialias=size < 8)
    images = (low + (high - low) * images).to(dtype)
    return (images.flatten(1) if layout == "flat" else images), labels


def pictures(names: Sequence[str]) -> dict[str, UInt8[Tensor, "channels height width"]]:
    """Pictures that come inside the scikit-image wheel, by the name of their file.

    Photographs and scans: astronaut, brick, camera, cell, chelsea, clock_motion, coffee, coins, grass, gravel,
    hubble_deep_field, ihc, microaneurysms, moon, motorcycle_left and motorcycle_right (the two pictures of
    ``skimage.data.stereo_motorcycle``), page, retina, rocket, text. Drawings: chessboard_GRAY, chessboard_RGB, color,
    horse, logo, phantom. Gray pictures have one channel; a transparency channel is dropped. The faces of
    ``skimage.data.lfw_subset()`` are in the wheel too, as one array.

    Raises:
        ImportError: scikit-image is not installed (extra ``images``).
        TypeError: a string instead of a sequence of names.
        ValueError: a name that is not in the wheel; nothing is downloaded.

    Example:
        >>> pictures(["coffee"])["coffee"].shape
        torch.Size([3, 400, 600])
    """
    if isinstance(names, str):
        raise TypeError(f"names must be a sequence of names, got the string {names!r}")
    io = require("skimage.io", package="shared", extra="images")
    folder = Path(require("skimage.data", package="shared", extra="images").__file__ or "").parent
    files = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix in (".png", ".jpg")}
    for name in names:
        check_choice(name, "names", tuple(files))
    loaded = {}
    for name in names:
        pixels = np.asarray(io.imread(files[name]))
        if pixels.dtype == bool:
            pixels = pixels.astype(np.uint8) * 255
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels[..., :3] if pixels.shape[-1] == 4 else pixels
        loaded[name] = torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, 0)))
    return loaded


def class_subset(
    labels: Any, counts: int | Sequence[int] | Mapping[int, int], *, seed: int
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Indices of a seeded random subset with so many samples of each class, sorted.

    Args:
        labels: Integer labels ``[N]``, array or tensor.
        counts: One number for every class present, a sequence by class, or a mapping; classes left out get none.
        seed: Seed of the draw. With the same seed and labels, a class's smaller subset lies in its larger one.

    Raises:
        TypeError: labels or counts that are not integers.
        ValueError: a class has fewer samples than asked for, a count is negative, labels are not 1-D.

    Example:
        >>> labels = np.array([0, 0, 0, 1, 1, 2])
        >>> labels[class_subset(labels, {0: 2, 1: 1}, seed=0)]
        array([0, 0, 1])
    """
    check_number(seed, "seed", low=0, integer=True)
    values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if values.dtype.kind not in "iu":
        raise TypeError(f"labels must have an integer type, got {values.dtype}")
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"labels must be one-dimensional and not empty, got shape {values.shape}")
    if isinstance(counts, Mapping):
        wanted = dict(sorted(counts.items()))
    elif isinstance(counts, Sequence):
        wanted = dict(enumerate(counts))
    else:
        wanted = dict.fromkeys(np.unique(values).tolist(), counts)
    generator = np.random.default_rng(seed)
    chosen = []
    for label, count in wanted.items():
        check_number(count, "counts", low=0, integer=True)
        members = np.flatnonzero(values == label)
        if len(members) < count:
            raise ValueError(f"counts asks for {count} samples of class {label}, labels has {len(members)}")
        chosen.append(generator.permutation(members)[:count])
    return np.sort(np.concatenate(chosen)).astype(np.int64) if chosen else np.empty(0, dtype=np.int64)


def data_root(name: str = "") -> Path:
    """Folder in which the data set ``name`` is looked for: under ``OFFPRINTS_DATA``, or the user's cache folder.

    Example:
        >>> data_root("faces").name
        'faces'
    """
    if configured := os.environ.get("OFFPRINTS_DATA"):
        return Path(configured).expanduser() / name
    if sys.platform == "darwin":
        cache = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        cache = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "offprints" / name


def vision_dataset(
    name: Name,
    split: str,
    *,
    download: bool = False,
    transform: Callable[[Any], Any] | None = None,
    root: str | os.PathLike[str] | None = None,
) -> Dataset[Any]:
    """One of torchvision's data sets, from one root (`data_root`) and with one spelling of the splits.

    Args:
        name: The data set.
        split: ``"train"`` or ``"test"``; for svhn also ``"extra"``, for stl10 also ``"unlabeled"`` and
            ``"train+unlabeled"``, for lfw_pairs also ``"10fold"``, the standard protocol. Omniglot's background
            alphabets are ``"train"``; eurosat has no split of its own, its whole is ``"all"``.
        download: Fetch it if it is missing.
        transform: Applied to each picture.
        root: Folder in which the data set has a folder of its name; None: :func:`data_root`.

    Raises:
        ImportError: torchvision is not installed (extra ``vision``).
        ValueError: an unknown name or split.
        MissingData: the data is not there and ``download`` is off.
    """
    splits: dict[str, tuple[str, ...]] = dict.fromkeys(Name.__args__, ("train", "test"))  # type: ignore[attr-defined]
    splits |= {
        "svhn": ("train", "test", "extra"),
        "stl10": ("train", "test", "unlabeled", "train+unlabeled"),
        "eurosat": ("all",),
        "lfw_pairs": ("train", "test", "10fold"),
    }
    check_choice(name, "name", tuple(splits))
    check_choice(split, "split", splits[name])
    sets = require("torchvision.datasets", package="shared", extra="vision")
    folder = data_root(name) if root is None else Path(root).expanduser() / name
    common: dict[str, Any] = {"root": folder, "download": download, "transform": transform}
    makers: dict[str, Callable[[], Any]] = {
        "cifar10": lambda: sets.CIFAR10(train=split == "train", **common),
        "cifar100": lambda: sets.CIFAR100(train=split == "train", **common),
        "mnist": lambda: sets.MNIST(train=split == "train", **common),
        "fashion_mnist": lambda: sets.FashionMNIST(train=split == "train", **common),
        "svhn": lambda: sets.SVHN(split=split, **common),
        "stl10": lambda: sets.STL10(split=split, **common),
        "eurosat": lambda: sets.EuroSAT(**common),
        "omniglot": lambda: sets.Omniglot(background=split == "train", **common),
        "lfw_pairs": lambda: sets.LFWPairs(split=split, **common),
    }
    try:
        return makers[name]()
    except (RuntimeError, FileNotFoundError) as error:
        if download:
            raise
        raise MissingData(
            f"data set {name!r} is not in {folder} ({str(error).splitlines()[0]}); download it with download=True, "
            f"or put torchvision's files there (OFFPRINTS_DATA moves the root)"
        ) from error


def image_folder(path: str | os.PathLike[str], *, transform: Callable[[Any], Any] | None = None) -> Dataset[Any]:
    """A user's own images, one subfolder a class, as ``torchvision.datasets.ImageFolder``; an unreadable file is named.

    Raises:
        MissingExtra: torchvision is not installed (extra ``vision``).
        MissingData: no such folder.
        FileNotFoundError: no class in it.
        ValueError: (when it is read) a file that is not an image or is damaged.
    """
    sets = require("torchvision.datasets", package="shared", extra="vision")
    folder = require_folder(path, "<folder>/<class>/<image>.png (or .jpg, .bmp, .webp ...), one subfolder a class")

    def load(file: str) -> Any:
        try:
            return sets.folder.default_loader(file)
        except (OSError, SyntaxError, ValueError) as error:  # Pillow has no one error for damage
            raise ValueError(f"{file} is not a readable image: {error}") from error

    return sets.ImageFolder(str(folder), transform=transform, loader=load)


def tensor_batches(
    *tensors: Tensor, batch_size: int, generator: torch.Generator | None = None, drop_last: bool = False
) -> Iterator[tuple[Tensor, ...]]:
    """Batches of tensors that already lie on their device: views in order, shuffled copies when a generator is given.

    Args:
        tensors: Tensors of equal length.
        batch_size: Rows of a batch.
        generator: Draws the order, on its own device; one permutation a call.
        drop_last: Leave out a shorter last batch.

    Raises:
        ValueError: no tensor, unequal lengths, ``batch_size`` < 1, or no batch at all.

    Example:
        >>> x, y = torch.arange(5), torch.arange(5) * 10
        >>> for a, b in tensor_batches(x, y, batch_size=3):
        ...     print(a.tolist(), b.tolist())
        [0, 1, 2] [0, 10, 20]
        [3, 4] [30, 40]
    """
    check_number(batch_size, "batch_size", low=1, integer=True)
    if not tensors:
        raise ValueError("tensors must hold at least one tensor")
    for other in tensors[1:]:
        check_same_length(tensors[0], other, ("tensors[0]", "tensors[i]"))
    length = len(tensors[0])
    if length == 0 or (drop_last and length < batch_size):
        raise ValueError(f"tensors must hold at least one batch of {batch_size}, got {length} rows")
    return _batches(tensors, length, batch_size, generator, drop_last)


def _batches(
    tensors: tuple[Tensor, ...], length: int, batch_size: int, generator: torch.Generator | None, drop_last: bool
) -> Iterator[tuple[Tensor, ...]]:
    stop = length - length % batch_size if drop_last else length
    if generator is None:
        for start in range(0, stop, batch_size):
            yield tuple(tensor[start : min(start + batch_size, stop)] for tensor in tensors)
        return
    order = torch.randperm(length, generator=generator, device=generator.device)
    orders = {tensor.device: order.to(tensor.device) for tensor in tensors}
    for start in range(0, stop, batch_size):
        part = slice(start, min(start + batch_size, stop))
        yield tuple(tensor.index_select(0, orders[tensor.device][part]) for tensor in tensors)
