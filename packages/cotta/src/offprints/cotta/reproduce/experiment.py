"""The paper's experiment: a model that adapts itself to fifteen corruptions in turn, beside those that do less."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from offprints.cotta.corruptions import CORRUPTIONS
from offprints.cotta.datasets import CONDITIONS
from offprints.cotta.reproduce import figures
from offprints.cotta.reproduce.digits import DigitSettings, run_source, run_stream
from offprints.cotta.reproduce.evaluation import CONTROLS, LABELS, Adaptation, Method
from offprints.cotta.reproduce.paper import (
    TABLES,
    Benchmark,
    PaperSettings,
    run_classification,
    run_segmentation,
    segments_of,
)
from offprints.shared.experiment import Experiment, Run


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is run.

    Attributes:
        benchmarks: digits needs no data; the others are the paper's.
        methods: the claims compare CoTTA with the other three and with itself: its gate shut, one view averaged, or
            the teacher a copy of the student.
        digits: settings of what is trained on the spot: the digits, or Fashion-MNIST.
        paper: where the paper's data and weights are, and how much of them is used.
        processes: that share the work on a CPU; the results do not depend on it.
    """

    benchmarks: tuple[Benchmark, ...] = ("digits",)
    methods: tuple[Method, ...] = ("source", "bn", "tent", "cotta", "shut", "single", "copied")
    digits: DigitSettings = field(default_factory=DigitSettings)
    paper: PaperSettings = field(default_factory=PaperSettings)
    processes: int = 2


def reproduce(config: Config, run: Run) -> None:
    """Carry out the benchmarks that ``config`` asks for."""
    for benchmark in config.benchmarks:
        if benchmark == "digits":
            report_digits(config, run)
        elif benchmark == "acdc":
            report_segmentation(config, run)
        else:
            report_classification(benchmark, config, run)


# ---- digits on photographs -------------------------------------------------------------------------------------------


ORDER: tuple[Method, ...] = ("cotta", "copied", "single", "shut", "tent", "bn", "source")  # the longest first
NAMES = {"digits": "digits on photographs", "fashion": "Fashion-MNIST"}


def report_digits(config: Config, run: Run) -> None:
    """Several networks, each with its stream."""
    device, seeds = str(run.device), run.seeds(config.digits.runs)
    sources = run.units(
        {f"network {i}": partial(run_source, seed, config.digits, device) for i, seed in enumerate(seeds)},
        config.processes,
    )
    streams = run.units(
        {
            f"{method} {i}": partial(run_stream, seed, config.digits, sources[f"network {i}"], method, device)
            for method in sorted(config.methods, key=ORDER.index)
            for i, seed in enumerate(seeds)
        },
        config.processes,
    )
    results = list(sources.values())
    errors: dict[str, np.ndarray] = {
        method: np.stack([np.asarray(streams[f"{method} {i}"]["errors"]) for i in range(len(seeds))])
        for method in config.methods
    }
    names = CORRUPTIONS[: config.digits.corruptions]
    run.report_value("clean", "Error of the source model without corruption, percent", mean_of(results, "clean"))
    run.report_value("threshold", "Confidence threshold from the source images", mean_of(results, "threshold"))
    report_errors(NAMES[config.digits.data], {m: values.mean(1) for m, values in errors.items()}, names, run)
    if config.digits.passes > 1:
        rows = [
            {"method": LABELS[method], "reference": method != "cotta"}
            | {f"pass {i + 1}": error for i, error in enumerate(values.mean((0, 2)))}
            for method, values in errors.items()
        ]
        run.table("Error in percent, pass by pass", rows)
    if "cotta" in errors:
        seen = [streams[f"cotta {i}"] for i in range(len(seeds))]
        opened = float(np.mean([float(stream["augmented"].mean()) for stream in seen]))
        claim_digits(errors, opened, mean_of(results, "clean_open"), run, judged=config.digits.data == "digits")
        figures.draw_confidence(run, seen, mean_of(results, "threshold"), [*names] * config.digits.passes)
    figures.draw_examples(run, results[0]["examples"], names)


def claim_digits(errors: Mapping[str, np.ndarray], opened: float, clean: float, run: Run, *, judged: bool) -> None:
    """The average of weights keeps CoTTA from drifting; what it gains over the others is shown without a bar."""
    means = {method: float(values.mean()) for method, values in errors.items()}
    gains = {method: value - means["cotta"] for method, value in means.items() if method != "cotta"}
    words = "Share of the batches whose views are averaged"
    run.report_value("averaged", words, opened)
    run.report_value("averaged_clean", f"{words}, without corruption", clean)
    if "shut" in means and "bn" in means:
        text = "With the gate shut nothing is learned and CoTTA is batch statistics: difference in points"
        run.check("shut_is_bn", text, abs(means["shut"] - means["bn"]), "<=", 0.1)
    if "copied" in means and "bn" in means:
        text = "Never reset, CoTTA stays within 10 points of batch statistics: its error less theirs, points"
        drift, control = means["cotta"] - means["bn"], means["copied"] - means["bn"]
        name = "the teacher a copy of the student"
        if judged:
            run.claim("averaging", text, drift, "<=", 10, control=control, control_name=name)
        run.report_value("drift_copied", f"Error less that of batch statistics, {name}, points", control)
    for method, gain in gains.items():
        if method not in ("shut", "copied"):
            run.report_value(f"below_{method}", f"Error of {LABELS[method]} less CoTTA's, points", gain)


def mean_of(results: Sequence[Mapping[str, Any]], key: str) -> float:
    """The mean of a number over runs."""
    return float(np.mean([float(result[key]) for result in results]))


