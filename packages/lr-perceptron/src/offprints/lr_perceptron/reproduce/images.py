"""The paper's data: two classes of an image set, LR+GD and Normalized LR+GD at every step size (Table 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from offprints.lr_perceptron.reproduce.setups import PRINTED, load_clothing, matches, plausible_setups
from offprints.lr_perceptron.rules import GRADIENT_METHODS
from offprints.lr_perceptron.sweeps import sweep
from offprints.shared.datasets import vision_dataset
from offprints.shared.experiment import Run
from offprints.shared.show import colors

Source = Literal["fashion_mnist", "mnist", "cifar10", "eurosat"]
RATIO_BAR = 1.4  # the paper's counts: 538 / 311 = 1.7 imbalanced, 2928 / 3160 = 0.9 balanced


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """Two classes of image sets.

    Attributes:
        sources: Image sets; without any, this part is left out.
        pairs: Pairs of classes.
        samples: Samples of both classes together.
        few: Of these, samples of the first class in the imbalanced sets; the balanced ones have half of each.
        step_sizes: Step sizes of both methods.
        max_iter: Most updates.
        search: How many readings of the paper's set-up are tried on Fashion-MNIST for each row of Table 1.
    """

    sources: tuple[Source, ...] = ()
    pairs: tuple[tuple[int, int], ...] = ((0, 1),)
    samples: int = 5000
    few: int = 50
    step_sizes: tuple[float, ...] = (0.1, 1.0, 10.0, 100.0)
    max_iter: int = 10_000
    search: int = 0


def load_images(source: Source, classes: Sequence[int], root: Path | None, *, download: bool) -> tuple[Tensor, Tensor]:
    """Images of some classes as rows in [0, 1], float64, and their classes, in the file's order.

    Raises:
        MissingData: the set is not there and ``download`` is off.
    """
    found: Any = vision_dataset(source, "all" if source == "eurosat" else "train", download=download, root=root)
    targets = torch.as_tensor(found.targets)
    rows = torch.isin(targets, torch.tensor(list(classes))).nonzero().squeeze(1)
    if hasattr(found, "data"):
        pixels = torch.as_tensor(np.asarray(found.data))[rows]
    else:  # files of their own, read one by one
        pixels = torch.stack([torch.from_numpy(np.array(found[row][0])) for row in rows.tolist()])
    return pixels.flatten(1).double() / 255, targets[rows]


def two_classes(
    images: Tensor, classes: Tensor, pair: tuple[int, int], counts: tuple[int, int], seed: int
) -> tuple[Tensor, Tensor]:
    """So many images of each class, drawn and permuted by the seed; the first class is labeled -1.

    Raises:
        ValueError: there are fewer images of a class.
    """
    generator = np.random.default_rng(seed)
    rows = []
    for number, count in zip(pair, counts, strict=True):
        members = np.flatnonzero(classes.numpy() == number)
        if len(members) < count:
            raise ValueError(f"samples asks for {count} images of class {number}, there are {len(members)}")
        rows.append(generator.permutation(members)[:count])
    order = torch.from_numpy(generator.permutation(np.concatenate(rows)))
    return images[order], torch.where(classes[order] == pair[1], 1.0, -1.0).double()


def image_unit(
    settings: ImageSettings,
    source: Source,
    pair: tuple[int, int],
    few: bool,
    method: str,
    place: tuple[Path | None, bool],
    device: str,
    seed: int,
) -> dict[str, Any]:
    """Updates at every step size."""
    root, download = place
    images, classes = load_images(source, pair, root, download=download)
    half = settings.samples // 2
    counts = (settings.few, settings.samples - settings.few) if few else (half, settings.samples - half)
    X, y = two_classes(images, classes, pair, counts, seed)
    found = sweep(X.to(device), y.to(device), settings.step_sizes, method=method, max_iter=settings.max_iter)
    return {"n_iter": found.n_iter.cpu()}


def search_unit(kind: str, first: int, last: int, place: tuple[Path | None, bool]) -> dict[str, Any]:
    """Try some readings of a row of Table 1."""
    images, classes = load_clothing(place[0], download=place[1])
    tried = {setup.name: matches(setup, kind, images, classes) for setup in plausible_setups(kind)[first:last]}
    right = [
        name
        for name, found in tried.items()
        if list(found.values()) == [PRINTED[kind][key] for key in ordered(kind)][: len(found)]
        and len(found) == len(PRINTED[kind])
    ]
    first_right = sum(next(iter(found.values())) == PRINTED[kind][ordered(kind)[0]] for found in tried.values())
    return {"tried": len(tried), "right": right, "first right": first_right}


def ordered(kind: str) -> list[tuple[str, float]]:
    """Methods and step sizes in the order in which they are tried."""
    return sorted(PRINTED[kind], key=lambda key: (key[0], -key[1]))


def reproduce_images(settings: ImageSettings, data: Path | None, download: bool, run: Run) -> None:
    """Record Table 1 on every set: with few samples of a class normalization helps, with equal classes it does not."""
    device = "cpu" if run.device.type == "mps" else str(run.device)  # float64, which counts need
    kinds = {"imbalanced": True, "balanced": False}
    keys = {
        (source, pair, kind, method): f"{source} {pair[0]}v{pair[1]} {kind} {method}"
        for source in settings.sources
        for pair in settings.pairs
        for kind in kinds
        for method in GRADIENT_METHODS
    }
    place = (data, download)
    units = {
        key: partial(image_unit, settings, source, pair, kinds[kind], method, place, device, run.seed)
        for (source, pair, kind, method), key in keys.items()
    }
    found = run.units(units)
    counts = {names: found[key]["n_iter"] for names, key in keys.items()}

    def ratio(kind: str) -> float:
        """Updates of LR+GD over those of Normalized LR+GD at the largest step size, geometric mean."""
        logs = []
        for source in settings.sources:
            for pair in settings.pairs:
                plain, normalized = (
                    float(spent(counts[source, pair, kind, method], settings)[-1]) for method in GRADIENT_METHODS
                )
                logs.append(np.log(plain / normalized))
        return float(np.exp(np.mean(logs)))

    largest = f"{max(settings.step_sizes):g}"
    run.claim(
        "images-imbalanced",
        f"{settings.few} samples of a class against {settings.samples - settings.few}, step size {largest}: updates of"
        " LR+GD over those of Normalized LR+GD, geometric mean of the pairs",
        ratio("imbalanced"),
        ">=",
        RATIO_BAR,
        paper_value="538 / 311 = 1.73",
        control=ratio("balanced"),
        control_name="as many samples of each class",
    )
    for source in settings.sources:
        for pair in settings.pairs:
            rows = []
            for kind in kinds:
                for method in GRADIENT_METHODS:
                    each = counts[source, pair, kind, method].tolist()
                    told = {
                        f"step size {s:g}": "more" if t < 0 else t
                        for s, t in zip(settings.step_sizes, each, strict=True)
                    }
                    rows.append({"samples": kind, "method": method, **told})
            run.table(f"{source}, classes {pair[0]} and {pair[1]}: updates", rows)
    draw_images(run, settings, counts)
    if settings.search:
        search(settings, place, run)


def spent(n_iter: Tensor, settings: ImageSettings) -> Tensor:
    """Updates made, all of them where they did not suffice."""
    return torch.where(n_iter < 0, settings.max_iter, n_iter)


def search(settings: ImageSettings, place: tuple[Path | None, bool], run: Run) -> None:
    """Look for a reading of the paper's set-up that gives the printed counts."""
    steps = 10
    grid = {
        f"search {kind} {first}": partial(search_unit, kind, first, min(first + steps, settings.search), place)
        for kind in PRINTED
        for first in range(0, settings.search, steps)
    }
    found = run.units(grid)
    for kind in PRINTED:
        mine = [unit for key, unit in found.items() if kind == key.split()[1]]
        right = [name for unit in mine for name in unit["right"]]
        run.report_value(f"tried-{kind}", f"Table 1, {kind}: set-ups tried", sum(unit["tried"] for unit in mine))
        run.report_value(
            f"first-{kind}",
            f"Table 1, {kind}: of these, with the printed count of LR+GD at step size 100",
            sum(unit["first right"] for unit in mine),
        )
        words = f"Table 1, {kind}: of these, with all printed counts"
        run.report_value(f"right-{kind}", words, ", ".join(right) or "none")


def draw_images(run: Run, settings: ImageSettings, counts: dict[Any, Tensor]) -> None:
    """Updates against the step size, a panel a set and kind."""
    shown = [(source, kind) for source in settings.sources for kind in ("imbalanced", "balanced")]
    with run.figure("images", ncols=len(shown), figsize=(4.4 * len(shown), 3.6), squeeze=False) as (_, grid):
        for axes, (source, kind) in zip(grid[0], shown, strict=True):
            for method, color in zip(GRADIENT_METHODS, (colors.BLUE, colors.VERMILION), strict=True):
                for place, pair in enumerate(settings.pairs):
                    values = spent(counts[source, pair, kind, method], settings).numpy()
                    label = method.replace("_", " ") if place == 0 else None
                    axes.plot(settings.step_sizes, values, "o-", color=color, linewidth=1.2, label=label)
            axes.set(title=f"{source}, {kind}", xlabel="step size", ylabel="updates", xscale="log", yscale="log")
            axes.legend()
