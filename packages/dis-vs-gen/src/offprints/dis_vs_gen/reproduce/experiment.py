"""The experiment: the simulation of section 5.1, the two regimes of section 5.2, the statistics of section 5.3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from offprints.dis_vs_gen import (
    AssumptionStatistics,
    GaussianNaiveBayes,
    LearningCurve,
    LogisticRegression,
    MinMaxScaler,
    assumption_statistics,
    crossover,
    learning_curve,
    samples_to_bayes,
)
from offprints.dis_vs_gen.reproduce.backbones import TUNED_C, cifar_features, stored_features
from offprints.dis_vs_gen.reproduce.figures import LR, NB, draw_bound, draw_regimes, draw_simulation, draw_statistics
from offprints.dis_vs_gen.reproduce.medium import MediumSettings, reproduce_medium
from offprints.shared.datasets import digits
from offprints.shared.device import local_seed
from offprints.shared.experiment import Experiment, Run

CIFAR_SIZES = {
    "cifar10": (20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 30_000, 50_000),
    "cifar100": tuple(100 * per_class for per_class in (3, 5, 10, 20, 50, 100, 200, 500)),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the experiment.

    Attributes:
        dimensions: Dimensions n of the simulation.
        classes: Numbers of classes K of the simulation.
        searches: Independent simulations (pools, test sets) whose sample counts are averaged.
        splits: Random splits of wine into training and test data.
        wine_sizes: Training sizes on wine.
        networks: Networks trained on digits, each on its own split.
        network_steps: Full-batch steps of each.
        digit_sizes: Training sizes on digits.
        repeats: Random subsets a size and split.
        backbones: Backbones whose features of CIFAR are evaluated: vit, resnet50, clip, moco_v2=<checkpoint>,
            mae=<checkpoint>, or a folder of features as the official extraction writes them. With any, the small data
            sets are left out.
        datasets: CIFAR sets for them.
        cifar_sizes: Training sizes on CIFAR; () for the paper's.
        C: Inverse regularization of logistic regression; on CIFAR the paper's tuned one is used.
        medium: Fashion-MNIST, halved. With any network, this is all that is run.
        data: Folder of Fashion-MNIST's folder; default: ``OFFPRINTS_DATA``.
        download: Fetch CIFAR or Fashion-MNIST where it is missing.
    """

    dimensions: tuple[int, ...] = (20, 40, 80, 160, 320)
    classes: tuple[int, ...] = (2,)
    searches: int = 2
    splits: int = 20
    wine_sizes: tuple[int, ...] = (6, 10, 20, 40, 80, 110)
    networks: int = 3
    network_steps: int = 300
    digit_sizes: tuple[int, ...] = (20, 50, 100, 200, 500)
    repeats: int = 5
    backbones: tuple[str, ...] = ()
    datasets: tuple[Literal["cifar10", "cifar100"], ...] = ("cifar10", "cifar100")
    cifar_sizes: tuple[int, ...] = ()
    C: float = 1.0
    medium: MediumSettings = field(default_factory=MediumSettings)
    data: Path | None = None
    download: bool = False


def reproduce(config: Config, run: Run) -> None:
    """Record the claims."""
    if config.medium.networks:
        reproduce_medium(config.medium, config.data, config.download, config.C, run)
        return
    for K in config.classes:
        simulation(config, run, K)
    if config.backbones:
        backbones(config, run)
    else:
        two_regimes(config, run)
    draw_bound(run)


def makers(C: float) -> dict[str, Any]:
    """The two classifiers; scikit-learn's tolerance, as in the official code: errors are measured, not weights."""
    return {NB: GaussianNaiveBayes, LR: partial(LogisticRegression, C=C, tol=1e-4)}


# Simulation


def search(name: str, C: float, n: int, K: int, seed: int) -> dict[str, Any]:
    """One unit: samples that a classifier needs."""
    return {"m": samples_to_bayes(makers(C)[name], n, n_classes=K, seed=seed)}


