"""The figure of both random-feature experiments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from offprints.shared.experiment import Run


def draw_traces(
    run: Run, panels: Mapping[str, dict[str, Any]], ridges: tuple[float, ...], shown: tuple[int, ...]
) -> None:
    """Test error against the number of features, at a few ridges and at the best: points measured, lines theory."""
    with run.figure("features", ncols=len(panels), figsize=(4.9 * len(panels), 3.8), squeeze=False) as (_, grid):
        for axes, (title, panel) in zip(grid[0], panels.items(), strict=True):
            widths, measured, theory = panel["widths"], panel["measured"], panel["theory"]
            for color, place in enumerate(shown):
                label = f"ridge {ridges[place]:.2g}"
                axes.errorbar(
                    widths, measured.mean(0)[:, place], _standard(measured)[:, place], fmt="o", color=f"C{color}"
                )
                axes.plot(widths, theory[:, place], color=f"C{color}", label=label)
            places = measured.mean(0).argmin(1, keepdim=True)
            best = measured.mean(0).gather(1, places).squeeze(1)
            axes.errorbar(widths, best, _standard(measured).gather(1, places).squeeze(1), fmt="o", color="black")
            axes.plot(widths, theory.min(1).values, color="black", label="best ridge")
            axes.axvline(panel["n"], color="#8C8C8C", linestyle=":", linewidth=1.2)
            axes.set(title=title, xlabel="random features k (dotted: k = n)", ylabel="test error", xscale="log")
            axes.set_xticks(widths, [str(width) for width in widths], rotation=45)
            axes.minorticks_off()
            axes.set_ylim(0, 4 * float(best.max()))
            axes.legend(loc="upper right")


def _standard(errors: Tensor) -> Tensor:
    """Standard error of the mean over the trials."""
    return errors.std(0, correction=0) / len(errors) ** 0.5
