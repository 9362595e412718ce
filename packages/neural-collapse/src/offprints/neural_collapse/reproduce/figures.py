"""The figures of the experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from offprints.neural_collapse.closed_form import gof_solution, minimum_class_count
from offprints.shared.experiment import Run

NAMES = {"nc1": "NC1", "nc2_w": "NC2, weights", "nc2_h": "NC2, features", "nc3_wh": "NC3"}


def draw_curves(run: Run, name: str, panels: Mapping[str, Mapping[str, Any]]) -> None:
    """The metrics through the training, a panel a setting."""
    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    options: dict[str, Any] = {"squeeze": False, "sharey": True, "figsize": (3.9 * columns, 3.6 * rows)}
    with run.figure(name, nrows=rows, ncols=columns, **options) as (_, grid):
        for axes in grid.flat[len(panels) :]:
            axes.remove()
        for number, (axes, (title, history)) in enumerate(zip(grid.flat, panels.items(), strict=False)):
            for index, (key, label) in enumerate(NAMES.items()):
                axes.plot(history["step"], np.maximum(history[key], 1e-16), color=f"C{index}", label=label)
            axes.set(title=title, yscale="log")
            if number >= len(panels) - columns:
                axes.set_xlabel("step")
            if number % columns == 0:
                axes.set_ylabel("distance from collapse")
            if number == 0:
                axes.legend()


def draw_minority(
    run: Run, majority: int, decay: float, depths: Sequence[int], trained: Mapping[tuple[int, int], float]
) -> None:
    """Norm of the smaller class's row against its size: closed form (lines) and optimization (points)."""
    sizes = np.arange(1, majority + 1)
    with run.figure("minority") as (_, axes):
        for index, depth in enumerate(depths):
            decays: dict[str, Any] = {"weight_decay": [decay] * depth, "feature_decay": decay}
            norms = [gof_solution([majority, int(n)], **decays).ww[1].sqrt().item() for n in sizes]
            word = "layer" if depth == 1 else "layers"
            axes.plot(sizes, norms, color=f"C{index}", label=f"{depth} {word}")
            points = {n: norm for (d, n), norm in trained.items() if d == depth}
            axes.plot(list(points), list(points.values()), "o", color=f"C{index}")
            dead = [n for n in sizes if n <= minimum_class_count(majority + int(n), **decays)]
            if dead:
                axes.axvline(max(dead) + 0.5, color=f"C{index}", linestyle=":", linewidth=1.2)
        axes.set(
            title=f"A smaller class beside one of {majority}",
            xlabel="samples of the smaller class (dots: optimized)",
            ylabel="norm of its row of the classifier",
        )
        axes.legend()


def draw_cross_entropy(run: Run, rows: Sequence[Mapping[str, float]]) -> None:
    """The objective of the best ETF, of the best polygon, and the lowest that was found, by depth."""
    depth = [row["layers"] for row in rows]
    with run.figure("cross-entropy") as (_, axes):
        for index, (key, style) in enumerate((("simplex ETF", "o-"), ("polygon", "s--"), ("lowest found", "x:"))):
            axes.plot(depth, [row[key] for row in rows], style, color=f"C{index}", label=key)
        axes.set(title="Cross-entropy, four classes", xlabel="linear layers", ylabel="objective")
        axes.set_xticks(depth, [f"{d:g}" for d in depth])
        axes.legend()
