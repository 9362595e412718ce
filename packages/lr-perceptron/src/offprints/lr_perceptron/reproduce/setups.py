"""Fashion-MNIST as two-class sets: the choices that the paper's main text leaves open, and the counts it prints."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offprints.lr_perceptron.separation import separate
from offprints.shared.datasets import vision_dataset

# Table 1: method and step size to the number of updates printed.
PRINTED = {
    "balanced": {
        ("lr_gd", 10.0): 2778,
        ("lr_gd", 100.0): 2928,
        ("normalized_lr_gd", 100.0): 3160,
        ("normalized_lr_gd", 1.0): 3351,
        ("normalized_lr_gd", 10.0): 3359,
    },
    "imbalanced": {
        ("normalized_lr_gd", 100.0): 311,
        ("normalized_lr_gd", 10.0): 349,
        ("normalized_lr_gd", 1.0): 353,
        ("normalized_lr_gd", 0.1): 504,
        ("lr_gd", 100.0): 538,
    },
}
SCALINGS = ("unit", "normalized", "centered", "standardized", "bytes", "lengths")


@dataclass(frozen=True)
class Setup:
    """One reading of "two classes of Fashion-MNIST".

    Attributes:
        classes: Two classes; the first is labeled -1.
        counts: Samples of each, the first in the file's order; a total takes the first so many of both together.
        scaling: Of the pixels: ``"unit"`` to [0, 1], ``"bytes"`` 0..255 as they are, ``"centered"`` to [-1, 1],
            ``"normalized"`` by mean and standard deviation of all pixels of the data set, ``"standardized"`` each pixel
            by its own, ``"lengths"`` every image to length 1.
        intercept: Whether a column of ones is appended.
        window: Take only from the first so many images of the file; 0 for all.
    """

    classes: tuple[int, int]
    counts: tuple[int, int] | int
    scaling: str = "unit"
    intercept: bool = False
    window: int = 0

    @property
    def name(self) -> str:
        """In a few words, distinct for distinct set-ups."""
        counts = str(self.counts) if isinstance(self.counts, int) else "+".join(map(str, self.counts))
        words = [f"{self.classes[0]}v{self.classes[1]}", counts, self.scaling]
        return " ".join(words + ["intercept"] * self.intercept + [f"of {self.window}"] * (self.window > 0))


def load_clothing(root: Path | None, *, download: bool) -> tuple[Tensor, Tensor]:
    """All training images ``[60000, 784]``, bytes, and their classes.

    Raises:
        MissingData: they are not there and ``download`` is off.
    """
    found: Any = vision_dataset("fashion_mnist", "train", download=download, root=root)
    return found.data.flatten(1), found.targets


def samples_of(setup: Setup, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Samples ``[n, 784]`` (785 with the intercept), float64, and labels -1 and +1 ``[n]``.

    Raises:
        ValueError: there are fewer images of a class.
    """
    if setup.window:
        images, classes = images[: setup.window], classes[: setup.window]
    members = [(classes == number).nonzero().squeeze(1) for number in setup.classes]
    if isinstance(setup.counts, int):
        rows = torch.cat(members).sort().values[: setup.counts]
    else:
        for number, mine, count in zip(setup.classes, members, setup.counts, strict=True):
            if len(mine) < count:
                raise ValueError(f"counts asks for {count} images of class {number}, there are {len(mine)}")
        rows = torch.cat([mine[:count] for mine, count in zip(members, setup.counts, strict=True)]).sort().values
    X = images[rows].double()
    if setup.scaling == "unit":
        X = X / 255
    elif setup.scaling == "centered":
        X = X / 127.5 - 1
    elif setup.scaling == "normalized":
        X = (X / 255 - 0.2860) / 0.3530
    elif setup.scaling == "standardized":
        deviation = X.std(0, correction=0)
        X = (X - X.mean(0)) / torch.where(deviation > 0, deviation, 1.0)
    elif setup.scaling == "lengths":
        X = X / X.norm(dim=1, keepdim=True).clamp(min=1)
    if setup.intercept:
        X = torch.cat([X, X.new_ones(len(X), 1)], 1)
    return X, torch.where(classes[rows] == setup.classes[1], 1.0, -1.0).double()


def plausible_setups(kind: str) -> list[Setup]:
    """The readings that are searched, the likeliest first: classes 0 and 1 in every form, then the other pairs."""
    pairs = list(combinations(range(10), 2))
    forms = [(scaling, intercept) for scaling in SCALINGS for intercept in (False, True)]
    if kind == "balanced":
        halves: tuple[tuple[int, int] | int, ...] = (5000, (2500, 2500), (5000, 5000))
        first = [Setup((0, 1), counts, *form) for counts in halves[:2] for form in forms]
        rest = [Setup(pair, counts, *form) for form in forms for counts in halves for pair in pairs]
    else:
        few = (50, 10, 100, 500, 250, 25, 20, 5, 200, 1000)
        ordered = [turned for pair in pairs for turned in (pair, pair[::-1])]
        first = [Setup(pair, (count, 5000 - count)) for count in few for pair in ((0, 1), (1, 0))]
        rest = [Setup(pair, (count, 5000 - count), *form) for form in forms for count in few[:4] for pair in ordered]
    return list(dict.fromkeys([*first, *rest]))


def updates(X: Tensor, y: Tensor, method: str, step_size: float, max_iter: int) -> int:
    """Updates until separation, -1 if ``max_iter`` did not suffice."""
    result = separate(X, y, method=method, step_size=step_size, max_iter=max_iter)
    return result.n_iter if result.separated else -1


def matches(setup: Setup, kind: str, images: Tensor, classes: Tensor) -> dict[str, int]:
    """The counts of a set-up, in the order of Table 1, up to the first that is not the printed one."""
    X, y = samples_of(setup, images, classes)
    found = {}
    # The largest step size first: it is the one that few samples decide, and so the fastest.
    for (method, step_size), printed in sorted(PRINTED[kind].items(), key=lambda item: (item[0][0], -item[0][1])):
        found[f"{method} {step_size:g}"] = updates(X, y, method, step_size, printed + 1)
        if found[f"{method} {step_size:g}"] != printed:
            break
    return found
