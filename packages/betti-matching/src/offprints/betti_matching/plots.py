"""Figures of a matching: its bars, and the voxels that they stand for on both images."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from offprints.betti_matching.cycles import representative_cycles
from offprints.betti_matching.images import as_image
from offprints.betti_matching.pairs import Matching, PairList
from offprints.shared.extras import require
from offprints.shared.validation import check_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, readable for the color blind; its vermilion is left for what is unmatched.
_PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#f0e442")
_UNMATCHED = "#d55e00"
_PREDICTION, _TARGET = _PALETTE[:2]


def plot_matching(
    pred: ArrayLike | Tensor,
    target: ArrayLike | Tensor,
    matching: Matching,
    *,
    dim: int | None = None,
    max_pairs: int = 6,
    axes: Any = None,
) -> "Figure":
    """Draw the most persistent features on both images, matched ones in matching colors.

    One row per homology dimension, the prediction on the left, the target on the right. A matched feature has the same
    color on both sides and a solid outline; an unmatched one is vermilion with a dotted outline. A disc marks where a
    feature is born, a cross where it dies, a star the birth of the essential component, whose voxels are not drawn.

    An image with one axis is drawn as a curve. One with three axes is shown as its projection along the first axis,
    the maximum in superlevel and the minimum in sublevel filtrations; features are projected likewise.

    Args:
        pred: the prediction of the matching, 1 to 3 axes.
        target: its target.
        matching: of these images.
        dim: one homology dimension; all by default.
        max_pairs: draw at most so many matched features, and on either side so many unmatched ones, per dimension.
        axes: matplotlib axes to draw on, two per dimension; a new figure by default.

    Returns:
        The figure.

    Raises:
        TypeError, ValueError: images that are not those of the matching, `dim` or `max_pairs` out of range, or another
            number of axes.

    Example:
        >>> pred, target = np.eye(6), np.eye(6)[::-1]
        >>> figure = plot_matching(pred, target, compute_matching(pred, target), dim=0)
        >>> len(figure.axes)
        2
    """
    _check_matching(matching)
    superlevel = matching.filtration == "superlevel"
    images = [as_image(image, name, superlevel=superlevel) for image, name in ((pred, "pred"), (target, "target"))]
    for image, name in zip(images, ("pred", "target"), strict=True):
        if image.shape != matching.shape:
            raise ValueError(f"{name} must have the shape of the matching, {matching.shape}, got {image.shape}")
        if np.isnan(image).any():
            raise ValueError(f"{name} must not contain NaN")
    max_pairs = check_number(max_pairs, "max_pairs", low=0, integer=True)
    dims = _dims(matching, dim)
    grid = _grid(axes, (len(dims), 2), _panel(matching.shape))

    for row, k in zip(grid, dims, strict=True):
        matched = matching.matched_pred[k], matching.matched_target[k]
        alone = matching.unmatched_pred[k], matching.unmatched_target[k]
        chosen = _longest(np.maximum(*map(_lengths, matched)), max_pairs)
        for ax, side, image, pairs, rest in zip(row, ("prediction", "target"), images, matched, alone, strict=True):
            unmatched = _longest(_lengths(rest), max_pairs)
            _draw_image(ax, image, matching)
            _draw_features(ax, image, matching, k, _take(rest, unmatched), [_UNMATCHED] * len(unmatched), dotted=True)
            colors = [_PALETTE[i % len(_PALETTE)] for i in range(len(chosen))]
            _draw_features(ax, image, matching, k, _take(pairs, chosen), colors, dotted=False)
            ax.set_title(
                f"{side}, dimension {k}\nmatched: {_shown(chosen, pairs)}, unmatched: {_shown(unmatched, rest)}",
                fontsize="medium",
            )
    figure: Figure = grid[0, 0].figure
    if axes is None:
        _legend_of_features(figure)
    return figure


def plot_barcodes(matching: Matching, *, dim: int | None = None, axes: Any = None) -> "Figure":
    """Draw the barcodes of both images, matched bars in pairs.

    One panel per homology dimension. Bars run from birth on the left to death on the right, so the values fall from
    left to right in superlevel filtrations. A matched pair, prediction above target, is joined by a gray band;
    unmatched bars lie above the matched ones. The essential pair ends in arrows.

    Args:
        matching: of two images.
        dim: one homology dimension; all by default.
        axes: matplotlib axes to draw on, one per dimension; a new figure by default.

    Returns:
        The figure.

    Raises:
        ValueError: `dim` out of range or another number of axes.

    Example:
        >>> figure = plot_barcodes(compute_matching(np.eye(6), np.eye(6)[::-1]))
        >>> len(figure.axes)
        2
    """
    _check_matching(matching)
    dims = _dims(matching, dim)
    grid = _grid(axes, (1, len(dims)), (4.2, 4.0))
    for ax, k in zip(grid[0], dims, strict=True):
        _draw_bars(ax, matching, k)
        ax.set_title(f"dimension {k}", fontsize="medium")
        ax.set_xlabel("value")
    figure: Figure = grid[0, 0].figure
    if axes is None:
        _legend_of_bars(figure)
    return figure


# ---- features on images ----------------------------------------------------------------------------------------------


def _draw_image(ax: "Axes", image: np.ndarray, matching: Matching) -> None:
    if image.ndim == 1:
        ax.plot(image, color="0.6", linewidth=1)
        ax.set_xlabel("voxel")
        return
    if image.ndim == 3:
        image = image.max(axis=0) if matching.filtration == "superlevel" else image.min(axis=0)
    ax.imshow(np.ma.masked_invalid(image), cmap="gray", interpolation="nearest")
    ax.set_axis_off()


def _draw_features(
    ax: "Axes", image: np.ndarray, matching: Matching, k: int, pairs: PairList, colors: list[str], *, dotted: bool
) -> None:
    """The voxels of the pairs, the largest first, then the places of their births and deaths."""
    frame = int(matching.relative)
    padded = image
    if matching.relative:
        padded = np.pad(image, 1, constant_values=image.max() if matching.filtration == "superlevel" else image.min())
    cycles = representative_cycles(
        padded,
        pairs,
        dim=k,
        filtration=matching.filtration,  # type: ignore[arg-type]
        construction=matching.construction,  # type: ignore[arg-type]
    )
    essential = pairs.death[:, 0] < 0
    for i in sorted(np.flatnonzero(~essential).tolist(), key=lambda i: -len(cycles[i])):
        _draw_voxels(ax, image, cycles[i] - frame, colors[i], dotted)
    for i, color in enumerate(colors):
        marks = [(pairs.birth[i], "*" if essential[i] else "o")]
        if not essential[i]:
            marks.append((pairs.death[i], "X"))
        for voxel, marker in marks:
            inside = _inside((voxel - frame)[None], image.shape)
            for place in inside:
                x, y = (place[0], image[place[0]]) if image.ndim == 1 else (place[-1], place[-2])
                size = 90 if marker == "*" else 36
                ax.scatter(x, y, s=size, marker=marker, color=color, edgecolors="white", linewidths=0.8, zorder=4)


def _draw_voxels(ax: "Axes", image: np.ndarray, voxels: np.ndarray, color: str, dotted: bool) -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgba

    voxels = _inside(voxels, image.shape)
    if image.ndim == 1:
        x = voxels[:, 0]
        ax.scatter(x, image[x], s=10, marker="x" if dotted else "s", color=color, zorder=3)
        return
    mask = np.zeros(image.shape[-2:], dtype=bool)
    mask[tuple(voxels[:, -2:].T)] = True
    overlay = np.zeros((*mask.shape, 4))
    overlay[mask] = to_rgba(color, 0.25 if dotted else 0.5)
    ax.imshow(overlay, interpolation="nearest")
    style = (0, (1.0, 1.0)) if dotted else "solid"
    ax.add_collection(LineCollection(_outline(mask), colors=color, linewidths=1.2, linestyles=style), autolim=False)


def _outline(mask: np.ndarray) -> list[np.ndarray]:
    """Sides between pixels inside and outside the mask, as segments ``[2, (x, y)]``."""
    padded = np.pad(mask, 1)
    rows, columns = np.nonzero(padded[:, 1:-1][1:] != padded[:, 1:-1][:-1])
    flat = np.stack((np.stack((columns, rows), 1), np.stack((columns + 1, rows), 1)), 1)
    rows, columns = np.nonzero(padded[1:-1][:, 1:] != padded[1:-1][:, :-1])
    upright = np.stack((np.stack((columns, rows), 1), np.stack((columns, rows + 1), 1)), 1)
    return list(np.concatenate((flat, upright)) - 0.5)


def _inside(voxels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Voxels of the image itself, without those of the frame."""
    return voxels[((voxels >= 0) & (voxels < shape)).all(axis=1)]


