"""The experiment: embeddings trained with the paper's losses, tested on classes that they have not seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
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

RAW, UNTRAINED, PLAIN, ICNN = "raw pixels", "untrained network", "cross_entropy", "support_icnn"
BESIDE = "cross_entropy+support_icnn"
EARLY = ("after a quarter", "after a half")
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
    splits: int = 3
    base: int = 10
    terms: tuple[str, ...] = (
        PLAIN,
        ICNN,
        BESIDE,
        "cross_entropy+full_icnn",
        "proto_triplet",
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
    for needed in (PLAIN, ICNN, BESIDE):
        if needed not in config.terms:
            raise UsageError(f"terms must hold {needed!r}, of which the claims are made, got {config.terms}")
    seeds = run.seeds(config.splits)
    names = (RAW, UNTRAINED, *config.terms)
    functions = {
        f"{name}, split {seed}": partial(measure, name, config, seed, str(run.device))
        for seed in seeds
        for name in names
    }
    found = run.units(functions)
    results = {name: [found[f"{name}, split {seed}"] for seed in seeds] for name in names}
    tests = results[RAW][0]
    kinds = [f"{kind} {way}" for kind in WORDS for way in config.test_ways if f"{kind} {way}" in tests]
    _icnn_of_the_supports(config, run, results)
    for kind in kinds:
        _accuracies(config, run, results, kind)
    first = [kind for kind in kinds if kind.endswith(f" {config.test_ways[0]}")]
    _score_predicts_accuracy(config, run, results, first)
    _dropping_the_nearest(config, run, results, first)
    panels = (RAW, UNTRAINED, PLAIN, ICNN)
    draw_episode(run, {told(name): (results[name][0]["features"], results[name][0]["labels"]) for name in panels})


def told(name: str) -> str:
    """A combination in words."""
    return name.replace("+", " + ").replace("_", " ")


# One embedding


def images_of(config: Config, seed: int) -> tuple[Images, dict[str, Images]]:
    """The images to train on, and those of the tests: new classes, and new images of the classes of training."""
    if config.source == "patches":
        base, novel = split_classes(patches(), config.base, seed)
        seen, _ = split_classes(patches(rest=True), config.base, seed)
        return base, {"novel": novel, "seen": seen}
    base, novel = (omniglot(split, data=config.data, download=config.download) for split in ("train", "test"))
    return base, {"novel": novel}


def measure(name: str, config: Config, seed: int, device: str) -> dict[str, Any]:
    """One unit: train an embedding, or take an untrained one, and examine it on images that it has not seen."""
    result: dict[str, Any] = {}
    base, tests = images_of(config, seed)
    tests = {kind: Images(images.x.to(device), images.y) for kind, images in tests.items()}
    base = Images(base.x.to(device), base.y)
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
        stream = episodes(base, sampler)
        if name == PLAIN:  # also stopped early, after a quarter and after a half
            for stop in EARLY:
                train_on_episodes(backbone, loss, islice(stream, config.steps // 4), optimizer)
                features = embedded(backbone, tests["novel"])
                test = _test_sampler(config, features, config.test_ways[0], seed)
                result[stop] = examine(episodes(features, test), seed)
        train_on_episodes(backbone, loss, stream, optimizer)
    for kind, images in tests.items():
        features = embedded(backbone, images)
        for way in config.test_ways:
            test = _test_sampler(config, features, way, seed)
            result[f"{kind} {way}"] = examine(episodes(features, test), seed, controls=name == PLAIN)
        if kind == "novel":
            episode = next(episodes(features, _test_sampler(config, features, config.test_ways[0], seed)))
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


def _icnn_of_the_supports(config: Config, run: Run, results: Results) -> None:
    """What the ICNN loss of the supports does to classes that were not trained on, beside cross-entropy and alone."""
    kind = f"novel {config.test_ways[0]}"
    task = task_of(config, kind)
    for value, words in (("among queries", "ICNN score of the queries"), ("accuracy", "accuracy")):
        plain, alone, beside = (mean_of(results[name], kind, value) for name in (PLAIN, ICNN, BESIDE))
        early = max(mean_of(results[PLAIN], stop, value) for stop in EARLY) - plain
        name = value.replace(" ", "-")
        statement = f"{task}: {words} with the ICNN loss of the supports beside cross-entropy, less that without"
        told_there = "about 0.02 on miniImageNet" if value == "accuracy" else None
        run.report_value(f"{name}-beside", statement, beside - plain, paper_value=told_there)
        run.report_value(f"{name}-early", f"{task}: {words} of cross-entropy stopped early, less that of all", early)
        run.report_value(
            f"{name}-alone",
            f"{task}: {words} with the ICNN loss of the supports alone, less that with cross-entropy",
            alone - plain,
        )


def task_of(config: Config, kind: str) -> str:
    """A test in words."""
    which, way = kind.split()
    return f"{WORDS[which]}, {way}-way {config.test_shot}-shot"


def _accuracies(config: Config, run: Run, results: Results, kind: str) -> None:
    """What learning gains over raw pixels, and the table of all combinations."""
    accuracy = {name: mean_of(found, kind, "accuracy") for name, found in results.items()}
    score = {name: mean_of(found, kind, "among queries") for name, found in results.items()}
    task, suffix = task_of(config, kind), kind.replace(" ", "-")
    for name, words in ((UNTRAINED, "the untrained network"), (PLAIN, "the network trained with cross-entropy")):
        run.report_value(
            f"over-pixels-{'untrained' if name == UNTRAINED else 'trained'}-{suffix}",
            f"{task}: accuracy of {words} less that of raw pixels",
            accuracy[name] - accuracy[RAW],
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
    draw_accuracies(run, task, points, f"accuracy-{suffix}")


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's correlation."""
    from scipy.stats import spearmanr

    value = float(spearmanr(a.double().numpy(), b.double().numpy()).statistic)
    return value if value == value else 0.0  # constant: nothing is predicted


