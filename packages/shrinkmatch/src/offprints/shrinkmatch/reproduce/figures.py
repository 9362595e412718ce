"""Figures of the experiment: how many unlabeled samples are used, how right they are, what is removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offprints.shared.experiment import Run
from offprints.shrinkmatch.reproduce.training import CERTAIN, RESCUED, RIGHT_CERTAIN, RIGHT_RESCUED, utilization

COLORS = {"FixMatch": "#999999", "FixMatch + DA": "#0072b2", "ShrinkMatch": "#d55e00"}
WINDOW = 20  # steps


def smoothed(values: Tensor) -> np.ndarray:
    """Means over windows of steps."""
    width = min(WINDOW, len(values))
    return values[: len(values) // width * width].reshape(-1, width).mean(1).cpu().numpy()


def draw_utilization(run: Run, name: str, results: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Who has a loss at each step; whether what ShrinkMatch asks of them is right; how many classes it removes."""
    mean = {method: torch.stack([r["counts"] for r in of_method]).mean(0) for method, of_method in results.items()}
    ours = mean["ShrinkMatch"]
    steps = len(ours)
    with run.figure(name, ncols=3, figsize=(13, 3.6)) as (_, axes):
        for method, counts in mean.items():
            if method not in COLORS:
                continue
            share = smoothed(utilization(counts, rescued=method == "ShrinkMatch"))
            at = np.linspace(0, steps, len(share))
            axes[0].plot(at, share, color=COLORS[method], label=method)
        axes[0].plot(at, smoothed(ours[:, CERTAIN]), ":", color=COLORS["ShrinkMatch"], label="certain alone")
        axes[0].set(xlabel="step", ylabel="unlabeled samples with a loss", ylim=(-0.02, 1.05))
        axes[0].legend(fontsize=8)
        for all_, right, style, label in (
            (CERTAIN, RIGHT_CERTAIN, "-", "certain"),
            (RESCUED, RIGHT_RESCUED, "--", "uncertain, in the shrunk space"),
        ):
            used, good = smoothed(ours[:, all_]), smoothed(ours[:, right])
            axes[1].plot(
                at, np.where(used > 1e-3, good / np.maximum(used, 1e-3), np.nan), style, color="#d55e00", label=label
            )
        axes[1].set(xlabel="step", ylabel="right top classes", ylim=(0, 1.05))
        axes[1].legend(fontsize=8)
        removed = torch.stack([r["removed"] for r in results["ShrinkMatch"]]).sum(0).cpu().numpy()
        axes[2].bar(range(len(removed)), removed / max(1.0, removed.sum()), color="#d55e00")
        axes[2].set(xlabel="classes removed", ylabel="rescued samples")
