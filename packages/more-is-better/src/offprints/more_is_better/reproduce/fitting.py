"""Overfitting is obligatory: kernel regression on images, test error against the fitting ratio."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offprints.more_is_better import (
    critical_noise,
    estimate_exponents,
    myrtle_kernel,
    optimal_fitting_ratio,
    powerlaw_test_mse,
    relu_ntk,
    ridge_path,
)
from offprints.more_is_better.reproduce.data import Task, add_noise, load, one_hot, shrunk
from offprints.shared.device import make_generator
from offprints.shared.experiment import Run

REGULARIZED = 0.2  # a fitting ratio of at least this much is regularization
INTERPOLATES = 0.01  # an optimal fitting ratio of at most this much is interpolation


@dataclass(frozen=True, kw_only=True)
class FittingSettings:
    """Kernel regression at all ridges.

    Attributes:
        tasks: Data sets.
        kernels: "ntk" (fully connected, depth 1), "ntk4" (depth 4), "myrtle5", "myrtle7", "myrtle10".
        points: Images that the kernel matrix is of; 0 for all.
        samples: Training images of a trial; the rest are for the test.
        trials: Random splits.
        noises: Variances of the added noise in units of the ridgeless test error without noise, ascending.
        ridges: Number of ridges.
        exponent_trials: Random splits of the measurement of the exponents.
        fit_from: Least training size of the fits of the exponents.
        side: Side that images are averaged down to for the convolutional kernels; 0 for their own.
        renormalize_labels: Scale noisy labels to unit length, as the official code does.
    """

    tasks: tuple[Task, ...] = ("digits",)
    kernels: tuple[str, ...] = ("ntk",)
    points: int = 0
    samples: int = 900
    trials: int = 2
    noises: tuple[float, ...] = (0.0, 1.0, 5.0)
    ridges: int = 40
    exponent_trials: int = 4
    fit_from: int = 100
    side: int = 0
    renormalize_labels: bool = False


def gram(kernel: str, images: Tensor, side: int) -> Tensor:
    """The kernel matrix ``[N, N]``, float64."""
    if kernel.startswith("myrtle"):
        return myrtle_kernel(shrunk(images, side).float(), depth=int(kernel.removeprefix("myrtle"))).double()
    return relu_ntk(images.flatten(1), depth=int(kernel.removeprefix("ntk") or 1))


def measure(
    task: Task, kernel: str, settings: FittingSettings, data: Path | None, download: bool, seed: int
) -> dict[str, Any]:
    """Exponents, and train and test errors ``[trials, noises, ridges]`` over one kernel matrix."""
    images, labels = load(task, settings.points, data=data, download=download, seed=seed)
    K, y = gram(kernel, images, settings.side), one_hot(labels)
    generator = make_generator(seed)
    found = estimate_exponents(
        K,
        y,
        trials=settings.exponent_trials,
        fit_from=min(settings.fit_from, len(K) // 4),
        n_test=len(K) - settings.samples,
        generator=generator,
    )
    scale = float(K.diagonal().mean())
    ridges = torch.logspace(-7, 2.5, settings.ridges, dtype=torch.float64) * scale
    curves = torch.empty(settings.trials, len(settings.noises), 2, len(ridges), dtype=torch.float64)
    bases = torch.empty(settings.trials, dtype=torch.float64)
    for trial in range(settings.trials):
        order = torch.randperm(len(K), generator=generator)
        train, test = order[: settings.samples], order[settings.samples :]
        blocks = K[train][:, train], K[test][:, train]
        base = ridge_path(*blocks, y[train], y[test], ridges[:1])[1]
        bases[trial] = base[0]
        for place, noise in enumerate(settings.noises):
            options: dict[str, Any] = {"renormalize": settings.renormalize_labels and noise > 0}
            noisy = add_noise(y[order], noise * float(base), generator, **options)
            of_train, of_test = noisy[: settings.samples], noisy[settings.samples :]
            curves[trial, place] = torch.stack(ridge_path(*blocks, of_train, of_test, ridges))
    return {
        "alpha": found.alpha,
        "beta": found.beta,
        "sizes": found.sizes,
        "kappa": found.kappa,
        "ridgeless": found.test_mse,
        "curves": curves,
        "bases": bases,
    }


def obligatory(settings: FittingSettings, data: Path | None, download: bool, run: Run) -> None:
    """With little noise near-interpolation is optimal; with much it is not; exponents say so beforehand."""
    seed = run.seeds(1)[0]
    cases = [(task, kernel) for task in settings.tasks for kernel in settings.kernels]
    work = {f"fit {t} {k}": partial(measure, t, k, settings, data, download, seed) for t, k in cases}
    units = run.units(work)
    panels = {}
    for task, kernel in cases:
        unit = units[f"fit {task} {kernel}"]
        panels[f"{task}, {kernel}"] = record(run, settings, task, kernel, unit)
    draw_fitting(run, settings, panels)


def record(run: Run, settings: FittingSettings, task: str, kernel: str, unit: dict[str, Any]) -> dict[str, Any]:
    """Claims and values of one task and kernel; what the figure shows of it."""
    train, test = unit["curves"].mean(0).unbind(1)
    ratios = train / test
    best = [float(r[t.argmin()]) for r, t in zip(ratios, test, strict=True)]
    regularized = [float(t[r >= REGULARIZED].min() / t.min() - 1) for r, t in zip(ratios, test, strict=True)]
    alpha, beta = unit["alpha"], unit["beta"]
    theory_fits = alpha > 1 and 1 < beta < 2 * alpha + 1
    name, few, many = f"{task}, {kernel}, n = {settings.samples}", settings.noises[0], settings.noises[-1]
    slug = f"{task}-{kernel}".replace("_", "-")
    with_noise = f"label noise, {many:g} times the ridgeless error"
    clean = "as they are" if few == 0 else f"with noise {few:g}"
    run.claim(
        f"interpolate-{slug}",
        f"{name}, labels {clean}: train error over test error at the measured best ridge",
        best[0],
        "<=",
        INTERPOLATES,
        paper_value="0 where beta > alpha, small elsewhere",
        control=best[-1],
        control_name=with_noise,
    )
    run.claim(
        f"obligatory-{slug}",
        f"{name}: what a train error of at least a fifth of the test error costs in test error, relatively",
        regularized[0],
        ">=",
        0.05,
        paper_value="overfitting is obligatory",
        control=regularized[-1],
        control_name=with_noise,
    )
    run.report_value(f"alpha-{slug}", f"{name}: exponent alpha of the eigenvalues", alpha)
    run.report_value(f"beta-{slug}", f"{name}: exponent beta of the target", beta)
    told = f"{critical_noise(alpha, beta):.3g}" if theory_fits else "no power law"
    run.report_value(f"critical-{slug}", f"{name}: noise up to which theory says interpolate", told)
    rows = []
    for noise, measured, cost in zip(settings.noises, best, regularized, strict=True):
        ratio = optimal_fitting_ratio(alpha, beta, noise_rel=noise) if theory_fits else math.nan
        rows.append({
            "noise": noise,
            "best fitting ratio, theory": ratio if theory_fits else None,
            "measured": measured,
            "cost of fitting ratio >= 0.2": cost,
        })  # fmt: skip
    run.table(f"{name}: the best fitting ratio", rows)
    return {"ratios": ratios, "test": test, "alpha": alpha, "beta": beta, "fits": theory_fits, **unit}


def draw_fitting(run: Run, settings: FittingSettings, panels: dict[str, dict[str, Any]]) -> None:
    """Test error against the fitting ratio, measured and by the closed form; the curves behind the exponents."""
    rows = len(panels)
    with run.figure("fitting", nrows=rows, ncols=2, figsize=(9.4, 3.8 * rows), squeeze=False) as (_, grid):
        fine = torch.linspace(0, 0.98, 200, dtype=torch.float64)
        for (title, panel), (left, right) in zip(panels.items(), grid, strict=True):
            base = float(panel["bases"].mean())
            for place, noise in enumerate(settings.noises):
                color = f"C{place}"
                shown = panel["ratios"][place] < 0.98
                values = panel["test"][place] / base
                left.plot(
                    panel["ratios"][place][shown], values[shown], "o", color=color, label=f"noise {noise:g}, measured"
                )
                if panel["fits"]:
                    theory = powerlaw_test_mse(fine, panel["alpha"], panel["beta"], noise_rel=noise)
                    clean = powerlaw_test_mse(0.0, panel["alpha"], panel["beta"])
                    left.plot(fine, theory / clean, color=color, linewidth=1.2)
                least = int(values.argmin())
                left.plot(panel["ratios"][place][least], values[least], "*", color=color, markersize=13)
            left.set(
                title=title,
                xlabel="fitting ratio: train error / test error",
                ylabel="test error / ridgeless error",
                yscale="log",
            )
            left.set_ylim(top=30 * (1 + max(settings.noises)))
            left.legend(loc="upper left")
            sizes = panel["sizes"]
            right.plot(
                sizes, panel["kappa"] / panel["kappa"][0], "o-", label=rf"$\kappa$, $\alpha$ = {panel['alpha']:.2f}"
            )
            right.plot(
                sizes,
                panel["ridgeless"] / panel["ridgeless"][0],
                "s-",
                label=rf"ridgeless test error, $\beta$ = {panel['beta']:.2f}",
            )
            right.set(
                title="The exponents' proxies",
                xlabel="training samples n",
                ylabel="relative",
                xscale="log",
                yscale="log",
            )
            right.legend(loc="lower left")
