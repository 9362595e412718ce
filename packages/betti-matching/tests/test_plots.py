"""The figures show what the matching says."""

from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.collections import LineCollection, PathCollection, PolyCollection
from matplotlib.colors import to_hex
from scipy.ndimage import gaussian_filter

from offprints.betti_matching import compute_matching, plot_barcodes, plot_matching

UNMATCHED = "#d55e00"


@pytest.fixture(autouse=True)
def _headless() -> Iterator[None]:
    with mpl.rc_context():
        plt.switch_backend("Agg")
        yield
        plt.close("all")


def smooth(*shape: int, seed: int) -> np.ndarray:
    return gaussian_filter(np.random.default_rng(seed).random(shape), 1.2)


def two_rings() -> tuple[np.ndarray, np.ndarray]:
    """The prediction has the left ring and a wrong one, the target both rings."""
    target = np.zeros((9, 21))
    for left in (1, 14):
        target[2:7, left : left + 5] = 1
        target[3:6, left + 1 : left + 4] = 0.2
    pred = target.copy()
    pred[2:7, 14:19] = 0.1
    pred[3:6, 8:11] = 0.9
    pred[4, 9] = 0.5
    return pred, target


def outline_colors(ax: Any) -> list[str]:
    return [to_hex(c.get_color()[0]) for c in ax.collections if isinstance(c, LineCollection)]


def markers(ax: Any) -> list[tuple[float, float, str]]:
    return [
        (*map(float, c.get_offsets()[0]), to_hex(c.get_facecolor()[0]))
        for c in ax.collections
        if isinstance(c, PathCollection)
    ]


def test_matched_features_have_matching_colors() -> None:
    pred, target = two_rings()
    matching = compute_matching(pred, target)
    assert (matching.num_matched[1], matching.num_unmatched_pred[1], matching.num_unmatched_target[1]) == (1, 1, 1)
    figure = plot_matching(pred, target, matching, dim=1)
    left, right = figure.axes
    np.testing.assert_array_equal(left.images[0].get_array(), pred)
    np.testing.assert_array_equal(right.images[0].get_array(), target)
    (same,) = set(outline_colors(left)) - {UNMATCHED}
    assert sorted(outline_colors(left)) == sorted(outline_colors(right)) == sorted([same, UNMATCHED])
    assert "matched: 1, unmatched: 1" in left.get_title()

    birth = matching.matched_pred[1].birth[0]
    assert (birth[1], birth[0], same) in markers(left)
    death = matching.unmatched_target[1].death[0]
    assert (death[1], death[0], UNMATCHED) in markers(right)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("filtration", ["superlevel", "sublevel"])
@pytest.mark.parametrize("shape", [(40,), (16, 20), (8, 9, 10)])
def test_every_dimension_has_its_row(shape: tuple[int, ...], filtration: Any, relative: bool) -> None:
    pred, target = smooth(*shape, seed=0), smooth(*shape, seed=1)
    matching = compute_matching(pred, target, filtration=filtration, relative=relative)
    figure = plot_matching(pred, target, matching, max_pairs=2)
    assert len(figure.axes) == 2 * len(shape)
    for k, row in enumerate(zip(figure.axes[::2], figure.axes[1::2], strict=True)):
        for ax in row:
            assert f"dimension {k}" in ax.get_title()
    if len(shape) == 3:
        expected = pred.max(axis=0) if filtration == "superlevel" else pred.min(axis=0)
        np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), expected)
    figure.canvas.draw()
    bars = plot_barcodes(matching)
    assert [ax.get_title() for ax in bars.axes] == [f"dimension {k}" for k in range(len(shape))]
    bars.canvas.draw()


def test_max_pairs_bounds_what_is_drawn() -> None:
    pred, target = smooth(20, 20, seed=0), smooth(20, 20, seed=1)
    matching = compute_matching(pred, target, reduced=True)
    total = matching.num_unmatched_pred[0]
    assert total > 3
    for count in (0, 3):
        figure = plot_matching(pred, target, matching, dim=0, max_pairs=count)
        assert outline_colors(figure.axes[0]).count(UNMATCHED) == count
        assert f"unmatched: {count} of {total}" in figure.axes[0].get_title()


def test_bars_are_those_of_the_matching() -> None:
    pred, target = smooth(16, 16, seed=0), smooth(16, 16, seed=1)
    matching = compute_matching(pred, target)
    figure = plot_barcodes(matching, dim=1)
    (ax,) = figure.axes
    lines = [c for c in ax.collections if isinstance(c, LineCollection)]
    sides = ((matching.matched_pred, matching.unmatched_pred), (matching.matched_target, matching.unmatched_target))
    for collection, lists in zip(lines, sides, strict=True):
        drawn = sorted((segment[0][0], segment[1][0]) for segment in collection.get_segments())
        pairs = [(b, d) for side in lists for b, d in zip(side[1].birth_values, side[1].death_values, strict=True)]
        np.testing.assert_allclose(drawn, sorted(pairs))
    (bands,) = (c for c in ax.collections if isinstance(c, PolyCollection))
    assert len(bands.get_paths()) == matching.num_matched[1]
    left, right = ax.get_xlim()
    assert left > right  # superlevel: from high to low


def test_axes_may_be_given() -> None:
    pred, target = two_rings()
    matching = compute_matching(pred, target)
    figure, axes = plt.subplots(2, 2)
    assert plot_matching(pred, target, matching, axes=axes) is figure
    figure, axes = plt.subplots(1, 2)
    assert plot_barcodes(matching, axes=axes) is figure
    figure, ax = plt.subplots()
    assert plot_barcodes(matching, dim=0, axes=ax) is figure
    with pytest.raises(ValueError, match="axes"):
        plot_barcodes(matching, axes=ax)
    with pytest.raises(ValueError, match="axes"):
        plot_matching(pred, target, matching, axes=axes)


def test_constant_images_have_no_bars() -> None:
    matching = compute_matching(np.zeros((4, 4)), np.zeros((4, 4)), reduced=True)
    plot_matching(np.zeros((4, 4)), np.zeros((4, 4)), matching).canvas.draw()
    figure = plot_barcodes(matching)
    assert [text.get_text() for ax in figure.axes for text in ax.texts] == ["no bars", "no bars"]
