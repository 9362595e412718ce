"""Images and masks of the experiments: scanned digits, a retina, membranes, and the paper's six data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from scipy.ndimage import binary_dilation, binary_erosion, gaussian_filter, label
from torch import Tensor

from offprints.shared.datasets import data_root, digits, pictures, vision_dataset
from offprints.shared.extras import MissingData, require_folder
from offprints.shared.usage import UsageError


class Samples(NamedTuple):
    """Images ``[C, H, W]`` in [0, 1] and their masks ``[1, H, W]`` of zeros and ones, both float32."""

    images: list[Tensor]
    masks: list[Tensor]


@dataclass(frozen=True)
class PaperDataset:
    """One data set of the paper with the training settings of its configuration files."""

    folder: str
    train_images: int
    test_images: int
    in_channels: int
    patches_per_image: int
    batch_size: int
    epochs: int
    channels: tuple[int, ...] = (16, 32, 64, 128, 256)
    suffix: str = ".png"


_WIDE = (64, 128, 256, 512, 1024)
PAPER_DATASETS = {
    "mnist": PaperDataset("mnist", 4500, 500, 1, 1, 8, 100, suffix=".npy"),
    "cremi": PaperDataset("cremi", 100, 25, 1, 4, 2, 100),
    "roads": PaperDataset("roads", 100, 24, 3, 8, 4, 1000, _WIDE),
    "buildings": PaperDataset("buildings", 80, 20, 3, 8, 4, 300, _WIDE),
    "elegans": PaperDataset("elegans_cells", 80, 20, 1, 1, 4, 100),
    "colon": PaperDataset("colon_cancer_cells", 20, 4, 1, 12, 2, 1000),
}


def scale_intensity(image: Tensor) -> Tensor:
    """To [0, 1] by the image's own extremes, as the paper does; a constant image becomes zero."""
    image = image.float()
    low, high = image.amin(), image.amax()
    return (image - low) / (high - low) if high > low else torch.zeros_like(image)


# ---- digits ----------------------------------------------------------------------------------------------------------


def digit_lines(which: Sequence[int], *, size: int = 32, margin: int = 4) -> Float[Tensor, "n 1 side side"]:
    """Lines of two pixels along the strokes of some of scikit-learn's 1797 digits, with an empty margin on every side.

    The scans are enlarged, cut at half intensity, freed of specks and pinholes, and thinned.
    """
    lines = []
    for mask in digit_masks(size=size, margin=margin)[which].squeeze(1).bool().numpy():
        clean = ~without_small(~without_small(mask, 12), 7)
        lines.append(binary_dilation(skeleton(clean), np.ones((2, 2))))
    return torch.from_numpy(np.stack(lines)).float().unsqueeze(1)


def skeleton(mask: np.ndarray) -> np.ndarray:
    """Lines of one pixel in the middle of a boolean mask, with its topology."""
    from skimage.morphology import skeletonize

    return np.asarray(skeletonize(mask))  # type: ignore[no-untyped-call]


def digit_masks(*, size: int = 32, margin: int = 4) -> Float[Tensor, "1797 1 side side"]:
    """Scikit-learn's scanned digits, enlarged and cut at half intensity, with an empty margin on every side."""
    images, _ = digits(layout="image", size=size)
    return F.pad((images >= 0.5).float(), (margin,) * 4)


def without_small(mask: np.ndarray, size: int) -> np.ndarray:
    """The mask without its direct-connected components of fewer than ``size`` pixels."""
    components, _ = label(mask)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    return (sizes >= size)[components]


def slashes(
    masks: Float[Tensor, "batch 1 h w"], *, count: int, length: float, width: float, generator: torch.Generator
) -> Bool[Tensor, "batch 1 h w"]:
    """Where up to ``count`` slashes per image fall: segments of random direction, each across some foreground pixel."""
    batch, _, height, wide = masks.shape
    centers = torch.multinomial(masks.flatten(1) + 1e-9, count, replacement=True, generator=generator)
    angle = torch.rand(batch, count, generator=generator) * torch.pi
    half = torch.rand(batch, count, generator=generator).add(1).mul(width / 3)  # mean half-width is width / 2
    used = torch.rand(batch, count, generator=generator) * (count + 1) >= 1  # sometimes none
    rows = torch.arange(height).view(1, 1, -1, 1) - (centers // wide)[..., None, None]
    columns = torch.arange(wide).view(1, 1, 1, -1) - (centers % wide)[..., None, None]
    cosine, sine = angle.cos()[..., None, None], angle.sin()[..., None, None]
    along, across = rows * cosine + columns * sine, columns * cosine - rows * sine
    hit = (along.abs() <= length / 2) & (across.abs() <= half[..., None, None]) & used[..., None, None]
    return hit.any(dim=1, keepdim=True)


def corrupt(
    masks: Float[Tensor, "batch 1 h w"],
    *,
    cuts: int,
    cut_length: float,
    cut_width: float,
    blur: float,
    noise: float,
    generator: torch.Generator,
) -> Float[Tensor, "batch 1 h w"]:
    """What the network sees of a mask: slashed, blurred (standard deviation in pixels) and covered with noise."""
    hit = slashes(masks, count=cuts, length=cut_length, width=cut_width, generator=generator)
    seen = masks * ~hit
    reach = max(1, round(3 * blur))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / blur) ** 2)
    kernel = (kernel / kernel.sum()).view(1, 1, -1, 1)
    seen = F.conv2d(F.conv2d(seen, kernel, padding=(reach, 0)), kernel.mT, padding=(0, reach))
    return seen + noise * torch.randn(seen.shape, generator=generator)