def simulation(config: Config, run: Run, K: int) -> None:
    """Naive Bayes needs O(log n) samples, logistic regression O(n)."""
    seeds = run.seeds(config.searches)
    keys = {
        (name, n, seed): f"simulation K={K} {name} n={n} seed={seed}"
        for name in (NB, LR)
        for n in config.dimensions
        for seed in seeds
    }
    found = run.units({key: partial(search, name, config.C, n, K, seed) for (name, n, seed), key in keys.items()})
    needed = {
        name: np.array([[found[keys[name, n, seed]]["m"] for n in config.dimensions] for seed in seeds], dtype=float)
        for name in (NB, LR)
    }
    first, last = min(config.dimensions), max(config.dimensions)
    mean = {name: dict(zip(config.dimensions, counts.mean(0), strict=True)) for name, counts in needed.items()}
    suffix = "" if K == 2 else f"-{K}"
    run.claim(
        f"nb-flat{suffix}",
        f"simulation, {K} classes: samples that naive Bayes needs at n = {last} over those at n = {first}",
        mean[NB][last] / mean[NB][first],
        "<=",
        2.5,
        paper_value="O(log n)",
        control=mean[LR][last] / mean[LR][first],
        control_name="discriminative instead of generative",
    )
    run.claim(
        f"lr-grows{suffix}",
        f"the same for logistic regression (n grows {last / first:.3g}-fold)",
        mean[LR][last] / mean[LR][first],
        ">=",
        3.0,
        paper_value="O(n)",
        control=mean[NB][last] / mean[NB][first],
        control_name="generative instead of discriminative",
    )
    run.claim(
        f"nb-fewer{suffix}",
        f"samples that logistic regression needs over those of naive Bayes at n = {last}",
        mean[LR][last] / mean[NB][last],
        ">=",
        10.0,
        paper_value="n / log n in order",
        control=mean[LR][first] / mean[NB][first],
        control_name=f"few dimensions, n = {first}",
    )
    run.table(
        f"simulation, {K} classes: samples needed",
        [{"n": n, NB: mean[NB][n], LR: mean[LR][n]} for n in config.dimensions],
    )
    if config.classes[0] == K:
        draw_simulation(run, list(config.dimensions), needed)


# Two regimes on small data


def joined(curves: list[LearningCurve]) -> LearningCurve:
    """The repeats of several splits together."""
    return LearningCurve(sizes=curves[0].sizes, errors=torch.cat([curve.errors for curve in curves]))


