"""Figures of the experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.patches import Patch
from torch import Tensor

from offprints.betti_matching.matching import compute_matching
from offprints.betti_matching.plots import plot_matching
from offprints.betti_matching.reproduce.data import Samples
from offprints.betti_matching.reproduce.indistinguishable import Pair
from offprints.shared.experiment import Run
from offprints.shared.show.colors import BLUE, GRAY, ORANGE, SKY

LOSSES = {
    "dice": "Dice",
    "cldice": "Dice + clDice",
    "wasserstein": "Dice + Wasserstein",
    "betti_matching": "Dice + Betti matching",
}
SCORES = {
    "dice": "Dice",
    "cldice": "clDice",
    "accuracy": "accuracy",
    "betti_number_error": "Betti number error",
    "betti_matching_error_0": "Betti matching error 0",
    "betti_matching_error_1": "and 1",
    "betti_matching_error": "total",
}
COLORS = {"dice": GRAY, "cldice": SKY, "wasserstein": ORANGE, "betti_matching": BLUE}
ADDED, MISSING = (0.34, 0.71, 0.91), (0.84, 0.37, 0.0)


def draw_pair(run: Run, picture: np.ndarray, pair: Pair, judged: Mapping[str, Tensor]) -> None:
    """A picture, its mask, and a right and a wrong prediction with what each score says of them."""
    height, width = pair.mask.shape
    with run.figure("introduction", 2, 2, figsize=(9.0, 9.0 * height / width + 1.5)) as (figure, axes):
        for axis in axes.flat:
            axis.set_axis_off()
        axes[0, 0].imshow(picture)
        axes[0, 0].set_title("Retina")
        axes[0, 1].imshow(_colored(pair.mask, pair.mask))
        axes[0, 1].set_title("Its vessels")
        for i, (axis, kind) in enumerate(zip(axes[1], ("right", "wrong"), strict=True)):
            axis.imshow(_colored(getattr(pair, kind), pair.mask))
            axis.set_title(
                f"{kind.capitalize()} features: Betti matching error {judged['betti_matching_error'][i]:.0f}\n"
                f"Dice {judged['dice'][i]:.4f}, Betti number error {judged['betti_number_error'][i]:.0f}"
            )
        figure.legend(handles=_changes(), loc="outside lower center", ncols=2)


def _colored(prediction: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """White on black, and in color what the prediction adds and what it lacks."""
    picture = np.zeros((*mask.shape, 3))
    picture[prediction & mask] = 1.0
    picture[prediction & ~mask] = ADDED
    picture[~prediction & mask] = MISSING
    return picture


def _changes() -> list[Patch]:
    return [Patch(color=color, label=label) for color, label in ((ADDED, "added"), (MISSING, "missing"))]


def draw_ring(run: Run, picture: Tensor, repaired: Tensor, errors: Sequence[float]) -> None:
    """The broken ring, the mended one, and the error on the way."""
    with run.figure("ring", 1, 3, figsize=(11.0, 3.2)) as (_, axes):
        for axis, image, title in (
            (axes[0], picture, f"Broken: error {errors[0]:.0f}"),
            (axes[1], repaired, f"After {len(errors) - 1} steps: error {errors[-1]:.0f}"),
        ):
            axis.imshow(image[0, 0].numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set_title(title)
            axis.set_axis_off()
        axes[2].plot(errors)
        axes[2].set(xlabel="step", title="Betti matching error", ylim=(-0.1, max(errors) + 0.2))


def draw_curves(
    run: Run, histories: Sequence[Mapping[str, Sequence[Mapping[str, float]]]], losses: Sequence[str]
) -> None:
    """Held-out Betti matching error and Dice score during training: the mean, and faintly every network."""
    with run.figure("training", 1, 2, figsize=(9.0, 4.0)) as (figure, axes):
        for axis, name, title in (
            (axes[0], "betti_matching_error", "Betti matching error"),
            (axes[1], "dice", "Dice score"),
        ):
            for loss in losses:
                steps = [entry["step"] for entry in histories[0][loss]]
                values = np.array([[entry[name] for entry in history[loss]] for history in histories])
                axis.plot(steps, values.T, color=COLORS[loss], alpha=0.3, linewidth=0.8)
                axis.plot(steps, values.mean(0), color=COLORS[loss], marker="o", label=LOSSES[loss])
            axis.set(xlabel="training step", title=title)
        axes[0].set_ylim(bottom=0)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(losses))


def draw_errors(run: Run, name: str, what: str, scores: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Both errors of every loss, the networks as dots; the Betti matching error by dimension."""
    with run.figure(f"{name}_errors", figsize=(7.0, 4.2)) as (figure, axis):
        width = 0.8 / len(scores)
        for i, (loss, values) in enumerate(scores.items()):
            for j, key in enumerate(("betti_number_error", "betti_matching_error")):
                place = j + (i - (len(scores) - 1) / 2) * width
                label = LOSSES[loss] if j == 0 else None
                if key == "betti_number_error":
                    axis.bar(place, values[key].mean(), 0.9 * width, color=COLORS[loss], label=label)
                else:
                    parts = [values[f"{key}_{k}"].mean() for k in (0, 1)]
                    axis.bar(place, parts[0], 0.9 * width, color=COLORS[loss])
                    axis.bar(place, parts[1], 0.9 * width, parts[0], color=COLORS[loss], alpha=0.55)
                dots = values[key]
                if len(dots) > 1:
                    spread = np.linspace(-0.25, 0.25, len(dots)) * width
                    axis.plot(place + spread, dots, "o", color="#262626", markersize=3)
        axis.set_xticks([0, 1], ["Betti number error", "Betti matching error\n(below: components, above: loops)"])
        axis.grid(axis="x", visible=False)
        axis.set_title(f"Errors per image on {what}")
        figure.legend(loc="outside lower center", ncols=len(scores))


