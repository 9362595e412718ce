"""The constants of the corruptions (hendrycks/robustness)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from offprints.cotta.corruptions.kinds import (
    Images,
    Setting,
    brightness,
    contrast,
    defocus_blur,
    elastic_transform,
    fog,
    frost,
    gaussian,
    gaussian_noise,
    glass_blur,
    impulse_noise,
    jpeg_compression,
    motion,
    pixelate,
    saturate,
    shot_noise,
    snow,
    speckle_noise,
    zoom_blur,
)

Corruption = Callable[[Images, Setting], Images]

# The function and its constants for severities 1 to 5: for CIFAR (32 pixels), for ImageNet (224).
TABLE: dict[str, tuple[Corruption, list[Any], list[Any]]] = {
    "gaussian_noise": (gaussian_noise, [0.04, 0.06, 0.08, 0.09, 0.10], [0.08, 0.12, 0.18, 0.26, 0.38]),
    "shot_noise": (shot_noise, [500, 250, 100, 75, 50], [60, 25, 12, 5, 3]),
    "impulse_noise": (impulse_noise, [0.01, 0.02, 0.03, 0.05, 0.07], [0.03, 0.06, 0.09, 0.17, 0.27]),
    "defocus_blur": (  # radius, smoothing
        defocus_blur,
        [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
        [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)],
    ),
    "glass_blur": (  # sigma, largest offset, iterations
        glass_blur,
        [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)],
        [(0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)],
    ),
    "motion_blur": (  # radius, sigma
        motion,
        [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
        [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)],
    ),
    "zoom_blur": (  # number of zooms, step
        zoom_blur,
        [(7, 0.01), (12, 0.01), (16, 0.01), (21, 0.01), (26, 0.01)],
        [(12, 0.01), (16, 0.01), (11, 0.02), (13, 0.02), (11, 0.03)],
    ),
    "snow": (  # mean, standard deviation, zoom, threshold, radius and sigma of the motion, mix
        snow,
        [
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ],
        [
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ],
    ),
    "frost": (  # weight of the picture, of the ice
        frost,
        [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)],
        [(1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)],
    ),
    "fog": (  # amount, decay
        fog,
        [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
        [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)],
    ),
    "brightness": (brightness, [0.05, 0.1, 0.15, 0.2, 0.3], [0.1, 0.2, 0.3, 0.4, 0.5]),
    "contrast": (contrast, [0.75, 0.5, 0.4, 0.3, 0.15], [0.4, 0.3, 0.2, 0.1, 0.05]),
    "elastic_transform": (  # alpha, sigma, affine, as parts of the side
        elastic_transform,
        [(0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)],
        [(2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)],
    ),
    "pixelate": (pixelate, [0.95, 0.9, 0.85, 0.75, 0.65], [0.6, 0.5, 0.4, 0.3, 0.25]),
    "jpeg_compression": (jpeg_compression, [80, 65, 58, 50, 40], [25, 18, 15, 10, 7]),
}

# The public set's corruptions for validation: to choose settings on, so that the others stay unseen.
VALIDATION: dict[str, tuple[Corruption, list[Any], list[Any]]] = {
    "speckle_noise": (speckle_noise, [0.06, 0.1, 0.12, 0.16, 0.2], [0.15, 0.2, 0.35, 0.45, 0.6]),
    "gaussian_blur": (gaussian, [0.4, 0.6, 0.7, 0.8, 1], [1, 2, 3, 4, 6]),
    "saturate": (  # factor, what is added
        saturate,
        [(0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)],
        [(0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)],
    ),
}
