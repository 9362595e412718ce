"""The experiment: the worst case of Table 1, digits in place of the paper's images, and these with medium and paper."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from offprints.lr_perceptron import iteration_bound, separate, sweep, worst_case_dataset
from offprints.lr_perceptron.reproduce.digits import curves_unit, imbalanced_unit, limit_unit, pair_unit
from offprints.lr_perceptron.reproduce.figures import draw_counts, draw_curves, draw_limit
from offprints.lr_perceptron.reproduce.images import ImageSettings, reproduce_images
from offprints.lr_perceptron.rules import METHODS
from offprints.shared.experiment import Experiment, Run

# Table 1, worst case with n = 1000: method, step size, updates printed.
WORST_CASE = (
    ("normalized_lr_gd", 100.0, 2),
    ("normalized_lr_gd", 10.0, 2),
    ("normalized_lr_gd", 1.0, 16),
    ("normalized_lr_gd", 0.1, 157),
    ("lr_gd", 100.0, 308),
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the experiment.

    Attributes:
        worst_case: Samples of the worst case.
        pairs: Pairs of digits, balanced; a stratified 80 % of them, drawn by the seed.
        step_sizes: Step sizes of the gradient methods on digits.
        control: A step size next to the smallest one.
        loud: The step size at which the loss is looked at.
        max_iter: Most updates on digits.
        few_digits: Digits that stand, with few samples, against all others.
        few_counts: How many samples.
        draws: Draws of them for each digit and count.
        images: The paper's image sets. With any, they are all that is run.
        data: Folder of the image sets; default: ``OFFPRINTS_DATA``.
        download: Fetch the image sets where they are missing.
    """

    worst_case: int = 1000
    pairs: tuple[tuple[int, int], ...] = ((0, 1), (3, 8), (1, 8), (5, 9), (4, 9), (3, 5))
    step_sizes: tuple[float, ...] = (0.1, 1.0, 10.0, 100.0)
    control: float = 0.2
    loud: float = 10.0
    max_iter: int = 10_000
    few_digits: tuple[int, ...] = (0, 3, 4, 8, 9)
    few_counts: tuple[int, ...] = (10, 20)
    draws: int = 3
    images: ImageSettings = field(default_factory=ImageSettings)
    data: Path | None = None
    download: bool = False


def reproduce(config: Config, run: Run) -> None:
    """Record the claims."""
    if config.images.sources:
        reproduce_images(config.images, config.data, config.download, run)
        return
    worst_case(config, run)
    limit(run)
    digits(config, run)


