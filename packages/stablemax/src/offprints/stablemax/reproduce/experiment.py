"""The experiment: grokking with perpGrad, sparse parity with StableMax, collapse by precision (figures 1 to 6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from offprints.shared.experiment import Experiment, Run
from offprints.stablemax import reference
from offprints.stablemax.diagnostics import softmax_collapse_fraction, zero_gradient_fraction
from offprints.stablemax.losses import exact_cross_entropy, stablemax_cross_entropy
from offprints.stablemax.training import GrokConfig, train_grokking

Curve = dict[str, Any]  # the history of one training, name to list of numbers

# What really ran behind the official perpGrad curves: torch's AdamW defaults, see the README.
ADAMW_DEFAULTS: dict[str, float] = {"beta2": 0.999, "adam_eps": 1e-8}
PARITY: dict[str, Any] = {"task": "parity", "train_fraction": 0.5, "beta2": 0.999, "adam_eps": 1e-18}
PARITY_LOSSES: dict[str, dict[str, Any]] = {
    "StableMax": {"loss": "stablemax"},
    "CE float32": {"loss": "softmax", "softmax_dtype": "float32"},
    "CE float64": {"loss": "softmax", "softmax_dtype": "float64"},
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the experiment.

    Attributes:
        paper_curves: Train the curves of the paper's figures 1, 2, 4 and 6 instead of the small experiments.
        p: The modulus.
        train_fraction: Share of the pairs to train on.
        lr: Learning rate.
        steps: Full-batch steps of the small modular additions.
        repeats: Seeds of each of them.
        parity_steps: Steps of the small parity tasks.
        parity_noise: Bits that do not matter.
        parity_samples: Rows.
        parity_repeats: Seeds of each of them.
        step_scale: Factor of the paper's numbers of steps.
    """

    paper_curves: bool = False
    p: int = 113
    train_fraction: float = 0.4
    lr: float = 0.01
    steps: int = 200
    repeats: int = 2
    parity_steps: int = 600
    parity_noise: int = 40
    parity_samples: int = 2000
    parity_repeats: int = 4
    step_scale: float = 1.0


def train(config: GrokConfig) -> Curve:
    """One unit: the history of one training."""
    return {name: values.tolist() for name, values in train_grokking(config).history.items()}


