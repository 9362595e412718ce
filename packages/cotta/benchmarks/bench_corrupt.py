"""200 images of 32x32 at severity 5, beside the public per-image functions (hendrycks/robustness).

Those are plain renderings with the libraries that the public scripts call (OpenCV, scikit-image, SciPy, Pillow); motion
blur and snow need ImageMagick there and are left out.
"""

from __future__ import annotations

import io
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from skimage.color import hsv2rgb, rgb2hsv
from skimage.filters import gaussian
from skimage.util import random_noise

from offprints.cotta import corrupt
from offprints.shared.benchmark import Case, compare

rng = np.random.default_rng(0)


def glass_blur(x: Any) -> Any:
    x = np.uint8(gaussian(x / 255.0, sigma=0.4, channel_axis=-1) * 255)
    for _ in range(2):
        for h in range(31, 1, -1):
            for w in range(31, 1, -1):
                dx, dy = rng.integers(-1, 1, size=2)
                x[h, w] = x[h + dy, w + dx]
    return gaussian(x / 255.0, sigma=0.4, channel_axis=-1) * 255


def defocus_blur(x: Any) -> Any:
    line = np.arange(-8, 9)
    disk = ((line[:, None] ** 2 + line**2) <= 1.5**2).astype(np.float32)
    kernel = cv2.GaussianBlur(disk / disk.sum(), (3, 3), sigmaX=0.1)
    return np.stack([cv2.filter2D(x[..., c] / 255.0, -1, kernel) for c in range(3)], -1) * 255


def zoom_blur(x: Any) -> Any:
    x = (x / 255.0).astype(np.float32)
    total = np.zeros_like(x)
    zooms = np.arange(1, 1.26, 0.01)
    for zoom in zooms:
        side = math.ceil(32 / zoom)
        top = (32 - side) // 2
        large = ndimage.zoom(x[top : top + side, top : top + side], (zoom, zoom, 1), order=1)
        trim = (large.shape[0] - 32) // 2
        total += large[trim : trim + 32, trim : trim + 32]
    return (x + total) / (len(zooms) + 1) * 255


def elastic_transform(x: Any) -> Any:
    x = x.astype(np.float32) / 255
    corners = np.float32([[26, 26], [26, 6], [6, 6]])
    moved = corners + rng.uniform(-0.96, 0.96, (3, 2)).astype(np.float32)
    matrix = cv2.getAffineTransform(corners, moved)
    x = cv2.warpAffine(x, matrix, (32, 32), borderMode=cv2.BORDER_REFLECT_101)
    dx, dy = (3.2 * gaussian(rng.uniform(-1, 1, (32, 32)), 0.96, mode="reflect", truncate=3) for _ in range(2))
    rows, columns, channels = np.meshgrid(np.arange(32), np.arange(32), np.arange(3), indexing="ij")
    places = rows + dy[..., None], columns + dx[..., None], channels
    return ndimage.map_coordinates(x, places, order=1, mode="reflect") * 255


def brightness(x: Any) -> Any:
    hsv = rgb2hsv(x / 255.0)
    hsv[..., 2] = np.clip(hsv[..., 2] + 0.3, 0, 1)
    return hsv2rgb(hsv) * 255


def contrast(x: Any) -> Any:
    x = x / 255.0
    mean = x.mean((0, 1), keepdims=True)
    return ((x - mean) * 0.15 + mean) * 255


def pixelate(x: Any) -> Any:
    small = Image.fromarray(x).resize((20, 20), Image.Resampling.BOX)
    return np.asarray(small.resize((32, 32), Image.Resampling.BOX))


def jpeg_compression(x: Any) -> Any:
    file = io.BytesIO()
    Image.fromarray(x).save(file, "JPEG", quality=40)
    return np.asarray(Image.open(file))


PLAIN: dict[str, Callable[[Any], Any]] = {
    "gaussian_noise": lambda x: (x / 255.0 + rng.normal(size=x.shape, scale=0.10)) * 255,
    "shot_noise": lambda x: rng.poisson(x / 255.0 * 75) / 75 * 255,
    "impulse_noise": lambda x: random_noise(x / 255.0, mode="s&p", amount=0.07, rng=rng) * 255,
    "defocus_blur": defocus_blur,
    "glass_blur": glass_blur,
    "zoom_blur": zoom_blur,
    "brightness": brightness,
    "contrast": contrast,
    "elastic_transform": elastic_transform,
    "pixelate": pixelate,
    "jpeg_compression": jpeg_compression,
}


def main() -> None:
    coarse = torch.rand(200, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    x = (torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear") * 255).to(torch.uint8)
    images = x.permute(0, 2, 3, 1).contiguous().numpy()
    generator = torch.Generator().manual_seed(0)

    def plain(name: str) -> Any:
        return np.stack([np.clip(PLAIN[name](image), 0, 255).astype(np.uint8) for image in images])

    cases = [
        Case(
            name,
            lambda name=name: corrupt(x, name, 5, generator=generator),
            {"per image": lambda name=name: plain(name)},
        )
        for name in PLAIN
    ]
    cases += [
        Case(name, lambda name=name: corrupt(x, name, 5, generator=generator))
        for name in ("motion_blur", "snow", "frost", "fog")
    ]
    results = Path(__file__).parent / "results"
    clock = time.process_time if "--clock=cpu" in sys.argv else None
    compare(cases, results / "corrupt.json", rounds=3, seconds=0.05, threads=1, clock=clock)


if __name__ == "__main__":
    main()
