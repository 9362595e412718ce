"""Figures of the experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from offprints.shared.experiment import Run
from offprints.wad.reproduce.students import TRAINERS


def color_of(method: str) -> str:
    """One color for a method in all figures."""
    return f"C{list(TRAINERS).index(method)}"


def draw_accuracy(
    run: Run, name: str, mismatches: Sequence[float], panels: Mapping[str, Mapping[str, Sequence[Sequence[float]]]]
) -> None:
    """Test accuracy against the share of unknown samples: a panel a teacher, a line a method, bars of standard errors.

    Args:
        run: The run.
        name: Of the figure.
        mismatches: The shares.
        panels: Teacher to method to the accuracies of all draws, for each share that the method was trained at.
    """
    with run.figure(name, ncols=len(panels), sharey=True, squeeze=False) as (_, axes):
        for ax, (teacher, methods) in zip(axes[0], panels.items(), strict=True):
            for number, (method, accuracies) in enumerate(methods.items()):
                shown = [(m, a) for m, a in zip(mismatches, accuracies, strict=True) if len(a)]
                means = [np.mean(a) for _, a in shown]
                errors = [np.std(a, ddof=1) / len(a) ** 0.5 if len(a) > 1 else 0.0 for _, a in shown]
                places = [m + 0.004 * (number - len(methods) / 2) for m, _ in shown]
                ax.errorbar(places, means, errors, marker="o", label=method, color=color_of(method))
            ax.set(title=f"{teacher} teacher", xlabel="share of unknown samples in the pool", xticks=mismatches)
            ax.legend(loc="best", fontsize="small")
        axes[0][0].set_ylabel("test accuracy, known classes")


def draw_weights(run: Run, name: str, teachers: Mapping[str, Mapping[str, Any]]) -> None:
    """Histograms of the weights of known and unknown samples, and what a threshold on them would keep."""
    with run.figure(name, ncols=len(teachers) + 1, figsize=(3.8 * (len(teachers) + 1), 3.4)) as (_, axes):
        for ax, (teacher, judged) in zip(axes, teachers.items(), strict=False):
            weights, known = judged["weights"].cpu().numpy(), judged["known"].cpu().numpy()
            edges = np.linspace(0, max(weights.max(), 1e-6), 25)
            ax.hist(weights[known], edges, alpha=0.6, color="C0", label="known classes")
            ax.hist(weights[~known], edges, alpha=0.6, color="C1", label="unknown classes")
            ax.set(title=f"{teacher}: AUROC {judged['auroc']:.2f}", xlabel="weight")
            ax.legend()
            grid = np.unique(np.append(weights, np.inf))[::-1]
            kept, invaded = ([float((weights[part] >= t).mean()) for t in grid] for part in (known, ~known))
            axes[-1].plot(invaded, kept, label=teacher)
        axes[0].set_ylabel("unlabeled samples")
        axes[-1].set(title="A threshold on the weight", xlabel="unknown samples kept", ylabel="known samples kept")
        axes[-1].legend(loc="lower right")


def draw_errors(run: Run, name: str, methods: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Both errors, round by round.

    Args:
        run: The run.
        name: Of the figure.
        methods: Method to error (`pseudo-labeling`, `invasion`) to its mean in each round.
    """
    titles = {"pseudo-labeling": "Pseudo-labeling error", "invasion": "Invasion error"}
    with run.figure(name, ncols=2) as (_, axes):
        for ax, (error, title) in zip(axes, titles.items(), strict=True):
            for method, errors in methods.items():
                rounds = np.arange(1, len(errors[error]) + 1)
                ax.plot(rounds, errors[error], marker="o", label=method, color=color_of(method))
            ax.set(title=title, xlabel="round", ylabel="share of the weight", xticks=rounds)
            ax.set_ylim(bottom=0)
        axes[1].legend(loc="best")
