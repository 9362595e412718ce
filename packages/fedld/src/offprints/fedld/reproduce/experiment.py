"""The experiment: what margin control and principal aggregation do to clients whose data differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from offprints.fedld.reproduce import figures
from offprints.fedld.reproduce.digits import METHODS, TERMS, DigitsSettings, bad_client, curves, margin_control
from offprints.fedld.reproduce.medium import MediumSettings, reproduce_medium
from offprints.fedld.reproduce.paper import PaperSettings, reproduce_paper
from offprints.shared.experiment import Experiment, Run

# Set from seed 10, not from those that are recorded: there 1.7 points, 53 and 86 percent.
ACCURACY_BAR = 0.5
SHIFT_BAR = 25.0
BAD_CLIENT_BAR = 70.0


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the experiment.

    Attributes:
        digits: Digits at five clients; no draws leave it out.
        medium: Fashion-MNIST at ten clients; no alphas leave it out.
        paper: The paper's medical images; no collections leave it out.
        data: Folder of Fashion-MNIST's and the paper's folders; default: ``OFFPRINTS_DATA``.
        download: Fetch Fashion-MNIST and the weights of ResNet-50.
    """

    digits: DigitsSettings = field(default_factory=DigitsSettings)
    medium: MediumSettings = field(default_factory=MediumSettings)
    paper: PaperSettings = field(default_factory=PaperSettings)
    data: Path | None = None
    download: bool = False


def reproduce(config: Config, run: Run) -> None:
    """The parts that the preset asks for."""
    if config.digits.draws:
        reproduce_digits(config.digits, run)
    if config.medium.alphas:
        reproduce_medium(config.medium, config.data, config.download, run)
    if config.paper.collections:
        reproduce_paper(config.paper, config.data, config.download, run)


def reproduce_digits(settings: DigitsSettings, run: Run) -> None:
    """The claims of margin control, a client that sends NaN, and every method in one table."""
    seeds, device = run.seeds(settings.draws), str(run.device)
    of_table = seeds[: settings.table_draws]
    jobs: dict[str, Any] = {f"margin control {seed}": partial(margin_control, seed, settings, device) for seed in seeds}
    jobs[f"bad client {seeds[0]}"] = partial(bad_client, seeds[0], settings, device)
    for method in METHODS:
        if method not in ("FedAvg", "margin 1.0") or settings.penalty != 1.0:
            jobs |= {f"{method} {seed}": partial(curves, seed, settings, method, device) for seed in of_table}
    done = run.units(jobs)
    pairs = [done[f"margin control {seed}"] for seed in seeds]
    for number, seed in enumerate(of_table):  # these two are in the first part already
        done.setdefault(f"FedAvg {seed}", pairs[number]["plain"])
        done.setdefault(f"margin 1.0 {seed}", pairs[number]["margin"])
    table = {method: [done[f"{method} {seed}"] for seed in of_table] for method in METHODS}
    report_margin(pairs, settings, run)
    report_bad_client(done[f"bad client {seeds[0]}"], settings, run)
    report_methods(table, run)
    for method, results in table.items():
        for step, terms in enumerate(zip(*(results[0]["history"][term] for term in TERMS), strict=True)):
            run.log(step + 1, **{f"{method}/{term}": value for term, value in zip(TERMS, terms, strict=True)})
    figures.draw_terms(run, table)
    figures.draw_accuracy(run, table)
    figures.draw_clients(run, "clients", pairs[0]["histogram"])


