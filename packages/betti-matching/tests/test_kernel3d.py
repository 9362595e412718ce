"""The 3-D engine against the brute-force oracle, the golden data, gudhi and itself."""

from pathlib import Path
from types import ModuleType
from typing import Any

import gudhi
import numpy as np
import pytest

from offprints.betti_matching._kernels import kernel3d as kernel
from offprints.betti_matching._kernels.cells3d import build_cells

GOLDEN = np.load(Path(__file__).parent / "golden" / "matching.npz")
CASES = sorted({key.split("/")[0] for key in GOLDEN if key.endswith("/pred") and GOLDEN[key].ndim == 3})

SHAPES = [
    (1, 1, 1),
    (1, 1, 6),
    (1, 5, 1),
    (7, 1, 1),
    (1, 4, 5),
    (4, 1, 5),
    (5, 4, 1),
    (2, 2, 2),
    (2, 3, 4),
    (3, 3, 3),
    (4, 4, 4),
    (4, 3, 4),
]
KINDS = ["continuous", "levels", "binary", "constant"]
PAIRS = [
    ("continuous", "continuous"),
    ("levels", "levels"),
    ("binary", "binary"),
    ("continuous", "binary"),
    ("constant", "levels"),
]


def ranks(x: np.ndarray) -> np.ndarray:
    _, index = np.unique(x, return_inverse=True)
    return np.ascontiguousarray(index.reshape(x.shape), dtype=np.int32)


