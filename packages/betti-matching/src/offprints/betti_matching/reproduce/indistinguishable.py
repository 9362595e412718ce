"""Two predictions of one mask that Dice and the Betti numbers cannot tell apart, though one has the wrong features.

Foreground is direct- (4-) connected and background fully (8-) connected, as in the superlevel sets of construction V.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.ndimage import convolve, label

# The 8 neighbors of a pixel, going round; neighbor i has bit 2^i. Even ones share a side with the pixel.
_AROUND = ((0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0), (0, 0))


class Pair(NamedTuple):
    """Boolean masks ``[h, w]``, each with as many pixels added to and removed from ``mask`` as the other."""

    mask: np.ndarray
    right: np.ndarray
    wrong: np.ndarray


def _simple_table() -> np.ndarray:
    """For each of the 256 neighborhoods: may the center change sides without any change of topology?"""
    table = np.zeros(256, dtype=bool)
    for code in range(256):
        ring = [bool(code >> i & 1) for i in range(8)]
        # foreground pieces of the ring that touch the center by a side, background pieces that touch it at all
        square = np.zeros((3, 3), dtype=bool)
        for on, place in zip(ring, _AROUND, strict=True):
            square[place] = on
        pieces = label(square)[0]
        touching = {pieces[place] for place in _AROUND[::2]} - {0}
        empty = ~square
        empty[1, 1] = False
        table[code] = len(touching) == 1 and label(empty, np.ones((3, 3)))[1] == 1
    return table


_SIMPLE = _simple_table()
_WEIGHTS = np.zeros((3, 3), dtype=np.int64)
for _bit, _place in enumerate(_AROUND):
    _WEIGHTS[2 - _place[0], 2 - _place[1]] = 1 << _bit  # convolution turns the kernel round
_FULL = np.ones((3, 3), dtype=int)


def betti(mask: np.ndarray) -> tuple[int, int]:
    """Components and loops of a mask, by labeling; independent of the persistence code that is being examined."""
    holes = label(~np.pad(mask, 1), _FULL)[1] - 1
    return label(mask)[1], holes


def _change_harmlessly(
    mask: np.ndarray, value: bool, count: int, allowed: np.ndarray, rng: np.random.Generator
) -> None:
    """Set ``count`` simple pixels to ``value`` in place: the mask only gets thinner or thicker."""
    rows, columns = np.indices(mask.shape)
    while count:
        codes = convolve(mask.astype(np.int64), _WEIGHTS, mode="constant")
        simple = _SIMPLE[codes] & (mask != value) & allowed
        # pixels of one parity class are no neighbors, so that all of them may change at once
        classes = [np.argwhere(simple & (rows % 2 == i) & (columns % 2 == j)) for i in (0, 1) for j in (0, 1)]
        largest = max(classes, key=len)
        if not len(largest):
            raise ValueError("mask has too few simple pixels to change")
        chosen = rng.permutation(largest)[:count]
        mask[tuple(chosen.T)] = value
        count -= len(chosen)


def _disc(shape: tuple[int, ...], center: np.ndarray, radius: float) -> np.ndarray:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (rows - center[0]) ** 2 + (columns - center[1]) ** 2 <= radius**2


def _segment(shape: tuple[int, ...], start: np.ndarray, end: np.ndarray, width: float) -> np.ndarray:
    rows, columns = np.indices(shape)
    along = (end - start) / max(1e-9, float(np.sum((end - start) ** 2)))
    t = np.clip((rows - start[0]) * along[0] + (columns - start[1]) * along[1], 0, 1)
    return (rows - start[0] - t * (end - start)[0]) ** 2 + (columns - start[1] - t * (end - start)[1]) ** 2 <= width**2


def _edit(
    mask: np.ndarray,
    current: np.ndarray,
    wanted: tuple[int, int],
    value: bool,
    reach: float,
    rng: np.random.Generator,
    tries: int = 400,
) -> np.ndarray | None:
    """``current`` after erasing a disc (``value`` False) or drawing a segment, if that changes both Betti numbers so.

    The change is required of ``mask`` too, so that no edit just undoes an earlier one.
    """
    places = np.argwhere(mask)
    before, now = betti(mask), betti(current)
    for _ in range(tries):
        start = places[rng.integers(len(places))]
        if value:
            near = places[np.hypot(*(places - start).T) <= reach]
            region = _segment(mask.shape, start, near[rng.integers(len(near))], 1.0)
        else:
            region = _disc(mask.shape, start, rng.uniform(0, reach))
        here, there = np.where(region, value, current), np.where(region, value, mask)
        changes = [tuple(np.subtract(betti(a), b)) for a, b in ((here, now), (there, before))]
        if changes == [wanted, wanted]:
            return here
    return None


def indistinguishable_pair(
    mask: np.ndarray, *, cut: float = 4.0, bridge: float = 20.0, seed: int | np.random.SeedSequence
) -> Pair | None:
    """A right and a wrong prediction of a boolean ``mask`` with equal Dice and the mask's own Betti numbers.

    Wrong: a component is cut in two and two others are joined; a loop, where there is one, is opened and another is
    pierced elsewhere. Right: the same numbers of pixels taken off and put on along the boundary, changing no feature.
    ``cut`` is the largest radius of what is erased, ``bridge`` the longest line drawn, in pixels. None if no such edits
    are found (a mask with a single component, for example).
    """
    rng = np.random.default_rng(seed)
    cut_apart = _edit(mask, mask, (1, 0), False, cut, rng)
    wrong = None if cut_apart is None else _edit(mask, cut_apart, (-1, 0), True, bridge, rng)
    if wrong is None:
        return None
    opened = _edit(mask, wrong, (0, -1), False, cut, rng)
    pierced = None if opened is None else _edit(mask, opened, (0, 1), False, 1.0, rng)
    wrong = wrong if pierced is None else pierced
    removed, added = int((mask & ~wrong).sum()), int((wrong & ~mask).sum())

    right = mask.copy()
    _change_harmlessly(right, False, removed, np.ones_like(mask), rng)
    # nothing is added beside what was removed: each change stays harmless in the union of mask and prediction too
    beside = convolve((mask & ~right).astype(int), _FULL, mode="constant") > 0
    _change_harmlessly(right, True, added, ~beside, rng)
    return Pair(mask, right, wrong)