def report_margin(pairs: Sequence[Mapping[str, Any]], settings: DigitsSettings, run: Run) -> None:
    """What the margin term changes, beside the same training with other batches and a temperature."""
    told = "one draw" if len(pairs) == 1 else f"mean of {len(pairs)} draws"
    accuracy = {
        name: 100 * np.array([pair[name]["accuracy"] for pair in pairs]) for name in ("plain", "margin", "other")
    }
    shift = {name: np.array([pair[name]["shift"] for pair in pairs]) for name in ("plain", "margin", "other")}
    gain = accuracy["margin"] - accuracy["plain"]
    fall = 100 * (1 - shift["margin"] / shift["plain"])
    run.claim(
        "margin-accuracy",
        f"FedAvg with margin control at {settings.penalty:g} minus FedAvg, accuracy in points, {told}",
        gain.mean(),
        ">=",
        ACCURACY_BAR,
        spread=gain.std(),
        control=(accuracy["other"] - accuracy["plain"]).mean(),
        control_name="no margin term, other batches",
    )
    run.claim(
        "margin-shift",
        f"the same: fall of the distribution-shift term in percent, {told}",
        fall.mean(),
        ">=",
        SHIFT_BAR,
        spread=fall.std(),
        control=(100 * (1 - shift["other"] / shift["plain"])).mean(),
        control_name="no margin term, other batches",
    )
    tempered = np.array([pair["tempered"]["shift"] for pair in pairs])
    last = np.array([pair["plain"]["history"]["shift"][-1] for pair in pairs])
    run.report_value(
        "shift-tempered",
        "fall of the distribution-shift term in percent where FedAvg's logits are divided by a temperature that gives"
        " the same local loss: less confidence alone, same accuracy",
        100 * (1 - tempered / last).mean(),
    )
    for name, words in (("plain", "FedAvg"), ("margin", f"with margin control at {settings.penalty:g}")):
        values = [pair[name]["loss"] for pair in pairs]
        run.report_value(f"loss-{name}", f"global cross-entropy, {words}, {told}", float(np.mean(values)))
    run.check(
        "telescopes",
        "largest difference of the three terms' sum from the global loss, measured beside them",
        max(pair[name]["off"] for pair in pairs for name in ("plain", "margin", "other")),
        "<=",
        1e-6,
    )
    run.check(
        "closed-form",
        "Gram form minus the explicit rule on the clients' updates, by the largest update",
        max(pair["closed form"] for pair in pairs),
        "<=",
        1e-9,
    )


def report_bad_client(result: Mapping[str, Any], settings: DigitsSettings, run: Run) -> None:
    """One client of all sends NaN in every round."""
    run.claim(
        "bad-client",
        f"one of {settings.clients} clients sends NaN in every round: accuracy of FedLD, percent",
        100 * result["FedLD"],
        ">=",
        BAD_CLIENT_BAR,
        control=100 * result["plain mean"],
        control_name="no rejection, the plain mean",
    )
    run.report_value(
        "bad-client-fedavg",
        f"one of {settings.clients} clients sends NaN in every round: accuracy of FedAvg, percent",
        100 * result["FedAvg"],
    )
    run.check(
        "rejections",
        "share of the rounds whose report names this client and no other",
        (result["FedLD rejections"] + result["FedAvg rejections"]) / (2 * settings.rounds),
        "==",
        1,
    )


def report_methods(table: Mapping[str, Sequence[Mapping[str, Any]]], run: Run) -> None:
    """Every method beside FedAvg, without a bar: here principal aggregation does not help."""
    mean = {m: {term: float(np.mean([result[term] for result in of])) for term in TERMS} for m, of in table.items()}
    told = "the first draw" if len(table["FedAvg"]) == 1 else f"mean of {len(table['FedAvg'])} draws"
    for name, method in (
        ("", "FedLD"),
        ("-length", "FedLD, steps as long as the mean's"),
        ("-projection", "FedLD, projection"),
    ):
        run.report_value(
            f"aggregation{name}",
            f"{method}: accuracy minus that of the mean by size with the same margin term, points, {told}",
            100 * (mean[method]["accuracy"] - mean["margin 0.1"]["accuracy"]),
        )
    run.report_value(
        "margin-small",
        f"FedAvg with margin control at 0.1 minus FedAvg, accuracy in points, {told}",
        100 * (mean["margin 0.1"]["accuracy"] - mean["FedAvg"]["accuracy"]),
    )
    run.table(
        "Digits, means of the last rounds",
        [
            {"method": method, "reference": method in ("FedAvg", "each alone")}
            | {("global loss" if term == "loss" else term): value for term, value in terms.items()}
            for method, terms in mean.items()
        ],
    )


experiment = Experiment(
    name="fedld",
    title="Tackling Data Heterogeneity in Federated Learning via Loss Decomposition",
    arxiv="2408.12300",
    config=Config,
    presets={
        "smoke": Config(digits=DigitsSettings(draws=1, rounds=2, epochs=1, clients=3)),
        "quick": Config(digits=DigitsSettings(draws=3)),
        "medium": Config(medium=MediumSettings(alphas=(0.1, 0.5))),
        "paper": Config(paper=PaperSettings(collections=("retina-1", "retina-2", "retina-3", "covid-fl"))),
    },
    function=reproduce,
)
