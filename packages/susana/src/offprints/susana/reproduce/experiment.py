"""The experiment: embeddings trained with the paper's losses, tested on classes that they have not seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from offprints.shared.device import local_seed
from offprints.shared.experiment import Experiment, Run
from offprints.shared.usage import UsageError
from offprints.susana import (
    EpisodeSampler,
    FewShotLoss,
    conv4,
    mean_confidence_interval,
)
from offprints.susana.reproduce.data import Images, omniglot, patches, split_classes
from offprints.susana.reproduce.figures import draw_accuracies, draw_episode, draw_scores
from offprints.susana.reproduce.paper import PaperSettings, reproduce_paper
from offprints.susana.reproduce.training import embedded, episodes, examine, terms_of, train_on_episodes

RAW, UNTRAINED, PLAIN, ICNN = "raw pixels", "untrained network", "cross_entropy", "cross_entropy+full_icnn"
# The combinations that the authors report.
COMBINATIONS = (
    "support_icnn",
    "support_icnn+query_icnn",
    "cross_entropy+support_icnn",
    "cross_entropy+support_icnn+query_icnn",
    "proto_triplet",
    "cross_entropy+proto_triplet",
    "proto_triplet+full_icnn",
    "cross_entropy+proto_triplet+full_icnn",
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the experiment.

    Attributes:
        source: patches (bundled pictures) or omniglot (handwritten characters).
        splits: Divisions into base and novel classes, each with its own networks.
        base: Base classes of the patches.
        terms: Combinations of terms, each trained on its own, as "cross_entropy+support_icnn".
        hidden: Channels of the network.
        steps: Training episodes.
        way: Classes of a training episode.
        shot: Supports of a class in training.
        query: Queries of a class in training.
        learning_rate: Of Adam.
        test_ways: Classes of a test episode; one table each.
        test_shot: Supports of a class in the test.
        test_query: Queries of a class in the test.
        test_episodes: Test episodes.
        paper: The paper's own data and settings. With any data set, this is all that is run.
        data: Folder of the data; default: ``OFFPRINTS_DATA``.
        download: Fetch Omniglot where it is missing.
    """

    source: Literal["patches", "omniglot"] = "patches"
    splits: int = 2
    base: int = 10
    terms: tuple[str, ...] = (
        PLAIN,
        "cross_entropy+support_icnn",
        ICNN,
        "proto_triplet",
        "cross_entropy+proto_triplet",
    )
    hidden: int = 32
    steps: int = 400
    way: int = 5
    shot: int = 5
    query: int = 5
    learning_rate: float = 1e-3
    test_ways: tuple[int, ...] = (5,)
    test_shot: int = 1
    test_query: int = 15
    test_episodes: int = 300
    paper: PaperSettings = field(default_factory=PaperSettings)
    data: Path | None = None
    download: bool = False


def reproduce(config: Config, run: Run) -> None:
    """Record the claims."""
    if config.paper.datasets:
        reproduce_paper(config, run)
        return
    if PLAIN not in config.terms:
        raise UsageError(f"terms must hold {PLAIN!r}, which the others are compared with, got {config.terms}")
    seeds = run.seeds(config.splits)
    names = (RAW, UNTRAINED, *config.terms)
    functions = {
        f"{name}, split {seed}": partial(measure, name, config, seed, str(run.device))
        for seed in seeds
        for name in names
    }
    found = run.units(functions)
    results = {name: [found[f"{name}, split {seed}"] for seed in seeds] for name in names}
    for way in config.test_ways:
        _accuracies(config, run, results, way)
    _score_predicts_accuracy(config, run, results)
    _dropping_the_nearest(config, run, results)
    draw_episode(
        run,
        {
            told(name): (results[name][0]["features"], results[name][0]["labels"])
            for name in (RAW, UNTRAINED, PLAIN, ICNN)
            if name in results
        },
    )


def told(name: str) -> str:
    """A combination in words."""
    return name.replace("+", " + ").replace("_", " ")


# One embedding


