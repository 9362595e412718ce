"""Figures of the experiment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from offprints.shared.experiment import Run

KINDS = {
    "positive": "positive pairs",
    "clpg": "negatives: class weights",
    "mlpg": "negatives: pairs of the batch",
    "all": "all negatives",
}

FLOOR = 1e-3  # the densities are drawn from here on: what tells the kinds of negatives apart are their upper tails


def draw_similarities(run: Run, panels: Mapping[str, Mapping[str, Any]]) -> None:
    """Densities of the similarities, a panel a training: the mismatch of the two kinds of negatives."""
    options: dict[str, Any] = {"squeeze": False, "sharex": True, "sharey": True}
    with run.figure("similarities", ncols=len(panels), figsize=(4 * len(panels), 3.4), **options) as (_, grid):
        for number, (axes, (title, unit)) in enumerate(zip(grid[0], panels.items(), strict=True)):
            for index, (key, label) in enumerate(KINDS.items()):
                density = np.asarray(unit[f"histogram {key}"])
                edges = np.linspace(-1, 1, len(density) + 1)
                shade = {"fill": True, "alpha": 0.3} if key == "positive" else {"linewidth": 1.5}
                axes.stairs(density, edges, baseline=FLOOR, color=f"C{index}", label=label, **shade)
            axes.set(title=title, xlabel="cosine", yscale="log", ylim=(FLOOR, None))
            if number == 0:
                axes.set_ylabel("density")
                axes.legend()


def draw_gap(run: Run, histories: Mapping[str, Mapping[str, Any]], quantile: float) -> None:
    """The gap after every epoch; the same color for one head, solid with the pairs and dashed without."""
    heads = list(dict.fromkeys(name.partition("+")[0] for name in histories))
    with run.figure("gap") as (_, axes):
        for name, history in histories.items():
            head, plus, _ = name.partition("+")
            style = "-" if plus else "--"
            axes.plot(history["epoch"], history["gap"], style, color=f"C{heads.index(head)}", label=name)
        axes.set(xlabel="epoch", ylabel=f"gap at quantile {quantile:g}", title="Known identities")
        axes.legend()
