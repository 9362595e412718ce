"""Conventions of the matching: what is reported, which inputs are taken, batches and threads."""

import dataclasses
import threading
import warnings
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from offprints.betti_matching import (
    Matching,
    PairList,
    betti_matching_loss,
    betti_numbers,
    compute_barcode,
    compute_matching,
    compute_matching_batch,
)
from offprints.betti_matching.matching import match_voxels, on_threads
from offprints.betti_matching.options import MatchingOptions, default_workers

LISTS = ("matched_pred", "matched_target", "unmatched_pred", "unmatched_target")
ALL_OPTIONS: list[dict[str, Any]] = [
    {"filtration": filtration, "construction": construction, "comparison": comparison, "relative": relative}
    for filtration in ("superlevel", "sublevel")
    for construction in ("V", "T")
    for comparison in ("union", "intersection")
    for relative in (False, True)
]


def images(shape: tuple[int, ...], seed: int, levels: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    if levels:
        return rng.integers(0, levels, shape).astype(float), rng.integers(0, levels, shape).astype(float)
    return rng.random(shape), rng.random(shape)


def same(left: Matching, right: Matching) -> None:
    """Equal in every field and every row, in the same order."""
    assert left.shape == right.shape
    for name in LISTS:
        for a, b in zip(getattr(left, name), getattr(right, name), strict=True):
            for field in dataclasses.fields(PairList):
                np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), strict=True)


# ---- what is reported ------------------------------------------------------------------------------------------------


def test_line_by_hand() -> None:
    """Two hills, 5 and 4 high, with a valley of 1 between; the target has but the valley filled up to 3."""
    matching = compute_matching(np.array([0.0, 5, 1, 4]), np.array([0.0, 5, 3, 4]))
    assert matching.num_matched == (2,)
    assert matching.num_unmatched_pred == matching.num_unmatched_target == (0,)
    pred, target = matching.matched_pred[0], matching.matched_target[0]
    assert pred.birth.tolist() == [[1], [3]]
    assert pred.death.tolist() == [[-1], [2]]
    assert pred.birth_values.tolist() == [5, 4]
    assert pred.death_values.tolist() == [-np.inf, 1]
    assert target.death_values.tolist() == [-np.inf, 3]
    below = compute_matching(np.array([0.0, 5, 1, 4]), np.array([0.0, 5, 3, 4]), filtration="sublevel")
    assert below.matched_pred[0].birth_values.tolist() == [0, 1]
    assert below.matched_pred[0].death_values.tolist() == [np.inf, 5]


def test_loop_by_hand() -> None:
    ring = np.array([[1.0, 1, 1], [1, 0, 1], [1, 1, 1]])
    matching = compute_matching(ring, np.ones((3, 3)))
    assert matching.num_matched == (1, 0)
    assert matching.num_unmatched_pred == (0, 1)
    loop = matching.unmatched_pred[1]
    assert len(loop) == 1
    assert loop.death.tolist() == [[1, 1]]
    assert (loop.birth_values.item(), loop.death_values.item()) == (1, 0)


@pytest.mark.parametrize("shape", [(40,), (9, 12), (5, 4, 6)])
@pytest.mark.parametrize("opts", ALL_OPTIONS)
def test_values_are_those_of_the_voxels(shape: tuple[int, ...], opts: dict[str, Any]) -> None:
    pair = images(shape, 0)
    matching = compute_matching(*pair, **opts)
    sign = -1 if opts["filtration"] == "superlevel" else 1
    assert matching.shape == shape
    for name in LISTS:
        image = pair[name.endswith("target")]
        if opts["relative"]:
            image = np.pad(image, 1, constant_values=(sign * image).min() * sign)
        for k, pairs in enumerate(getattr(matching, name)):
            essential = name.startswith("matched") and k == 0
            assert pairs.birth.dtype == pairs.death.dtype == np.int64
            assert pairs.birth.shape == pairs.death.shape == (len(pairs), len(shape))
            assert pairs.birth_values.dtype == pairs.death_values.dtype == np.float64
            np.testing.assert_array_equal(image[tuple(pairs.birth.T)], pairs.birth_values)
            finite = slice(essential, None)
            np.testing.assert_array_equal(image[tuple(pairs.death[finite].T)], pairs.death_values[finite])
            assert (sign * pairs.birth_values < sign * pairs.death_values).all()
            if essential:
                first = np.unravel_index((sign * image).argmin(), image.shape)
                assert pairs.birth[0].tolist() == list(first)
                assert pairs.death[0].tolist() == [-1] * len(shape)
                assert pairs.death_values[0] == sign * np.inf


