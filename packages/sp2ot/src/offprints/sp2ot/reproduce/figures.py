"""Figures of the experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from offprints.shared.experiment import Run
from offprints.shared.show.colors import BLUE, GRAY, GREEN, INK, ORANGE, PINK, SKY, YELLOW
from offprints.sp2ot.schedule import rho_schedule

COLORS = {
    "k-means": GRAY,
    "spectral": PINK,
    "balanced OT": ORANGE,
    "P²OT": SKY,
    "SP²OT": BLUE,
    "equal sizes": YELLOW,
    "Gaussian mixture": PINK,
    "clusterer": GREEN,
}
FEATURES = {
    "fashion": "Fashion-MNIST",
    "pixels": "Pixels",
    "pca": "20 principal components",
    "spectral": "Spectral embedding",
}
GROUPS = {"balanced_accuracy": "all", "head": "head", "medium": "medium", "tail": "tail"}


def draw_schedule(run: Run, steps: int) -> None:
    """How the share of the transported mass grows."""
    with run.figure("schedule", figsize=(5.4, 3.4)) as (_, axis):
        step = np.arange(steps + 1)
        for kind, style in (("sigmoid", "-"), ("linear", "--")):
            values = [rho_schedule(int(s), steps, kind=kind) for s in step]  # type: ignore[arg-type]
            axis.plot(step, values, style, color=BLUE if kind == "sigmoid" else GRAY, label=kind)
        axis.set(title="Share of the mass that gets a label", xlabel="training step", ylabel="ρ", ylim=(0, 1.05))
        axis.legend()


def draw_labels(run: Run, rhos: Sequence[float], results: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Right share of the pseudo-labels' mass against rho: the mean, and its standard error as a band."""
    with run.figure(
        "pseudo_labels", 1, len(results), squeeze=False, sharey=True, figsize=(4.6 * len(results), 4.0)
    ) as (
        figure,
        axes,
    ):
        for axis, (kind, of_kind) in zip(axes[0], results.items(), strict=True):
            for method in ("P²OT", "SP²OT"):
                values = np.array([result[method] for result in of_kind])
                mean, error = values.mean(0), values.std(0) / max(len(values) - 1, 1) ** 0.5
                axis.plot(rhos, mean, "o-", color=COLORS[method], label=method)
                axis.fill_between(rhos, mean - error, mean + error, color=COLORS[method], alpha=0.18, linewidth=0)
            for method in ("k-means", "balanced OT"):
                level = np.mean([result[method] for result in of_kind])
                axis.axhline(level, color=COLORS[method], linestyle="--", linewidth=1.4, label=method)
            axis.set(title=FEATURES[kind], xlabel="ρ, share of the mass transported")
        axes[0, 0].set_ylabel("share of the mass on the right class")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)


def draw_sizes(run: Run, features: str, results: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Cluster sizes beside the classes' own, means over the draws."""
    shown = ("balanced OT", "P²OT", "SP²OT")
    true = np.mean([result["true sizes"] for result in next(iter(results.values()))], 0)
    with run.figure(f"sizes_{features}", 1, len(shown), sharey=True, figsize=(10.0, 3.4)) as (_, axes):
        classes = np.arange(len(true))
        for axis, method in zip(axes, shown, strict=True):
            sizes = np.mean([result["sizes"] for result in results[method]], 0)
            axis.bar(classes, sizes, color=COLORS[method], label="cluster")
            axis.step(
                np.append(classes, len(true)) - 0.5, np.append(true, true[-1]), where="post", color=INK, label="class"
            )
            axis.set(title=method, xlabel="class, head to tail", xticks=classes)
            axis.grid(axis="x", visible=False)
            axis.legend()
        axes[0].set_ylabel("samples")


def draw_groups(run: Run, name: str, scores: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Recall of all classes and of head, medium and tail; every draw is a dot."""
    with run.figure(f"groups_{name}", figsize=(7.4, 4.0)) as (figure, axis):
        width = 0.84 / len(scores)
        for i, (method, of_method) in enumerate(scores.items()):
            for j, group in enumerate(GROUPS):
                values = of_method[group]
                place = j + (i - (len(scores) - 1) / 2) * width
                axis.bar(place, values.mean(), 0.92 * width, color=COLORS[method], label=None if j else method)
                if len(values) > 1:
                    spread = np.linspace(-0.2, 0.2, len(values)) * width
                    axis.plot(place + spread, values, "o", color=INK, markersize=2.6)
        axis.set_xticks(range(len(GROUPS)), list(GROUPS.values()))
        axis.grid(axis="x", visible=False)
        axis.set(title=f"Recall by size of the class: {FEATURES.get(name, name).lower()}", ylabel="mean recall")
        figure.legend(loc="outside lower center", ncols=len(scores))