def report_errors(what: str, errors: Mapping[str, np.ndarray], names: Sequence[str], run: Run) -> None:
    """Table and figures of errors ``[runs, segments]`` of each method, in percent."""
    rows = [
        {"method": LABELS[method], "reference": method != "cotta", "mean": values.mean()}
        | {name.replace("_", " "): value for name, value in zip(names, values.mean(0), strict=True)}
        for method, values in errors.items()
    ]
    run.table(f"Error in percent, {what}, {next(iter(errors.values())).shape[0]} streams", rows)
    figures.draw_stream(run, what, errors, names)
    figures.draw_bars(run, what, errors, names)


# ---- the paper's own data --------------------------------------------------------------------------------------------


def paper_methods(config: Config) -> list[Method]:
    """Those that the paper reports."""
    return [method for method in config.methods if method not in CONTROLS]


def report_classification(benchmark: Benchmark, config: Config, run: Run) -> None:
    """CIFAR-10-C, CIFAR-100-C and ImageNet-C: one unit per method and order."""
    orders = config.paper.orders if benchmark == "imagenet-c" else 1
    jobs = {
        f"{benchmark} {method} {order}": partial(
            run_classification, benchmark, method, order, seed, config.paper, str(run.device)
        )
        for method in paper_methods(config)
        for order, seed in enumerate(run.seeds(orders))
    }
    done = run.units(jobs, config.processes)
    errors: dict[str, np.ndarray] = {}
    for method in paper_methods(config):
        rows = [np.asarray(done[f"{benchmark} {method} {order}"]["errors"]) for order in range(orders)]
        if benchmark == "imagenet-c":  # each order's errors by corruption, in the order of the others
            rows = [by_corruption(row, segments_of(benchmark, order)) for order, row in enumerate(rows)]
        errors[method] = np.stack(rows)
    gradual = benchmark == "cifar10-c-gradual"
    names = [f"{name} {s}" for name, s in segments_of(benchmark, 0)] if gradual else list(CORRUPTIONS)
    report_errors(benchmark, errors, names, run)
    claim_table(benchmark, {m: values.mean() for m, values in errors.items()}, run, "error in percent", lower=True)


def by_corruption(errors: np.ndarray, segments: Sequence[tuple[str, int]]) -> np.ndarray:
    """Errors of segments in any order, sorted as ``CORRUPTIONS``."""
    found = dict(zip((name for name, _ in segments), errors.tolist(), strict=True))
    return np.array([found[name] for name in CORRUPTIONS])


def report_segmentation(config: Config, run: Run) -> None:
    """Cityscapes to ACDC."""
    jobs = {
        f"acdc {method}": partial(run_segmentation, method, run.seed, config.paper, str(run.device))
        for method in paper_methods(config)
    }
    done = run.units(jobs, config.processes)
    scores: dict[str, np.ndarray] = {
        method: np.asarray(done[f"acdc {method}"]["iou"]) for method in paper_methods(config)
    }
    rows = [
        {"method": LABELS[method], "reference": method != "cotta", "mean": values.mean()}
        | dict(zip(CONDITIONS, values.mean(0), strict=True))
        for method, values in scores.items()
    ]
    run.table(f"Mean IoU in percent, ACDC, {config.paper.rounds} rounds", rows)
    figures.draw_rounds(run, scores)
    claim_table("acdc", {m: values.mean() for m, values in scores.items()}, run, "mean IoU in percent", lower=False)


def claim_table(benchmark: str, means: Mapping[str, float], run: Run, what: str, *, lower: bool) -> None:
    """CoTTA reaches the paper's figure within a point, and is better than the others; theirs are shown."""
    reported = TABLES[benchmark].reported
    for method, mean in means.items():
        if method != "cotta":
            statement = f"{benchmark}: {what} of {LABELS[method]}"
            run.report_value(f"{benchmark}_{method}", statement, mean, paper_value=reported[method])
    if "cotta" not in means:
        return
    ours, paper = means["cotta"], reported["cotta"]
    relation: Literal["<=", ">="] = "<=" if lower else ">="
    bar = paper + 1 if lower else paper - 1
    run.claim(f"{benchmark}_cotta", f"{benchmark}: {what} of CoTTA", ours, relation, bar, paper_value=paper)
    for method, mean in means.items():
        if method != "cotta":
            gain = mean - ours if lower else ours - mean
            expected = abs(reported[method] - paper)
            statement = f"{benchmark}: CoTTA is better than {LABELS[method]}: points"
            run.claim(f"{benchmark}_beats_{method}", statement, gain, ">", 0.0, paper_value=round(expected, 1))


PRESETS = {
    "smoke": Config(
        processes=1,  # another one takes longer to start than the work
        digits=DigitSettings(
            runs=1,
            train_images=200,
            held_out=40,
            test_images=20,
            epochs=1,
            corruptions=15,
            passes=1,
            adaptation=Adaptation(
                learning_rate=1e-2,
                tent_learning_rate=1e-2,
                ema_decay=0.99,
                num_augmentations=2,
                confidence_threshold=None,
                batch_size=20,
            ),
        ),
    ),
    "quick": Config(),
    "medium": Config(
        digits=DigitSettings(
            data="fashion",
            train_images=20_000,
            held_out=2_000,
            test_images=1_000,
            epochs=4,
            passes=1,
            adaptation=Adaptation(
                learning_rate=1e-3,
                tent_learning_rate=1e-3,
                ema_decay=0.99,
                num_augmentations=8,
                confidence_threshold=None,
                batch_size=100,
            ),
        )
    ),
    "paper": Config(benchmarks=("cifar10-c", "cifar10-c-gradual", "cifar100-c", "imagenet-c", "acdc")),
}

experiment = Experiment(
    name="cotta",
    title="Continual test-time domain adaptation",
    arxiv="2203.13591",
    config=Config,
    presets=PRESETS,
    function=reproduce,
)