@pytest.mark.parametrize("opts", [o for o in ALL_OPTIONS if not o["relative"]])
@pytest.mark.parametrize("levels", [0, 2, 4])
def test_narrow_images_are_lines(opts: dict[str, Any], levels: int) -> None:
    for seed in range(10):
        f, g = images((17,), seed, levels)
        line = compute_matching(f, g, **opts)
        for axis in (0, 1):
            flat = compute_matching(np.expand_dims(f, axis), np.expand_dims(g, axis), **opts)
            assert flat.num_matched[1] == flat.num_unmatched_pred[1] == flat.num_unmatched_target[1] == 0
            for name in LISTS:
                wide, narrow = getattr(flat, name)[0], getattr(line, name)[0]
                np.testing.assert_array_equal(wide.birth[:, 1 - axis], narrow.birth[:, 0])
                np.testing.assert_array_equal(wide.death[:, 1 - axis], narrow.death[:, 0])


def test_results_are_frozen() -> None:
    matching = compute_matching(*images((3, 3), 0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        matching.relative = True  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        matching.matched_pred[0].birth = np.zeros((0, 2), np.int64)  # type: ignore[misc]


# ---- larger images ---------------------------------------------------------------------------------------------------


def spiral(side: int) -> np.ndarray:
    """A corridor that winds to the middle, falling all the way: one long path for every search along the gradient."""
    image = np.full((side, side), 2.0 * side * side)
    x = y = 1
    dx, dy = 0, 1
    for step in range(side * side):
        image[x, y] = side * side - step
        inside = 0 < x + dx < side - 1 and 0 < y + dy < side - 1
        if not inside or image[x + dx, y + dy] <= side * side or image[x + 2 * dx, y + 2 * dy] <= side * side:
            dx, dy = dy, -dx
            if image[x + dx, y + dy] <= side * side or image[x + 2 * dx, y + 2 * dy] <= side * side:
                break
        x, y = x + dx, y + dy
    return image


@pytest.mark.parametrize("construction", ["V", "T"])
@pytest.mark.parametrize("comparison", ["union", "intersection"])
def test_long_paths(oracle: ModuleType, construction: Any, comparison: Any) -> None:
    f = spiral(15)
    assert (f < 15 * 15).sum() > 90  # it winds indeed
    for g in (f.T, f[::-1], np.maximum(f, np.median(f))):
        opts: dict[str, Any] = {"filtration": "sublevel", "construction": construction, "comparison": comparison}
        (found,) = match_voxels([f], [g], MatchingOptions(**opts))
        for lists, expected in zip(found, oracle.oracle_matching(f, g, **opts), strict=True):
            for ours, rows in zip(lists, expected, strict=True):
                assert sorted(ours.tolist()) == sorted(np.asarray(rows).tolist())


# ---- inputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(30,), (7, 8), (4, 5, 4)])
def test_every_dtype_gives_the_same(shape: tuple[int, ...]) -> None:
    f, g = images(shape, 1, levels=2)
    expected = compute_matching(f, g)
    for name in ("bool", "uint8", "int8", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32"):
        same(compute_matching(f.astype(name), g.astype(name)), expected)
    same(compute_matching(f.astype(np.longdouble), g), expected)
    for dtype in (torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64):
        same(compute_matching(torch.from_numpy(f).to(dtype), torch.from_numpy(g).to(dtype)), expected)
    same(compute_matching(f.astype(np.float32), g.astype(bool)), expected)
    same(compute_matching(f.tolist(), torch.from_numpy(g).requires_grad_()), expected)


def test_strides_and_read_only_arrays() -> None:
    f, g = images((9, 8), 2)
    expected = compute_matching(f, g)
    wide = np.zeros((18, 24))
    wide[::2, ::3] = f
    same(compute_matching(wide[::2, ::3], np.asfortranarray(g)), expected)
    same(compute_matching(torch.from_numpy(f.T.copy()).T, g[::-1].copy()[::-1]), expected)
    same(compute_matching(f.astype(">f8"), g), expected)
    f.flags.writeable = g.flags.writeable = False
    same(compute_matching(f, g), expected)
    same(compute_matching_batch(np.stack([f, f]), [g, g])[1], expected)


def test_inputs_stay_as_they_are() -> None:
    for dtype in (np.float64, np.float32, np.int64):
        pair = [(10 * x).astype(dtype) for x in images((6, 7), 3)]
        before = [x.copy() for x in pair]
        for opts in ALL_OPTIONS:
            compute_matching(*pair, **opts)
            compute_barcode(pair[0], **{name: opts[name] for name in ("filtration", "construction", "relative")})
        for x, y in zip(pair, before, strict=True):
            np.testing.assert_array_equal(x, y, strict=True)


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
@pytest.mark.parametrize("shape", [(12,), (4, 5), (3, 3, 4)])
@pytest.mark.parametrize("filtration", ["superlevel", "sublevel"])
def test_large_integers_are_ordered_exactly(dtype: Any, shape: tuple[int, ...], filtration: Any) -> None:
    """Beyond 2^53 neighbors have the same float64."""
    info = np.iinfo(dtype)
    rng = np.random.default_rng(4)
    for base, target_type in ((2**53, dtype), (int(info.max) - 60, dtype), (2**62, np.float64), (int(info.min), dtype)):
        steps = [rng.permutation(np.prod(shape)).reshape(shape) for _ in "12"]
        if target_type is np.float64:  # a value that float64 has, among integers around it
            steps[1] = np.full(shape, 7)
            f, g = (base - 7 + steps[0]).astype(dtype), np.full(shape, 2.0**62)
        else:
            f, g = (np.array([base + int(i) for i in s.flat], dtype).reshape(shape) for s in steps)
        found = compute_matching(f, g, filtration=filtration)
        expected = compute_matching(*steps, filtration=filtration)
        for name in LISTS:
            for a, b in zip(getattr(found, name), getattr(expected, name), strict=True):
                np.testing.assert_array_equal(a.birth, b.birth)
                np.testing.assert_array_equal(a.death, b.death)


@pytest.mark.skipif(np.finfo(np.longdouble).nmant <= 52, reason="needs a longdouble wider than float64")
def test_longdouble_is_ordered_exactly() -> None:
    steps = [np.random.default_rng(5).permutation(20).reshape(4, 5) for _ in "12"]
    fine = [1 + np.finfo(np.longdouble).eps * s for s in steps]
    found, expected = compute_matching(*fine), compute_matching(*steps)
    assert found.num_unmatched_pred == expected.num_unmatched_pred
    np.testing.assert_array_equal(found.unmatched_pred[0].birth, expected.unmatched_pred[0].birth)


@pytest.mark.parametrize("shape", [(8,), (4, 4), (3, 3, 3)])
def test_zero_has_no_sign(shape: tuple[int, ...]) -> None:
    f, g = images(shape, 6, levels=2)
    signed = [np.where(np.random.default_rng(7).random(shape) < 0.5, -x, x * 1.0) for x in (f, g)]
    for x, y in zip(signed, (f, g), strict=True):
        np.copyto(x, y, where=y != 0)
    assert np.signbit(signed[0]).any()
    for opts in ALL_OPTIONS:
        same(compute_matching(*signed, **opts), compute_matching(f, g, **opts))


@pytest.mark.parametrize("shape", [(14,), (4, 5), (3, 2, 3)])
@pytest.mark.parametrize("opts", ALL_OPTIONS)
def test_infinite_values_are_a_mask(oracle: ModuleType, shape: tuple[int, ...], opts: dict[str, Any]) -> None:
    rng = np.random.default_rng(8)
    for _ in range(2):
        f, g = rng.choice([-np.inf, -1.0, 0.0, 2.0, np.inf], (2, *shape), p=[0.1, 0.25, 0.25, 0.2, 0.2])
        (found,) = match_voxels([f], [g], MatchingOptions(**opts))
        for lists, expected in zip(found, oracle.oracle_matching(f, g, **opts), strict=True):
            for ours, rows in zip(lists, expected, strict=True):
                assert sorted(ours.tolist()) == sorted(np.asarray(rows).tolist())


def test_class_that_ends_at_a_mask_is_ordinary() -> None:
    line = np.array([0.0, np.inf, 1.0])
    (pairs,) = compute_barcode(line, filtration="sublevel")
    assert pairs.birth.tolist() == [[0], [2]]
    assert pairs.death.tolist() == [[-1], [1]]
    assert pairs.death_values.tolist() == [np.inf, np.inf]
    (reduced,) = compute_barcode(line, filtration="sublevel", reduced=True)
    assert reduced.death.tolist() == [[1]]


# ---- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [None, 1, 3])
def test_batch_is_one_after_the_other(num_workers: int | None) -> None:
    shapes = [(5,), (6, 7), (1, 9), (3, 4, 3), (20, 20), (2, 2)] * 3
    pairs = [images(shape, seed) for seed, shape in enumerate(shapes)]
    for opts in (ALL_OPTIONS[0], ALL_OPTIONS[-1]):
        batch = compute_matching_batch(
            [f for f, _ in pairs], [torch.from_numpy(g) for _, g in pairs], num_workers=num_workers, **opts
        )
        assert [matching.shape for matching in batch] == shapes
        for found, pair in zip(batch, pairs, strict=True):
            same(found, compute_matching(*pair, **opts))


def test_batch_of_one_array() -> None:
    f, g = images((4, 8, 9), 9)
    for found, x, y in zip(compute_matching_batch(f, torch.from_numpy(g)), f, g, strict=True):
        same(found, compute_matching(x, y))


def test_error_in_a_batch_names_the_argument() -> None:
    f, g = images((3, 4, 4), 10)
    f[2, 1, 1] = np.nan
    with pytest.raises(ValueError, match="pred must not contain NaN"):
        compute_matching_batch(f, g)


@pytest.mark.parametrize("filtration", ["superlevel", "sublevel"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_masked_voxels_never_enter(filtration: Any, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    values, other = rng.integers(0, 9, (2, 7, 8)).astype(dtype)
    mask = rng.random((7, 8)) < 0.2
    outside = -np.inf if filtration == "superlevel" else np.inf
    filled = np.where(mask, outside, values.astype(np.float64))
    array = np.ma.MaskedArray(values, mask)
    images = [array]
    if dtype != np.uint8:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls its masked tensors a prototype
            images.append(torch.masked.masked_tensor(torch.from_numpy(values), torch.from_numpy(~mask)))
    for image in images:
        found = compute_matching(image, other, filtration=filtration)
        expected = compute_matching(filled, other, filtration=filtration)
        assert found.num_matched == expected.num_matched
        for side in ("matched_pred", "unmatched_pred", "matched_target", "unmatched_target"):
            for a, b in zip(getattr(found, side), getattr(expected, side), strict=True):
                np.testing.assert_array_equal(a.birth, b.birth)
                np.testing.assert_array_equal(a.death_values, b.death_values)
        bars = compute_barcode(image, filtration=filtration)
        assert list(map(len, bars)) == list(map(len, compute_barcode(filled, filtration=filtration)))
        numbers = betti_numbers(image, threshold=4, filtration=filtration)
        np.testing.assert_array_equal(numbers, betti_numbers(filled, threshold=4, filtration=filtration))
        (batched,) = compute_matching_batch([image], [other], filtration=filtration)
        assert batched.num_unmatched_pred == expected.num_unmatched_pred
    with pytest.raises(TypeError, match=r"pred must be a torch\.Tensor"):
        betti_matching_loss(array[None, None], torch.from_numpy(other)[None, None])


def test_sparse_tensors_are_refused() -> None:
    with pytest.raises(TypeError, match="image must be a dense tensor"):
        compute_barcode(torch.eye(4).to_sparse())
    with pytest.raises(TypeError, match="pred must be a dense tensor"):
        betti_matching_loss(torch.eye(4)[None, None].to_sparse(), torch.eye(4)[None, None])


def test_no_more_threads_than_torch_uses() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert default_workers() == 1
        seen = on_threads(lambda _: threading.current_thread(), range(3), None)
        assert set(seen) == {threading.main_thread()}
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_coordinates_without_the_frame(ndim: int) -> None:
    pred, target = np.random.default_rng(ndim).random((2, *(5,) * ndim))
    padded = compute_matching(pred, target, relative=True)
    matching = padded.unpadded()
    for lists, image in ((matching.matched_pred, pred), (matching.unmatched_target, target)):
        for pairs in lists:
            for ends, values in ((pairs.birth, pairs.birth_values), (pairs.death, pairs.death_values)):
                inside = ((ends >= 0) & (ends < 5)).all(axis=1)
                np.testing.assert_array_equal(image[tuple(ends[inside].T)], values[inside])
                framed = values[~inside]
                assert ((framed == image.max()) | (framed == -np.inf)).all()
    plain = compute_matching(pred, target)
    assert plain.unpadded() is plain


@pytest.mark.parametrize("construction", ["V", "T"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_a_frame_of_background_changes_no_bar(ndim: int, construction: Any) -> None:
    pred, target = np.random.default_rng(ndim).random((2, *(6,) * ndim))
    plain = compute_matching(pred, target, construction=construction)
    framed = compute_matching(np.pad(pred, 1), np.pad(target, 1), construction=construction)
    for name in LISTS:
        for a, b in zip(getattr(plain, name), getattr(framed, name), strict=True):
            bars = [sorted(zip(x.birth_values.tolist(), x.death_values.tolist(), strict=True)) for x in (a, b)]
            assert bars[0] == bars[1]