def sample(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> np.ndarray:
    if kind == "continuous":
        return rng.random(shape)
    return rng.integers({"levels": 5, "binary": 2, "constant": 1}[kind], size=shape).astype(float)


def compare(f: np.ndarray, g: np.ndarray, comparison: str) -> np.ndarray:
    return np.minimum(f, g) if comparison == "union" else np.maximum(f, g)


def match(f: np.ndarray, g: np.ndarray, construction: str, comparison: str, **options: Any) -> Any:
    c = compare(f, g, comparison)
    codes = int(construction == "T"), int(comparison == "intersection")
    return kernel.match_3d(ranks(f), ranks(g), ranks(c), *codes, **options)


def rows(x: np.ndarray) -> list[list[int]]:
    assert x.dtype == np.int64
    return sorted(x.tolist())


@pytest.mark.parametrize("construction", ["V", "T"])
@pytest.mark.parametrize("comparison", ["union", "intersection"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matching_equals_oracle(shape: tuple[int, ...], construction: str, comparison: str, oracle: ModuleType) -> None:
    rng = np.random.default_rng(sum(shape))
    for kinds in PAIRS:
        f, g = (sample(rng, shape, kind) for kind in kinds)
        expected = oracle.oracle_matching(
            f, g, filtration="sublevel", construction=construction, comparison=comparison, reduced=True
        )
        for got, want in zip(match(f, g, construction, comparison), expected, strict=True):
            for a, b in zip(got, want, strict=True):
                assert a.shape == b.shape
                assert rows(a) == b.tolist()


def test_matching_of_structured_images_equals_oracle(oracle: ModuleType) -> None:
    """A torus and a shell with a broken copy: bars of all dimensions are matched and unmatched."""
    x, y, z = np.indices((7, 7, 5)) - np.array([3, 3, 2]).reshape(3, 1, 1, 1)
    ring = np.abs(np.hypot(np.hypot(x, y) - 2.2, z))
    shell = np.abs(np.sqrt(x**2 + y**2 + z**2) - 2)
    broken = shell + 2 * (x > 2)
    for f, g, construction in ((ring, shell, "V"), (shell, broken, "T"), (broken, ring, "V")):
        expected = oracle.oracle_matching(f, g, filtration="sublevel", construction=construction, reduced=True)
        for got, want in zip(match(f, g, construction, "union"), expected, strict=True):
            for a, b in zip(got, want, strict=True):
                assert rows(a) == b.tolist()


@pytest.mark.parametrize("case", CASES)
def test_matching_equals_golden_data(case: str) -> None:
    options = dict(item.split("=") for item in GOLDEN[f"{case}/opts"])
    sign = 1 if options.get("filtration") == "sublevel" else -1
    f, g = sign * GOLDEN[f"{case}/pred"], sign * GOLDEN[f"{case}/target"]
    images = [f, g, np.minimum(f, g)]
    if options.get("relative") == "True":
        images = [np.pad(x, 1, constant_values=x.min()) for x in images]
    f, g, c = (ranks(x) for x in images)
    result = kernel.match_3d(f, g, c, 0, 0)
    for k, lists in enumerate(result):
        for name, flat in zip(("matched", "unmatched_pred", "unmatched_target"), lists, strict=True):
            expected = GOLDEN[f"{case}/d{k}/{name}"]
            found = np.stack(np.unravel_index(flat, images[0].shape), axis=-1).reshape(expected.shape)
            np.testing.assert_array_equal(found[np.lexsort(found.T[::-1])], expected)


@pytest.mark.parametrize("construction", ["V", "T"])
@pytest.mark.parametrize("kind", KINDS)
def test_barcode_equals_gudhi(construction: str, kind: str) -> None:
    image = sample(np.random.default_rng(3), (9, 10, 11), kind)
    key = "vertices" if construction == "V" else "top_dimensional_cells"
    complex_ = gudhi.CubicalComplex(**{key: image})
    complex_.compute_persistence(min_persistence=0.0)
    for k, bars in enumerate(kernel.barcode_3d(ranks(image), int(construction == "T"))):
        expected = complex_.persistence_intervals_in_dimension(k).reshape(-1, 2)
        expected = expected[np.isfinite(expected[:, 1])]
        found = image.ravel()[bars]
        np.testing.assert_array_equal(found[np.lexsort(found.T)], expected[np.lexsort(expected.T)])


@pytest.mark.parametrize("construction", ["V", "T"])
@pytest.mark.parametrize("comparison", ["union", "intersection"])
def test_bars_are_those_of_the_barcode(construction: str, comparison: str) -> None:
    rng = np.random.default_rng(4)
    f, g = sample(rng, (12, 11, 13), "continuous"), sample(rng, (12, 11, 13), "levels")
    matching = match(f, g, construction, comparison)
    for x, columns, side in ((f, slice(0, 2), 1), (g, slice(2, 4), 2)):
        barcode = kernel.barcode_3d(ranks(x), int(construction == "T"))
        for lists, bars in zip(matching, barcode, strict=True):
            assert rows(np.concatenate([lists[0][:, columns], lists[side]])) == rows(bars)


def test_swapping_the_images_swaps_the_sides() -> None:
    rng = np.random.default_rng(5)
    f, g = sample(rng, (10, 9, 8), "continuous"), sample(rng, (10, 9, 8), "levels")
    for a, b in zip(match(f, g, "V", "union"), match(g, f, "V", "union"), strict=True):
        assert rows(a[0]) == rows(b[0][:, [2, 3, 0, 1]])
        assert rows(a[1]) == rows(b[2])
        assert rows(a[2]) == rows(b[1])


@pytest.mark.parametrize("construction", ["V", "T"])
@pytest.mark.parametrize("comparison", ["union", "intersection"])
def test_an_image_matches_itself(construction: str, comparison: str) -> None:
    f = sample(np.random.default_rng(6), (11, 12, 10), "levels")
    for matched, left, right in match(f, f, construction, comparison):
        assert len(matched) > 0
        assert len(left) == len(right) == 0
        np.testing.assert_array_equal(matched[:, :2], matched[:, 2:])


def test_result_does_not_depend_on_threads() -> None:
    rng = np.random.default_rng(7)
    f, g = sample(rng, (16, 16, 16), "continuous"), sample(rng, (16, 16, 16), "binary")
    for comparison in ("union", "intersection"):
        first = match(f, g, "V", comparison, num_threads=1)
        for threads in (2, 3, None):
            for a, b in zip(first, match(f, g, "V", comparison, num_threads=threads), strict=True):
                for x, y in zip(a, b, strict=True):
                    np.testing.assert_array_equal(x, y)


def test_inputs_are_not_changed() -> None:
    f, g = (ranks(sample(np.random.default_rng(seed), (5, 6, 7), "levels")) for seed in (8, 9))
    c = ranks(np.minimum(f, g))
    copies = [x.copy() for x in (f, g, c)]
    for construction in (0, 1):
        kernel.match_3d(f, g, c, construction, 0)
    for x, copy in zip((f, g, c), copies, strict=True):
        np.testing.assert_array_equal(x, copy)


@pytest.mark.parametrize("construction", ["V", "T"])
@pytest.mark.parametrize("kind", ["continuous", "levels", "binary"])
def test_cycles_are_the_reduced_columns(construction: str, kind: str, oracle: ModuleType) -> None:
    image = sample(np.random.default_rng(10), (5, 4, 5), kind)
    cx = oracle.build(image, construction)
    columns = oracle.reduced_columns(cx, 1)
    births, deaths, expected = [], [], []
    for birth, death in sorted(oracle.positive_pairs(cx, construction, 1), key=lambda pair: cx.order[1][pair[0]]):
        births.append(oracle.voxel(cx, construction, birth))
        deaths.append(oracle.voxel(cx, construction, death))
        if construction == "V":
            ends = {p for edge in columns[death] for p in cx.voxels[edge]}
            expected.append(sorted(int(np.ravel_multi_index(p, image.shape)) for p in ends))
        else:
            expected.append(sorted({oracle.voxel(cx, construction, edge) for edge in columns[death]}))
    assert births
    cycles = kernel.cycle_3d(ranks(image), int(construction == "T"), np.array(births), np.array(deaths))
    assert [cycle.tolist() for cycle in cycles] == expected


def test_cycles_of_unknown_pairs_are_refused() -> None:
    image = ranks(sample(np.random.default_rng(11), (4, 4, 4), "continuous"))
    with pytest.raises(ValueError, match="not a pair of dimension 1"):
        kernel.cycle_3d(image, 0, np.array([0]), np.array([0]))


def test_too_large_images_are_refused() -> None:
    huge = np.broadcast_to(np.zeros(1, np.int32), (1000, 1000, 1000))
    with pytest.raises(ValueError, match="32-bit"):
        build_cells(huge, 0)