def split(X: Tensor, y: Tensor, n_train: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training features and labels, then those of the test."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(y)))
    return X[order[:n_train]], y[order[:n_train]], X[order[n_train:]], y[order[n_train:]]


def errors_on(
    data: tuple[Tensor, Tensor, Tensor, Tensor], config: Config, sizes: tuple[int, ...], seed: int
) -> dict[str, Any]:
    """Errors of both classifiers on the same subsets."""
    return {
        name: learning_curve(make, *data, sizes, repeats=config.repeats, seed=seed).errors
        for name, make in makers(config.C).items()
    }


def wine_unit(config: Config, seed: int) -> dict[str, Any]:
    """One split of wine."""
    from sklearn.datasets import load_wine

    bundle = load_wine()
    X, y = torch.from_numpy(bundle.data), torch.from_numpy(bundle.target.astype(np.int64))
    return errors_on(split(X, y, 120, seed), config, config.wine_sizes, seed)


def penultimate_features(X: Tensor, y: Tensor, X_other: Tensor, steps: int, seed: int) -> Tensor:
    """Features of other images in a network 64-256-256-10 trained on X, full batch."""
    with local_seed(seed):
        body = nn.Sequential(nn.Linear(X.shape[1], 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
        head = nn.Linear(256, 10)
        optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=1e-3)
        for _ in range(steps):
            loss = nn.functional.cross_entropy(head(body(X)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return body(X_other)


def digits_unit(config: Config, seed: int) -> dict[str, Any]:
    """One network: its features beside raw pixels, and the statistics of its features."""
    X, y = digits()
    X_net, y_net, X, y = split(X, y, 700, seed)
    features = penultimate_features(X_net, y_net, X, config.network_steps, seed)
    results: dict[str, Any] = {}
    for name, inputs in (("features", features), ("pixels", X)):
        data = split(inputs, y, 600, seed)
        for classifier, errors in errors_on(data, config, config.digit_sizes, seed).items():
            results[f"{name} {classifier}"] = errors
        if name == "pixels":
            weak = makers(0.1 * config.C)[LR]
            curve = learning_curve(weak, *data, config.digit_sizes, repeats=config.repeats, seed=seed)
            results["pixels weak"] = curve.errors
    found = assumption_statistics(MinMaxScaler().fit_transform(features), y)
    return results | {"alpha": found.alpha, "beta": found.beta, "variance": found.variance}


def two_regimes(config: Config, run: Run) -> None:
    """Naive Bayes is better with few labels, logistic regression with many; not on every data set."""
    wine = run.units({f"wine {seed}": partial(wine_unit, config, seed) for seed in run.seeds(config.splits)})
    images = run.units({f"digits {seed}": partial(digits_unit, config, seed) for seed in run.seeds(config.networks)})

    def curve(units: Mapping[str, dict[str, Any]], key: str, sizes: tuple[int, ...]) -> LearningCurve:
        return joined([LearningCurve(sizes=list(sizes), errors=unit[key]) for unit in units.values()])

    weak = f"{LR}, C = {0.1 * config.C:g}"
    panels = {
        "Wine": {name: curve(wine, name, config.wine_sizes) for name in (NB, LR)},
        "Features of a network, digits": {
            name: curve(images, f"features {name}", config.digit_sizes) for name in (NB, LR)
        },
        "Raw pixels, digits": {
            **{name: curve(images, f"pixels {name}", config.digit_sizes) for name in (NB, LR)},
            weak: curve(images, "pixels weak", config.digit_sizes),
        },
    }
    crossings = {title: crossover(curves[NB], curves[LR]) for title, curves in panels.items()}
    for title, few, many, few_bar, many_bar in (
        ("Wine", config.wine_sizes[1], config.wine_sizes[-1], 0.03, 0.008),
        ("Features of a network, digits", config.digit_sizes[0], config.digit_sizes[-1], None, 0.002),
    ):
        mean = {name: dict(zip(c.sizes, c.errors.mean(0).tolist(), strict=True)) for name, c in panels[title].items()}
        identifier = title.split(",")[0].split()[0].lower()
        lead = mean[LR][few] - mean[NB][few]
        words = f"{title}, m = {few}: error of logistic regression less that of naive Bayes"
        paper = "naive Bayes better with few labels"
        if few_bar is None:  # a lead that depends on the network too much
            run.report_value(f"{identifier}-few", words, lead, paper_value=paper)
        else:
            late = mean[LR][many] - mean[NB][many]
            name = f"many labels, m = {many}"
            run.claim(
                f"{identifier}-few", words, lead, ">=", few_bar, paper_value=paper, control=late, control_name=name
            )
        run.claim(
            f"{identifier}-many",
            f"{title}, m = {many}: error of naive Bayes less that of logistic regression",
            mean[NB][many] - mean[LR][many],
            ">=",
            many_bar,
            paper_value="logistic regression better with many",
            control=-lead,
            control_name=f"few labels, m = {few}",
        )
        run.report_value(
            f"{identifier}-crossover", f"{title}: from which m logistic regression is better", told(crossings[title])
        )
    raw = panels["Raw pixels, digits"]
    gap = (raw[NB].errors.mean(0) - raw[LR].errors.mean(0)).min()
    run.report_value(
        "pixels-never",
        "raw pixels: smallest lead of logistic regression over naive Bayes at any m (positive: no two regimes)",
        float(gap),
    )
    unit = next(iter(images.values()))
    statistics = AssumptionStatistics(alpha=unit["alpha"], beta=unit["beta"], variance=unit["variance"])
    run.report_value(
        "dead-features",
        "features of the first network without any variance, of 256",
        int((statistics.variance <= 1e-9 * (1 + 1e-6)).sum()),
    )
    tables(run, panels)
    draw_regimes(run, panels, crossings)
    draw_statistics(run, {"Features of a network, digits": statistics})


def told(size: int | None) -> str:
    """A crossover in words."""
    return "none" if size is None else f"m = {size}"


def tables(run: Run, panels: Mapping[str, Mapping[str, LearningCurve]]) -> None:
    """Mean errors in percent."""
    for title, curves in panels.items():
        rows = [
            {"m": m, **{name: 100 * float(curve.errors[:, i].mean()) for name, curve in curves.items()}}
            for i, m in enumerate(next(iter(curves.values())).sizes)
        ]
        run.table(f"{title}: test error (%)", rows)


# The paper's backbones


def backbone_unit(given: str, dataset: str, config: Config, run: Run) -> dict[str, Any]:
    """Errors of both classifiers on the features of one backbone, and the statistics of these."""
    name, _, checkpoint = given.partition("=")
    if Path(given).is_dir():
        splits, name = stored_features(given), Path(given).name
    else:
        amp = run.precision != "float32"
        splits = cifar_features(
            name, dataset, checkpoint=checkpoint, device=run.device, amp=amp, download=config.download
        )
    X, y, X_test, y_test = (part.to(run.device) for pair in splits for part in pair)
    K = len(y.unique())
    number = int(K == 100)
    C = TUNED_C[name][number] if name in TUNED_C else config.C
    wanted = config.cifar_sizes or CIFAR_SIZES[("cifar10", "cifar100")[number]]
    sizes = [m for m in wanted if K <= m <= len(y)]
    errors = {
        label: learning_curve(make, X, y, X_test, y_test, sizes, repeats=config.repeats, seed=run.seed).errors
        for label, make in makers(C).items()
    }
    found = assumption_statistics(MinMaxScaler().fit_transform(X), y)
    return {**errors, "sizes": sizes, "alpha": found.alpha, "beta": found.beta, "variance": found.variance}


def backbones(config: Config, run: Run) -> None:
    """Learning curves and statistics of frozen features of CIFAR."""
    panels: dict[str, dict[str, LearningCurve]] = {}
    statistics, crossings = {}, {}
    for given in config.backbones:
        stored = Path(given).is_dir()
        for dataset in ("",) if stored else config.datasets:
            name = Path(given).name if stored else given.partition("=")[0]
            title = name if stored else f"{name}, {dataset}"
            unit = run.unit(f"backbone {title}", partial(backbone_unit, given, dataset, config, run))
            sizes = unit["sizes"]
            panels[title] = {label: LearningCurve(sizes=sizes, errors=unit[label]) for label in (NB, LR)}
            statistics[title] = AssumptionStatistics(alpha=unit["alpha"], beta=unit["beta"], variance=unit["variance"])
            crossings[title] = crossover(panels[title][NB], panels[title][LR])
            words = f"{title}: from which m logistic regression is better"
            run.report_value(f"crossover {title}", words, told(crossings[title]))
            nb, lr = (panels[title][label].errors.mean(0) for label in (NB, LR))
            if name in ("vit", "resnet50", "clip"):
                words = f"{title}, m = {sizes[0]}: error of logistic regression less that of naive Bayes"
                run.claim(f"few {title}", words, float(lr[0] - nb[0]), ">", 0, paper_value="two regimes")
                words = f"{title}, m = {sizes[-1]}: error of naive Bayes less that of logistic regression"
                run.claim(f"many {title}", words, float(nb[-1] - lr[-1]), ">", 0, paper_value="two regimes")
            words = f"{title}: share of its gain that naive Bayes has made halfway, less that of logistic regression"
            plateau = "naive Bayes reaches its plateau first"
            run.claim(f"plateau {title}", words, gained(nb) - gained(lr), ">", 0, paper_value=plateau)
    tables(run, panels)
    draw_regimes(run, panels, crossings)
    draw_statistics(run, statistics)


def gained(errors: Tensor) -> float:
    """Share of the gain from the first to the last size made halfway."""
    whole = float(errors[0] - errors[-1])
    return float(errors[0] - errors[len(errors) // 2]) / whole if whole > 0 else 1.0


experiment = Experiment(
    name="dis-vs-gen",
    title="Revisiting discriminative vs. generative classifiers: theory and implications",
    arxiv="2302.02334",
    config=Config,
    presets={
        "smoke": Config(
            dimensions=(10, 20), searches=1, splits=2, wine_sizes=(6, 20, 110), networks=1, network_steps=20,
            digit_sizes=(20, 100), repeats=2,
        ),
        "quick": Config(),
        "medium": Config(medium=MediumSettings(networks=3)),
        "paper": Config(
            dimensions=(100, 200, 400, 1000), classes=(2, 3, 5, 7), searches=1, backbones=("vit", "resnet50", "clip")
        ),
    },
    function=reproduce,
)  # fmt: skip
