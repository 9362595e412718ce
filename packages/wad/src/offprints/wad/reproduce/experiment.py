"""The experiment: digits; Fashion-MNIST; the paper's CIFAR-10 and CIFAR-100."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from offprints.shared.experiment import Experiment, Run
from offprints.wad.reproduce.digits import PIXELS, SIMCLR, SPECTRAL, DigitsSettings, student_unit, teacher_unit
from offprints.wad.reproduce.figures import draw_accuracy, draw_errors, draw_weights
from offprints.wad.reproduce.medium import MediumSettings, reproduce_medium
from offprints.wad.reproduce.paper import PaperSettings, reproduce_paper
from offprints.wad.reproduce.students import PERMUTED, SUPERVISED, TRAINERS, UNWEIGHTED, WAD, moving
from offprints.wad.reproduce.teachers import mean_of, ratio, standard_error

# Set on the seeds 5 to 10: AUROC 0.947 to 0.968 (control at most 0.58), invasion 0.136 to 0.19 (at least 0.596), ratio
# of the pseudo-labeling errors 0.36 to 0.55 (at least 0.98).
AUROC_BAR, INVASION_BAR, PSEUDO_BAR = 0.9, 0.25, 0.75


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the experiment.

    Attributes:
        digits: The quick preset.
        medium: Fashion-MNIST. With any mismatch, this is all that is run.
        paper: CIFAR. With any data set, this is all that is run.
        data: Folder of the data sets' folders; default: ``OFFPRINTS_DATA``.
        download: Fetch them where they are missing.
    """

    digits: DigitsSettings = field(default_factory=DigitsSettings)
    medium: MediumSettings = field(default_factory=MediumSettings)
    paper: PaperSettings = field(default_factory=PaperSettings)
    data: Path | None = None
    download: bool = False


def reproduce(config: Config, run: Run) -> None:
    """Record the claims."""
    if config.paper.sets:
        reproduce_paper(config.paper, config.data, config.download, run)
    elif config.medium.mismatches:
        reproduce_medium(config.medium, config.data, config.download, run)
    else:
        reproduce_digits(config.digits, run)


def reproduce_digits(settings: DigitsSettings, run: Run) -> None:
    """What a teacher knows, and what the student makes of it."""
    seeds = run.seeds(max(settings.draws, settings.teacher_draws))
    jobs: dict[str, Any] = {
        f"students {mismatch} {seed}": partial(student_unit, settings, mismatch, seed, number)
        for number, seed in enumerate(seeds[: settings.draws])
        for mismatch in reversed(settings.mismatches)
    }
    for number, seed in enumerate(seeds[: settings.teacher_draws]):
        jobs[f"teachers {seed}"] = partial(teacher_unit, settings, seed, number)
    done = run.units(jobs)
    teachers = [done[f"teachers {seed}"] for seed in seeds[: settings.teacher_draws]]
    students = {
        mismatch: [done[f"students {mismatch} {seed}"] for seed in seeds[: settings.draws]]
        for mismatch in settings.mismatches
    }
    report_teachers(teachers, settings, run)
    report_students(students, run)


def report_teachers(draws: Sequence[Mapping[str, Any]], settings: DigitsSettings, run: Run) -> None:
    """How well weights tell known from unknown, and the two errors."""
    share = settings.mismatches[-1]
    where = f"share {share:g} of unknown images, spectral teacher, mean of {len(draws)} draws"

    def values(key: str, teacher: str = SPECTRAL) -> list[float]:
        return [found[teacher][key] for found in draws if teacher in found]

    run.claim(
        "auroc",
        f"{where}: AUROC of the weight, known against unknown images",
        mean_of(values("auroc")),
        ">=",
        AUROC_BAR,
        spread=standard_error(values("auroc")),
        control=mean_of(values("auroc of the control")),
        control_name="labels of the labeled images permuted",
    )
    run.claim(
        "invasion",
        f"{where}: invasion error, the share of the weight that lies on unknown images",
        mean_of(values("invasion")),
        "<=",
        INVASION_BAR,
        spread=standard_error(values("invasion")),
        control=mean_of(values("invasion of permuted weights")),
        control_name="weights permuted",
    )
    equal = mean_of(values("pseudo-labeling of equal weights"))
    run.claim(
        "pseudo-labeling",
        f"{where}: pseudo-labeling error, the share of the weight that lies on wrong labels of known images, over the"
        " same with equal weights",
        ratio(mean_of(values("pseudo-labeling")), equal),
        "<=",
        PSEUDO_BAR,
        control=ratio(mean_of(values("pseudo-labeling of permuted weights")), equal),
        control_name="weights permuted",
    )
    told = {
        "pseudo-labeling of equal weights": "pseudo-labeling error with all weights equal",
        "auroc of the maximum": "AUROC of the largest cosine alone",
        "right": "right pseudo-labels of known images",
    }
    for key, statement in told.items():
        run.report_value(key.replace(" ", "-"), f"spectral teacher: {statement}", mean_of(values(key)))
    for teacher in (PIXELS, SIMCLR):
        count = len(values("auroc", teacher))
        short = f"{teacher} as the teacher" if teacher == PIXELS else f"SimCLR of {settings.simclr_epochs} epochs"
        if count:
            run.report_value(
                f"auroc-{teacher.lower()}",
                f"{short}: AUROC of the weight, mean of {count} draws",
                mean_of(values("auroc", teacher)),
            )
    keys = [key for key in draws[0][SPECTRAL] if key not in ("weights", "known")]
    rows = [
        {"teacher": teacher, **{key: mean_of(values(key, teacher)) for key in keys}}
        for teacher in (SPECTRAL, PIXELS, SIMCLR)
        if values("auroc", teacher)
    ]
    run.table(f"What teachers know, at the share {share:g}: means over the draws", rows)
    draw_weights(run, "weights", draws[0])