def panels(masks: Float[Tensor, "n 1 h w"], *, seed: int) -> list[np.ndarray]:
    """Shuffled masks, four to a boolean panel ``[2h, 2w]``: pictures of several components and loops."""
    order = np.random.default_rng(seed).permutation(len(masks) // 4 * 4)
    tiles = masks[torch.from_numpy(order)].squeeze(1).bool().numpy()
    count, (height, width) = len(tiles) // 4, tiles.shape[1:]
    return list(tiles.reshape(count, 2, 2, height, width).swapaxes(2, 3).reshape(count, 2 * height, 2 * width))


# ---- a retina --------------------------------------------------------------------------------------------------------


def retina_vessels() -> tuple[np.ndarray, np.ndarray]:
    """A part of scikit-image's retina: uint8 ``[h, w, 3]`` and the boolean mask of its vessels.

    The mask is made by a ridge filter with hysteresis, not by hand.
    """
    from skimage.filters import sato

    pixels = F.avg_pool2d(pictures(["retina"])["retina"].float(), 3)
    picture = pixels.permute(1, 2, 0).numpy()
    green = picture[..., 1] / 255
    ridges = sato(green, sigmas=(1.0, 1.5, 2.0, 2.5), black_ridges=True)  # type: ignore[no-untyped-call]
    ridges *= binary_erosion(green > 0.08, iterations=8)  # the rim of the disc is no vessel
    components, _ = label(ridges > 0.014, np.ones((3, 3)))
    strong = np.setdiff1d(components[ridges > 0.03], 0)
    part = (slice(250, 410), slice(60, 260))
    return picture[part].astype(np.uint8), without_small(np.isin(components, strong)[part], 30)


# ---- membranes -------------------------------------------------------------------------------------------------------


def membrane_stack(path: Path | None, *, train_images: int, test_images: int) -> tuple[Samples, Samples]:
    """Electron-microscopy slices: the first ``train_images`` to train, the last ``test_images`` to test.

    ``path``, by default ``isbi_membrane.npz`` under ``OFFPRINTS_DATA``, is an ``.npz`` with ``images`` and ``labels``
    ``[N, H, W]``, labels 1 in the cells and 0 on the membranes.
    The masks are the membranes: cells are kept apart by closed membranes, which are loops (dimension 1) of the mask.
    """
    path = data_root("isbi_membrane.npz") if path is None else path.expanduser()
    if not path.is_file():
        raise MissingData(
            f"no file {path}; --data names an .npz with images and labels uint8 [N, H, W], 1 in the cells and 0 on the"
            " membranes (OFFPRINTS_DATA moves the folder in which isbi_membrane.npz is looked for)"
        )
    with np.load(path, allow_pickle=False) as archive:
        missing = {"images", "labels"} - set(archive.files)
        if missing:
            raise UsageError(f"{path.name} must hold the arrays images and labels, got {sorted(archive.files)}")
        images, labels = archive["images"], archive["labels"]
    if images.ndim != 3 or images.shape != labels.shape:
        raise UsageError(
            f"images and labels must be of one shape [N, H, W], got {images.shape} and {labels.shape} in {path.name}"
        )
    samples = Samples(
        [scale_intensity(torch.from_numpy(image)[None]) for image in images],
        [torch.from_numpy(label == 0)[None].float() for label in labels],
    )
    return split(samples, train_images, test_images)


def split(samples: Samples, train_images: int, test_images: int) -> tuple[Samples, Samples]:
    """The first and the last so many; they must not overlap."""
    count = len(samples.images)
    if train_images + test_images > count:
        raise UsageError(f"train_images + test_images must be at most {count} images, got {train_images + test_images}")
    test = count - test_images
    return (
        Samples(samples.images[:train_images], samples.masks[:train_images]),
        Samples(samples.images[test:], samples.masks[test:]),
    )


# ---- the paper's data sets -------------------------------------------------------------------------------------------

_LAYOUT = """{root}/
  {folder}/images/*{suffix}
  {folder}/labels/*{suffix}   (one per image, in the same order; foreground is non-zero)
from https://doi.org/10.5281/zenodo.7312139"""


def paper_dataset(
    name: str,
    *,
    root: Path | None = None,
    train_images: int | None = None,
    test_images: int | None = None,
    seed: int = 0,
    download: bool = False,
) -> tuple[Samples, Samples]:
    """One of ``PAPER_DATASETS`` from the authors' archive, the first images to train and the last to test.

    MNIST is put together from torchvision's copy where the archive has no ``mnist`` folder. Where data is missing, the
    error shows the tree that is expected.
    """
    settings = PAPER_DATASETS[name]
    root = data_root("betti-matching") if root is None else root
    train = settings.train_images if train_images is None else train_images
    test = settings.test_images if test_images is None else test_images
    # the archive and the repository do not agree on capitals
    present = {path.name.lower(): path for path in root.iterdir()} if root.is_dir() else {}
    folder = present.get(settings.folder, root / settings.folder)
    if name == "mnist" and not folder.is_dir():
        scans: Any = vision_dataset("mnist", "train", download=download)
        return split(crossing_digits(scans.data, count=train + test, seed=seed), train, test)
    layout = _LAYOUT.format(root=root, folder=settings.folder, suffix=settings.suffix)
    images, labels = (
        sorted((require_folder(folder, layout) / kind).glob(f"*{settings.suffix}")) for kind in ("images", "labels")
    )
    if not images or len(images) != len(labels):
        raise UsageError(f"{folder} has {len(images)} images and {len(labels)} labels; expected\n{layout}")
    chosen = list(zip(images, labels, strict=True))
    if train + test > len(chosen):
        raise UsageError(f"train_images + test_images must be at most {len(chosen)} in {folder}, got {train + test}")
    chosen = chosen[:train] + chosen[len(chosen) - test :]
    pairs = [_read_pair(*paths, settings.in_channels) for paths in chosen]
    return split(Samples([image for image, _ in pairs], [mask for _, mask in pairs]), train, test)


def _read(path: Path) -> np.ndarray:
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    from skimage.io import imread

    return np.asarray(imread(path))


def _read_pair(image_path: Path, label_path: Path, channels: int) -> tuple[Tensor, Tensor]:
    image, mask = _read(image_path), _read(label_path)
    image = image[..., None] if image.ndim == 2 else image
    mask = mask if mask.ndim == 2 else mask[..., 0]
    if image.shape[-1] < channels or image.shape[:2] != mask.shape:
        raise UsageError(
            f"{image_path} must be [H, W{f', {channels}' if channels > 1 else ''}] and {label_path} [H, W] of its size,"
            f" got {image.shape} and {mask.shape}"
        )
    pixels = torch.from_numpy(np.ascontiguousarray(image[..., :channels].transpose(2, 0, 1)))
    return scale_intensity(pixels), torch.from_numpy(mask > mask.max() / 2)[None].float()


def crossing_digits(scans: UInt8[Tensor, "n 28 28"], *, count: int, seed: int, side: int = 48) -> Samples:
    """Two scanned digits, enlarged, shaded and partly hidden, on noise; the mask is their union.

    Made in the manner of the two examples in the authors' repository; their generator is not published.
    """
    rng = np.random.default_rng(seed)
    images, masks = [], []
    for _ in range(count):
        mask = np.zeros((side, side), dtype=bool)
        image = np.clip(rng.normal(0.35, 0.1, (side, side)), 0, 1)
        for _ in range(rng.integers(1, 3)):  # flat patches that hide the noise
            corner, extent = rng.integers(0, side - 8, 2), rng.integers(6, 22, 2)
            image[corner[0] : corner[0] + extent[0], corner[1] : corner[1] + extent[1]] = rng.uniform(0.1, 0.5)
        for scan in rng.integers(0, len(scans), 2):
            size = int(rng.integers(28, 42))
            scaled = F.interpolate(scans[scan][None, None].float(), size=(size, size), mode="bilinear")
            ink = scaled[0, 0].numpy() >= 128
            top, left = rng.integers(0, side - size + 1, 2)
            window = (slice(top, top + size), slice(left, left + size))
            mask[window] |= ink
            start, end = rng.uniform(0, 1, 2)  # darker or lighter than the noise, even both
            image[window] = np.where(ink, np.linspace(start, end, size)[:, None], image[window])
        images.append(scale_intensity(torch.from_numpy(gaussian_filter(image, 0.4))[None]))
        masks.append(torch.from_numpy(mask)[None].float())
    return Samples(images, masks)
