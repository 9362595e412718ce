"""Fashion-MNIST with 4 and 25 labels a class: the medium preset."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from offprints.shared.datasets import vision_dataset
from offprints.shared.device import local_seed, make_generator
from offprints.shared.experiment import Run
from offprints.shared.experiment.part import Part
from offprints.shrinkmatch import split_labels, wide_resnet
from offprints.shrinkmatch._networks import moments
from offprints.shrinkmatch.reproduce.figures import draw_utilization
from offprints.shrinkmatch.reproduce.training import Method, Recipe, Trainer, in_quarter
from offprints.shrinkmatch.views import ImageViews

METHODS: tuple[Method, ...] = ("FixMatch", "FixMatch + DA", "ShrinkMatch")
# Set before any run: that of the quick preset.
UTILIZATION_BAR = 0.6


@dataclass(frozen=True, kw_only=True)
class MediumSettings:
    """Fashion-MNIST.

    Attributes:
        labels: Labels of each class; with none this part is left out.
        side: Side to which the images are averaged: 28 is the original one, 14 a quarter of its work.
        depth: Of the wide residual network.
        widen: Its widths.
        test_images: Of the test set, at most.
        recipe: Its training.
        every: Steps between checkpoints.
    """

    labels: tuple[int, ...] = ()
    side: int = 14
    depth: int = 10
    widen: int = 1
    test_images: int = 10_000
    recipe: Recipe = field(default_factory=lambda: Recipe(steps=300, batch_size=32, mu=4, lr=0.06))
    every: int = 100


def clothing(data: Path | None, split: str, download: bool, side: int) -> tuple[Tensor, Tensor]:
    """Images ``(N, 1, side, side)`` in [0, 1] of a split, and their labels."""
    found: Any = vision_dataset("fashion_mnist", split, download=download, root=data)
    return F.adaptive_avg_pool2d(found.data.unsqueeze(1).float() / 255, side), found.targets


def train_clothing(
    settings: MediumSettings, data: Path | None, download: bool, per_class: int, method: Method, part: Part
) -> dict[str, Any]:
    """One training; labels, weights, batches and views depend on the run's seed alone, so that methods are paired."""
    x, y = clothing(data, "train", download, settings.side)
    labeled, unlabeled = (torch.from_numpy(rows) for rows in split_labels(y, per_class, seed=part.seed))
    views = ImageViews(moments(x)[1].to(part.device))
    recipe = settings.recipe
    with local_seed(part.seed):
        backbone = wide_resnet(settings.depth, settings.widen, in_channels=1, bn_momentum=0.1)
        trainer = Trainer(backbone, backbone.out_dim, 10, method, recipe, part.device)
    if (found := part.restore()) is not None:
        trainer.load(found[1])
    for step in part.progress(range(trainer.done, recipe.steps)):
        draws = make_generator(1_000_000 * part.seed + step)
        rows = labeled[torch.randint(len(labeled), (recipe.batch_size,), generator=draws)]
        u = unlabeled[torch.randint(len(unlabeled), (recipe.mu * recipe.batch_size,), generator=draws)]
        a, b, label, truth = (z.to(part.device) for z in (x[rows], x[u], y[rows], y[u]))
        with local_seed(int(torch.randint(2**31, (), generator=draws))):
            loss = trainer.step(views.weak(a), label, views.weak(b), views.strong(b), truth)
        if trainer.done % settings.every == 0:
            part.log(trainer.done, loss=float(loss))
            part.checkpoint(trainer.done, trainer.state())
    test, truth = (z[: settings.test_images].to(part.device) for z in clothing(data, "test", download, settings.side))
    return {"accuracy": trainer.accuracy(test, truth), **trainer.results()}


def reproduce_medium(settings: MediumSettings, data: Path | None, download: bool, run: Run) -> None:
    """FixMatch, FixMatch with alignment and ShrinkMatch in the same loop."""
    for per_class in settings.labels:
        results = {
            method: run.part(f"{per_class} labels, {method}").once(
                partial(train_clothing, settings, data, download, per_class, method)
            )
            for method in METHODS
        }
        used: dict[str, float] = {m: in_quarter(r["counts"], 1, rescued=m == "ShrinkMatch") for m, r in results.items()}
        accuracy: dict[str, float] = {method: float(result["accuracy"]) for method, result in results.items()}
        run.claim(
            f"utilization-{per_class}",
            f"Fashion-MNIST, {per_class} labels a class: share of the unlabeled samples that have a loss, second"
            " quarter of the training",
            used["ShrinkMatch"],
            ">=",
            UTILIZATION_BAR,
            control=used["FixMatch + DA"],
            control_name="no shrunk loss: FixMatch with alignment",
        )
        for other, id_ in (("FixMatch + DA", "fixmatch-da"), ("FixMatch", "fixmatch")):
            run.report_value(
                f"{id_}-{per_class}",
                f"Fashion-MNIST, {per_class} labels a class: test accuracy of ShrinkMatch minus {other}",
                accuracy["ShrinkMatch"] - accuracy[other],
            )
        run.report_value(
            f"accuracy-{per_class}",
            f"Fashion-MNIST, {per_class} labels a class: test accuracy of ShrinkMatch",
            accuracy["ShrinkMatch"],
        )
        run.table(
            f"Fashion-MNIST, {per_class} labels a class",
            [
                {
                    "method": method,
                    "reference": method != "ShrinkMatch",
                    "test accuracy": accuracy[method],
                    "used, second quarter": used[method],
                }
                for method in METHODS
            ],
        )
        draw_utilization(run, f"utilization-{per_class}", {method: [result] for method, result in results.items()})
