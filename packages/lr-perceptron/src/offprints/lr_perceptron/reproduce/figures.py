"""The figures of the experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from offprints.shared.experiment import Run
from offprints.shared.show import colors

SHADES = (colors.SKY, colors.BLUE, colors.ORANGE, colors.VERMILION, colors.PINK, colors.BLACK)


def draw_curves(run: Run, curves: Mapping[str, Any], step_sizes: Sequence[float], title: str) -> None:
    """Accuracy, loss and gradient norm against the number of updates, a line a step size (Figures 1 and 4)."""
    panels = {"accuracy": "share not on the right side", "loss": "logistic loss", "grad_norm": "norm of the gradient"}
    with run.figure("trajectories", ncols=3, figsize=(12.5, 3.8)) as (_, grid):
        for axes, (key, label) in zip(grid, panels.items(), strict=True):
            for step_size, color in zip(step_sizes, SHADES, strict=False):
                t = curves[f"{step_size:g} iteration"].numpy() + 1
                values = curves[f"{step_size:g} {key}"].numpy()
                if key == "accuracy":
                    values = 1 - values
                axes.plot(t, values, color=color, linewidth=1.3, label=f"step size {step_size:g}")
            axes.set(title=title if key == "accuracy" else "", xlabel="updates + 1", ylabel=label, xscale="log")
            if key == "accuracy":
                axes.set_yscale("symlog", linthresh=1e-3)
                axes.set_ylim(bottom=0)
            else:
                axes.set_yscale("log")
        grid[0].legend()


def draw_limit(run: Run, curves: Mapping[str, Any], step_sizes: Sequence[float], title: str) -> None:
    """LR+GD beside Batch Perceptron (Figures 2 and 3)."""
    with run.figure("limit", figsize=(6.6, 3.9)) as (_, axes):
        for step_size, color in zip(step_sizes, SHADES, strict=False):
            t, wrong = curves[f"{step_size:g} iteration"], 1 - curves[f"{step_size:g} accuracy"]
            axes.plot(t.numpy() + 1, 100 * wrong.numpy(), color=color, linewidth=1.2, label=f"LR+GD, {step_size:g}")
        t, wrong = curves["batch perceptron iteration"], 1 - curves["batch perceptron accuracy"]
        style = {"color": colors.BLACK, "linestyle": "--", "linewidth": 1.4}
        axes.plot(t.numpy() + 1, 100 * wrong.numpy(), label="Batch Perceptron", **style)
        axes.set(title=title, xlabel="updates + 1", ylabel="misclassified, %", xscale="log")
        axes.set_ylim(0, 15)
        axes.legend()


def draw_counts(run: Run, balanced: Sequence[tuple[int, int]], imbalanced: Sequence[tuple[int, int]]) -> None:
    """Updates of Batch Perceptron against those of its normalized version, a dot a set-up."""
    with run.figure("batch_perceptrons", figsize=(5.2, 4.4)) as (_, axes):
        highest = max(max(pair) for pair in [*balanced, *imbalanced])
        axes.plot([1, highest], [1, highest], color=colors.MUTED, linestyle=":", linewidth=1.2)
        for label, pairs, color in (
            ("one digit, few samples, against all", imbalanced, colors.VERMILION),
            ("two digits, balanced", balanced, colors.BLUE),
        ):
            axes.plot(*zip(*pairs, strict=True), "o", color=color, label=label)
        words = {"xlabel": "updates, Batch Perceptron", "ylabel": "updates, normalized"}
        axes.set(title="Below the line: normalization helps", xscale="log", yscale="log", **words)
        axes.legend(loc="upper left")