def paper_curves(config: Config, *, seed: int, device: str) -> dict[str, GrokConfig]:
    """Every curve of figures 1, 2, 4 and 6, by figure and name."""

    def curve(steps: int, **options: Any) -> GrokConfig:
        scaled = max(1, round(steps * config.step_scale))
        given: dict[str, Any] = {"p": config.p, "seed": seed, "device": device, "lr": 0.01}
        return GrokConfig(**(given | options), steps=scaled, log_every=max(1, scaled // 200))

    perp: dict[str, Any] = {"orthograd": True, **ADAMW_DEFAULTS}
    curves = {
        "1 StableMax": curve(80_000, loss="stablemax", beta2=0.999),
        "1 perpGrad": curve(300, **perp),
        "1 CE float64": curve(80_000, softmax_dtype="float64"),
        "4 StableMax add": curve(100_000, loss="stablemax", beta2=0.999),
        "4 StableMax multiply": curve(100_000, loss="stablemax", beta2=0.999, task="multiply"),
        "4 StableMax parity": curve(100_000, loss="stablemax", **PARITY),
        "6 transformer plain": curve(5_000, model="transformer", lr=1e-3),
        "6 transformer weight decay": curve(5_000, model="transformer", lr=1e-3, weight_decay=1.5),
        "6 transformer perpGrad": curve(5_000, model="transformer", lr=1e-3, **perp),
        "6 MLP plain": curve(500, lr=5e-3),
        "6 MLP perpGrad": curve(500, lr=5e-3, **perp),
        "6 MLP perpGrad SGD StableMax": curve(
            500, lr=10.0, optimizer="sgd", momentum=0.8, dtype="float64", loss="stablemax", orthograd=True
        ),
    }
    for fraction in (0.4, 0.6, 0.7):
        for bits in (16, 32, 64):
            curves[f"2 fraction {fraction} float{bits}"] = curve(
                20_000,
                lr=5e-4,
                train_fraction=fraction,
                softmax_dtype=f"float{bits}",
                adam_eps=1e-30 if fraction == 0.4 else 1e-25,
            )
    return curves


def reproduce(config: Config, run: Run) -> None:
    """Record the claims of the small experiments, or of the paper's own curves."""
    if config.paper_curves:
        reproduce_paper(config, run)
    else:
        grok(config, run)
        parity(config, run)
    precision(run)
    draw_terms(run)


def grok(config: Config, run: Run) -> None:
    """Figures 1 and 6: perpGrad generalizes while plain AdamW, which fits as well, does not."""
    base = GrokConfig(
        p=config.p,
        train_fraction=config.train_fraction,
        lr=config.lr,
        steps=config.steps,
        log_every=max(1, config.steps // 20),
        device=str(run.device),
        **cast("dict[str, Any]", ADAMW_DEFAULTS),
    )
    seeds = run.seeds(config.repeats)
    methods = {"AdamW": False, "perpGrad + AdamW": True}
    curves = run.units(
        {
            f"{name} {seed}": partial(train, replace(base, orthograd=projected, seed=seed))
            for name, projected in methods.items()
            for seed in seeds
        }
    )
    plain, perp = ([curves[f"{name} {seed}"] for seed in seeds] for name in methods)
    last = {
        name: [curve["test_accuracy"][-1] for curve in group]
        for name, group in zip(methods, (plain, perp), strict=True)
    }
    run.claim(
        "perpgrad-groks",
        f"perpGrad + AdamW: lowest test accuracy over {config.repeats} seeds after {config.steps} steps",
        min(last["perpGrad + AdamW"]),
        ">=",
        0.95,
        paper_value="groks within 300 steps",
        control=max(last["AdamW"]),
        control_name="AdamW without the projection, highest",
    )
    run.claim(
        "adamw-stalls",
        "AdamW alone, same steps, fits without generalizing: lowest training minus test accuracy",
        min(curve["train_accuracy"][-1] - curve["test_accuracy"][-1] for curve in plain),
        ">=",
        0.9,
        paper_value="no generalization",
        control=max(curve["train_accuracy"][-1] - curve["test_accuracy"][-1] for curve in perp),
        control_name="with the projection, highest",
    )
    risen = np.mean([curve["nlm_alignment"][-1] for curve in plain])
    start = np.mean([curve["nlm_alignment"][0] for curve in plain])
    run.claim(
        "nlm-aligns",
        "AdamW alone: cosine of the negative gradient with the weights after fitting, over all parameters",
        float(risen),
        ">=",
        0.5,
        paper_value="close to 1",
        control=float(start),
        control_name="before fitting, at initialization",
    )
    run.table(
        "modular addition",
        [
            {
                "method": name,
                "train accuracy": float(np.mean([curve["train_accuracy"][-1] for curve in group])),
                "test accuracy": float(np.mean([curve["test_accuracy"][-1] for curve in group])),
                "alignment": float(np.mean([curve["nlm_alignment"][-1] for curve in group])),
                "weight norm": float(np.mean([curve["weights_l2"][-1] for curve in group])),
                "reference": name == "AdamW",
            }
            for name, group in zip(methods, (plain, perp), strict=True)
        ],
    )
    with run.figure("grokking", ncols=2) as (_, (accuracy, alignment)):
        for index, (name, group) in enumerate(zip(methods, (plain, perp), strict=True)):
            for repeat, curve in enumerate(group):
                label = name if repeat == 0 else None
                accuracy.plot(curve["step"], curve["test_accuracy"], color=f"C{index}", label=label)
                accuracy.plot(curve["step"], curve["train_accuracy"], color=f"C{index}", linestyle=":", linewidth=1.2)
                alignment.plot(curve["step"], curve["nlm_alignment"], color=f"C{index}", label=label)
        accuracy.set(title=f"Addition modulo {config.p}", xlabel="step", ylabel="accuracy (dotted: training)")
        alignment.set(title="Alignment before projection", xlabel="step", ylabel="cos(-gradient, weights)")
        accuracy.legend()
        alignment.legend()


def parity(config: Config, run: Run) -> None:
    """Figure 4, reduced: StableMax beside cross-entropy on sparse parity. The gap is shown without a bar."""
    base = GrokConfig(
        **PARITY,
        num_noise=config.parity_noise,
        num_samples=config.parity_samples,
        steps=config.parity_steps,
        log_every=max(1, config.parity_steps // 20),
        device=str(run.device),
    )
    seeds = run.seeds(config.parity_repeats)
    curves = run.units(
        {
            f"parity {name} {seed}": partial(train, replace(base, seed=seed, **options))
            for name, options in PARITY_LOSSES.items()
            for seed in seeds
        }
    )
    groups = {name: [curves[f"parity {name} {seed}"] for seed in seeds] for name in PARITY_LOSSES}
    final = {name: np.array([curve["test_accuracy"][-1] for curve in group]) for name, group in groups.items()}
    gap = final["StableMax"] - final["CE float32"]
    run.report_value(
        "parity-gap",
        f"sparse parity: test accuracy of StableMax minus cross-entropy, mean of {len(seeds)} seeds "
        f"(spread {gap.std():.3f})",
        float(gap.mean()),
    )
    run.report_value(
        "parity-precision-gap",
        "the same for cross-entropy in float64 minus float32: what Softmax Collapse itself costs at this length",
        float((final["CE float64"] - final["CE float32"]).mean()),
    )
    run.table(
        "sparse parity",
        [
            {
                "loss": name,
                "test accuracy": float(values.mean()),
                "lowest": float(values.min()),
                "highest": float(values.max()),
                "collapsed under softmax": float(np.mean([curve["collapse"][-1] for curve in groups[name]])),
                "reference": name != "StableMax",
            }
            for name, values in final.items()
        ],
    )
    with run.figure("parity") as (_, axes):
        for index, (name, group) in enumerate(groups.items()):
            accuracy = np.array([curve["test_accuracy"] for curve in group])
            style = "--" if name == "CE float64" else "-"  # it lies on the curve of float32
            axes.plot(group[0]["step"], accuracy.mean(0), color=f"C{index}", linestyle=style, label=name)
            axes.fill_between(group[0]["step"], accuracy.min(0), accuracy.max(0), color=f"C{index}", alpha=0.15)
        axes.set(
            title=f"Sparse parity, {config.parity_noise} noise bits",
            xlabel="step",
            ylabel="test accuracy (band: all seeds)",
        )
        axes.legend()


def precision(run: Run) -> None:
    """Figure 2 in miniature: which losses still give the right class a gradient at a given margin."""
    margins = torch.linspace(0, 110, 221, dtype=torch.float64)
    logits = torch.zeros(len(margins), 10, dtype=torch.float64)
    logits[:, 0] = margins
    far = torch.zeros(121, 10, dtype=torch.float64)
    far[:, 0] = torch.logspace(0, 30, 121, dtype=torch.float64)
    target = torch.zeros(len(margins), dtype=torch.int64)
    first: dict[str, float] = {}
    for dtype in (torch.float16, torch.float32, torch.float64):
        name = str(dtype).removeprefix("torch.")
        collapsed = [softmax_collapse_fraction(row.view(1, -1), dtype=dtype) for row in logits]
        first[f"softmax {name}"] = first_margin(margins, torch.tensor(collapsed) > 0)
    for name, loss, tried in (
        ("exact float32", exact_cross_entropy, logits),
        ("StableMax float32", stablemax_cross_entropy, far),
    ):
        leaf = tried.float().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(leaf, target[: len(leaf)], reduction="sum"), leaf)
        first[name] = first_margin(tried[:, 0], gradient[:, 0] == 0)
    plain = [zero_gradient_fraction(row.view(1, -1), target[:1], dtype=torch.float32) for row in logits.float()]
    lost = first_margin(margins, torch.tensor(plain) > 0)
    run.check(
        "softmax-collapses",
        "softmax in float32: smallest margin (of ten classes) at which the denominator rounds to 1",
        first["softmax float32"],
        "<=",
        20,
        paper_value="about 17 for one other class",
    )
    run.report_value("softmax-no-gradient", "margin at which the right class has no gradient in float32", lost)
    run.claim(
        "exact-survives",
        "the same loss without absorption, float32: smallest margin at which the right class has no gradient",
        first["exact float32"],
        ">=",
        80,
        control=lost,
        control_name="the log-softmax of torch, float32",
    )
    leaf = far.float().requires_grad_()
    (gradient,) = torch.autograd.grad(reference.cross_entropy(reference.stablemax(leaf), target[: len(leaf)]), leaf)
    run.claim(
        "stablemax-survives",
        "StableMax in float32: the same margin",
        first["StableMax float32"],
        ">=",
        1e15,
        control=first_margin(far[:, 0], gradient[:, 0] == 0),
        control_name="the formula of the paper, float32",
    )
    with run.figure("collapse") as (_, axes):
        names = list(first)
        values = [min(value, 110.0) for value in first.values()]
        axes.barh(names, values, color=[f"C{index}" for index in range(len(names))])
        for row, value in enumerate(first.values()):
            text = f"{value:g}" if value <= 110 else f"continues to {value:.0e}"
            axes.text(min(value, 110.0) - 1, row, text, va="center", ha="right", color="white", fontweight="bold")
        axes.invert_yaxis()
        axes.set(title="Margin at which a sample collapses", xlabel="logit margin, ten classes")


def first_margin(margins: Tensor, hit: Tensor) -> float:
    """The smallest margin for which ``hit`` holds, infinity where there is none."""
    return float(margins[hit][0]) if bool(hit.any()) else float("inf")


def draw_terms(run: Run) -> None:
    """Figure 3: what takes the place of the exponential."""
    x = torch.linspace(-4, 3, 200)
    with run.figure("terms") as (_, axes):
        axes.plot(x, x.exp(), label="exp(x)")
        axes.plot(x, (1 + x.clamp(min=0)) / (1 - x.clamp(max=0)), label="s(x)")
        axes.set(title="Terms of softmax and StableMax", xlabel="logit", ylim=(0, 8))
        axes.legend()


def reproduce_paper(config: Config, run: Run) -> None:
    """Train and draw the curves of figures 1, 2, 4 and 6."""
    configs = paper_curves(config, seed=run.seed, device=str(run.device))
    curves = run.units({name: partial(train, settings) for name, settings in configs.items()})
    best = {name: max(curve["test_accuracy"]) for name, curve in curves.items()}
    for name in ("1 StableMax", "1 perpGrad", "4 StableMax parity", "6 transformer perpGrad", "6 MLP perpGrad"):
        figure, method = name.split(" ", 1)
        run.claim(
            name.replace(" ", "-").lower(),
            f"figure {figure}, {method}: best test accuracy",
            best[name],
            ">=",
            0.95,
            paper_value="generalizes",
        )
    run.claim(
        "2-precision",
        "figure 2, fraction 0.7: final test accuracy with softmax in float64 minus float16",
        curves["2 fraction 0.7 float64"]["test_accuracy"][-1] - curves["2 fraction 0.7 float16"]["test_accuracy"][-1],
        ">",
        0,
        paper_value="higher precision goes on longer",
    )
    rows = [
        {
            "curve": name,
            "steps": float(configs[name].steps),
            "best test accuracy": best[name],
            "final test accuracy": curve["test_accuracy"][-1],
            "final train accuracy": curve["train_accuracy"][-1],
            "collapsed samples": curve["collapse"][-1],
        }
        for name, curve in sorted(curves.items())
    ]
    run.table("curves", rows)
    draw_paper(run, curves)


def draw_paper(run: Run, curves: Mapping[str, Curve]) -> None:
    """One panel per figure of the paper."""
    for figure in ("1", "2", "4", "6"):
        chosen = {name[2:]: curve for name, curve in sorted(curves.items()) if name.startswith(f"{figure} ")}
        with run.figure(f"figure{figure}", ncols=2, figsize=(11, 4.2)) as (_, (accuracy, collapse)):
            for index, (name, curve) in enumerate(chosen.items()):
                style = {"color": f"C{index % 7}", "linestyle": ("-", "--")[index // 7], "label": name}
                accuracy.plot(curve["step"], curve["test_accuracy"], **style)
                collapse.plot(curve["step"], curve["collapse"], **style)
            accuracy.set(title=f"Figure {figure}", xlabel="step", ylabel="test accuracy")
            collapse.set(title="Softmax Collapse", xlabel="step", ylabel="collapsed share of the training set")
            accuracy.legend(fontsize=7)


experiment = Experiment(
    name="stablemax",
    title="StableMax and perpGrad: grokking at the edge of numerical stability",
    arxiv="2501.04697",
    config=Config,
    presets={
        "smoke": Config(
            p=11, steps=20, repeats=1, parity_steps=10, parity_samples=100, parity_noise=5, parity_repeats=1
        ),
        "quick": Config(),
        "paper": Config(paper_curves=True),
    },
    function=reproduce,
)
