"""Figures of the experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from offprints.shared.experiment import Run

COLORS = {"attacks": "C1", "pseudo-negatives": "C2", "live": "C0"}  # what is drawn last is seen


def draw_disc(run: Run, found: Mapping[str, Any], attacks: str) -> None:
    """Embeddings in the disc, the side of the gyroplanes on which the classifier says spoof, and where it turns."""
    radius = float(found["radius"])
    sides = np.linspace(-radius, radius, len(found["margins"]))
    margins = np.ma.masked_invalid(found["margins"].numpy().T)
    with run.figure("disc", ncols=2, figsize=(10, 5)) as (_, axes):
        points = np.concatenate([found[name].numpy() for name in COLORS])
        low, high = points.min(0), points.max(0)
        room = 0.15 * max(*(high - low), 0.02 * radius)
        for place, ax in enumerate(axes):
            ax.contourf(sides, sides, margins, levels=[0, np.inf], colors=["C1"], alpha=0.12)
            ax.contour(sides, sides, margins, levels=[0], colors="0.3", linewidths=1.2)
            for name, color in COLORS.items():
                label = attacks if name == "attacks" else name
                ax.scatter(*found[name].numpy().T, s=14, color=color, alpha=0.8, linewidth=0, label=label)
            ax.set_aspect("equal")
            if place == 0:
                angle = np.linspace(0, 2 * np.pi, 200)
                ax.plot(radius * np.cos(angle), radius * np.sin(angle), color="0.3", linewidth=1)
                ax.set_title("The whole disc; shaded: called spoof")
                ax.set_axis_off()
            else:
                middle, half = (low + high) / 2, max(high - low) / 2 + room
                ax.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half))
                ax.set_title("Around the embeddings")
                ax.legend(loc="best", frameon=True, markerscale=2)


def draw_scores(run: Run, units: Mapping[str, Mapping[str, Any]], attacks: str) -> None:
    """Histograms of the spoof scores of one split, a panel a method."""
    with run.figure("scores", ncols=len(units), figsize=(4.2 * len(units), 3.4)) as (_, axes):
        for ax, (name, unit) in zip(np.atleast_1d(axes), units.items(), strict=True):
            scores, labels = unit["scores"].numpy(), unit["labels"].numpy()
            low, high = np.quantile(scores, (0.005, 0.995))
            edges = np.linspace(low, high, 30)
            for value, color, label in ((0, "C0", "live"), (1, "C1", attacks)):
                ax.hist(scores[labels == value], edges, color=color, alpha=0.6, label=label)
            ax.set(title=f"{name}: AUC {unit['auc']:.3f}", xlabel="spoof score: logit 1 less logit 0")
            ax.legend()
        np.atleast_1d(axes)[0].set_ylabel("held-out samples")


def draw_roc(run: Run, units: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Attacks that are caught against live samples that are rejected, the mean over the splits."""
    grid = np.linspace(0, 1, 201)
    with run.figure("roc", figsize=(5.2, 4.4)) as (_, ax):
        for name, of_splits in units.items():
            curves = []
            for unit in of_splits:
                scores, labels = unit["scores"].numpy(), unit["labels"].numpy()
                thresholds = np.sort(scores)[::-1]
                caught = 1 - np.searchsorted(np.sort(scores[labels == 1]), thresholds) / (labels == 1).sum()
                rejected = 1 - np.searchsorted(np.sort(scores[labels == 0]), thresholds) / (labels == 0).sum()
                curves.append(np.interp(grid, np.append(0, rejected), np.append(0, caught)))
            ax.plot(grid, np.mean(curves, 0), label=name)
        ax.set(xlabel="live samples rejected (BPCER)", ylabel="attacks caught (1 - APCER)", title="Held-out samples")
        ax.legend(loc="lower right", fontsize="small")
