"""The figures of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from offprints.cotta.datasets import CONDITIONS
from offprints.cotta.reproduce.evaluation import LABELS
from offprints.shared.experiment import Run

COLORS = {"source": "#8C8C8C", "bn": "#56B4E9", "tent": "#E69F00", "cotta": "#0072B2"}
COLORS |= {"shut": "#009E73", "single": "#CC79A7", "copied": "#D55E00"}


def readable(names: Sequence[str]) -> list[str]:
    """Names of corruptions as words."""
    return [name.replace("_", " ").replace(" transform", "").replace(" compression", "") for name in names]


def slug(what: str) -> str:
    """A file name."""
    return what.replace(" ", "-")


def draw_stream(run: Run, what: str, errors: Mapping[str, np.ndarray], names: Sequence[str]) -> None:
    """Error over the stream: the mean over streams of each segment, in their order."""
    with run.figure(f"stream-{slug(what)}", figsize=(9.0, 4.4)) as (_, axes):
        for method, values in errors.items():
            marker = "o" if len(names) <= 20 else None
            label = f"{LABELS[method]} ({values.mean():.1f})"
            width = 2.4 if method == "cotta" else 1.6
            axes.plot(values.mean(0), marker=marker, color=COLORS[method], label=label, linewidth=width)
        axes.set(ylabel="error (%)", title=f"Error along the stream, {what}", ylim=(0, None))
        step = 1 if len(names) <= 20 else 9
        axes.set_xticks(range(0, len(names), step), readable(names[::step]), rotation=40, ha="right")
        axes.legend(title="mean over all", ncols=len(errors), loc="upper center", bbox_to_anchor=(0.5, -0.32))


def draw_bars(run: Run, what: str, errors: Mapping[str, np.ndarray], names: Sequence[str]) -> None:
    """What adaptation takes away from the source model's error, by corruption."""
    if len(names) > 20 or "source" not in errors:
        return
    others = [method for method in errors if method != "source"]
    width = 0.8 / max(len(others), 1)
    with run.figure(f"gains-{slug(what)}", figsize=(9.0, 4.2)) as (_, axes):
        for i, method in enumerate(others):
            gains = (errors["source"] - errors[method]).mean(0)
            place = np.arange(len(names)) + (i - (len(others) - 1) / 2) * width
            axes.bar(place, gains, width, color=COLORS[method], label=LABELS[method])
        axes.axhline(0, color="#262626", linewidth=0.8)
        axes.set(ylabel="points", title=f"What adaptation takes off the source model's error, {what}")
        axes.set_xticks(range(len(names)), readable(names), rotation=40, ha="right")
        axes.legend(ncols=len(others), loc="upper right")


def draw_confidence(run: Run, seen: Sequence[Mapping[str, Any]], threshold: float, names: Sequence[str]) -> None:
    """The source model's confidence, the threshold, and when views were averaged."""
    confidence = np.stack([np.asarray(stream["confidence"]) for stream in seen])
    augmented = np.stack([np.asarray(stream["augmented"]) for stream in seen])
    count = confidence.shape[1]
    share = augmented.reshape(len(seen), len(names), -1).mean((0, 2))
    with run.figure("confidence", nrows=2, figsize=(9.0, 5.2), sharex=True, height_ratios=(2, 1)) as (_, axes):
        for row in confidence:
            axes[0].plot(np.arange(count) + 0.5, row, color=COLORS["cotta"], linewidth=0.9, alpha=0.8)
        axes[0].axhline(threshold, color="#D55E00", linewidth=1.2, label=f"threshold (mean {threshold:.2f})")
        axes[0].set(ylabel="mean confidence", title="Confidence of the source model on each batch")
        axes[0].legend(loc="upper right")
        edges = np.linspace(0, count, len(names) + 1)
        axes[1].stairs(share, edges, fill=True, color=COLORS["cotta"])
        axes[1].set(ylabel="share", ylim=(0, 1.05), title="Batches whose views were averaged")
        axes[1].set_xticks((edges[:-1] + edges[1:]) / 2, readable(names), rotation=40, ha="right")
        axes[1].set_xlim(0, count)
        for axis in axes:
            axis.grid(False)
            for edge in edges[1:-1]:
                axis.axvline(edge, color="#E3E3E3", linewidth=0.8, zorder=0)


def draw_examples(run: Run, pictures: Float[Tensor, "N 3 H W"], names: Sequence[str]) -> None:
    """The first image of the stream, as it is and in all its states."""
    titles = ["original", *readable(names)]
    columns = 8
    rows = -(-len(pictures) // columns)
    with run.figure("corruptions", nrows=rows, ncols=columns, figsize=(9.0, 1.35 * rows)) as (_, axes):
        for axis in np.ravel(axes):
            axis.axis("off")
        for axis, picture, title in zip(np.ravel(axes), pictures, titles, strict=False):
            axis.imshow(picture.permute(1, 2, 0).cpu().numpy())
            axis.set_title(title, fontsize=8, fontweight="normal", loc="center", pad=3)


def draw_rounds(run: Run, scores: Mapping[str, np.ndarray]) -> None:
    """Mean IoU of each condition in each round."""
    with run.figure("acdc", figsize=(9.0, 4.2)) as (_, axes):
        for method, values in scores.items():
            axes.plot(values.ravel(), color=COLORS[method], label=f"{LABELS[method]} ({values.mean():.1f})")
        rounds, conditions = next(iter(scores.values())).shape
        axes.set(ylabel="mean IoU (%)", title="Driving scenes in bad conditions, round after round")
        labels = [f"{i + 1}: {CONDITIONS[0]}" for i in range(rounds)]
        axes.set_xticks(range(0, rounds * conditions, conditions), labels, rotation=40, ha="right")
        axes.legend(ncols=len(scores))