def _legend_of_features(figure: "Figure") -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    mark = {"linestyle": "none", "color": "0.4", "markeredgecolor": "white"}
    handles = [
        Patch(facecolor=_PREDICTION, edgecolor=_PREDICTION, alpha=0.6, label="matched: same color, same feature"),
        Patch(facecolor="none", edgecolor=_UNMATCHED, linestyle=":", label="unmatched"),
        Line2D([], [], marker="o", label="birth", **mark),  # type: ignore[arg-type]
        Line2D([], [], marker="X", label="death", **mark),  # type: ignore[arg-type]
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize="small")


# ---- bars ------------------------------------------------------------------------------------------------------------


def _draw_bars(ax: "Axes", matching: Matching, k: int) -> None:
    from matplotlib.collections import LineCollection, PolyCollection

    matched = matching.matched_pred[k], matching.matched_target[k]
    order = _longest(np.maximum(*map(_lengths, matched)), len(matched[0]))
    pairs = [_take(side, order) for side in matched]
    alone = [
        _take(side, _longest(_lengths(side), len(side)))
        for side in (matching.unmatched_pred[k], matching.unmatched_target[k])
    ]

    ends = np.concatenate([np.stack((p.birth_values, p.death_values), 1) for p in (*pairs, *alone)])
    finite = ends[np.isfinite(ends)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    margin = 0.06 * (high - low) or 0.5
    left, right = low - margin, high + margin
    if matching.filtration == "superlevel":
        left, right = right, left

    def bars(pairs: PairList) -> np.ndarray:
        return np.clip(np.stack((pairs.birth_values, pairs.death_values), 1), min(left, right), max(left, right))

    count = len(order) + sum(map(len, alone))
    width = float(np.clip(70 / max(count, 1), 0.5, 4.0))
    rows = np.arange(len(order), dtype=float)
    bands = np.concatenate((bars(pairs[0]), bars(pairs[1])[:, ::-1]), axis=1)
    heights = np.stack((rows + 0.2, rows + 0.2, rows - 0.2, rows - 0.2), axis=1)
    ax.add_collection(PolyCollection(list(np.stack((bands, heights), 2)), facecolors="0.85"), autolim=False)
    start = len(order)
    for side, color, shift, rest in zip(pairs, (_PREDICTION, _TARGET), (0.2, -0.2), alone, strict=True):
        levels = np.concatenate((rows + shift, start + np.arange(len(rest))))
        lines = np.stack((np.concatenate((bars(side), bars(rest))), np.stack((levels, levels), 1)), 2)
        ax.add_collection(LineCollection(list(lines), colors=color, linewidths=width), autolim=False)
        for i in np.flatnonzero(side.death[:, 0] < 0):
            ax.scatter(right, rows[i] + shift, marker=">", s=30, color=color, clip_on=False, zorder=4)
        start += len(rest)
    if count == 0:
        ax.text(0.5, 0.5, "no bars", ha="center", va="center", color="0.5", transform=ax.transAxes)
    ax.set(xlim=(left, right), ylim=(-1, max(count, 1)), yticks=[])
    for spine in ("left", "top", "right"):
        ax.spines[spine].set_visible(False)


def _legend_of_bars(figure: "Figure") -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Line2D([], [], color=_PREDICTION, linewidth=3, label="prediction"),
        Line2D([], [], color=_TARGET, linewidth=3, label="target"),
        Patch(color="0.85", label="matched"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize="small")


# ---- common ----------------------------------------------------------------------------------------------------------


def _check_matching(matching: Matching) -> None:
    if not isinstance(matching, Matching):
        raise TypeError(f"matching must be a Matching, got {type(matching).__name__}")


def _dims(matching: Matching, dim: int | None) -> list[int]:
    if dim is None:
        return list(range(len(matching.shape)))
    return [check_number(dim, "dim", low=0, high=len(matching.shape) - 1, integer=True)]


def _grid(axes: Any, shape: tuple[int, int], size: tuple[float, float]) -> np.ndarray:
    """The axes given, or those of a new figure, as an array of this shape; `size` of one in inches."""
    if axes is None:
        plt = require("matplotlib.pyplot", package="betti-matching", extra="plots")
        figsize = (shape[1] * size[0], shape[0] * size[1] + 0.3)
        return plt.subplots(*shape, figsize=figsize, squeeze=False, layout="constrained")[1]
    grid = np.asarray(axes, dtype=object)
    if grid.size != shape[0] * shape[1]:
        raise ValueError(f"axes must be {shape[0] * shape[1]} matplotlib axes, got {grid.size}")
    return grid.reshape(shape)


def _panel(shape: tuple[int, ...]) -> tuple[float, float]:
    """Width and height of one image in inches, with its title."""
    if len(shape) == 1:
        return 4.4, 2.8
    rows, columns = shape[-2:]
    return 4.0, float(np.clip(4.0 * rows / columns, 1.5, 8.0)) + 0.6


def _lengths(pairs: PairList) -> np.ndarray:
    return abs(pairs.birth_values - pairs.death_values)


def _longest(lengths: np.ndarray, count: int) -> np.ndarray:
    return np.argsort(-lengths, kind="stable")[:count]


def _take(pairs: PairList, index: np.ndarray) -> PairList:
    return PairList(pairs.birth[index], pairs.death[index], pairs.birth_values[index], pairs.death_values[index])


def _shown(chosen: np.ndarray, pairs: PairList) -> str:
    return str(len(pairs)) if len(chosen) == len(pairs) else f"{len(chosen)} of {len(pairs)}"
