"""The pictures of the experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from offprints.pndm.plans import Method, num_model_calls
from offprints.shared.experiment import Run

COLORS: dict[str, str] = {"ddim": "C6", "s-pndm": "C4", "f-pndm": "C0", "plms": "C2", "fon": "C1", "f-pndm-sigma": "C3"}
NAMES: dict[str, str] = {
    "ddim": "DDIM",
    "s-pndm": "S-PNDM",
    "f-pndm": "F-PNDM",
    "plms": "PLMS",
    "fon": "FON (classical)",
    "f-pndm-sigma": "F-PNDM, sigma weights (ours)",
}


def draw_errors(run: Run, errors: Mapping[str, Mapping[Method, Sequence[float]]], steps: Sequence[int]) -> None:
    """Error against model evaluations: the methods on the continuous schedule; the classical one on a table."""
    with run.figure("errors", ncols=2, figsize=(10, 4.2), sharey=True) as (_, (left, right)):
        for axes, part in ((left, "continuous"), (right, "table")):
            for method, values in errors[part].items():
                calls = [num_model_calls(n, method) for n in steps]
                style = "--" if method == "plms" else "-"
                axes.loglog(calls, values, style, color=COLORS[method], marker="o", label=NAMES[method])
            axes.set_xticks(steps, [str(n) for n in steps])
            axes.minorticks_off()
            axes.set(xlabel="model evaluations")
            axes.legend()
        left.set(title="Exact scores, continuous schedule", ylabel="RMS error of the samples")
        right.set(title="The same on a table of 1000 steps")


def draw_distances(
    run: Run, distances: Mapping[str, Mapping[int, float]], name: str = "digits_error", data: str = "Digits"
) -> None:
    """Distance to the reference's samples against evaluations, trained network."""
    with run.figure(name) as (_, axes):
        for method, values in distances.items():
            style = "--" if method == "plms" else "-"
            axes.loglog(
                list(values), list(values.values()), style, color=COLORS[method], marker="o", label=NAMES[method]
            )
        ticks = list(next(iter(distances.values())))
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set(
            title=f"{data}: distance to DDIM with 1000 steps",
            xlabel="model evaluations",
            ylabel="mean squared difference of pixels",
        )
        axes.legend()


def draw_digits(run: Run, drawn: Mapping[str, Tensor], evaluations: int) -> None:
    """The same noise through every method with few evaluations, the reference on top."""
    rows = {"DDIM, 1000 steps": drawn["reference"]} | {
        NAMES[method]: drawn[f"{method} {evaluations}"] for method in ("ddim", "s-pndm", "f-pndm", "plms", "fon")
    }
    draw_rows(run, "digits", {name: images.view(-1, 8, 8) for name, images in rows.items()}, evaluations)


def draw_rows(run: Run, name: str, rows: Mapping[str, Tensor], evaluations: int, columns: int = 14) -> None:
    """Gray images ``[B, ..., H, W]`` in [-1, 1], a row for each name."""
    with run.figure(name, nrows=len(rows), figsize=(columns * 0.62 + 1.6, len(rows) * 0.68 + 0.4)) as (figure, axes):
        for axis, (label, images) in zip(axes, rows.items(), strict=True):
            shown = images[:columns].reshape(-1, *images.shape[-2:]).clamp(-1, 1).numpy()
            tiles = np.pad(shown, ((0, 0), (0, 0), (0, 1)), constant_values=1)
            axis.imshow(-np.concatenate(list(tiles), 1)[:, :-1], cmap="gray", vmin=-1, vmax=1)
            axis.set_ylabel(label, rotation=0, ha="right", va="center")
            axis.set(xticks=[], yticks=[])
            axis.grid(visible=False)
            for spine in axis.spines.values():
                spine.set_visible(False)
        figure.suptitle(f"{evaluations} evaluations of the network, the same noise")


def draw_manifold(run: Run, paths: Mapping[str, Any], steps: Sequence[int]) -> None:
    """Norm of the sample and norm of its derivative along the way: where the network was trained, and the methods."""
    band = paths["reference"]
    with run.figure("manifold", ncols=2, figsize=(10, 4.2), sharex=True, sharey=True) as (_, both):
        for axes, n in zip(both, steps, strict=True):
            middle, low, high = (np.asarray(band[key]) for key in ("norm", "slope_low", "slope_high"))
            axes.fill_between(middle, low, high, color="#BBBBBB", label="DDIM, 1000 steps (middle 90 %)")
            for method in ("fon", "s-pndm", "f-pndm"):
                path = paths[f"{method} {n}"]
                axes.plot(path["norm"], path["slope"], marker="o", color=COLORS[method], label=NAMES[method])
            axes.set(title=f"{n} steps", xlabel="norm of the sample", yscale="log")
        both[0].invert_xaxis()  # shared: time runs from left to right
        both[0].set_ylabel("norm of its change per training step")
        both[1].legend(loc="lower right")
