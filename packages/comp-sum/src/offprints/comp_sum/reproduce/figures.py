"""Figures of the experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from offprints.comp_sum.bounds import inverse_transform
from offprints.shared.experiment import Run

COLORS = {"TRADES": "#D55E00", "adv-comp-sum": "#0072B2", "comp-sum": "#8C8C8C"}


def draw_bounds(run: Run, taus: Sequence[float], scatter: Mapping[float, tuple[Tensor, Tensor]], classes: int) -> None:
    """Gamma of several losses, and regrets of random scores below it."""
    with run.figure("bounds", ncols=2, figsize=(10, 4)) as (_, (curves, points)):
        t = torch.linspace(0, 0.5, 301, dtype=torch.float64)
        for index, tau in enumerate(taus):
            curves.plot(t, inverse_transform(t, tau, classes), color=f"C{index}", label=f"$\\tau$ = {tau:g}")
        curves.set(
            title=f"What a surrogate regret guarantees, {classes} classes",
            xlabel="excess of the surrogate loss + gap",
            ylabel="bound $\\Gamma_\\tau$ of the excess error",
            ylim=(0, 1.02),
        )
        curves.legend()
        for index, (tau, (surrogate, zero_one)) in enumerate(scatter.items()):
            color = f"C{list(taus).index(tau)}"
            points.scatter(surrogate, zero_one, s=3, alpha=0.35, color=color, linewidths=0, zorder=index)
            points.plot(t, inverse_transform(t, tau, classes), color=color, label=f"$\\tau$ = {tau:g}", zorder=5)
        points.set(
            title="Random distributions and scores",
            xlabel="conditional regret of the surrogate",
            ylabel="conditional regret of the error",
            xlim=(0, 0.5),
            ylim=(0, 1.02),
        )
        points.legend()


def draw_family(run: Run, margins: Tensor, gradients: Mapping[str, Tensor]) -> None:
    """How much gradient the label's score gets, by its margin."""
    with run.figure("gradients") as (_, axes):
        for name, values in gradients.items():
            alive = values > 0
            axes.semilogy(margins[alive], values[alive], label=name, linestyle="--" if "torch" in name else "-")
        axes.set(
            title="Gradient of the label's score, float32, ten classes",
            xlabel="margin",
            ylabel="size",
            ylim=(1e-40, 10),
        )
        axes.legend(loc="lower left")


def draw_frontiers(run: Run, frontiers: Mapping[str, np.ndarray], plain: np.ndarray | None, title: str) -> None:
    """Robust against clean accuracy on the test data, a point a strength, bars of one standard error.

    Of each method ``[strengths, splits, 2]``, of plain training ``[splits, 2]``.
    """
    with run.figure("frontiers") as (_, axes):
        for name, values in frontiers.items():
            mean, error = 100 * values.mean(1), 100 * values.std(1) / max(1, values.shape[1] - 1) ** 0.5
            axes.errorbar(
                *mean.T, xerr=error[:, 0], yerr=error[:, 1], marker="o", capsize=2, color=COLORS[name], label=name
            )
        if plain is not None:
            clean, robust = 100 * plain.mean(0)
            axes.plot([clean], [robust], "s", color=COLORS["comp-sum"], label="without an attack")
        axes.set(title=title, xlabel="clean accuracy (%)", ylabel="robust accuracy (%)")
        axes.legend(loc="center left")


def draw_taus(run: Run, clean: Mapping[float, np.ndarray], title: str) -> None:
    """Clean accuracy by tau, a point a network."""
    with run.figure("taus") as (_, axes):
        taus = list(clean)
        for tau, values in clean.items():
            axes.plot([tau] * len(values), 100 * values, "o", color="#0072B2", alpha=0.5)
        axes.plot(taus, [100 * clean[tau].mean() for tau in taus], color="#0072B2")
        axes.set(title=title, xlabel="$\\tau$", ylabel="clean accuracy (%)")
        axes.set_xticks(taus)
