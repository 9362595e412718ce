"""The data of the presets: patches of bundled pictures for `quick`, handwritten characters for `medium`."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from offprints.shared.datasets import data_root, pictures
from offprints.shared.extras import MissingData
from offprints.susana.datasets import OmniglotFewShot, Split, characters_of

PICTURES = (
    "astronaut",
    "brick",
    "camera",
    "cell",
    "chelsea",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
    "ihc",
    "moon",
    "motorcycle_left",
    "page",
    "retina",
    "rocket",
    "text",
    "horse",
)
SMALL_OMNIGLOT = "omniglot_small.npz"


@dataclass(frozen=True)
class Images:
    """Images in memory ``[n, c, h, w]`` and their classes ``[n]``, 0..classes-1."""

    x: Tensor
    y: Tensor

    def of_classes(self, classes: Tensor) -> Images:
        """The images of some classes, which are numbered anew in the order given."""
        number = torch.full((int(max(self.y.max(), classes.max())) + 1,), -1)
        number[classes] = torch.arange(len(classes))
        y = number[self.y]
        return Images(self.x[y >= 0], y[y >= 0])


@functools.lru_cache(maxsize=2)
def patches(per_class: int = 60, side: int = 32, *, rest: bool = False) -> Images:
    """Gray patches on a grid of scikit-image's bundled pictures, a class a picture, halved to 16 x 16 pixels.

    Flat patches are left out, the others are spread evenly over the picture and standardized one by one. `rest` gives
    the patches that were not chosen, of the pictures that have more.
    """
    x, y = [], []
    for label, picture in enumerate(pictures(PICTURES).values()):
        gray = picture.float().mean(0) / 255
        grid = gray.unfold(0, side, side).unfold(1, side, side).reshape(-1, 1, side, side)
        grid = grid[grid.flatten(1).std(1) >= 0.02]
        chosen = np.unique(np.linspace(0, len(grid) - 1, min(per_class, len(grid))).round().astype(int))
        if rest:
            chosen = np.setdiff1d(np.arange(len(grid)), chosen)
        if len(chosen) == 0:
            continue
        small = F.avg_pool2d(grid[torch.from_numpy(chosen)], 2)
        mean, std = small.mean((1, 2, 3), keepdim=True), small.std((1, 2, 3), keepdim=True)
        x.append((small - mean) / (std + 0.05))
        y.append(torch.full((len(chosen),), label))
    return Images(torch.cat(x), torch.cat(y))


def split_classes(images: Images, base: int, seed: int) -> tuple[Images, Images]:
    """Base and novel pictures by a seeded permutation."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(PICTURES)))
    return images.of_classes(order[:base]), images.of_classes(order[base:])


@functools.lru_cache(maxsize=2)
def omniglot(split: Split, *, data: Path | None, download: bool) -> Images:
    """Characters of a split, turned by 0, 90, 180 and 270 degrees, 28 x 28 pixels, ink 1.

    The small set of 242 characters is read from one file where it is there; else torchvision's files are, or fetched.
    """
    root = data if data is not None else data_root()
    file = root / SMALL_OMNIGLOT
    if file.is_file() and not download:
        with np.load(file, allow_pickle=False) as arrays:
            packed, names = arrays["packed"], arrays["character"][arrays["label"]].tolist()
        wanted = {name: i for i, name in enumerate(characters_of(sorted(set(names)), split))}
        rows = [i for i, name in enumerate(names) if name in wanted]
        ink = torch.from_numpy(np.unpackbits(packed[rows], axis=1)[:, : 105 * 105].reshape(-1, 1, 105, 105))
        y = torch.tensor([wanted[names[i]] for i in rows])
    else:
        try:
            dataset = OmniglotFewShot(root / "omniglot", split, download=download)
        except MissingData as error:
            raise MissingData(f"{error}\nor the small set: {file} (OFFPRINTS_DATA moves the root)") from error
        upright = [i for i, label in enumerate(dataset.labels) if label % 4 == 0]
        ink = torch.stack([torch.from_numpy(~np.array(dataset[i][0], dtype=bool))[None] for i in upright])
        y = torch.tensor([dataset.labels[i] // 4 for i in upright])
    x = torch.cat([F.interpolate(part.float(), size=(28, 28), mode="area") for part in ink.split(1024)])
    turned = torch.cat([x.rot90(turn, (2, 3)) for turn in range(4)])
    return Images(turned, torch.cat([4 * y + turn for turn in range(4)]))
