"""The quick preset: digits, five classes of which are known by four images each, an unlabeled pool of all ten."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from offprints.shared.datasets import digits
from offprints.wad import SimCLRTeacher, mismatch_split
from offprints.wad.networks import mlp, small_encoder
from offprints.wad.reproduce.students import PERMUTED, SUPERVISED, UNWEIGHTED, WAD, moving, train_student
from offprints.wad.reproduce.teachers import judged, spectral_features

SPECTRAL, PIXELS, SIMCLR = "spectral", "pixels", "SimCLR"


@dataclass(frozen=True, kw_only=True)
class DigitsSettings:
    """The quick preset's settings.

    Attributes:
        draws: Draws of classes, images and splits on which students are trained.
        teacher_draws: Draws on which the teachers alone are judged, these among them.
        mismatches: Shares of unknown images in the pool; the claims are about the last.
        targets: Known classes.
        per_class: Labeled images of each.
        test: Test images, of known classes.
        dim: Width of the spectral embedding.
        neighbors: In its graph.
        rounds: Of training.
        steps: In each round.
        pixel_draws: Draws that are repeated with raw pixels as the teacher.
        simclr_draws: Draws for which the short SimCLR is judged.
        simclr_epochs: Its epochs, of batches of 128.
    """

    draws: int = 4
    teacher_draws: int = 24
    mismatches: tuple[float, ...] = (0.2, 0.4, 0.6)
    targets: int = 5
    per_class: int = 4
    test: int = 500
    dim: int = 20
    neighbors: int = 10
    rounds: int = 5
    steps: int = 80
    pixel_draws: int = 1
    simclr_draws: int = 1
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


@functools.cache
def embedded(dim: int, neighbors: int) -> Tensor:
    """The spectral teacher's features of all images, once in a process."""
    return spectral_features(digits()[0], dim=dim, neighbors=neighbors)


def simclr_features(labeled: Tensor, unlabeled: Tensor, *, epochs: int, seed: int) -> tuple[Tensor, Tensor]:
    """Projections of a SimCLR that is trained for seconds."""
    side = round(labeled.shape[1] ** 0.5)
    images = [x.view(-1, 1, side, side) for x in (labeled, unlabeled)]
    torch.manual_seed(seed)
    teacher = SimCLRTeacher(*small_encoder(1, width=8)).fit(torch.cat(images), epochs=epochs, seed=seed)
    return teacher.embed(images[0]), teacher.embed(images[1])


def methods_of(teacher: str, settings: DigitsSettings, mismatch: float, number: int) -> list[str]:
    """What is trained with a teacher: the controls at the largest share alone, supervised training at the smallest."""
    first, last = settings.mismatches[0], settings.mismatches[-1]
    if teacher == PIXELS:
        return [UNWEIGHTED, WAD] if number < settings.pixel_draws else []
    methods = [UNWEIGHTED, WAD, moving(WAD)]
    methods += [SUPERVISED] if mismatch == first else []
    return methods + ([PERMUTED, moving(UNWEIGHTED)] if mismatch == last else [])


@dataclass(frozen=True)
class Draw:
    """Rows of the digits, and their classes: positions among the known ones, -1 for unknown."""

    labeled: Tensor
    unlabeled: Tensor
    test: Tensor
    truth: Tensor


def draw(settings: DigitsSettings, mismatch: float, seed: int) -> Draw:
    """Known classes, test images, labeled images and the pool; for another mismatch only the pool differs."""
    _, y = digits()
    generator = np.random.default_rng(seed)
    targets = generator.permutation(10)[: settings.targets]
    place = torch.full((10,), -1)
    place[torch.from_numpy(targets)] = torch.arange(settings.targets)
    truth = place[y]
    test = generator.permutation(np.flatnonzero(truth.numpy() >= 0))[: settings.test]
    rest = np.setdiff1d(np.arange(len(y)), test)
    split = mismatch_split(
        y[rest],
        target_classes=targets.tolist(),
        num_labeled=settings.targets * settings.per_class,
        mismatch=mismatch,
        seed=seed,
        balanced=True,
    )
    labeled, unlabeled, held_out = map(torch.from_numpy, (rest[split.labeled], rest[split.unlabeled], test))
    return Draw(labeled, unlabeled, held_out, truth)


def teacher_unit(settings: DigitsSettings, seed: int, number: int) -> dict[str, Any]:
    """What each teacher knows on one draw, at the last mismatch."""
    x, _ = digits()
    rows = draw(settings, settings.mismatches[-1], seed)
    embedding = embedded(settings.dim, settings.neighbors)
    features = {name: (z[rows.labeled], z[rows.unlabeled]) for name, z in ((SPECTRAL, embedding), (PIXELS, x))}
    if number < settings.simclr_draws:
        features[SIMCLR] = simclr_features(*features[PIXELS], epochs=settings.simclr_epochs, seed=seed)
    truth = rows.truth
    return {
        name: judged(pair, truth[rows.labeled], truth[rows.unlabeled], seed=seed) for name, pair in features.items()
    }


def student_unit(settings: DigitsSettings, mismatch: float, seed: int, number: int) -> dict[str, Any]:
    """Every method with every teacher on one draw.

    Args:
        settings: The preset's.
        mismatch: Share of unknown images.
        seed: Of the draw.
        number: Of the draw, from 0.
    """
    x, _ = digits()
    rows = draw(settings, mismatch, seed)
    results: dict[str, Any] = {}
    for teacher, z in ((SPECTRAL, embedded(settings.dim, settings.neighbors)), (PIXELS, x)):
        for method in methods_of(teacher, settings, mismatch, number):
            results[f"{teacher}, {method}"] = train_student(
                method,
                functools.partial(new_student, x.shape[1], settings.targets),
                (z[rows.labeled], z[rows.unlabeled]),
                *((x[part], rows.truth[part]) for part in (rows.labeled, rows.unlabeled, rows.test)),
                seed=seed,
                rounds=settings.rounds,
                steps_per_round=settings.steps,
            )
    return results
