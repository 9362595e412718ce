"""Snow, fog and elastic transform pixel by pixel, written plainly after the public definition, from the same draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from packages.cotta.tests.test_corruptions import images
from torch import Tensor

from offprints.cotta import corrupt
from offprints.cotta.corruptions.pixels import Draws
from offprints.cotta.corruptions.severities import TABLE


def draws_for(x: Tensor) -> Draws:
    return Draws(torch.Generator().manual_seed(0), x)


def made(x: Tensor, name: str, severity: int) -> np.ndarray:
    return corrupt(x, name, severity, generator=torch.Generator().manual_seed(0)).numpy()


def constants(name: str, severity: int) -> tuple[float, ...]:
    return TABLE[name][1][severity - 1]


@pytest.mark.parametrize("severity", [1, 5])
def test_fog(severity: int) -> None:
    """Diamond-square, a point at a time: the mean of four neighbors of the periodic map and a wobble."""
    x = images(2, 12, 16).double()
    amount, decay = constants("fog", severity)
    draws, side = draws_for(x), 16
    maps = np.zeros((2, side, side))
    step, wobble = side, 100.0
    while step >= 2:
        half = step // 2
        corners = [(half, half, [(0, 0), (half * 2, 0), (0, half * 2), (half * 2, half * 2)])]
        edges = [
            (0, half, [(half, half), (-half, half), (0, 0), (0, 2 * half)]),
            (half, 0, [(half, half), (half, -half), (0, 0), (2 * half, 0)]),
        ]
        for top, left, neighbors in corners + edges:
            count = side // step
            noise = draws.uniform(2, 1, count, count, low=-wobble, high=wobble).numpy()[:, 0]
            filled = maps.copy()
            for i in range(count):
                for j in range(count):
                    around = [maps[:, (i * step + dy) % side, (j * step + dx) % side] for dy, dx in neighbors]
                    filled[:, i * step + top, j * step + left] = sum(around) / 4 + wobble * noise[:, i, j]
            maps = filled
        step, wobble = half, wobble / decay
    maps -= maps.min((1, 2), keepdims=True)
    maps /= maps.max((1, 2), keepdims=True)
    plain = x.numpy() + amount * maps[:, None, :12, :16]
    brightest = x.numpy().max((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(
        made(x, "fog", severity), np.clip(plain * brightest / (brightest + amount), 0, 1), atol=1e-12
    )


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_elastic_transform(severity: int) -> None:
    """The affine map and the displacements, by scipy."""
    ndimage = pytest.importorskip("scipy.ndimage", reason="needs scipy")
    x = images(2, 32, 32).double()
    alpha, sigma, affine = (32 * c for c in constants("elastic_transform", severity))
    draws = draws_for(x)
    moves = draws.uniform(2, 3, 2, low=-affine, high=affine).numpy()
    points = np.array([[16.0 + 10, 16 + 10], [16 + 10, 16 - 10], [16 - 10, 16 - 10]])
    result = made(x, "elastic_transform", severity)
    ys, xs = np.mgrid[:32, :32].astype(float)
    noise = draws.uniform(2, 2, 32, 32, low=-1, high=1).numpy() if alpha else None
    for b in range(2):
        # What cv2.getAffineTransform finds: the map from the points to where they moved; it is sampled backwards.
        ones = np.ones((3, 1))
        forward = np.linalg.solve(np.hstack([points, ones]), points + moves[b])  # [3, 2]
        back = np.linalg.inv(np.hstack([forward, [[0], [0], [1]]]))
        places = np.stack([xs, ys, np.ones_like(xs)], -1) @ back
        for channel in range(3):
            plane = ndimage.map_coordinates(
                x[b, channel].numpy(), [places[..., 1], places[..., 0]], order=1, mode="mirror"
            )
            if noise is not None:
                dx, dy = (alpha * ndimage.gaussian_filter(n, sigma, mode="reflect", truncate=3) for n in noise[b])
                plane = ndimage.map_coordinates(plane, [ys + dy, xs + dx], order=1, mode="reflect")
            np.testing.assert_allclose(result[b, channel], np.clip(plane, 0, 1), atol=1e-9)


@pytest.mark.parametrize("severity", [1, 5])
def test_snow(severity: int) -> None:
    """The layer of flakes, its motion tap by tap, the paler picture."""
    ndimage = pytest.importorskip("scipy.ndimage", reason="needs scipy")
    x = images(2, 32, 32).double()
    mean, std, zoom, threshold, radius, sigma, mix = constants("snow", severity)
    draws = draws_for(x)
    layers = (mean + std * draws.normal(2, 1, 32, 32)).numpy()[:, 0]
    angles = draws.uniform(2, low=-135, high=-45).numpy()
    result = made(x, "snow", severity)
    for b in range(2):
        side = math.ceil(32 / zoom)
        top = (32 - side) // 2
        large = ndimage.zoom(layers[b, top : top + side, top : top + side], zoom, order=1)
        top = (len(large) - 32) // 2
        layer = large[top : top + 32, top : top + 32]
        layer = np.floor(np.clip(np.where(layer < threshold, 0, layer), 0, 1) * 255) / 255
        weights = np.exp(-0.5 * (np.arange(2 * radius + 1) / sigma) ** 2)
        weights /= weights.sum()
        radians = math.radians(angles[b])
        flakes = np.zeros_like(layer)
        for i, weight in enumerate(weights):
            dy, dx = math.ceil(i * math.sin(radians) - 0.5), math.ceil(i * math.cos(radians) - 0.5)
            rows, columns = (np.clip(np.arange(32) + d, 0, 31) for d in (dy, dx))
            flakes += weight * layer[np.ix_(rows, columns)]
        picture = x[b].numpy()
        luma = 0.299 * picture[0] + 0.587 * picture[1] + 0.114 * picture[2]
        paler = mix * picture + (1 - mix) * np.maximum(picture, 1.5 * luma + 0.5)
        expected = np.clip(paler + flakes + np.rot90(flakes, 2), 0, 1)
        np.testing.assert_allclose(result[b], expected, atol=1e-9)
