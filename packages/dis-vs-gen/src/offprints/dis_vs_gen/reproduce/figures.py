"""The figures of the experiment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from offprints.dis_vs_gen.assumptions import AssumptionStatistics
from offprints.dis_vs_gen.bounds import logistic_h_consistency_bound
from offprints.dis_vs_gen.curves import LearningCurve
from offprints.shared.experiment import Run

NB, LR = "naive Bayes", "logistic regression"
COLORS = {NB: "C1", LR: "C0"}


def draw_simulation(run: Run, dimensions: list[int], needed: Mapping[str, np.ndarray]) -> None:
    """Samples needed against the dimension, with the fits a + b log n and a + b n."""
    n = np.array(dimensions, dtype=float)
    fine = np.linspace(n.min(), n.max(), 200)
    with run.figure("simulation", ncols=2, figsize=(9.4, 3.8)) as (_, (both, near)):
        for name, counts in needed.items():
            mean = counts.mean(0)
            word, x, fine_x = ("log n", np.log(n), np.log(fine)) if name == NB else ("n", n, fine)
            for axes in (both, near) if name == NB else (both,):
                axes.errorbar(n, mean, counts.std(0), fmt="o", color=COLORS[name], label=name)
                if len(n) > 1:
                    slope, offset = np.polyfit(x, mean, 1)
                    label = f"{offset:.3g} {'+' if slope >= 0 else '-'} {abs(slope):.2g} {word}"
                    axes.plot(fine, offset + slope * fine_x, color=COLORS[name], linewidth=1.2, label=label)
        both.set(title="Samples to come near the Bayes error", xlabel="dimension n", ylabel="samples m")
        near.set(title="Naive Bayes alone", xlabel="dimension n (logarithmic)", ylabel="samples m", xscale="log")
        near.set_xticks(dimensions, [str(d) for d in dimensions])
        near.minorticks_off()
        near.set_ylim(bottom=0)
        both.legend(loc="upper left")
        near.legend(loc="lower right")


def draw_curve(axes: Any, curve: LearningCurve, name: str, **style: Any) -> None:
    """Mean error in percent and a band of two standard errors."""
    errors = 100 * curve.errors.numpy()
    mean, standard = errors.mean(0), errors.std(0) / np.sqrt(len(errors))
    axes.plot(curve.sizes, mean, marker="o", label=name, **style)
    axes.fill_between(curve.sizes, mean - 2 * standard, mean + 2 * standard, color=style.get("color"), alpha=0.15)


def finish_curves(axes: Any, title: str, sizes: list[int]) -> None:
    """Logarithmic sizes with their own ticks."""
    axes.set(title=title, xlabel="training samples m", ylabel="test error (%)", xscale="log")
    shown = sizes if len(sizes) <= 7 else sizes[::2]
    axes.set_xticks(shown, [str(m) for m in shown])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper right")


def draw_regimes(
    run: Run, panels: Mapping[str, Mapping[str, LearningCurve]], crossings: Mapping[str, int | None]
) -> None:
    """Learning curves of both classifiers, a panel a data set."""
    with run.figure("regimes", ncols=len(panels), figsize=(4.4 * len(panels), 3.6), squeeze=False) as (_, grid):
        for axes, (title, curves) in zip(grid[0], panels.items(), strict=True):
            if crossings[title] is not None:
                axes.axvline(crossings[title], color="#8C8C8C", linestyle=":", linewidth=1.2)
            for index, (name, curve) in enumerate(curves.items()):
                color = COLORS.get(name, f"C{index}")
                draw_curve(axes, curve, name, color=color)
            finish_curves(axes, title, next(iter(curves.values())).sizes)


def draw_statistics(run: Run, statistics: Mapping[str, AssumptionStatistics]) -> None:
    """Histograms of the quantities that the theory wants bounded, a row a data set."""
    rows = len(statistics)
    with run.figure("assumptions", nrows=rows, ncols=3, figsize=(11, 3.2 * rows), squeeze=False) as (_, grid):
        for axes, (title, found) in zip(grid, statistics.items(), strict=True):
            K = len(found.alpha)
            pairs = ~torch.eye(K, dtype=torch.bool).expand(K, K, K)
            values = {
                "variance $\\sigma_i^2$": found.variance,
                "$\\alpha$: variance of D / n": found.alpha.cpu()[pairs],
                "$\\beta$: |mean of D| / n": found.beta.cpu()[pairs],
            }
            for panel, (label, entries) in zip(axes, values.items(), strict=True):
                panel.hist(entries.cpu().numpy(), color="C0")
                panel.set(title=title if panel is axes[0] else "", xlabel=label, ylabel="count")


def draw_bound(run: Run) -> None:
    """The bound beside its exact inverse."""
    t = torch.linspace(0, 0.8, 400, dtype=torch.float64)
    with run.figure("bound") as (_, axes):
        axes.plot(t, logistic_h_consistency_bound(t), label="$\\sqrt{2t}$, clipped")
        axes.plot(t, logistic_h_consistency_bound(t, exact=True), label="exact inverse")
        axes.set(title="Zero-one regret by logistic regret", xlabel="logistic regret t", ylabel="bound")
        axes.legend(loc="lower right")
