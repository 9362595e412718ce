"""The figures of the experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from offprints.lct.losses import ROBUST
from offprints.lct.reproduce.metrics import collapse
from offprints.lct.schedules import adaptive_c, discretization_curriculum, karras_sigmas
from offprints.shared.experiment import Run

LABELS = {
    "squared": "squared",
    "pseudo_huber": "Pseudo-Huber",
    "cauchy": "Cauchy",
    "geman_mcclure": "Geman-McClure",
}


def losses(run: Run, found: Mapping[str, float], *, c: float = 0.1) -> None:
    """The robust losses, their derivatives, and the locations that they find (figure 2 of the paper)."""
    r = torch.linspace(-1, 1, 401, dtype=torch.float64)
    with run.figure("losses", ncols=3, figsize=(12.6, 3.6)) as (_, (left, middle, right)):
        for name, robust in ROBUST.items():
            left.plot(r, robust.rho(r.square(), c), label=LABELS[name])
            middle.plot(r, 2 * r * robust.pull(r, r.square(), c))
        left.set(title=f"Losses, c = {c}", xlabel="residual r", ylabel="loss")
        left.legend()
        for ax in (left, middle):
            ax.set_xticks([-1, -0.5, 0, 0.5, 1])
        middle.set(title="Derivatives", xlabel="residual r", ylabel="d loss / d r")
        names = ["squared", *ROBUST]
        for place, name in enumerate(names):
            right.plot(abs(found[name]), place, "o", markersize=8, color=f"C{(place - 1) % 4}")
        right.set(
            title="Location, a fifth of the values at 300", xlabel="distance from the inliers' center", xscale="log"
        )
        right.set_yticks(range(len(names)), [LABELS[name] for name in names])
        right.set_ylim(-0.5, len(names) - 0.5)


def impulses(run: Run, data: Mapping[str, Tensor], statistics: Mapping[str, Mapping[str, Any]]) -> None:
    """Histograms with the fences of the box plot (figure 1 of the paper)."""
    with run.figure("impulses", ncols=len(data), figsize=(4.3 * len(data), 3.6), sharey=True) as (_, axes):
        for ax, (name, values) in zip(axes, data.items(), strict=True):
            low, high = statistics[name]["outer"]
            limit = float(max(values.abs().max(), abs(low), abs(high))) * 1.05
            ax.hist(values.flatten().numpy(), bins=80, range=(-limit, limit), log=True, color="C0")
            for k, (style, fences) in enumerate((("--", "inner"), (":", "outer"))):
                for fence in statistics[name][fences]:
                    label = f"{fences} fences" if fence == statistics[name][fences][0] else None
                    ax.axvline(fence, color="C1", linestyle=style, linewidth=1.4, label=label, zorder=3 + k)
            share = statistics[name]["outer_fraction"]
            ax.set(title=f"{name}\n{share:.2%} beyond the outer fences", xlabel="value")
        axes[0].set_ylabel("entries")
        axes[0].legend(loc="upper center")


def coupling(run: Run, found: Mapping[str, Any]) -> None:
    """Pairs of data and noise in the plane, and the noise of the gradient."""
    x, sigmas = found["x"], karras_sigmas(11)
    with run.figure("coupling", ncols=3, figsize=(12.6, 4.0)) as (_, axes):
        for ax, key, title in ((axes[0], "noise", "Independent"), (axes[1], "paired", "Optimal transport")):
            z = found[key]
            ax.plot(*torch.stack([x, z], 0).unbind(-1), color="#8C8C8C", linewidth=0.5, alpha=0.7)
            ax.plot(*z.T, "o", color="C0", markersize=3.5, label="noise")
            ax.plot(*x.T, "o", color="C1", markersize=3.5, label="data")
            cost = float((x - z).square().sum(1).mean())
            ax.set(title=f"{title}: mean squared distance {cost:.2f}", aspect="equal")
            ax.set(xlim=(-3.2, 3.2), ylim=(-3.2, 3.2))
        axes[0].legend(loc="upper left")
        for key, label in (("none", "independent"), ("ot", "optimal transport")):
            axes[2].plot(sigmas[1:], found[f"ratios_{key}"], "o-", label=label)
        axes[2].set(xscale="log", yscale="log", title="Noise of the gradient", xlabel="noise level")
        axes[2].set_ylabel("variance / squared mean")
        axes[2].legend()


def schedules(run: Run) -> None:
    """The doubling grid and the robustness constant over training, at the paper's size."""
    total = 7000
    scales = [discretization_curriculum(k, total) for k in range(total)]
    progress = [k / total for k in range(total)]
    with run.figure("schedules", ncols=2, figsize=(9, 3.5)) as (_, (left, right)):
        left.plot(progress, scales)
        left.set(title="Noise levels N", xlabel="share of training", yscale="log")
        left.set_yticks(sorted(set(scales)), [str(n) for n in sorted(set(scales))], minor=False)
        left.minorticks_off()
        for dim, style in ((4096, "-"), (64, "--")):
            c = [adaptive_c(n, dim=dim) for n in scales]
            right.plot(progress, c, style, label=f"adaptive c, d = {dim}")
        right.set(title="Robustness constant c", xlabel="share of training", yscale="log")
        right.legend()


