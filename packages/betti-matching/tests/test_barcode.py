"""Barcodes and Betti numbers on images larger than hypothesis draws, and of shapes whose topology is known."""

from typing import Any

import gudhi
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, generate_binary_structure, label

from offprints.betti_matching import betti_numbers, compute_barcode, compute_matching


def kinds(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    noise = rng.random(shape)
    smooth = gaussian_filter(rng.random(shape), 2)
    return {
        "noise": noise,
        "smooth": smooth,
        "binary": (smooth > smooth.mean()).astype(float),
        "levels": rng.integers(-3, 4, shape).astype(float),
        "ramp": np.add.outer(np.arange(shape[0]), np.zeros(shape[1:])) + (noise > 0.9),
    }


@pytest.mark.parametrize("construction", ["V", "T"])
@pytest.mark.parametrize("shape", [(120, 75), (20, 17, 19)])
@pytest.mark.parametrize("kind", ["noise", "smooth", "binary", "levels", "ramp"])
def test_barcodes_are_those_of_gudhi(kind: str, shape: tuple[int, ...], construction: Any) -> None:
    image = kinds(shape)[kind]
    cells = {"vertices": image} if construction == "V" else {"top_dimensional_cells": image}
    cubes = gudhi.CubicalComplex(**cells)
    cubes.compute_persistence(homology_coeff_field=2, min_persistence=0)
    for k, pairs in enumerate(compute_barcode(image, filtration="sublevel", construction=construction)):
        expected = sorted(map(tuple, cubes.persistence_intervals_in_dimension(k)))
        assert sorted(zip(pairs.birth_values, pairs.death_values, strict=True)) == expected


@pytest.mark.parametrize("construction", ["V", "T"])
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("kind", ["noise", "smooth", "binary", "levels", "ramp"])
def test_a_barcode_is_that_of_the_matching_with_itself(kind: str, construction: Any, relative: bool) -> None:
    """Voxel by voxel: the two are found in different ways, and equal voxels are told apart by the order alone."""
    for shape in ((60, 45), (1, 80), (70,)):
        image = kinds((60, 45))[kind] if shape == (60, 45) else kinds((80, 80))[kind][3][: shape[-1]].reshape(shape)
        opts: dict[str, Any] = {"construction": construction, "relative": relative}
        matching = compute_matching(image, image, **opts)
        assert sum(map(len, matching.unmatched_pred)) == 0
        for ours, expected in zip(compute_barcode(image, **opts), matching.matched_pred, strict=True):
            rows, wanted = (np.hstack([pairs.birth, pairs.death]).tolist() for pairs in (ours, expected))
            assert sorted(rows) == sorted(wanted)


@pytest.mark.parametrize("construction", ["V", "T"])
@pytest.mark.parametrize("filtration", ["superlevel", "sublevel"])
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("shape", [(300,), (90, 61), (13, 12, 14)])
def test_betti_numbers_count_bars(shape: tuple[int, ...], filtration: Any, construction: Any, relative: bool) -> None:
    image = np.random.default_rng(1).random(shape)
    opts: dict[str, Any] = {"filtration": filtration, "construction": construction, "relative": relative}
    barcode = compute_barcode(image, **opts)
    sign = -1 if filtration == "superlevel" else 1
    for threshold in (-0.5, 0.25, 0.5, float(image.flat[3]), 0.8, 1.5):
        expected = [
            np.sum((sign * p.birth_values <= sign * threshold) & (sign * threshold < sign * p.death_values))
            for p in barcode
        ]
        assert betti_numbers(image, threshold=threshold, **opts).tolist() == expected


@pytest.mark.parametrize("construction", ["V", "T"])
@pytest.mark.parametrize("shape", [(200, 150), (30, 31, 29)])
def test_betti_numbers_count_labels(shape: tuple[int, ...], construction: Any) -> None:
    mask = np.random.default_rng(2).random(shape) < 0.6
    direct, full = (generate_binary_structure(len(shape), n) for n in (1, len(shape)))
    own, other = (direct, full) if construction == "V" else (full, direct)
    numbers = betti_numbers(mask, construction=construction)
    assert numbers[0] == label(mask, own)[1]
    assert numbers[-1] == label(np.pad(~mask, 1, constant_values=True), other)[1] - 1


def solid(*empty: tuple[slice, ...]) -> np.ndarray:
    block = np.ones((9, 9, 9))
    for part in empty:
        block[part] = 0
    return block


MIDDLE, ALL = slice(3, 6), slice(None)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (np.zeros((4, 4, 4)), (0, 0, 0)),
        (solid(), (1, 0, 0)),
        (solid((MIDDLE, MIDDLE, MIDDLE)), (1, 0, 1)),
        (solid((MIDDLE, MIDDLE, ALL)), (1, 1, 0)),
        (solid((MIDDLE, MIDDLE, ALL), (slice(7, 8), slice(7, 8), slice(7, 8))), (1, 1, 1)),
        (solid((MIDDLE, MIDDLE, ALL), (MIDDLE, ALL, MIDDLE)), (1, 3, 0)),
        (solid((ALL, ALL, MIDDLE)), (2, 0, 0)),
        (np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]]), (5, 0)),
        (np.ones((1, 1)), (1, 0)),
        (np.array([1, 0, 1, 1, 0, 1]), (3,)),
    ],
)
def test_known_topology(image: np.ndarray, expected: tuple[int, ...]) -> None:
    assert tuple(betti_numbers(image)) == expected
    assert tuple(betti_numbers(1 - image, filtration="sublevel")) == expected
    if image.ndim == 3:  # no two voxels that touch at a corner only: both constructions agree
        assert tuple(betti_numbers(image, construction="T")) == expected


def test_corners_connect_in_t_alone() -> None:
    checkers = np.indices((5, 5)).sum(axis=0) % 2 == 0
    assert tuple(betti_numbers(checkers)) == (13, 0)
    assert tuple(betti_numbers(checkers, construction="T")) == (1, 4)


def test_thresholds_of_integers_and_halves() -> None:
    numbers = np.array([2**53, 2**53 + 1, 2**53, 2**53 + 2])
    assert betti_numbers(numbers, threshold=2**53 + 1).tolist() == [2]
    assert betti_numbers(numbers, threshold=2**53 + 1.0).tolist() == [1]  # this float64 is 2^53
    assert betti_numbers(np.array([3, 1, 3], np.uint8), threshold=2.5).tolist() == [2]
    assert betti_numbers(np.array([3, 1, 3], np.uint8), threshold=-1).tolist() == [1]
    assert betti_numbers(torch.tensor([0.7, 0.0, 0.7]), threshold=0.7).tolist() == [2]
    assert betti_numbers(np.array([True, False, True])).tolist() == [2]
    assert betti_numbers(np.array([np.inf, -np.inf, 1.0])).tolist() == [2]


@pytest.mark.parametrize("shape", [(7, 9), (4, 5, 6)])
@pytest.mark.parametrize("relative", [False, True])
def test_order_in_memory_does_not_matter(shape: tuple[int, ...], relative: bool) -> None:
    image = np.random.default_rng(3).random(shape)
    for view in (np.asfortranarray(image), np.repeat(image, 2, axis=-1)[..., ::2], image[::-1].copy()[::-1]):
        assert betti_numbers(view, relative=relative).tolist() == betti_numbers(image, relative=relative).tolist()
        for ours, expected in zip(
            compute_barcode(view, relative=relative), compute_barcode(image, relative=relative), strict=True
        ):
            np.testing.assert_array_equal(ours.birth, expected.birth)
            np.testing.assert_array_equal(ours.death_values, expected.death_values)