def worst_case(config: Config, run: Run) -> None:
    """Table 1's last row, which holds for every seed: there is nothing random in it."""
    n = config.worst_case
    X, y = worst_case_dataset(n)
    rows = []
    for method, step_size, printed in WORST_CASE:
        count = int(sweep(X, y, [step_size], method=method).n_iter)
        rows.append({"method": method, "step size": step_size, "updates": count, "printed for n = 1000": printed})
        if n == 1000:
            words = f"Table 1, worst case: updates of {method} with step size {step_size:g}"
            run.check(f"worst-{method}-{step_size:g}", words, count, "==", printed, paper_value=printed)
    count = separate(X, y, method="batch_perceptron").n_iter
    words = f"worst case, n = {n}: updates of Batch Perceptron, floor(0.3 n + 0.2) + 1"
    run.check("worst-batch", words, count, "==", (3 * n + 2) // 10 + 1, paper_value="Omega(n)")
    rows.append({"method": "batch_perceptron", "updates": count})
    run.table("Table 1, worst case", rows)


def limit(run: Run) -> None:
    """Theorem 3.2."""
    errors = [limit_unit(1e6, seed)["error"] for seed in run.seeds(3)]
    words = (
        "Theorem 3.2: largest relative distance of LR+GD / step size, at 1e6, from Batch Perceptron, Gaussian samples"
    )
    run.check("limit", words, max(errors), "<=", 1e-3, paper_value="0 in the limit")


def geometric_mean(values: Iterable[float]) -> float:
    """The mean on a logarithmic scale."""
    return float(np.exp(np.mean(np.log(list(values)))))


def digits(config: Config, run: Run) -> None:
    """Step sizes, losses, and normalization on scans of digits."""
    options = (config.step_sizes, config.control, config.loud, config.max_iter, run.seed)
    units: dict[str, Any] = {f"digits {a}v{b}": partial(pair_unit, (a, b), *options) for a, b in config.pairs}
    few: dict[str, Any] = {
        f"few {digit} x {count}, {draw}": partial(imbalanced_unit, digit, count, config.max_iter, seed)
        for digit in config.few_digits
        for count in config.few_counts
        for draw, seed in enumerate(run.seeds(config.draws))
    }
    shown = config.pairs[-1]
    curves = {"curves": partial(curves_unit, shown, config.step_sizes, config.max_iter, run.seed)}
    found = run.units({**curves, **units, **few}, workers=1)  # seconds: less than a second process takes to begin
    pairs, draws = [found[key] for key in units], [found[key] for key in few]

    def spent(unit: dict[str, Any], method: str, step_size: float) -> float:
        """Updates, ``max_iter`` where they did not suffice."""
        count = int(unit[method][[*config.step_sizes, config.control].index(step_size)])
        return count if count > 0 else config.max_iter

    small = min(config.step_sizes)

    def gain(method: str, larger: float) -> float:
        return geometric_mean(spent(unit, method, small) / spent(unit, method, larger) for unit in pairs)

    large = max(config.step_sizes)
    run.claim(
        "large-steps",
        f"pairs of digits: updates of LR+GD with step size {small:g} over those with {large:g}, geometric mean",
        gain("lr_gd", large),
        ">=",
        20.0,
        paper_value="larger steps separate sooner",
        control=gain("lr_gd", config.control),
        control_name=f"a small step, {config.control:g} instead of {large:g}",
    )
    run.claim(
        "loss-misleads",
        f"pairs of digits: largest loss on the way with step size {config.loud:g}, geometric mean (log 2 at the start)",
        geometric_mean(unit["loud loss"] for unit in pairs),
        ">=",
        1.5,
        paper_value="the loss grows with the step size",
        control=geometric_mean(unit["quiet loss"] for unit in pairs),
        control_name=f"small steps, {small:g}",
    )
    run.claim(
        "step-size-matters-less",
        f"pairs of digits: updates of Normalized LR+GD with step size {small:g} over those with {large:g}",
        gain("normalized_lr_gd", large),
        "<=",
        10.0,
        paper_value="a bound with 1 / step size in one term only",
        control=gain("lr_gd", large),
        control_name="not normalized",
    )
    plain, normalized = METHODS[2:4]
    run.claim(
        "normalized-imbalanced",
        "few samples of a digit against all others: updates of Batch Perceptron over those of the normalized one,"
        " geometric mean",
        geometric_mean(unit[plain] / unit[normalized] for unit in draws),
        ">=",
        1.5,
        paper_value="R^2 / mu^2 instead of n R^2 / mu^2",
        control=geometric_mean(unit[plain] / unit[normalized] for unit in pairs),
        control_name="balanced pairs",
    )
    for id, words, those in (("few", "few against all", draws), ("pairs", "balanced pairs", pairs)):
        wins = sum(unit[normalized] < unit[plain] for unit in those)
        run.report_value(
            f"wins-{id}",
            f"{words}: how often the normalized batch perceptron needs fewer updates",
            f"{wins} of {len(those)}",
        )
    bounds(pairs, config, run)
    rows = [
        {"digits": key.split()[1]}
        | {f"LR+GD {size:g}": spent(unit, "lr_gd", size) for size in config.step_sizes}
        | {f"normalized {size:g}": spent(unit, "normalized_lr_gd", size) for size in config.step_sizes}
        | {method: unit[method] for method in METHODS[2:]}
        for key, unit in zip(units, pairs, strict=True)
    ]
    run.table(f"pairs of digits: updates (at most {config.max_iter})", rows)
    run.table(
        "few samples of a digit against all others: updates",
        [{"set": key.removeprefix("few "), **unit} for key, unit in zip(few, draws, strict=True)],
    )
    title = f"Digits {shown[0]} and {shown[1]}"
    draw_curves(run, found["curves"], config.step_sizes, title)
    draw_limit(run, found["curves"], config.step_sizes, title)
    draw_counts(run, *([(unit[plain], unit[normalized]) for unit in those] for those in (pairs, draws)))


def bounds(pairs: list[dict[str, Any]], config: Config, run: Run) -> None:
    """The theorems' bounds, with the true margins."""
    shares = []
    for unit in pairs:
        sizes = {name: unit[name] for name in ("n", "radius", "margin")}
        shares += [unit[method] / iteration_bound(method, **sizes) for method in METHODS[2:]]
        for place, step_size in enumerate(config.step_sizes):
            bound = iteration_bound("normalized_lr_gd", **sizes, step_size=step_size)
            shares.append(int(unit["normalized_lr_gd"][place]) / bound)
    words = "Theorems 3.3, 5.2, 5.3, 6.1: updates on pairs of digits over the bound with their margin, the largest"
    run.check("bounds", words, max(shares), "<=", 1, paper_value="at most 1")


experiment = Experiment(
    name="lr-perceptron",
    title="From Logistic Regression to the Perceptron Algorithm: Exploring Gradient Descent with Large Step Sizes",
    arxiv="2412.08424",
    config=Config,
    presets={
        "smoke": Config(
            worst_case=100, pairs=((0, 1), (3, 5)), few_digits=(0,), few_counts=(10,), draws=1, max_iter=2000
        ),
        "quick": Config(),
        "medium": Config(images=ImageSettings(sources=("fashion_mnist",))),
        "paper": Config(
            images=ImageSettings(
                sources=("cifar10", "fashion_mnist", "eurosat", "mnist"),
                step_sizes=(0.001, 0.01, 0.1, 1.0, 10.0, 100.0),
                max_iter=100_000,
            )
        ),
    },
    function=reproduce,
)
