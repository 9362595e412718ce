"""Representative cycles: components, loops and cavities of images whose features are known."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import generate_binary_structure, label

from offprints.betti_matching import PairList, compute_barcode, representative_cycles

SHAPES = {1: (40,), 2: (14, 15), 3: (11, 10, 12)}


def image_of(ndim: int, *, levels: int | None = None, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = rng.random(SHAPES[ndim])
    return image if levels is None else np.floor(levels * image) / levels


def rows(voxels: np.ndarray) -> set[tuple[int, ...]]:
    return set(map(tuple, voxels.tolist()))


def test_a_ring() -> None:
    image = np.zeros((7, 8))
    image[1:6, 2:7] = 1
    image[2:5, 3:6] = 0.25
    (_, loops) = compute_barcode(image)
    for construction in ("V", "T"):
        (cycle,) = representative_cycles(image, loops, dim=1, construction=construction)  # type: ignore[arg-type]
        expected = rows(np.argwhere(image == 1))
        if construction == "T":  # corners are not needed where voxels touch at corners
            expected -= {(1, 2), (1, 6), (5, 2), (5, 6)}
        assert rows(cycle) == expected
        assert cycle.dtype == np.int64
        assert np.array_equal(cycle, cycle[np.lexsort(cycle.T[::-1])])


def test_a_hollow_cube_in_a_padded_image() -> None:
    image = np.zeros((5, 5, 6))
    image[1:4, 1:4, 1:5] = 1
    image[2, 2, 2:4] = 0
    (cavity,) = representative_cycles(image, compute_barcode(image)[2], dim=2)
    assert rows(cavity) == rows(np.argwhere(image == 1))
    framed = compute_barcode(image, relative=True)
    padded = np.pad(image, 1, constant_values=1)
    shells = representative_cycles(padded, framed[2], dim=2)
    assert sorted(map(len, shells)) == [34, 34 + 7 * 7 * 8 - 5 * 5 * 6]


@pytest.mark.parametrize("levels", [None, 8])
@pytest.mark.parametrize("construction", ["V", "T"])
@pytest.mark.parametrize("filtration", ["superlevel", "sublevel"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_components_are_labels_before_death(ndim: int, filtration: Any, construction: Any, levels: int | None) -> None:
    image = image_of(ndim, levels=levels)
    sign = -1 if filtration == "superlevel" else 1
    pairs = compute_barcode(image, filtration=filtration, construction=construction)[0]
    found = representative_cycles(image, pairs, dim=0, filtration=filtration, construction=construction)
    structure = generate_binary_structure(ndim, 1 if construction == "V" else ndim)
    assert len(found) == len(pairs) > 2
    assert len(found[0]) == image.size  # the essential pair
    for i in range(1, len(pairs)):
        labels = label(sign * image < sign * pairs.death_values[i], structure)[0]
        expected = labels == labels[tuple(pairs.birth[i])]
        np.testing.assert_array_equal(found[i], np.argwhere(expected))


@pytest.mark.parametrize("levels", [None, 8])
@pytest.mark.parametrize("construction", ["V", "T"])
@pytest.mark.parametrize("filtration", ["superlevel", "sublevel"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_boundaries_enclose_the_death(ndim: int, filtration: Any, construction: Any, levels: int | None) -> None:
    image = image_of(ndim, levels=levels, seed=1)
    sign = -1 if filtration == "superlevel" else 1
    pairs = compute_barcode(image, filtration=filtration, construction=construction)[-1]
    found = representative_cycles(image, pairs, dim=ndim - 1, filtration=filtration, construction=construction)
    assert len(found) == len(pairs) > 2
    # what the cycle leaves is connected the other way round than the cycle
    structure = generate_binary_structure(ndim, ndim if construction == "V" else 1)
    for cycle, birth, death in zip(found, pairs.birth_values, pairs.death, strict=True):
        assert (sign * image[tuple(cycle.T)]).max() == sign * birth
        rest = np.ones(image.shape, dtype=bool)
        rest[tuple(cycle.T)] = False
        labels = label(np.pad(rest, 1, constant_values=True), structure)[0]
        inside = labels[tuple(death + 1)]
        assert inside not in (0, labels.flat[0])


@pytest.mark.parametrize("levels", [None, 8])
@pytest.mark.parametrize("construction", ["V", "T"])
@pytest.mark.parametrize("filtration", ["superlevel", "sublevel"])
def test_loops_in_space_are_born_with_their_last_voxel(filtration: Any, construction: Any, levels: int | None) -> None:
    image = image_of(3, levels=levels, seed=2)
    sign = -1 if filtration == "superlevel" else 1
    pairs = compute_barcode(image, filtration=filtration, construction=construction)[1]
    found = representative_cycles(image, pairs, dim=1, filtration=filtration, construction=construction)
    assert len(found) == len(pairs) > 2
    for cycle, birth in zip(found, pairs.birth, strict=True):
        assert (sign * image[tuple(cycle.T)]).max() == sign * image[tuple(birth)]
        assert tuple(birth) in rows(cycle)
        if construction == "V":  # one closed curve or several, by steps along the axes
            mask = np.zeros(image.shape, dtype=bool)
            mask[tuple(cycle.T)] = True
            assert (np.bincount(label(mask)[0].ravel())[1:] >= 4).all()


@pytest.mark.parametrize("levels", [None, 3])
@pytest.mark.parametrize("construction", ["V", "T"])
def test_loops_in_space_are_reduced_columns(construction: Any, levels: int | None, oracle: ModuleType) -> None:
    rng = np.random.default_rng(3)
    image = rng.random((5, 6, 5)) if levels is None else rng.integers(0, levels, (6, 5, 5)) / levels
    pairs = compute_barcode(image, filtration="sublevel", construction=construction)[1]
    found = representative_cycles(image, pairs, dim=1, filtration="sublevel", construction=construction)

    complex_ = oracle.build(image, construction)
    expected = []
    for death, edges in oracle.reduced_columns(complex_, 1).items():
        if oracle.value(complex_, construction, edges[-1]) == oracle.value(complex_, construction, death):
            continue
        if construction == "V":  # both ends of each edge
            voxels = {voxel for edge in edges for voxel in complex_.voxels[edge]}
        else:
            flat = {oracle.voxel(complex_, construction, edge) for edge in edges}
            voxels = {tuple(map(int, np.unravel_index(voxel, image.shape))) for voxel in flat}
        birth = np.unravel_index(oracle.voxel(complex_, construction, edges[-1]), image.shape)
        expected.append((tuple(map(int, birth)), sorted(voxels)))
    ours = [(tuple(birth), sorted(rows(cycle))) for birth, cycle in zip(pairs.birth.tolist(), found, strict=True)]
    assert len(expected) > 3
    assert sorted(ours) == sorted(expected)


def test_a_mask_ends_components() -> None:
    image = np.array([[3.0, 1.0, np.inf, 2.0, 4.0]])
    pairs = compute_barcode(image, filtration="sublevel")[0]
    found = representative_cycles(image, pairs, dim=0, filtration="sublevel")
    assert sorted(map(len, found)) == [2, 5]


def test_no_pairs_no_cycles() -> None:
    image = np.zeros((4, 4))
    assert representative_cycles(image, compute_barcode(image)[1], dim=1) == []


def test_pairs_of_another_image_are_refused() -> None:
    image = image_of(2)
    components, loops = compute_barcode(image)
    for other in (image + 1, image[:4, :4], np.pad(image, 1)):
        with pytest.raises(ValueError, match="pairs"):
            representative_cycles(other, loops, dim=1)
    with pytest.raises(ValueError, match="pairs"):
        representative_cycles(image, loops, dim=1, filtration="sublevel")
    with pytest.raises(ValueError, match="pairs"):
        representative_cycles(image, compute_barcode(image, reduced=True)[0], dim=1)
    with pytest.raises(ValueError, match="essential"):
        representative_cycles(image, components, dim=1)
    wrong = PairList(loops.birth[:, :1], loops.death[:, :1], loops.birth_values, loops.death_values)
    with pytest.raises(ValueError, match="pairs"):
        representative_cycles(image, wrong, dim=1)
    space = image_of(3)
    with pytest.raises(ValueError, match="pairs"):
        representative_cycles(space, compute_barcode(space)[2], dim=1)
