"""The quick preset: digits, five classes of which are known by four images each, an unlabeled pool of all ten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from offprints.shared.datasets import digits
from offprints.wad import SimCLRTeacher, mismatch_split
from offprints.wad.networks import mlp, small_encoder
from offprints.wad.reproduce.students import KEPT, PERMUTED, SUPERVISED, UNWEIGHTED, WAD, train_student
from offprints.wad.reproduce.teachers import judged, spectral_features

SPECTRAL, PIXELS, SIMCLR = "spectral", "pixels", "SimCLR"
METHODS = {SPECTRAL: (SUPERVISED, UNWEIGHTED, PERMUTED, KEPT, WAD), PIXELS: (UNWEIGHTED, WAD)}


@dataclass(frozen=True, kw_only=True)
class DigitsSettings:
    """The quick preset's settings.

    Attributes:
        draws: Draws of classes, images and splits.
        mismatches: Shares of unknown images in the pool.
        targets: Known classes.
        per_class: Labeled images of each.
        test: Test images, of known classes.
        dim: Width of the spectral embedding.
        neighbors: In its graph.
        rounds: Of training.
        steps: In each round.
        simclr_draws: Draws for which the short SimCLR is judged.
        simclr_epochs: Its epochs, of batches of 128.
    """

    draws: int = 6
    mismatches: tuple[float, ...] = (0.2, 0.4, 0.6)
    targets: int = 5
    per_class: int = 4
    test: int = 500
    dim: int = 20
    neighbors: int = 10
    rounds: int = 5
    steps: int = 80
    simclr_draws: int = 2
    simclr_epochs: int = 20


class Shift(nn.Module):
    """In training, every image of flat pixels moved by up to one pixel, another draw for each; zeros come in."""

    def forward(self, flat: Tensor) -> Tensor:
        if not self.training:
            return flat
        side = round(flat.shape[1] ** 0.5)
        padded = nn.functional.pad(flat.view(-1, side, side), (1, 1, 1, 1))
        moved = padded.unfold(1, side, 1).unfold(2, side, 1)  # [N, 3, 3, side, side]
        down, right = torch.randint(3, (2, len(flat)))
        return moved[torch.arange(len(flat)), down, right].flatten(1)


def new_student(dim: int, classes: int) -> nn.Module:
    """64-128-128-K on moved images."""
    return nn.Sequential(Shift(), mlp(dim, classes))


def simclr_features(labeled: Tensor, unlabeled: Tensor, *, epochs: int, seed: int) -> tuple[Tensor, Tensor]:
    """Projections of a SimCLR that is trained for seconds."""
    side = round(labeled.shape[1] ** 0.5)
    images = [x.view(-1, 1, side, side) for x in (labeled, unlabeled)]
    torch.manual_seed(seed)
    teacher = SimCLRTeacher(*small_encoder(1, width=8)).fit(torch.cat(images), epochs=epochs, seed=seed)
    return teacher.embed(images[0]), teacher.embed(images[1])


def digits_unit(settings: DigitsSettings, mismatch: float, seed: int, number: int) -> dict[str, Any]:
    """Every teacher and every method on one draw."""
    x, y = digits()
    embedding = spectral_features(x, dim=settings.dim, neighbors=settings.neighbors)
    generator = np.random.default_rng(seed)
    targets = generator.permutation(10)[: settings.targets]
    place = torch.full((10,), -1)
    place[torch.from_numpy(targets)] = torch.arange(settings.targets)
    truth = place[y]
    known = np.flatnonzero(truth.numpy() >= 0)
    test = generator.permutation(known)[: settings.test]
    rest = np.setdiff1d(np.arange(len(y)), test)
    split = mismatch_split(
        y[rest],
        target_classes=targets.tolist(),
        num_labeled=settings.targets * settings.per_class,
        mismatch=mismatch,
        seed=seed,
        balanced=True,
    )
    labeled, unlabeled = (torch.from_numpy(rest[part]) for part in (split.labeled, split.unlabeled))
    features: dict[str, tuple[Tensor, Tensor]] = {
        SPECTRAL: (embedding[labeled], embedding[unlabeled]),
        PIXELS: (x[labeled], x[unlabeled]),
    }
    if number < settings.simclr_draws and mismatch == settings.mismatches[len(settings.mismatches) // 2]:
        features[SIMCLR] = simclr_features(x[labeled], x[unlabeled], epochs=settings.simclr_epochs, seed=seed)
    results: dict[str, Any] = {}
    for teacher, pair in features.items():
        results[teacher] = judged(pair, truth[labeled], truth[unlabeled], seed=seed)
        for method in METHODS.get(teacher, ()):
            results[f"{teacher} {method}"] = train_student(
                method,
                lambda: new_student(x.shape[1], settings.targets),
                pair,
                (x[labeled], truth[labeled]),
                (x[unlabeled], truth[unlabeled]),
                (x[torch.from_numpy(test)], truth[torch.from_numpy(test)]),
                seed=seed,
                rounds=settings.rounds,
                steps_per_round=settings.steps,
            )
    return results