def draw_matching(run: Run, example: Mapping[str, Tensor], losses: Sequence[str]) -> None:
    """Matched and unmatched features of one held-out digit, for the predictions of two networks."""
    target = (example["mask"] >= 0.5).numpy().astype(np.uint8)
    with run.figure("matching", 2, 5, figsize=(13.0, 6.2)) as (_, axes):
        for axis, image, title in ((axes[0, 0], example["image"], "Input"), (axes[1, 0], example["mask"], "Truth")):
            axis.imshow(image.numpy(), cmap="gray")
            axis.set_title(title)
            axis.set_axis_off()
        for loss, columns in zip(losses, (axes[:, 1:3], axes[:, 3:5]), strict=True):
            prediction = (example[loss] >= 0.5).numpy().astype(np.uint8)
            matching = compute_matching(prediction, target)
            plot_matching(prediction, target, matching, axes=columns)
            alone = matching.num_unmatched_pred, matching.num_unmatched_target
            for k, row in enumerate(columns):
                for axis, name, unmatched in zip(row, (LOSSES[loss], "Truth"), alone, strict=True):
                    axis.set_title(
                        f"{name}\ndimension {k}: {matching.num_matched[k]} matched, {unmatched[k]} not", fontsize=10
                    )


def draw_segmentations(
    run: Run, name: str, held_out: Samples, predictions: Mapping[str, Tensor], *, side: int = 256
) -> None:
    """A part of the first held-out image, its mask, and the binarized prediction of every network."""
    image, mask = held_out.images[0][:, :side, :side], held_out.masks[0][0, :side, :side].bool().numpy()
    panels: list[tuple[str, np.ndarray]] = [("Image", image.permute(1, 2, 0).squeeze(2).numpy())]
    panels.append(("Truth", _colored(mask, mask)))
    for loss, prediction in predictions.items():
        panels.append((LOSSES[loss], _colored((prediction[0, :side, :side] >= 0.5).numpy(), mask)))
    with run.figure(f"{name}_example", 1, len(panels), figsize=(3.6 * len(panels), 4.3)) as (figure, axes):
        for axis, (title, picture) in zip(axes, panels, strict=True):
            axis.imshow(picture, cmap="gray")
            axis.set_title(title)
            axis.set_axis_off()
        figure.legend(handles=_changes(), loc="outside lower center", ncols=2)
