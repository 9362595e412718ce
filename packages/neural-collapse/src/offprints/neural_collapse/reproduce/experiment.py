"""The experiment: direct optimization, networks on real images, minority collapse, and cross-entropy by depth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from offprints.neural_collapse.closed_form import minimum_class_count
from offprints.neural_collapse.cross_entropy import ce_etf_solution, ce_polygon_solution
from offprints.neural_collapse.reproduce.direct import largest_gradient, lowest, sgd
from offprints.neural_collapse.reproduce.figures import draw_cross_entropy, draw_curves, draw_minority
from offprints.neural_collapse.reproduce.networks import Source, Training, train_network
from offprints.shared.experiment import Experiment, Run

DISTANCES = ("nc2_w", "nc2_h", "nc3_wh")
NETWORK_BAR = 0.1  # the paper's curves end below it


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the experiment.

    Attributes:
        direct: Whether to optimize features and weights directly, too.
        sgd_counts: Class sizes there.
        sgd_dim: Width there.
        sgd_depths: Numbers of linear layers there; the last carries the claim.
        sgd_steps: Full-batch steps.
        sgd_decay: Decay of every layer and of the features.
        starts: Starts of L-BFGS for a minimum.
        majority: Size of the larger class of two where a class collapses.
        minority_decay: Decay there.
        ce_depths: Numbers of linear layers with cross-entropy; the last carries the claim.
        source: The images that networks are trained on.
        balanced: Images of each class, of equal ones.
        imbalanced: Images of each class, of unequal ones.
        balanced_depths: Linear layers of the heads for the former; the last carries the claim.
        imbalanced_depths: The same for the latter; the last carries the claim.
        biases: Heads for equal classes: without bias, with bias.
        decay: Of the linear layers and of the features.
        imbalanced_decay: The same with unequal classes.
        hidden: Width of ReLU layers and heads.
        layers: ReLU layers.
        features: Width of the last of them.
        batch_norm: Whether they have BatchNorm, with equal classes.
        steps: Steps of Adam.
        imbalanced_steps: The same with unequal classes.
        batch_size: Images a step with equal classes; 0 for all.
        lr: Learning rate.
        beta2: Of Adam.
        schedule: Of the learning rate, with equal classes.
        imbalanced_schedule: The same with unequal classes.
        data: Folder of the data set's folder; default: ``OFFPRINTS_DATA``.
        download: Fetch the data where it is missing.
    """

    direct: bool = True
    sgd_counts: tuple[int, ...] = (200, 100, 50, 50)
    sgd_dim: int = 32
    sgd_depths: tuple[int, ...] = (3,)
    sgd_steps: int = 1000
    sgd_decay: float = 2e-3
    starts: int = 2
    majority: int = 40
    minority_decay: float = 3e-2
    ce_depths: tuple[int, ...] = (1, 2, 3)
    source: Source = "digits"
    balanced: tuple[int, ...] = (100,) * 4
    imbalanced: tuple[int, ...] = (160, 80, 40, 20)
    balanced_depths: tuple[int, ...] = (1, 3)
    imbalanced_depths: tuple[int, ...] = (3,)
    biases: tuple[bool, ...] = (False,)
    decay: float = 1e-3
    imbalanced_decay: float = 1e-3
    hidden: int = 64
    layers: int = 3
    features: int = 64
    batch_norm: bool = False
    steps: int = 600
    imbalanced_steps: int = 600
    batch_size: int = 0
    lr: float = 2e-3
    beta2: float = 0.95
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    imbalanced_schedule: Literal["cosine", "step", "constant"] = "cosine"
    data: Path | None = None
    download: bool = False


def reproduce(config: Config, run: Run) -> None:
    """Record the claims."""
    if config.direct:
        run.check(
            "gradient",
            "largest entry of the gradient at the closed-form minimizers of seven problems",
            largest_gradient(run.seed),
            "<=",
            1e-12,
        )
        direct(config, run)
        minority(config, run)
        cross_entropy(config, run)
    networks(config, run)


def worst(history: Mapping[str, Any]) -> float:
    """The largest of the distances of NC2 and NC3 at the end."""
    return max(float(history[name][-1]) for name in DISTANCES)