def report_students(draws: Mapping[float, Sequence[Mapping[str, Any]]], run: Run) -> None:
    """Accuracies of the students."""
    last, first = max(draws), min(draws)

    def accuracies(mismatch: float, method: str, teacher: str = SPECTRAL) -> list[float]:
        key = f"{teacher}, {method}"
        return [found[key]["accuracy"] for found in draws[mismatch] if key in found]

    def gain(mismatch: float, method: str, over: str = UNWEIGHTED, teacher: str = SPECTRAL) -> list[float]:
        pairs = zip(accuracies(mismatch, method, teacher), accuracies(mismatch, over, teacher), strict=True)
        return [a - b for a, b in pairs]

    for mismatch in draws:
        run.report_value(
            f"gain-{mismatch:g}",
            f"spectral teacher, nothing moved, share {mismatch:g}: accuracy with weights minus with all weights 1",
            mean_of(gain(mismatch, WAD)),
        )
    run.report_value(
        "gain-permuted",
        f"spectral teacher, nothing moved, share {last:g}: accuracy with permuted weights minus with all weights 1",
        mean_of(gain(last, PERMUTED)),
    )
    run.report_value(
        "moved-gain",
        f"with samples moved, share {last:g}: accuracy with weights minus with all weights 1",
        mean_of(gain(last, moving(WAD), moving(UNWEIGHTED))),
    )
    for mismatch in draws:
        run.report_value(
            f"moved-{mismatch:g}",
            f"share {mismatch:g}: accuracy of WAD with samples moved minus with nothing moved",
            mean_of(gain(mismatch, moving(WAD), WAD)),
        )
    run.report_value(
        "supervised",
        f"share {first:g}: accuracy of WAD, nothing moved, minus supervised alone",
        mean_of(gain(first, WAD, SUPERVISED)),
    )
    pixels = {mismatch: gain(mismatch, WAD, teacher=PIXELS) for mismatch in draws}
    for mismatch, values in pixels.items():
        if values:
            run.report_value(
                f"pixels-{mismatch:g}",
                f"pixels as the teacher, share {mismatch:g}: accuracy with weights minus with all weights 1",
                mean_of(values),
            )
    panels = {
        teacher: {
            method: [accuracies(mismatch, method, teacher) for mismatch in draws]
            for method in TRAINERS
            if any(accuracies(mismatch, method, teacher) for mismatch in draws)
        }
        for teacher in (SPECTRAL, PIXELS)
    }
    run.table(
        "Test accuracy, means over the draws",
        [
            {"teacher": teacher, "method": method, "reference": method not in (WAD, moving(WAD))}
            | {f"share {m:g}": mean_of(found) if found else None for m, found in zip(draws, of_method, strict=True)}
            for teacher, methods in panels.items()
            for method, of_method in methods.items()
        ],
    )
    draw_accuracy(run, "accuracy", list(draws), {teacher: methods for teacher, methods in panels.items() if methods})
    shown = (moving(UNWEIGHTED), moving(WAD), PERMUTED)
    rounds = range(len(draws[last][0][f"{SPECTRAL}, {WAD}"]["invasion"]))
    draw_errors(
        run,
        "errors",
        {
            method: {
                error: [mean_of(found[f"{SPECTRAL}, {method}"][error][r] for found in draws[last]) for r in rounds]
                for error in ("pseudo-labeling", "invasion")
            }
            for method in shown
        },
    )


experiment = Experiment(
    name="wad",
    title="Semi-Supervised Learning via Weight-aware Distillation under Class Distribution Mismatch",
    arxiv="2308.11874",
    config=Config,
    presets={
        "smoke": Config(
            digits=DigitsSettings(
                draws=1, teacher_draws=2, mismatches=(0.2, 0.6), rounds=2, steps=3, pixel_draws=1, simclr_draws=1,
                simclr_epochs=1,
            )
        ),
        "quick": Config(),
        "medium": Config(medium=MediumSettings(mismatches=(0.2, 0.4, 0.6, 0.8))),
        "paper": Config(paper=PaperSettings(sets=("cifar10", "cifar100"))),
    },
    function=reproduce,
)  # fmt: skip
