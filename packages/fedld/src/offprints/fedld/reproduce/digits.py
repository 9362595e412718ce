"""Digits dealt unevenly to a few clients: the runs of the quick preset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offprints.fedld import (
    FederatedResult,
    LocalConfig,
    PrincipalGradientAggregator,
    dirichlet_partition,
    loss_decomposition,
    principal_aggregate,
    simulate,
    train_client,
)
from offprints.fedld.reference import principal_rule
from offprints.fedld.training import ClientLoader
from offprints.shared.datasets import digits
from offprints.shared.device import evaluating, local_seed, make_generator

Pair = tuple[Tensor, Tensor]
TERMS = ("local", "shift", "aggregation", "loss", "accuracy")
LAST = 5  # rounds that are averaged: single rounds go up and down
OTHER_DRAWS = 500_000  # added to a seed: other batches for the same clients and the same initial weights

# What each method of the table differs in; margin control at the README's weight is in all of the FedLD rows.
METHODS: dict[str, dict[str, Any]] = {
    "FedAvg": {"method": "fedavg"},
    "FedProx": {"method": "fedprox"},
    "FedGH": {"method": "fedgh"},
    "margin 0.1": {"method": "fedavg", "penalty": 0.1},
    "margin 1.0": {"method": "fedavg", "penalty": 1.0},
    "FedLD": {"method": "fedld", "penalty": 0.1},
    "FedLD, steps as long as the mean's": {"method": "fedld", "penalty": 0.1, "server": {"server_lr": 1 / 0.74}},
    "FedLD, projection": {"method": "fedld", "penalty": 0.1, "server": {"rule": "projection"}},
    "each alone": {"method": "local"},
}


@dataclass(frozen=True, kw_only=True)
class DigitsSettings:
    """Digits at several clients.

    Attributes:
        draws: Splits, partitions and initial weights for the claims of margin control; 0 leaves this part out.
        table_draws: The first so many of them for the table of all methods.
        clients: Number of clients.
        alpha: Of the Dirichlet partition.
        rounds: Rounds of each run.
        epochs, batch_size, lr: Of local training.
        hidden: Units of the hidden layer.
        penalty: Weight of margin control in the claims; 0.1, the README's, does nothing measurable here.
    """

    draws: int = 0
    table_draws: int = 1
    clients: int = 5
    alpha: float = 0.3
    rounds: int = 10
    epochs: int = 2
    batch_size: int = 20
    lr: float = 0.1
    hidden: int = 32
    penalty: float = 1.0

    def local(self, penalty: float = 0.0) -> LocalConfig:
        """A client's training."""
        return LocalConfig(epochs=self.epochs, lr=self.lr, batch_size=self.batch_size, penalty=penalty)


def federation(seed: int, settings: DigitsSettings) -> tuple[nn.Module, list[Pair], Pair]:
    """An initial model, the clients' digits, and a quarter of all digits that no client has."""
    images, labels = digits()
    order = torch.randperm(len(labels), generator=make_generator(seed))
    test, train = order[:450], order[450:]
    parts = dirichlet_partition(labels[train], settings.clients, alpha=settings.alpha, min_size=10, seed=seed)
    clients = [(images[train[part]], labels[train[part]]) for part in parts]
    with local_seed(seed):
        model = nn.Sequential(nn.Linear(64, settings.hidden), nn.ReLU(), nn.Linear(settings.hidden, 10))
    return model, clients, (images[test], labels[test])


def run_method(seed: int, settings: DigitsSettings, device: str, *, draws: int = 0, **options: Any) -> FederatedResult:
    """One method on one draw; `draws` is added to the seed of the local training."""
    model, clients, test = federation(seed, settings)
    options = dict(options)
    penalty, server = options.pop("penalty", 0.0), options.pop("server", None)
    return simulate(
        model,
        clients,
        rounds=settings.rounds,
        config=settings.local(penalty),
        eval_data=test,
        aggregator=None if server is None else PrincipalGradientAggregator(**server),
        device=device,
        seed=seed + draws,
        **options,
    )


def curves(seed: int, settings: DigitsSettings, method: str, device: str) -> dict[str, Any]:
    """The terms round by round, and their means over the last rounds."""
    return _summary(run_method(seed, settings, device, **METHODS[method]))


def _summary(result: FederatedResult) -> dict[str, Any]:
    history = {term: [entry[term] for entry in result.history] for term in TERMS}
    off = max(abs(entry["total"] - entry["loss"]) for entry in result.history)
    return {"history": history, "off": off} | {term: float(np.mean(values[-LAST:])) for term, values in history.items()}


