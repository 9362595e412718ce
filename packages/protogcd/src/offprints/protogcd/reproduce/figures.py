"""Figures of the experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from offprints.protogcd import ood_score
from offprints.protogcd.outliers import Kind
from offprints.shared.experiment import Run
from offprints.shared.show.colors import BLUE, GRAY, GREEN, INK, MUTED, ORANGE, VERMILION

Units = Mapping[str, Sequence[Mapping[str, Any]]]


def draw_accuracies(run: Run, name: str, units: Units) -> None:
    """Accuracies of all, old and new samples, a group a method, a dot a split."""
    scores = {"all": BLUE, "old": ORANGE, "new": GREEN}
    with run.figure(name, figsize=(1.0 * len(units) + 1.5, 4.0)) as (_, axis):
        for place, (score, color) in enumerate(scores.items()):
            at = np.arange(len(units)) + 0.26 * (place - 1)
            axis.bar(at, [np.mean([u[score] for u in of]) for of in units.values()], 0.24, color=color, label=score)
            for x, of in zip(at, units.values(), strict=True):
                axis.plot([x] * len(of), [u[score] for u in of], "o", color=INK, markersize=2.5)
        axis.set_xticks(range(len(units)), [method.replace(" ", "\n") for method in units], fontsize=8)
        axis.set(ylabel="accuracy, unlabeled samples", ylim=(0, 1.02))
        axis.grid(axis="x", visible=False)
        axis.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))  # above: bars fill the axes


def draw_ramp(run: Run, units: Units) -> None:
    """The share of hard labels, and how right the predictions are that labels are made of."""
    with run.figure("ramp") as (_, axis):
        for (name, of_name), color in zip(units.items(), (BLUE, VERMILION), strict=True):
            curves = np.stack([np.asarray(unit["curve"]) for unit in of_name])
            epochs = np.arange(1, curves.shape[1] + 1)
            for curve in curves:
                axis.plot(epochs, curve[:, 1], color=color, alpha=0.25, linewidth=1)
            axis.plot(epochs, curves[..., 1].mean(0), color=color, label=f"accuracy, {name}")
            axis.plot(epochs, curves[0, :, 0], color=color, linestyle=":", label=f"share of hard labels, {name}")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set(xlabel="epoch", ylabel="share of samples", ylim=(-0.02, 1.04), title="Labels turn hard step by step")
        axis.legend(loc="lower right")


def draw_similarity(run: Run, similarity: Tensor, old: int) -> None:
    """Cosines of the prototypes."""
    with run.figure("prototypes", figsize=(4.8, 4.2)) as (figure, axis):
        shown = axis.imshow(similarity.cpu().numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
        axis.axhline(old - 0.5, color=INK, linewidth=1)
        axis.axvline(old - 0.5, color=INK, linewidth=1)
        axis.grid(visible=False)
        axis.set(title="Cosines of the prototypes", xlabel=f"class; the first {old} are old", ylabel="class")
        figure.colorbar(shown, ax=axis)


def draw_count(run: Run, curves: Sequence[Mapping[str, Any]], true: int) -> None:
    """The criterion of the class count, a curve a split."""
    with run.figure("count") as (_, axis):
        for number, curve in enumerate(curves):
            label = "criterion, one split" if number == 0 else None
            axis.plot(curve["candidates"], curve["scores"], "o-", color=BLUE, alpha=0.5, label=label)
            best = curve["candidates"].index(curve["n_classes"])
            axis.plot(curve["n_classes"], curve["scores"][best], "o", color=VERMILION, markersize=7, zorder=3)
        axis.axvline(true, color=MUTED, linestyle="--", linewidth=1)
        axis.annotate("classes there are", (true, axis.get_ylim()[0]), (4, 4), textcoords="offset points", color=GRAY)
        axis.set(title="How many classes", xlabel="candidate", ylabel="prototype silhouette")
        axis.legend(loc="lower right")


def draw_roc(run: Run, units: Sequence[Mapping[str, Any]]) -> None:
    """Outliers found against samples taken for outliers."""
    with run.figure("outliers", figsize=(4.8, 4.2)) as (_, axis):
        kinds: tuple[tuple[Kind, str], ...] = (("msp", BLUE), ("mls", ORANGE), ("energy", VERMILION))
        for kind, color in kinds:
            for number, unit in enumerate(units):
                inside, outside = (
                    np.sort(ood_score(unit[key].cpu(), kind=kind).numpy()) for key in ("logits", "outliers")
                )
                at = np.unique(np.concatenate([inside, outside]))
                false, found = (1 - np.searchsorted(of, at) / len(of) for of in (inside, outside))
                axis.plot(false, found, color=color, alpha=0.7, linewidth=1.2, label=None if number else kind)
        axis.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8)
        axis.set(title="Shuffled pixels as outliers", xlabel="digits taken for outliers", ylabel="outliers found")
        axis.legend(loc="lower right")
