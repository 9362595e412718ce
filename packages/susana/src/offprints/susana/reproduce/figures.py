"""Figures of the experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offprints.shared.experiment import Run

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000")


def draw_accuracies(run: Run, title: str, rows: Mapping[str, Sequence[tuple[float, float]]], name: str) -> None:
    """Draw the accuracy of every embedding with its interval, a point for each split."""
    with run.figure(name, figsize=(6.5, 0.4 * len(rows) + 1.4)) as (_, ax):
        for row, points in enumerate(rows.values()):
            for i, (accuracy, half) in enumerate(points):
                place = row + 0.14 * (i - (len(points) - 1) / 2)
                ax.errorbar(100 * accuracy, place, xerr=100 * half, fmt="o", ms=4, color=COLORS[row % len(COLORS)])
        ax.set_yticks(range(len(rows)), [label.replace("+", " + ").replace("_", " ") for label in rows])
        ax.invert_yaxis()
        ax.set_xlabel("accuracy, %, and its interval of 95 %")
        ax.set_title(title)


def draw_scores(run: Run, panels: Mapping[str, tuple[Tensor, Tensor, float]]) -> None:
    """Draw every episode's ICNN score against its accuracy."""
    with run.figure("score_and_accuracy", ncols=len(panels), figsize=(4.4 * len(panels), 3.6), squeeze=False) as (
        _,
        axes,
    ):
        for ax, (title, (score, accuracy, rank)) in zip(axes[0], panels.items(), strict=True):
            ax.scatter(score, 100 * accuracy, s=9, alpha=0.5, color=COLORS[0], linewidths=0)
            ax.set_title(title)
            ax.annotate(f"rank correlation {rank:.2f}", (0.03, 0.95), xycoords="axes fraction", va="top")
            ax.set_xlabel("ICNN score of the queries")
            ax.set_ylabel("accuracy of the episode, %")


def draw_episode(run: Run, panels: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Draw the queries of one episode of new classes in the plane of their two main directions."""
    with run.figure("episode", ncols=len(panels), figsize=(3.4 * len(panels), 3.3), squeeze=False) as (_, axes):
        for ax, (title, (features, labels)) in zip(axes[0], panels.items(), strict=True):
            plane = principal_plane(features)
            for label in labels.unique():
                part = plane[labels == label]
                ax.scatter(part[:, 0], part[:, 1], s=14, color=COLORS[int(label) % len(COLORS)])
            ax.set_title(title)
            ax.set_xticks([])
            ax.set_yticks([])


def principal_plane(features: Tensor) -> np.ndarray[Any, Any]:
    """Coordinates along the two main directions, with signs that do not depend on the solver."""
    centered = features.double() - features.double().mean(0)
    _, _, directions = torch.linalg.svd(centered, full_matrices=False)
    directions = directions[:2]
    largest = directions.abs().argmax(1, keepdim=True)
    plane = centered @ (directions * directions.gather(1, largest).sign()).mT
    return plane.numpy()
