"""Figures of the experiment."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from offprints.shared.experiment import Run


def draw_stream(run: Run, curves: Mapping[str, Tensor]) -> None:
    """Mean class accuracy along the stream, the mean of the streams ``[S, points]``."""
    with run.figure("stream") as (_, axes):
        for name, values in curves.items():
            points = np.arange(1, values.shape[1] + 1) / values.shape[1]
            axes.plot(points, 100 * values.mean(0).numpy(), "o-", label=name)
        axes.set(xlabel="share of the stream seen", ylabel="mean class accuracy, %", title="Along the stream")
        axes.legend()


def draw_classes(run: Run, counts: Tensor, accuracies: Mapping[str, Tensor]) -> None:
    """Accuracy of every class ``[S, K]``, from the most frequent one to the rarest."""
    order = counts.argsort(descending=True, stable=True)
    places = np.arange(len(order))
    with run.figure("classes") as (_, axes):
        for shift, (name, values) in zip((-0.2, 0.2), accuracies.items(), strict=True):
            axes.bar(places + shift, 100 * values.mean(0)[order].numpy(), width=0.4, label=name)
        axes.set_xticks(places, [str(int(counts[c])) for c in order])
        axes.set(xlabel="samples of the class in the stream", ylabel="accuracy, %", title="Class by class")
        axes.set_ylim(0, 100)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)  # below: bars leave no room


def draw_exactness(run: Run, errors: Mapping[str, Tensor]) -> None:
    """Distance to the joint solution after every batch."""
    with run.figure("exactness") as (_, axes):
        for name, values in errors.items():
            axes.semilogy(np.arange(1, len(values) + 1), values.numpy(), "o-", label=name)
        axes.set(xlabel="batches", ylabel="relative error of the weights", title="Distance to the joint solution")
        axes.legend(loc="center right", bbox_to_anchor=(1.0, 0.58))
