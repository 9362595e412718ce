"""What holds for every image: hypothesis draws the images, brute force, gudhi and scipy judge."""

from types import ModuleType
from typing import Any

import gudhi
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import generate_binary_structure, label

from offprints.betti_matching import (
    Matching,
    PairList,
    betti_matching_error,
    betti_matching_loss,
    betti_numbers,
    compute_barcode,
    compute_matching,
)

FILTRATIONS = st.sampled_from(["superlevel", "sublevel"])
CONSTRUCTIONS = st.sampled_from(["V", "T"])
OPTIONS = st.fixed_dictionaries(
    {
        "filtration": FILTRATIONS,
        "construction": CONSTRUCTIONS,
        "comparison": st.sampled_from(["union", "intersection"]),
        "relative": st.booleans(),
    }
)


@st.composite
def image_pairs(draw: st.DrawFn, *, levels: int | None = None, max_side: int | None = None) -> tuple[np.ndarray, ...]:
    """Two images of one shape with one to three axes, with ties (a few levels) or without."""
    ndim = draw(st.integers(1, 3))
    side = max_side or {1: 20, 2: 8, 3: 4}[ndim]
    shape = draw(st.lists(st.integers(1, side), min_size=ndim, max_size=ndim))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = levels or draw(st.sampled_from([2, 3, 5, 0]))
    if levels:
        return tuple(rng.integers(0, levels, (2, *shape)) / (levels - 1))
    # all values distinct, and far further apart than rounding
    size = int(np.prod(shape))
    return tuple(rng.permutation(2 * size).reshape(2, *shape) / (2.0 * size))


def bars(pairs: PairList) -> list[tuple[Any, ...]]:
    return sorted(
        (*b, *d) for b, d in zip(map(tuple, pairs.birth.tolist()), map(tuple, pairs.death.tolist()), strict=True)
    )


def join(left: PairList, right: PairList) -> list[tuple[Any, ...]]:
    """Matched bars as rows of both; as a set, since neighbors in the list may differ."""
    ends = np.concatenate([left.birth, left.death, right.birth, right.death], axis=1)
    return sorted(map(tuple, ends.tolist()))


def content(matching: Matching) -> list[Any]:
    return [
        [join(f, g) for f, g in zip(matching.matched_pred, matching.matched_target, strict=True)],
        [bars(pairs) for pairs in matching.unmatched_pred],
        [bars(pairs) for pairs in matching.unmatched_target],
    ]


@given(images=image_pairs(), options=OPTIONS, reduced=st.booleans())
@settings(max_examples=120)
def test_matching_is_that_of_the_oracle(
    oracle: ModuleType, images: tuple[np.ndarray, ...], options: dict[str, Any], reduced: bool
) -> None:
    matching = compute_matching(*images, **options, reduced=reduced)
    expected = oracle.oracle_matching(*images, **options, reduced=reduced)
    shape = [n + 2 * options["relative"] for n in images[0].shape]

    def flat(*ends: np.ndarray) -> np.ndarray:
        columns = [np.where(e[:, 0] < 0, -1, np.ravel_multi_index(tuple(e.T), shape, mode="clip")) for e in ends]
        rows = np.stack(columns, axis=1)
        return rows[np.lexsort(rows.T[::-1])]

    for k, (matched, alone, missed) in enumerate(expected):
        f, g = matching.matched_pred[k], matching.matched_target[k]
        ours = flat(f.birth, f.death, g.birth, g.death)
        np.testing.assert_array_equal(ours, matched[np.lexsort(matched.T[::-1])])
        if k == 0 and not reduced:
            np.testing.assert_array_equal(f.death[0], -1)
            np.testing.assert_array_equal(g.death[0], -1)
        for pairs, rows in ((matching.unmatched_pred[k], alone), (matching.unmatched_target[k], missed)):
            np.testing.assert_array_equal(flat(pairs.birth, pairs.death), rows)


@given(images=image_pairs(), options=OPTIONS)
def test_swapped_arguments_swap_the_sides(images: tuple[np.ndarray, ...], options: dict[str, Any]) -> None:
    f, g = images
    there, back = compute_matching(f, g, **options), compute_matching(g, f, **options)
    assert there.num_unmatched_pred == back.num_unmatched_target
    for k in range(f.ndim):
        assert join(there.matched_pred[k], there.matched_target[k]) == join(
            back.matched_target[k], back.matched_pred[k]
        )
        assert bars(there.unmatched_pred[k]) == bars(back.unmatched_target[k])
        assert bars(there.unmatched_target[k]) == bars(back.unmatched_pred[k])


@given(images=image_pairs(), options=OPTIONS)
def test_an_image_matches_itself(images: tuple[np.ndarray, ...], options: dict[str, Any]) -> None:
    image = images[0]
    matching = compute_matching(image, image, **options)
    assert not any(matching.num_unmatched_pred + matching.num_unmatched_target)
    for f, g in zip(matching.matched_pred, matching.matched_target, strict=True):
        np.testing.assert_array_equal(f.birth, g.birth)
        np.testing.assert_array_equal(f.death, g.death)
    pred = torch.from_numpy(image)[None, None].requires_grad_()
    loss = betti_matching_loss(pred, pred.detach(), **options)
    (gradient,) = torch.autograd.grad(loss, pred)
    assert loss.item() == 0
    assert not gradient.any()