def direct(config: Config, run: Run) -> None:
    """SGD ends at the general orthogonal frame, and not without decay."""
    depths, carries = config.sgd_depths, config.sgd_depths[-1]

    def unit(depth: int, decayed: bool) -> Any:
        return partial(
            sgd,
            config.sgd_counts,
            config.sgd_dim,
            depth,
            config.sgd_decay,
            decayed,
            config.sgd_steps,
            run.seeds(1)[0],
        )

    units = {f"sgd {depth}": unit(depth, True) for depth in depths} | {"sgd without": unit(carries, False)}
    found = run.units(units)
    sizes = "/".join(map(str, config.sgd_counts))
    run.claim(
        "sgd-gof",
        f"free features, {carries} layers, classes of {sizes}, SGD: largest distance of NC2, NC3 from the closed form",
        worst(found[f"sgd {carries}"]),
        "<=",
        0.01,
        paper_value="converges to 0",
        control=worst(found["sgd without"]),
        control_name="no decay",
    )
    run.table(
        "free features, SGD",
        [
            {
                "layers": float(depth),
                "objective above the minimum": unit["objective"][-1] - unit["minimum"],
                **{name: unit[name][-1] for name in ("nc1", *DISTANCES)},
            }
            for depth, unit in ((depth, found[f"sgd {depth}"]) for depth in depths)
        ],
    )
    panels = {f"{depth} layer{'s' * (depth > 1)}": found[f"sgd {depth}"] for depth in depths}
    draw_curves(run, "direct", panels | {f"{carries} layers, no decay": found["sgd without"]})


def minority(config: Config, run: Run) -> None:
    """Two layers: at a class size below the threshold its classifier is zero, above it is not."""
    majority, decay, dim = config.majority, config.minority_decay, 4
    decays: dict[int, dict[str, Any]] = {
        depth: {"weight_decay": [decay] * depth, "feature_decay": decay} for depth in (1, 2)
    }
    # The largest class that dies, given that it counts among the samples itself.
    dying = (n for n in range(1, majority) if n <= minimum_class_count(majority + n, **decays[2]))
    dies = max(dying, default=1)
    tried = sorted({max(1, round(dies * factor)) for factor in (0.4, 0.7, 1.4, 2.0)} | {majority})
    seed = run.seeds(1)[0]
    units = {
        f"minority {depth} {n}": partial(lowest, (majority, n), dim, depth, decay, "mse", config.starts, seed)
        for depth in (1, 2)
        for n in tried
        if n <= majority
    }
    below = max((n for n in tried if n <= 0.75 * dies), default=1)
    weak = {"minority weak": partial(lowest, (majority, below), dim, 2, decay / 10, "mse", config.starts, seed)}
    found = run.units(units | weak)

    def share(unit: Mapping[str, Any]) -> float:
        return float(unit["norms"][1] / max(unit["norms"][0], 1e-300))

    run.claim(
        "minority-collapses",
        f"two layers, a class of {below} beside one of {majority} (threshold {dies + 0.5:g}), lowest of "
        f"{config.starts} optimizations: norm of its row of the classifier over that of the larger class",
        share(found[f"minority 2 {below}"]),
        "<=",
        1e-3,
        paper_value="collapses to 0",
        control=share(found["minority weak"]),
        control_name="a tenth of the decay",
    )
    trained = {
        (depth, n): float(found[f"minority {depth} {n}"]["norms"][1])
        for depth in (1, 2)
        for n in tried
        if n <= majority
    }
    draw_minority(run, majority, decay, (1, 2), trained)


def cross_entropy(config: Config, run: Run) -> None:
    """The best ETF beside what optimization finds, by depth: with three layers there is something lower."""
    K, n, decay = 4, 10, 1e-3
    seed, depths = run.seeds(1)[0], config.ce_depths
    found = run.units(
        {f"cross-entropy {M}": partial(lowest, (n,) * K, 6, M, decay, "ce", config.starts, seed) for M in depths}
    )
    rows = []
    for M in depths:
        decays: dict[str, Any] = {"weight_decay": [decay] * M, "feature_decay": decay}
        etf, polygon = (solve(K, n, **decays)[1] for solve in (ce_etf_solution, ce_polygon_solution))
        row = {"layers": float(M), "simplex ETF": etf, "polygon": polygon}
        rows.append(row | {"lowest found": found[f"cross-entropy {M}"]["objective"]})
    ratio = {row["layers"]: row["lowest found"] / row["simplex ETF"] for row in rows}
    run.claim(
        "deep-ce-below-etf",
        f"cross-entropy, {depths[-1]} layers: lowest objective that optimization finds over that of the best ETF",
        ratio[depths[-1]],
        "<=",
        0.95,
        paper_value="1, as the theorem is usually read",
        control=ratio[depths[0]],
        control_name=f"{depths[0]} layer",
    )
    run.table("cross-entropy: objective", rows)
    draw_cross_entropy(run, rows)