def images_of(config: Config, seed: int) -> tuple[Images, Images]:
    """Images of the base and of the novel classes."""
    if config.source == "patches":
        return split_classes(patches(), config.base, seed)
    return (
        omniglot("train", data=config.data, download=config.download),
        omniglot("test", data=config.data, download=config.download),
    )


def measure(name: str, config: Config, seed: int, device: str) -> dict[str, Any]:
    """One unit: train an embedding, or take an untrained one, and examine it on base and novel classes."""
    base, novel = (Images(part.x.to(device), part.y) for part in images_of(config, seed))
    with local_seed(seed):
        backbone: nn.Module = conv4(in_channels=base.x.shape[1], hidden=config.hidden).to(device)
    if name == RAW:
        backbone = nn.Flatten()
    elif name != UNTRAINED:
        optimizer = torch.optim.Adam(backbone.parameters(), lr=config.learning_rate)
        sampler = EpisodeSampler(
            base.y,
            n_way=config.way,
            n_shot=config.shot,
            n_query=config.query,
            n_episodes=config.steps,
            seed=seed,
        )
        loss = FewShotLoss(terms_of(name), n_way=config.way)
        train_on_episodes(backbone, loss, episodes(base, sampler), optimizer)
    sets = {"novel": embedded(backbone, novel)}
    if name == PLAIN:
        sets["base"] = embedded(backbone, base)
    result: dict[str, Any] = {}
    for way in config.test_ways:
        for kind, features in sets.items():
            if kind == "base" and way != config.test_ways[0]:
                continue
            sampler = _test_sampler(config, features, way, seed)
            result[f"{kind} {way}"] = examine(episodes(features, sampler), seed, controls=name == PLAIN)
    episode = next(episodes(sets["novel"], _test_sampler(config, novel, config.test_ways[0], seed)))
    result["features"], result["labels"] = episode.query.cpu(), episode.query_labels.cpu()
    return result


def _test_sampler(config: Config, images: Images, way: int, seed: int) -> EpisodeSampler:
    return EpisodeSampler(
        images.y,
        n_way=way,
        n_shot=config.test_shot,
        n_query=config.test_query,
        n_episodes=config.test_episodes,
        seed=seed + 500,
    )


# The claims

Results = Mapping[str, list[dict[str, Any]]]


def mean_of(results: list[dict[str, Any]], kind: str, value: str) -> float:
    """The mean over splits and episodes."""
    return float(torch.stack([result[kind][value].mean() for result in results]).mean())


def _accuracies(config: Config, run: Run, results: Results, way: int) -> None:
    """Learned embeddings beat raw pixels on new classes; the losses differ by less than the noise."""
    kind, first = f"novel {way}", way == config.test_ways[0]
    accuracy = {name: mean_of(found, kind, "accuracy") for name, found in results.items()}
    score = {name: mean_of(found, kind, "among queries") for name, found in results.items()}
    suffix = "" if first else f"-{way}"
    task = f"new classes, {way}-way {config.test_shot}-shot"
    worst = min(accuracy[name] for name in config.terms)
    run.claim(
        f"learned{suffix}",
        f"{task}: lowest accuracy of the {len(config.terms)} combinations less that of raw pixels",
        worst - accuracy[RAW],
        ">=",
        LEARNED_BAR[config.source],
        control=accuracy[UNTRAINED] - accuracy[RAW],
        control_name="the same network untrained",
    )
    others = [name for name in config.terms if name != PLAIN]
    if others:
        best = max(others, key=accuracy.__getitem__)
        run.report_value(
            f"gain{suffix}",
            f"{task}: highest accuracy with the paper's losses less that of cross-entropy alone",
            accuracy[best] - accuracy[PLAIN],
            paper_value="about 0.02 on miniImageNet",
        )
        run.report_value(
            f"score-gain{suffix}",
            f"{task}: highest ICNN score of the queries with the paper's losses less that with cross-entropy alone",
            max(score[name] for name in others) - score[PLAIN],
        )
    points = {
        name: [mean_confidence_interval(result[kind]["accuracy"]) for result in found]
        for name, found in results.items()
    }
    run.table(
        f"{task}: accuracy (%) and ICNN score",
        [
            {
                "terms": told(name),
                "accuracy": 100 * accuracy[name],
                **{f"split {i + 1}": f"{100 * m:.1f} +- {100 * half:.1f}" for i, (m, half) in enumerate(points[name])},
                "ICNN score of the queries": score[name],
                "reference": name in (RAW, UNTRAINED),
            }
            for name in results
        ],
    )
    draw_accuracies(run, task, points, f"accuracy{suffix}")


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's correlation."""
    from scipy.stats import spearmanr

    value = float(spearmanr(a.double().numpy(), b.double().numpy()).statistic)
    return value if value == value else 0.0  # constant: nothing is predicted


