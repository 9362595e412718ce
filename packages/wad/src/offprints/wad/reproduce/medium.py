"""Fashion-MNIST: five known classes, a pool of all ten, a SimCLR trained on the spot and a spectral teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from offprints.shared.datasets import vision_dataset
from offprints.shared.experiment import Run
from offprints.wad import SimCLRTeacher, mismatch_split, rectify_labels
from offprints.wad.networks import InputTransform, small_encoder
from offprints.wad.reproduce.figures import draw_accuracy, draw_errors, draw_weights
from offprints.wad.reproduce.students import PERMUTED, SUPERVISED, UNWEIGHTED, WAD, moving, train_student
from offprints.wad.reproduce.teachers import judged, mean_of, ratio, spectral_features

SIMCLR, SPECTRAL = "SimCLR", "spectral"
METHODS = (SUPERVISED, UNWEIGHTED, PERMUTED, WAD, moving(WAD))
# Set on teachers alone with the seeds 5 and 6.
PSEUDO_BAR = 0.75


@dataclass(frozen=True, kw_only=True)
class MediumSettings:
    """Fashion-MNIST.

    Attributes:
        mismatches: Shares of unknown images in the pool; with none this part is left out.
        targets: Known classes, drawn by the seed.
        labeled: Labeled images, equally many of each known class.
        known: Images of known classes in the pool.
        test: Test images of known classes, at most.
        pool: Width of the squares of pixels that are averaged: 2 makes images of 14 x 14.
        teacher_epochs: Of SimCLR.
        teacher_lr: Its largest learning rate.
        teacher_width: Channels of its first layer.
        dim: Width of the spectral embedding.
        neighbors: In its graph.
        student_width: Channels of the student's first layer.
        rounds: Of training.
        steps: In each round.
    """

    mismatches: tuple[float, ...] = ()
    targets: int = 5
    labeled: int = 50
    known: int = 1500
    test: int = 2000
    pool: int = 2
    teacher_epochs: int = 30
    teacher_lr: float = 0.3
    teacher_width: int = 16
    dim: int = 20
    neighbors: int = 10
    student_width: int = 16
    rounds: int = 5
    steps: int = 60


def clothing(data: Path | None, split: str, download: bool, pool: int) -> tuple[Tensor, Tensor]:
    """Images `(N, 1, 28 / pool, 28 / pool)` in [0, 1] of a split, and their labels."""
    found: Any = vision_dataset("fashion_mnist", split, download=download, root=data)
    return nn.functional.avg_pool2d(found.data.unsqueeze(1).float() / 255, pool), found.targets


def student(width: int, classes: int) -> nn.Module:
    """The teacher's kind of network with a linear layer, on images that are flipped, moved and made noisy."""
    body, features = small_encoder(1, width=width)
    return nn.Sequential(InputTransform(), body, nn.Linear(features, classes))