def images(ax: Any, samples: Tensor, title: str, *, columns: int = 8) -> None:
    """A sheet of digits ``[n, 64]``."""
    rows = len(samples) // columns
    pictures = F.pad(samples[: rows * columns].reshape(-1, 8, 8), (1, 1, 1, 1), value=-0.7)  # paper around each
    sheet = pictures.reshape(rows, columns, 10, 10).transpose(1, 2).reshape(rows * 10, columns * 10)
    ax.imshow(sheet, cmap="gray_r", vmin=-0.7, vmax=0.7)
    ax.set_title(title)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(False)


def contaminated(run: Run, clean: Tensor, dirty: Tensor, results: Mapping[str, Mapping[str, Any]]) -> None:
    """What was trained on and what one step makes of noise."""
    sheets = [("Clean digits", clean[:32]), ("Training set, with impulses", dirty[:32])]
    sheets += [(f"{name}, Fréchet {r['frechet_one']:.1f}", r["samples_one"][:32]) for name, r in results.items()]
    with run.figure("contaminated", ncols=len(sheets), figsize=(3.2 * len(sheets), 2.1)) as (_, axes):
        for ax, (title, samples) in zip(axes, sheets, strict=True):
            images(ax, samples, title)


def scores(run: Run, name: str, title: str, results: Mapping[str, Mapping[str, Any]], clean: Tensor) -> None:
    """Distances of one- and two-step samples from the clean set as bars, beside the level of collapse."""
    labels = list(results)
    places = torch.arange(len(labels)).double()
    with run.figure(name, ncols=2, sharey=True, figsize=(10, 0.55 * len(labels) + 1.5)) as (figure, axes):
        figure.suptitle(title, x=0.01, ha="left")
        for ax, kind, level in zip(axes, ("energy", "frechet"), collapse(clean), strict=True):
            ax.axvline(level, color="#595959", linestyle=":", linewidth=1.2, label="collapse to the mean")
            for offset, steps, label in ((-0.19, "one", "one step"), (0.19, "two", "two steps")):
                values = [results[row][f"{kind}_{steps}"] for row in labels]
                ax.barh(places + offset, values, 0.36, label=label)
                for place, value in zip(places, values, strict=True):
                    ax.text(value, float(place) + offset, f" {value:.2f}", va="center", fontsize=8)
            ax.set_xlabel(f"{'Fréchet' if kind == 'frechet' else kind} distance from the clean set")
            ax.grid(visible=False, axis="y")
        axes[0].set_yticks(places, labels)
        axes[0].invert_yaxis()
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper right", ncols=3)


def grids(run: Run, sheets: Sequence[tuple[str, Tensor]]) -> None:
    """Decoded samples ``[n, 3, h, w]`` in [0, 1]."""
    with run.figure("samples", ncols=len(sheets), figsize=(5 * len(sheets), 5.4)) as (_, axes):
        for ax, (title, pictures) in zip(axes, sheets, strict=True):
            side = int(len(pictures) ** 0.5)
            rows = [torch.cat(list(pictures[i * side : (i + 1) * side]), -1) for i in range(side)]
            ax.imshow(torch.cat(rows, -2).permute(1, 2, 0).numpy())
            ax.set_title(title)
            ax.set_axis_off()