def predicts(found: list[dict[str, Any]], kind: str, name: str) -> float:
    """The rank correlation of a score of the episodes and their accuracy, mean of the splits."""
    return sum(rank_correlation(result[kind][name], result[kind]["accuracy"]) for result in found) / len(found)


def _score_predicts_accuracy(config: Config, run: Run, results: Results, kinds: list[str]) -> None:
    """The score of an episode's queries tells its accuracy, without any classifier."""
    panels: dict[str, tuple[Tensor, Tensor, float]] = {}
    for kind in kinds:
        which = kind.split()[0]
        rank = predicts(results[PLAIN], kind, "among queries")
        run.claim(
            f"predicts-{which}",
            f"{WORDS[which]}: rank correlation of an episode's ICNN score and its accuracy, cross-entropy's embedding",
            rank,
            ">=",
            BARS[config.source][f"predicts {which}"],
            control=predicts(results[PLAIN], kind, "among queries, shuffled"),
            control_name="labels of the queries shuffled",
        )
        score, accuracy = (
            torch.cat([result[kind][name] for result in results[PLAIN]]) for name in ("among queries", "accuracy")
        )
        panels[WORDS[which]] = score, accuracy, rank
    run.report_value(
        "predicts-untrained",
        f"{WORDS['novel']}: rank correlation of an episode's ICNN score and its accuracy, untrained network",
        predicts(results[UNTRAINED], kinds[0], "among queries"),
    )
    draw_scores(run, panels)


def _dropping_the_nearest(config: Config, run: Run, results: Results, kinds: list[str]) -> None:
    """Scored among supports, the score tells the accuracy only if the nearest is kept."""
    kept, dropped = (
        sum(predicts(results[PLAIN], kind, name) for kind in kinds) / len(kinds) for name in ("kept", "dropped")
    )
    run.claim(
        "keeps-the-nearest",
        "both tests: the mean of these correlations for the score of the queries among the supports, nearest kept"
        if len(kinds) > 1
        else f"{WORDS['novel']}: this correlation for the score of the queries among the supports, nearest kept",
        kept,
        ">=",
        BARS[config.source]["kept"],
        control=dropped,
        control_name="the nearest dropped, as the authors do",
    )


WORDS = {"novel": "new classes", "seen": "new images of the classes of training"}
# Set on seeds that are not those of the record; of Omniglot on seed 5: 0.59, and 0.49 with a control of 0.31.
BARS = {
    "patches": {"predicts novel": 0.15, "predicts seen": 0.4, "kept": 0.15},
    "omniglot": {"predicts novel": 0.3, "kept": 0.4},
}

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
        "smoke": Config(splits=1, terms=(PLAIN, ICNN, BESIDE), hidden=4, steps=4, test_episodes=12, test_query=5),
        # Patches of bundled pictures, no download: every claim holds for seeds 0, 1 and 2.
        "quick": Config(),
        # Handwritten characters, all combinations, 5 and 20 ways.
        "medium": Config(
            source="omniglot",
            splits=1,
            terms=(PLAIN, *COMBINATIONS),
            hidden=32,
            steps=400,
            way=10,
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