def _score_predicts_accuracy(config: Config, run: Run, results: Results) -> None:
    """The score of an episode's queries tells its accuracy, without any classifier."""
    way = config.test_ways[0]
    panels: dict[str, tuple[Tensor, Tensor, float]] = {}
    for kind in ("novel", "base"):
        found = [result[f"{kind} {way}"] for result in results[PLAIN]]
        rank, shuffled = (
            sum(rank_correlation(part[name], part["accuracy"]) for part in found) / len(found)
            for name in ("among queries", "among queries, shuffled")
        )
        words = "new classes" if kind == "novel" else "the classes of training"
        run.claim(
            f"predicts-{kind}",
            f"{words}: rank correlation of an episode's ICNN score and its accuracy, cross-entropy's embedding",
            rank,
            ">=",
            RANK_BAR[kind],
            control=shuffled,
            control_name="labels of the queries shuffled",
        )
        score, accuracy = (torch.cat([part[name] for part in found]) for name in ("among queries", "accuracy"))
        panels[words] = score, accuracy, rank
    untrained = [result[f"novel {way}"] for result in results[UNTRAINED]]
    run.report_value(
        "predicts-untrained",
        "the same on new classes with an untrained network",
        sum(rank_correlation(part["among queries"], part["accuracy"]) for part in untrained) / len(untrained),
    )
    draw_scores(run, panels)


def _dropping_the_nearest(config: Config, run: Run, results: Results) -> None:
    """Scored among supports, the nearest kept or dropped as the authors do: how well either tells the accuracy."""
    found = [result[f"novel {config.test_ways[0]}"] for result in results[PLAIN]]
    for how, words in (("kept", "each query's nearest support kept"), ("dropped", "dropped, as the authors do")):
        run.report_value(
            f"among-supports-{how}",
            f"new classes: the same correlation with the score of the queries among the supports, {words}",
            sum(rank_correlation(part[how], part["accuracy"]) for part in found) / len(found),
        )


LEARNED_BAR = {"patches": 0.12, "omniglot": 0.12}
RANK_BAR = {"novel": 0.4, "base": 0.6}

experiment = Experiment(
    name="susana",
    title=(
        "SuSana Distancia is all you need: Enforcing class separability in metric learning via two novel "
        "distance-based loss functions for few-shot image classification"
    ),
    arxiv="2305.09062",
    config=Config,
    presets={
        # In seconds, the whole pipeline: measured, nothing asserted.
        "smoke": Config(splits=1, terms=(PLAIN, ICNN), hidden=4, steps=4, test_episodes=12, test_query=5),
        # Patches of bundled pictures, no download: every claim holds for seeds 0, 1 and 2.
        "quick": Config(),
        # Handwritten characters, all combinations, 5 and 20 ways.
        "medium": Config(
            source="omniglot",
            splits=1,
            terms=(PLAIN, *COMBINATIONS),
            hidden=64,
            steps=400,
            way=20,
            shot=1,
            test_ways=(5, 20),
            test_query=10,
            test_episodes=1000,
        ),
        # The paper's data, networks and settings: pictures and split files are the user's.
        "paper": Config(
            terms=(PLAIN, *COMBINATIONS),
            paper=PaperSettings(datasets=("mini_imagenet", "cub"), transfer=("cub", "dogs", "cars")),
        ),
    },
    function=reproduce,
)
