"""The experiment: margin heads with and without the negative pairs of the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, Literal

from offprints.shared.experiment import Experiment, Run
from offprints.unpg.reproduce.data import Source
from offprints.unpg.reproduce.figures import draw_gap, draw_similarities
from offprints.unpg.reproduce.paper import Faces, train_faces
from offprints.unpg.reproduce.small import HeadName, Training, train

NAMES = {"cosface": "CosFace", "arcface": "ArcFace", "magface": "MagFace"}
LFW = {"cosface": (0.9983, 0.9981), "arcface": (0.9983, 0.9983), "magface": (0.9981, 0.9981)}  # without, with


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the experiment.

    Attributes:
        source: The images; "faces" is the paper's own training.
        heads: Which margins.
        trainings: Networks of each kind; claims are about their mean.
        whisker: Of the filter.
        scale: Of the cosines.
        margin: Of CosFace and ArcFace.
        width: Channels of the convolutions.
        embedding: Width of the embeddings.
        epochs: Passes over the images.
        batch_size: Images a step.
        lr: Learning rate.
        evaluated: Images whose pairs are measured.
        far: False accept rate on the known identities.
        novel_far: The same on novel identities.
        quantile: Of the gap.
        tar_bar: Least TAR of ArcFace with the pairs that is claimed; None: no claim.
        gap_bars: Least gap with the pairs that is claimed, by head.
        faces: The paper's training.
        root: Folder of the data; default: `OFFPRINTS_DATA`.
        download: Fetch what is missing and can be fetched.
    """

    source: Source | Literal["faces"] = "digits"
    heads: tuple[HeadName, ...] = ("arcface", "cosface")
    trainings: int = 3
    whisker: float = 1.5
    scale: float = 16.0
    margin: float = 0.3
    width: int = 32
    embedding: int = 32
    epochs: int = 15
    batch_size: int = 128
    lr: float = 0.05
    evaluated: int = 800
    far: float = 1e-3
    novel_far: float = 1e-2
    quantile: float = 0.1
    tar_bar: float | None = 0.87
    gap_bars: Mapping[str, float] = field(default_factory=lambda: {"arcface": 0.49, "cosface": 0.51})
    faces: Faces = field(default_factory=Faces)
    root: Path | None = None
    download: bool = False


def reproduce(config: Config, run: Run) -> None:
    """Train every head with and without the pairs, and record the claims."""
    if config.source == "faces":
        paper(config, run)
        return
    units = {
        _key(head, unified, seed): partial(train, _training(config, head, unified, str(run.device)), seed)
        for seed in run.seeds(config.trainings)
        for head in config.heads
        for unified in (False, True)
    }
    found = run.units(units)

    def values(head: str, unified: bool, key: str) -> list[float]:
        return [float(found[_key(head, unified, seed)][key]) for seed in run.seeds(config.trainings)]

    for head in config.heads:
        name = NAMES[head]
        if head == "arcface" and config.tar_bar is not None:
            run.claim(
                "arcface-tar",
                f"{name} with the pairs of the batch: TAR at a FAR of {config.far:g}, known identities",
                mean(values(head, True, "tar")),
                ">=",
                config.tar_bar,
                spread=_spread(values(head, True, "tar")),
                control=mean(values(head, False, "tar")),
                control_name="class weights alone",
            )
        if head in config.gap_bars:
            run.claim(
                f"{head}-gap",
                f"{name} with the pairs of the batch: gap at quantile {config.quantile:g}, known identities",
                mean(values(head, True, "gap")),
                ">=",
                config.gap_bars[head],
                spread=_spread(values(head, True, "gap")),
                control=mean(values(head, False, "gap")),
                control_name="class weights alone",
            )
        shown = {
            "tar": f"known identities: TAR at a FAR of {config.far:g}",
            "gap": f"known identities: gap at quantile {config.quantile:g}",
            "novel tar": f"novel identities: TAR at a FAR of {config.novel_far:g}",
            "novel gap": f"novel identities: gap at quantile {config.quantile:g}",
        }
        claimed = {claim.id for claim in run.claims}
        for key, told in shown.items():
            identifier = f"{head}-{key.replace(' ', '-')}"
            if identifier not in claimed:
                difference = mean(values(head, True, key)) - mean(values(head, False, key))
                run.report_value(identifier, f"{name}, {told}, with the pairs minus without", difference)
    rows = []
    for head in config.heads:
        for unified in (False, True):
            row = {key: mean(values(head, unified, key)) for key in ("tar", "gap", "novel tar", "novel gap")}
            rows.append({"loss": _name(head, unified), **row, "reference": not unified})
    run.table(f"{config.source}: means of {config.trainings}", rows)
    seed = run.seeds(1)[0]
    drawn = {
        _name(head, unified): found[_key(head, unified, seed)] for head in config.heads for unified in (False, True)
    }
    draw_similarities(run, drawn)
    draw_gap(run, {name: unit["history"] for name, unit in drawn.items()}, config.quantile)


def _key(head: str, unified: bool, seed: int) -> str:
    return f"{_name(head, unified)} {seed}"


def _name(head: str, unified: bool) -> str:
    return NAMES[head] + "+UNPG" * unified


def _spread(values: Sequence[float]) -> float | None:
    return max(values) - min(values) if len(values) > 1 else None


def _training(config: Config, head: HeadName, unified: bool, device: str) -> Training:
    shared: dict[str, Any] = {
        name: getattr(config, name) for name in Training.__dataclass_fields__ if hasattr(config, name)
    }
    return Training(**shared, head=head, unified=unified, device=device)


def paper(config: Config, run: Run) -> None:
    """The paper's trainings one after the other; their accuracy on LFW is shown beside the paper's."""
    rows = []
    for head in config.heads:
        for unified in (False, True):
            work = partial(train_faces, config.faces, head, unified, config.root, config.download)
            found = run.part(_name(head, unified)).once(work)
            rows.append({"loss": _name(head, unified), "training loss": found["loss"], "LFW": found.get("lfw")})
            if "lfw" in found:
                run.report_value(
                    f"{head}-lfw{'-unpg' * unified}",
                    f"{_name(head, unified)}: ten-fold accuracy on LFW",
                    found["lfw"],
                    paper_value=LFW[head][unified],
                )
    run.table("faces", rows)


experiment = Experiment(
    name="unpg",
    title="Unified Negative Pair Generation toward Well-discriminative Feature Space for Face Recognition",
    arxiv="2203.11593",
    config=Config,
    presets={
        "smoke": Config(trainings=1, width=4, epochs=1, evaluated=200),
        "quick": Config(),
        # Omniglot: characters as identities, every third one novel.
        "medium": Config(
            source="omniglot",
            heads=("cosface", "arcface", "magface"),
            trainings=1,
            embedding=128,
            epochs=20,
            evaluated=1600,
            tar_bar=None,
            gap_bars={},
        ),
        # MS1MV2 as a folder of identities; for K-FACE: --faces.depth 34 --faces.whisker 1.0.
        "paper": Config(source="faces", heads=("cosface", "arcface", "magface"), faces=Faces()),
    },
    function=reproduce,
)
