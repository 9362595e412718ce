"""Figures of the experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from offprints.shared.experiment import Run
from offprints.shared.show.colors import BLUE, GRAY, GREEN, INK, ORANGE, PINK, SKY, VERMILION

COLORS = {
    "FedAvg": INK,
    "FedProx": GREEN,
    "FedBN": PINK,
    "FedGH": PINK,
    "margin 0.1": VERMILION,
    "margin 1.0": ORANGE,
    "FedLD": BLUE,
    "FedLD, steps as long as the mean's": SKY,
    "FedLD, projection": SKY,
    "each alone": GRAY,
}
STYLES = {"FedLD, projection": "--", "FedGH": "--", "each alone": ":"}
Table = Mapping[str, Sequence[Mapping[str, Any]]]


def draw_terms(run: Run, table: Table) -> None:
    """The three terms of the loss and their sum over the rounds, means over the draws."""
    shown = [method for method in ("FedAvg", "margin 0.1", "margin 1.0", "FedLD") if method in table]
    titles = {
        "local": "Local",
        "shift": "+ distribution shift",
        "aggregation": "+ aggregation",
        "loss": "= global loss",
    }
    with run.figure("terms", ncols=4, figsize=(13.0, 3.6)) as (figure, axes):
        for axis, (term, title) in zip(axes, titles.items(), strict=True):
            for method in shown:
                values = _mean(table[method], term)
                axis.plot(range(1, len(values) + 1), values, color=COLORS[method], label=method)
            axis.axhline(0, color=GRAY, linewidth=0.8)
            axis.set(title=title, xlabel="round")
        axes[0].set_ylabel("cross-entropy")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(shown))


def draw_accuracy(run: Run, table: Table, name: str = "accuracy", steps: Sequence[float] | None = None) -> None:
    """Accuracy on held-out samples over the rounds, means over the draws."""
    with run.figure(name, figsize=(7.6, 4.2)) as (_, axis):
        for method in table:
            if method in COLORS:
                values = _mean(table[method], "accuracy")
                places = range(1, len(values) + 1) if steps is None else steps
                axis.plot(places, 100 * values, STYLES.get(method, "-"), color=COLORS[method], label=method)
        axis.set(title="Accuracy on samples that no client has", xlabel="round", ylabel="percent")
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def draw_clients(run: Run, name: str, histogram: Sequence[Sequence[int]]) -> None:
    """How many samples of each class each client has."""
    counts = np.array(histogram)
    with run.figure(name, figsize=(6.4, 3.6)) as (_, axis):
        picture = axis.imshow(counts, cmap="Blues", aspect="auto")
        axis.set(title="Samples of each class at each client", xlabel="class", ylabel="client")
        axis.set(xticks=range(counts.shape[1]), yticks=range(len(counts)), yticklabels=range(1, len(counts) + 1))
        axis.grid(visible=False)
        axis.figure.colorbar(picture, ax=axis)


def _mean(results: Sequence[Mapping[str, Any]], term: str) -> Any:
    return np.mean([result["history"][term] for result in results], 0)
