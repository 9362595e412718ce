"""The paper's own experiment: CIFAR-10 and CIFAR-100, a ResNet-18 teacher, a WRN-28-2 student."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from offprints.shared.datasets import vision_dataset
from offprints.shared.experiment import Part, Run
from offprints.wad import SimCLRTeacher, mismatch_split, rectify_labels
from offprints.wad.contrastive import ContrastiveTraining
from offprints.wad.networks import wide_resnet
from offprints.wad.reproduce.medium import report
from offprints.wad.reproduce.networks import resnet18
from offprints.wad.reproduce.students import SUPERVISED, UNWEIGHTED, WAD, moving, train_student
from offprints.wad.reproduce.teachers import judged

CIFAR100_TARGETS = (3, 42, 43, 88, 97, 15, 19, 21, 32, 39, 35, 63, 64, 66, 75, 37, 50, 65, 74, 80)
TARGETS = {"cifar10": (0, 1), "cifar100": CIFAR100_TARGETS}
TEACHER_EPOCHS = {"cifar10": 700, "cifar100": 2000}
STEPS = {"cifar10": 1500, "cifar100": 2000}
METHODS = (SUPERVISED, moving(UNWEIGHTED), WAD, moving(WAD))
Collection = Literal["cifar10", "cifar100"]


@dataclass(frozen=True, kw_only=True)
class PaperSettings:
    """The paper's settings.

    Attributes:
        sets: Data sets; with none this part is left out.
        mismatches: Shares of unknown images in the pool.
        labeled: Labeled images.
        teacher_epochs: 0: the paper's, 700 and 2000.
        teacher_batch: Images a step, each seen twice.
        teacher_lr: Largest rate, ten times the one that the rise begins with; lower it with few images.
        warmup_epochs: Of the rise.
        teacher_width: Channels of the teacher's first layer; 64 is ResNet-18.
        student_depth: 28 and
        student_widen: 2 are WRN-28-2.
        rounds: Of training.
        steps: In each round; 0: the paper's, 1500 and 2000.
        every: Epochs of the teacher between checkpoints.
    """

    sets: tuple[Collection, ...] = ()
    mismatches: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
    labeled: int = 800
    teacher_epochs: int = 0
    teacher_batch: int = 32
    teacher_lr: float = 1.0
    warmup_epochs: int = 10
    teacher_width: int = 64
    student_depth: int = 28
    student_widen: int = 2
    rounds: int = 6
    steps: int = 0
    every: int = 10


@dataclass(frozen=True)
class Benchmark:
    """One split: images in [0, 1], labels as positions among the known classes, -1 for unknown ones."""

    labeled: Tensor
    labels: Tensor
    unlabeled: Tensor
    truth: Tensor
    test: Tensor
    test_labels: Tensor


def load(name: Collection, mismatch: float, settings: PaperSettings, data: Path | None, download: bool) -> Benchmark:
    """The paper's split of a data set; seed 0, as the paper's.

    Raises:
        MissingData: the data is not there and `download` is off.
    """

    def images(split: str) -> tuple[Tensor, np.ndarray]:
        found: Any = vision_dataset(name, split, download=download, root=data)
        return torch.from_numpy(found.data).permute(0, 3, 1, 2).float() / 255, np.asarray(found.targets)

    targets = TARGETS[name]
    x, y = images("train")
    split = mismatch_split(y, target_classes=targets, num_labeled=settings.labeled, mismatch=mismatch, seed=0)
    truth = np.full(len(split.unlabeled), -1)
    known = split.is_target_unlabeled
    truth[known] = rectify_labels(y[split.unlabeled][known], targets)
    x_test, y_test = images("test")
    test = np.isin(y_test, targets)
    return Benchmark(
        x[split.labeled],
        torch.from_numpy(rectify_labels(y[split.labeled], targets)),
        x[split.unlabeled],
        torch.from_numpy(truth),
        x_test[test],
        torch.from_numpy(rectify_labels(y_test[test], targets)),
    )


def train_teacher(benchmark: Benchmark, epochs: int, settings: PaperSettings, device: torch.device, part: Part) -> Any:
    """Features of labeled and unlabeled images by a teacher that is trained on both."""
    images = torch.cat([benchmark.labeled, benchmark.unlabeled])
    teacher = SimCLRTeacher(*resnet18(3, width=settings.teacher_width)).to(device)
    training = ContrastiveTraining(
        teacher,
        images.to(device),
        epochs=epochs,
        batch_size=settings.teacher_batch,
        lr=settings.teacher_lr,
        momentum=0.9,
        weight_decay=1e-6,
        warmup_epochs=settings.warmup_epochs,
        temperature=0.5,
        augment=None,
    )
    if (found := part.restore()) is not None:
        training.load_state_dict(found[1])
    for epoch in part.progress(range(training.epochs_done, epochs)):
        entry = training.epoch()
        part.log(epoch + 1, loss=entry["loss"])
        if (epoch + 1) % settings.every == 0:
            part.checkpoint(epoch + 1, training.state_dict())
    teacher.fitted.fill_(True)
    z = teacher.embed(images).cpu()
    return {"labeled": z[: len(benchmark.labeled)], "unlabeled": z[len(benchmark.labeled) :]}


def new_student(classes: int, settings: PaperSettings) -> nn.Module:
    """WRN-28-2."""
    return wide_resnet(3, classes, depth=settings.student_depth, widen=settings.student_widen)


def reproduce_paper(settings: PaperSettings, data: Path | None, download: bool, run: Run) -> None:
    """Test accuracy against the share of unknown images."""
    for name in settings.sets:
        units: dict[float, dict[str, Any]] = {}
        for mismatch in settings.mismatches:
            benchmark = load(name, mismatch, settings, data, download)
            epochs = settings.teacher_epochs or TEACHER_EPOCHS[name]
            key = f"{name} {mismatch}"
            z = run.part(f"{key} teacher").once(partial(train_teacher, benchmark, epochs, settings, run.device))
            features = z["labeled"].cpu(), z["unlabeled"].cpu()
            unit: dict[str, Any] = {"SimCLR": judged(features, benchmark.labels, benchmark.truth, seed=run.seed)}
            for method in METHODS:
                work = partial(
                    train_student,
                    method,
                    partial(new_student, len(TARGETS[name]), settings),
                    features,
                    (benchmark.labeled, benchmark.labels),
                    (benchmark.unlabeled, benchmark.truth),
                    (benchmark.test, benchmark.test_labels),
                    seed=run.seed,
                    device=run.device,
                    rounds=settings.rounds,
                    steps_per_round=settings.steps or STEPS[name],
                )
                unit[f"SimCLR, {method}"] = run.unit(f"{key} {method}", work)
            units[mismatch] = unit
            gain = unit[f"SimCLR, {moving(WAD)}"]["accuracy"] - unit[f"SimCLR, {SUPERVISED}"]["accuracy"]
            run.claim(
                f"{name}-{mismatch:g}",
                f"{name}, share {mismatch:g} of unknown images: accuracy of WAD minus supervised alone",
                gain,
                ">",
                0,
            )
        report(units, run, name, ("SimCLR",), METHODS)