def some(rows: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """So many of the rows at most, sorted."""
    return np.sort(generator.permutation(rows)[:count])


def mismatch_unit(
    settings: MediumSettings, data: Path | None, download: bool, mismatch: float, seed: int
) -> dict[str, Any]:
    """Both teachers and all students at one share of unknown images."""
    images, labels = clothing(data, "train", download, settings.pool)
    test_images, test_labels = clothing(data, "test", download, settings.pool)
    generator = np.random.default_rng(seed)
    targets = generator.permutation(10)[: settings.targets].tolist()
    is_target = np.isin(labels.numpy(), targets)
    per_class = settings.labeled // settings.targets
    of_targets = [
        some(np.flatnonzero(labels.numpy() == t), per_class + settings.known // settings.targets, generator)
        for t in targets
    ]
    rows = np.sort(np.concatenate([*of_targets, np.flatnonzero(~is_target)]))
    split = mismatch_split(
        labels[rows],
        target_classes=targets,
        num_labeled=per_class * settings.targets,
        mismatch=mismatch,
        seed=seed,
        balanced=True,
    )
    labeled, unlabeled = (torch.from_numpy(rows[part]) for part in (split.labeled, split.unlabeled))
    test = torch.from_numpy(some(np.flatnonzero(np.isin(test_labels.numpy(), targets)), settings.test, generator))
    truth = torch.full((len(unlabeled),), -1)
    known = torch.from_numpy(split.is_target_unlabeled)
    truth[known] = rectify_labels(labels[unlabeled][known], targets)
    y, y_test = rectify_labels(labels[labeled], targets), rectify_labels(test_labels[test], targets)

    pool = torch.cat([images[labeled], images[unlabeled]])
    torch.manual_seed(seed)
    teacher = SimCLRTeacher(*small_encoder(1, width=settings.teacher_width))
    teacher.fit(pool, epochs=settings.teacher_epochs, lr=settings.teacher_lr, seed=seed)
    embeddings = {
        SIMCLR: teacher.embed(pool),
        SPECTRAL: spectral_features(pool, dim=settings.dim, neighbors=settings.neighbors),
    }
    results: dict[str, Any] = {"teacher loss": [entry["loss"] for entry in teacher.history_]}
    for name, z in embeddings.items():
        features = z[: len(labeled)], z[len(labeled) :]
        results[name] = judged(features, y, truth, seed=seed)
        for method in METHODS:
            if method == SUPERVISED and name != SIMCLR:  # which no teacher changes
                results[f"{name}, {method}"] = results[f"{SIMCLR}, {method}"]
                continue
            results[f"{name}, {method}"] = train_student(
                method,
                partial(student, settings.student_width, settings.targets),
                features,
                (images[labeled], y),
                (images[unlabeled], truth),
                (test_images[test], y_test),
                seed=seed,
                rounds=settings.rounds,
                steps_per_round=settings.steps,
                lr=1e-3,
            )
    return results


def reproduce_medium(settings: MediumSettings, data: Path | None, download: bool, run: Run) -> None:
    """The weights and the students, against the share of unknown images."""
    work = partial(mismatch_unit, settings, data, download)
    jobs = {f"mismatch {m}": partial(work, m, run.seed) for m in sorted(settings.mismatches, reverse=True)}
    done = run.units(jobs)
    units = {mismatch: done[f"mismatch {mismatch}"] for mismatch in settings.mismatches}

    def mean(key: str, entry: str) -> float:
        return mean_of(unit[key][entry] for unit in units.values())

    def gain(teacher: str, method: str, over: str = UNWEIGHTED) -> float:
        return mean(f"{teacher}, {method}", "accuracy") - mean(f"{teacher}, {over}", "accuracy")

    where = f"Fashion-MNIST, mean of the shares {', '.join(f'{m:g}' for m in units)}"
    for teacher in (SIMCLR, SPECTRAL):
        equal = mean(teacher, "pseudo-labeling of equal weights")
        run.claim(
            f"fashion-pseudo-labeling-{teacher.lower()}",
            f"{where}, {teacher} teacher: pseudo-labeling error, the share of the weight that lies on wrong labels of"
            " known images, over the same with equal weights",
            ratio(mean(teacher, "pseudo-labeling"), equal),
            "<=",
            PSEUDO_BAR,
            control=ratio(mean(teacher, "pseudo-labeling of permuted weights"), equal),
            control_name="weights permuted",
        )
        told = {
            "auroc": "AUROC of the weight, known against unknown images",
            "auroc of the maximum": "AUROC of the largest cosine alone",
            "invasion": "invasion error, the share of the weight that lies on unknown images",
            "invasion of equal weights": "the same with equal weights",
            "right": "right pseudo-labels of known images",
        }
        for key, statement in told.items():
            name = f"fashion-{key.replace(' ', '-')}-{teacher.lower()}"
            run.report_value(name, f"{teacher} teacher: {statement}", mean(teacher, key))
        for method in (WAD, PERMUTED):
            words = "with weights" if method == WAD else "with permuted weights"
            run.report_value(
                f"fashion-gain-{method.replace(' ', '-').lower()}-{teacher.lower()}",
                f"{teacher} teacher, nothing moved: accuracy {words} minus with all weights 1",
                gain(teacher, method),
            )
        run.report_value(
            f"fashion-supervised-{teacher.lower()}",
            f"{teacher} teacher, nothing moved: accuracy of WAD minus supervised alone",
            gain(teacher, WAD, SUPERVISED),
        )
        run.report_value(
            f"fashion-moved-{teacher.lower()}",
            f"{teacher} teacher: accuracy of WAD with samples moved minus with nothing moved",
            gain(teacher, moving(WAD), WAD),
        )
    report(units, run, "Fashion-MNIST", (SIMCLR, SPECTRAL), METHODS)


def report(
    units: Mapping[float, Mapping[str, Any]], run: Run, name: str, teachers: Sequence[str], methods: Sequence[str]
) -> None:
    """Tables and figures of one data set."""
    short = name.lower().replace("-", "")
    keys = [key for key in next(iter(units.values()))[teachers[0]] if key not in ("weights", "known")]
    run.table(
        f"{name}: what teachers know",
        [
            {"teacher": teacher, "share": m, **{key: unit[teacher][key] for key in keys}}
            for teacher in teachers
            for m, unit in units.items()
        ],
    )
    run.table(
        f"{name}: test accuracy",
        [
            {"teacher": teacher, "method": method, "reference": method not in (WAD, moving(WAD))}
            | {f"share {m:g}": unit[f"{teacher}, {method}"]["accuracy"] for m, unit in units.items()}
            for teacher in teachers
            for method in methods
        ],
    )
    panels = {
        teacher: {method: [[unit[f"{teacher}, {method}"]["accuracy"]] for unit in units.values()] for method in methods}
        for teacher in teachers
    }
    draw_accuracy(run, f"accuracy_{short}", list(units), panels)
    largest = units[max(units)]
    draw_weights(run, f"weights_{short}", {teacher: largest[teacher] for teacher in teachers})
    shown = [method for method in methods if method != SUPERVISED]
    draw_errors(run, f"errors_{short}", {method: largest[f"{teachers[0]}, {method}"] for method in shown})