@given(images=image_pairs(), options=OPTIONS)
def test_superlevel_is_sublevel_of_the_negative(images: tuple[np.ndarray, ...], options: dict[str, Any]) -> None:
    f, g = images
    options = {**options, "filtration": "superlevel"}
    above = compute_matching(f, g, **options)
    below = compute_matching(-f, -g, **(options | {"filtration": "sublevel"}))
    assert content(above) == content(below)
    for a, b in zip(above.unmatched_pred, below.unmatched_pred, strict=True):
        np.testing.assert_array_equal(a.birth_values, -b.birth_values)
        np.testing.assert_array_equal(a.death_values, -b.death_values)


@given(images=image_pairs(), options=OPTIONS, reduced=st.booleans())
def test_bars_are_matched_or_not(images: tuple[np.ndarray, ...], options: dict[str, Any], reduced: bool) -> None:
    matching = compute_matching(*images, **options, reduced=reduced)
    rest = {name: value for name, value in options.items() if name != "comparison"}
    sides = (
        (matching.matched_pred, matching.unmatched_pred),
        (matching.matched_target, matching.unmatched_target),
    )
    for image, (matched, unmatched) in zip(images, sides, strict=True):
        barcode = compute_barcode(image, **rest, reduced=reduced)
        for k, pairs in enumerate(barcode):
            assert bars(pairs) == sorted(bars(matched[k]) + bars(unmatched[k]))
            assert len(pairs) == len(matched[k]) + len(unmatched[k])


@given(images=image_pairs(), construction=CONSTRUCTIONS, relative=st.booleans())
def test_barcodes_are_those_of_gudhi(images: tuple[np.ndarray, ...], construction: Any, relative: bool) -> None:
    image = images[0]
    padded = np.pad(image, 1, constant_values=image.min()) if relative else image
    cells = {"vertices": padded} if construction == "V" else {"top_dimensional_cells": padded}
    cubes = gudhi.CubicalComplex(**cells)
    cubes.compute_persistence(homology_coeff_field=2, min_persistence=0)
    barcode = compute_barcode(image, filtration="sublevel", construction=construction, relative=relative)
    for k, pairs in enumerate(barcode):
        expected = sorted(map(tuple, cubes.persistence_intervals_in_dimension(k)))
        assert sorted(zip(pairs.birth_values, pairs.death_values, strict=True)) == expected


@given(images=image_pairs(), options=OPTIONS)
def test_only_the_order_of_the_values_counts(images: tuple[np.ndarray, ...], options: dict[str, Any]) -> None:
    expected = content(compute_matching(*images, **options))
    # values are multiples of 1/1024 at worst after rounding: both maps keep them apart
    for change in (lambda x: x + 2.0, lambda x: np.exp(3 * x) - 7):
        assert content(compute_matching(*(change(x) for x in images), **options)) == expected


@given(images=image_pairs(levels=2), filtration=FILTRATIONS, construction=CONSTRUCTIONS)
def test_betti_numbers_count_labels(images: tuple[np.ndarray, ...], filtration: Any, construction: Any) -> None:
    image = images[0]
    d = image.ndim
    mask = image >= 0.5 if filtration == "superlevel" else image <= 0.5
    direct, full = (generate_binary_structure(d, n) for n in (1, d))
    own, other = (direct, full) if construction == "V" else (full, direct)
    numbers = betti_numbers(image, filtration=filtration, construction=construction)
    assert numbers.dtype == np.int64
    assert numbers.shape == (d,)
    assert numbers[0] == label(mask, own)[1]
    if d > 1:
        assert numbers[-1] == label(np.pad(~mask, 1, constant_values=True), other)[1] - 1
    barcode = compute_barcode(image, filtration=filtration, construction=construction)
    for k, pairs in enumerate(barcode):
        born, dead = pairs.birth_values, pairs.death_values
        alive = (born >= 0.5) & (dead < 0.5) if filtration == "superlevel" else (born <= 0.5) & (dead > 0.5)
        assert numbers[k] == alive.sum()


@given(images=image_pairs(levels=2), options=OPTIONS)
def test_error_of_masks_counts_unmatched_bars(images: tuple[np.ndarray, ...], options: dict[str, Any]) -> None:
    f, g = images
    matching = compute_matching(f, g, **options)
    extreme = np.max if options["filtration"] == "superlevel" else np.min
    unmatched = sum(matching.num_unmatched_pred) + sum(matching.num_unmatched_target)
    expected = unmatched + 2 * (extreme(f) != extreme(g))
    pred, target = (torch.from_numpy(x)[None, None] for x in images)
    assert betti_matching_error(pred, target, **options).item() == expected
    assert betti_matching_loss(pred, target, **options).item() == expected


@given(seed=st.integers(0, 2**32 - 1), options=OPTIONS, ndim=st.integers(1, 3))
@settings(max_examples=30)
def test_gradients_are_central_differences(seed: int, options: dict[str, Any], ndim: int) -> None:
    shape = {1: (7,), 2: (3, 4), 3: (3, 2, 2)}[ndim]
    size = int(np.prod(shape))
    values = np.random.default_rng(seed).permutation(2 * size).reshape(2, 1, 1, *shape) / size
    pred, target = torch.from_numpy(values)
    pred.requires_grad_()
    (gradient,) = torch.autograd.grad(betti_matching_loss(pred, target, **options), pred)
    step = 1e-5
    for i in range(size):
        shift = torch.zeros_like(pred).view(-1)
        shift[i] = step
        up, down = (betti_matching_loss(pred.detach() + s * shift.view(pred.shape), target, **options) for s in (1, -1))
        assert gradient.view(-1)[i].item() == pytest.approx(((up - down) / (2 * step)).item(), abs=1e-6)