def margin_control(seed: int, settings: DigitsSettings, device: str) -> dict[str, Any]:
    """FedAvg with and without the margin term, once more with other batches, and with a temperature instead."""
    plain = run_method(seed, settings, device, method="fedavg")
    margin = run_method(seed, settings, device, method="fedavg", penalty=settings.penalty)
    other = run_method(seed, settings, device, method="fedavg", draws=OTHER_DRAWS)
    clients = federation(seed, settings)[1]
    return {
        "plain": _summary(plain),
        "margin": _summary(margin),
        "other": _summary(other),
        "histogram": [np.bincount(labels.numpy(), minlength=10).tolist() for _, labels in clients],
        "tempered": tempered(plain, margin.history[-1]["local"], seed, settings),
        "closed form": closed_form_error(plain, seed, settings),
    }


# ---- what confidence alone does --------------------------------------------------------------------------------------


def tempered(result: FederatedResult, local: float, seed: int, settings: DigitsSettings) -> dict[str, float]:
    """The terms of the last round with all logits divided by the temperature that gives this local loss."""
    model, clients, (images, labels) = federation(seed, settings)
    own, cross = [], []
    with evaluating(model):
        for state, (inputs, classes) in zip(result.client_states, clients, strict=True):
            model.load_state_dict(state)
            own.append((model(inputs), classes))
            cross.append((model(images), labels))
        model.load_state_dict(result.state)
        whole = (model(images), labels)
    sizes = [float(len(classes)) for _, classes in own]

    def terms(temperature: float) -> dict[str, float]:
        losses = [[float(F.cross_entropy(z / temperature, y)) for z, y in of_kind] for of_kind in (own, cross, [whole])]
        return loss_decomposition(losses[0], losses[1], losses[2][0], sizes)

    low, high = 0.0, 10.0  # exponents of 2; the local loss grows with the temperature
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if terms(2**middle)["local"] < local else (low, middle)
    return {"temperature": 2**low, **terms(2**low)}


# ---- checks ----------------------------------------------------------------------------------------------------------


def closed_form_error(result: FederatedResult, seed: int, settings: DigitsSettings) -> float:
    """Largest difference of the Gram form from the explicit rule on the clients' last updates, by their largest."""
    model, _, _ = federation(seed, settings)
    worst = 0.0
    for name, start in model.state_dict().items():
        updates = torch.stack([state[name] - start for state in result.client_states]).flatten(1).double()
        away = principal_aggregate(updates) - principal_rule(updates, 0.8)
        worst = max(worst, float(away.abs().max() / updates.abs().max()))
    return worst


def bad_client(seed: int, settings: DigitsSettings, device: str) -> dict[str, Any]:
    """One client's images are NaN: FedLD and FedAvg leave it out, a plain mean does not."""
    model, clients, test = federation(seed, settings)
    clients[0] = (torch.full_like(clients[0][0], float("nan")), clients[0][1])
    done: dict[str, Any] = {}
    for name, options in {"FedLD": METHODS["FedLD"], "FedAvg": METHODS["FedAvg"]}.items():
        config = settings.local(options.get("penalty", 0.0))
        result = simulate(
            model, clients, method=options["method"], rounds=settings.rounds, config=config, eval_data=test, seed=seed,
            device=device,
        )  # fmt: skip
        done[name] = float(np.mean([entry["accuracy"] for entry in result.history[-LAST:]]))
        done[f"{name} rejections"] = sum(list(report.rejected) == [0] for report in result.reports)
    done["plain mean"] = _accuracy(model, _one_plain_round(model, clients, settings.local(), seed), test)
    return done


def _one_plain_round(model: nn.Module, clients: list[Pair], config: LocalConfig, seed: int) -> dict[str, Tensor]:
    """The mean of what the clients send, whatever it is; one round is enough for NaN to be in every weight."""
    start = {name: value.clone() for name, value in model.state_dict().items()}
    states = []
    for data in clients:
        with local_seed(seed):
            loader = ClientLoader(data, config.batch_size)
            states.append(train_client(model, loader, config, global_state=start, device="cpu")[0])
    return {name: torch.stack([state[name] for state in states]).mean(0) for name in start}


def _accuracy(model: nn.Module, state: Mapping[str, Tensor], test: Pair) -> float:
    model.load_state_dict(state)
    with evaluating(model):
        return float((model(test[0]).argmax(1) == test[1]).float().mean())