def networks(config: Config, run: Run) -> None:
    """Networks trained with separate decay: their last features and their head end near the predicted geometry."""

    def training(counts: tuple[int, ...], depth: int, bias: bool, decayed: bool) -> Training:
        equal = len(set(counts)) == 1
        return Training(
            source=config.source,
            counts=counts,
            depth=depth,
            bias=bias,
            decay=config.decay if equal else config.imbalanced_decay,
            decayed=decayed,
            hidden=config.hidden,
            layers=config.layers,
            features=config.features,
            batch_norm=config.batch_norm and equal,
            steps=config.steps if equal else config.imbalanced_steps,
            batch_size=config.batch_size if equal else 0,
            lr=config.lr,
            beta2=config.beta2,
            schedule=config.schedule if equal else config.imbalanced_schedule,
            device=str(run.device),
            data=config.data,
            download=config.download,
        )

    settings = {
        **{(config.balanced, M, bias): "" for M in config.balanced_depths for bias in config.biases},
        **{(config.imbalanced, M, False): "" for M in config.imbalanced_depths},
    }
    claimed = {
        (config.balanced, config.balanced_depths[-1], config.biases[-1]): "network-balanced",
        (config.imbalanced, config.imbalanced_depths[-1], False): "network-imbalanced",
    }
    seed = run.seeds(1)[0]
    units: dict[str, Any] = {}
    for counts, M, bias in settings:
        name = "balanced" if counts == config.balanced else "imbalanced"
        settings[counts, M, bias] = f"{name}, {M} layer{'s' * (M > 1)}{', bias' * bias}"
        units[settings[counts, M, bias]] = partial(train_network, training(counts, M, bias, True), seed)
    for counts, M, bias in claimed:
        units[f"{settings[counts, M, bias]}, no decay"] = partial(train_network, training(counts, M, bias, False), seed)
    found = run.units(units)
    for (counts, M, bias), identifier in claimed.items():
        title = settings[counts, M, bias]
        sizes = f"{len(counts)} x {counts[0]}" if len(set(counts)) == 1 else "/".join(map(str, counts))
        run.claim(
            identifier,
            f"network on {config.source}, {sizes} images, {title.partition(', ')[2]}: largest distance of NC2, NC3",
            worst(found[title]),
            "<=",
            NETWORK_BAR,
            paper_value="below 0.1",
            control=worst(found[f"{title}, no decay"]),
            control_name="no decay",
        )
        run.report_value(
            f"{identifier}-nc1",
            f"the network with {sizes} images: NC1 at the end (at the start {found[title]['nc1'][0]:.2g})",
            found[title]["nc1"][-1],
            paper_value="below 0.01",
        )
    run.table(
        f"networks on {config.source}",
        [
            {
                "network": name,
                **{key: unit[key][-1] for key in ("nc1", *DISTANCES)},
                "training accuracy": unit["accuracy"],
                "reference": name.endswith("no decay"),
            }
            for name, unit in found.items()
        ],
    )
    draw_curves(run, "networks", found)


FASHION_IMBALANCED = (100, 100, 200, 200, 300, 300, 400, 400, 500, 500)

experiment = Experiment(
    name="neural-collapse",
    title="Neural Collapse in Deep Linear Networks: From Balanced to Imbalanced Data",
    arxiv="2301.00437",
    config=Config,
    presets={
        "smoke": Config(
            sgd_counts=(8, 4, 2),
            sgd_dim=4,
            sgd_depths=(1, 2),
            sgd_steps=100,
            starts=1,
            majority=20,
            ce_depths=(1,),
            balanced=(10,) * 3,
            balanced_depths=(2,),
            imbalanced=(16, 8, 4),
            hidden=16,
            features=8,
            steps=20,
            imbalanced_steps=20,
        ),
        "quick": Config(),
        # Fashion-MNIST, all ten classes.
        "medium": Config(
            direct=False,
            source="fashion_mnist",
            balanced=(500,) * 10,
            imbalanced=FASHION_IMBALANCED,
            balanced_depths=(1, 3),
            imbalanced_depths=(1, 3),
            biases=(True, False),
            decay=3e-4,
            imbalanced_decay=3e-4,
            hidden=256,
            layers=3,
            features=256,
            steps=1500,
            imbalanced_steps=1500,
            batch_size=250,
            lr=1e-3,
        ),
        # The multilayer perceptrons of the paper, on CIFAR-10.
        "paper": Config(
            sgd_dim=2048,
            sgd_depths=(1, 3, 6),
            sgd_steps=30_000,
            sgd_decay=5e-4,
            source="cifar10",
            balanced=(5000,) * 10,
            imbalanced=FASHION_IMBALANCED,
            balanced_depths=(1, 3, 6, 9),
            imbalanced_depths=(1, 3, 6),
            biases=(True, False),
            decay=5e-4,
            imbalanced_decay=1e-5,
            hidden=2048,
            layers=6,
            features=2048,
            batch_norm=True,
            steps=78_200,
            imbalanced_steps=12_000,
            batch_size=128,
            lr=1e-4,
            beta2=0.999,
            schedule="constant",
            imbalanced_schedule="step",
        ),
    },
    function=reproduce,
)
