"""A federation in one process: every method on the same clients, with the loss decomposition round by round."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from offprints.fedld.aggregator import PrincipalGradientAggregator
from offprints.fedld.baselines import GradientHarmonization, WeightedAverage, batch_norm_names, buffer_names
from offprints.fedld.decomposition import loss_decomposition
from offprints.fedld.states import AggregationReport, NoValidClientError
from offprints.fedld.training import (
    EVALUATION_BATCH,
    ClientLoader,
    LocalConfig,
    check_model,
    client_seed,
    evaluate,
    load,
    train_client,
)
from offprints.shared.device import local_seed, resolve_device
from offprints.shared.validation import check_choice, check_number

Method = Literal["fedld", "fedavg", "fedprox", "fedbn", "fedgh", "local"]
METHODS: tuple[Method, ...] = ("fedld", "fedavg", "fedprox", "fedbn", "fedgh", "local")
PROXIMAL = 0.01  # FedProx's mu where the configuration has none

Data = tuple[Tensor, Tensor] | Dataset[Any]
State = dict[str, Tensor]


@dataclass
class FederatedResult:
    """What a simulated federation leaves; all of it can be saved with `torch.save` field by field.

    Attributes:
        state: Global state dict after the last round; for "local" the initial one.
        client_states: Each client's own model after its last local training (the initial one before that); "local"
            and "fedbn" are evaluated with these.
        history: One entry a round: `step`, the round from 1, and `train_loss`, the mean over the clients by size. With
            `eval_data` also `loss`, `accuracy` and the terms of `loss_decomposition`: `local`, `shift`, `aggregation`
            and `total`.
        reports: One a round.
        aggregator_state: The server's `state_dict` after the last round.

    Example:
        >>> x, y = torch.randn(8, 3), torch.tensor([0, 1] * 4)
        >>> clients = [(x[:4], y[:4]), (x[4:], y[4:])]
        >>> result = simulate(torch.nn.Linear(3, 2), clients, rounds=2, config=LocalConfig(), device="cpu")
        >>> [entry["step"] for entry in result.history], result.reports[0].accepted
        ([1.0, 2.0], [0, 1])
    """

    state: State
    client_states: list[State]
    history: list[dict[str, float]]
    reports: list[AggregationReport]
    aggregator_state: dict[str, Any]


def simulate(
    model: nn.Module,
    client_data: Sequence[Data],
    *,
    method: Method = "fedld",
    rounds: int,
    config: LocalConfig,
    eval_data: Data | None = None,
    aggregator: PrincipalGradientAggregator | None = None,
    participation: float = 1.0,
    eval_every: int = 1,
    device: str | torch.device = "auto",
    seed: int = 0,
    resume_from: FederatedResult | None = None,
    callback: Callable[[dict[str, float]], None] | None = None,
) -> FederatedResult:
    """Train a model on the data of several clients, in one process.

    The methods differ in the server alone, but for FedProx: "fedld" takes principal directions, "fedavg" and "fedprox"
    the mean by size, "fedbn" the same with batch norm kept at the clients, "fedgh" gradient harmonization; "local" has
    no server. `config.penalty` acts in all of them: set it to 0 for the plain baselines.

    The random draws of client i in round r depend on `(seed, r, i)` alone, and the global streams are left as they
    were: a resumed run, and Flower with the same data and seed, give the same result. A client whose state is not
    finite is left out of its round; a round without a valid client keeps the global weights.

    Args:
        model: The initial model; it is not changed.
        client_data: For each client a pair of tensors (inputs, labels) or a data set of pairs.
        method: The method.
        rounds: Number of rounds in all, those of `resume_from` included.
        config: Local training. With "fedprox" a `proximal` of 0 is taken as 0.01.
        eval_data: Data of everybody that no client has, for the losses F and the accuracy.
        aggregator: Settings of "fedld", and its state where it has been used before; it is not changed. None: the
            defaults.
        participation: Share of the clients that each round draws, at least one.
        eval_every: Rounds from one evaluation to the next; the last one is always evaluated.
        device: Where to train; "auto" is an accelerator if there is one. Results are where `model` is.
        seed: Of all draws.
        resume_from: The result of an earlier run with the same arguments and fewer rounds.
        callback: Called with each entry of the history.

    Raises:
        TypeError: An argument of another kind.
        ValueError: No clients, a client without samples, a number out of range, an unknown method, an aggregator for
            another method than "fedld", a `resume_from` that does not fit; a bad client, where the aggregator raises.

    Example:
        >>> x = torch.randn(40, 5)
        >>> y = (x[:, 0] > 0).long()
        >>> clients = [(x[:15], y[:15]), (x[15:30], y[15:30])]
        >>> config = LocalConfig(lr=0.5, penalty=0.0, batch_size=5)
        >>> result = simulate(torch.nn.Linear(5, 2), clients, rounds=5, config=config, eval_data=(x[30:], y[30:]))
        >>> result.history[-1]["accuracy"] > 0.5
        True
    """
    check_model(model)
    check_choice(method, "method", METHODS)
    check_number(rounds, "rounds", low=1, integer=True)
    check_number(eval_every, "eval_every", low=1, integer=True)
    check_number(participation, "participation", low=0, high=1, open_low=True)
    check_number(seed, "seed", low=0, integer=True)
    if not isinstance(config, LocalConfig):
        raise TypeError(f"config must be a LocalConfig, got {type(config).__name__}")
    if isinstance(client_data, (str, bytes, Mapping)) or not isinstance(client_data, Sequence):
        raise TypeError(
            f"client_data must be a sequence with the data of each client, got {type(client_data).__name__}"
        )
    if not client_data:
        raise ValueError("client_data must hold at least one client, got none")
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be callable, got {type(callback).__name__}")
    if method == "fedprox" and not config.proximal:
        config = replace(config, proximal=PROXIMAL)
    server = _server(method, aggregator)
    with torch.inference_mode(False):
        federation = _Federation(model, client_data, method, config, eval_data, resolve_device(device), seed, server)
        if resume_from is not None:
            federation.resume(resume_from, rounds)
        for number in range(len(federation.history) + 1, rounds + 1):
            entry = federation.round(number, participation, evaluated=number % eval_every == 0 or number == rounds)
            if callback is not None:
                callback(dict(entry))
        return federation.result()


def _server(method: str, aggregator: PrincipalGradientAggregator | None) -> Any:
    if aggregator is not None and method != "fedld":
        raise ValueError(f"aggregator must be None unless the method is 'fedld', got one for {method!r}")
    if aggregator is not None and not isinstance(aggregator, PrincipalGradientAggregator):
        raise TypeError(f"aggregator must be a PrincipalGradientAggregator, got {type(aggregator).__name__}")
    if method == "fedld":
        return PrincipalGradientAggregator() if aggregator is None else copy.deepcopy(aggregator)
    return GradientHarmonization() if method == "fedgh" else WeightedAverage()


class _Federation:
    """The clients, the server's weights, and the records of the rounds so far."""

    def __init__(
        self,
        model: nn.Module,
        client_data: Sequence[Data],
        method: str,
        config: LocalConfig,
        eval_data: Data | None,
        place: torch.device,
        seed: int,
        server: Any,
    ) -> None:
        self.home = next((value.device for value in model.state_dict().values()), torch.device("cpu"))
        self.method, self.config, self.place, self.seed, self.server = method, config, place, seed, server
        self.worker = copy.deepcopy(model).to(place)
        names = [f"client_data[{i}]" for i in range(len(client_data))]
        pairs = list(zip(client_data, names, strict=True))
        self.loaders = [ClientLoader(data, config.batch_size, name=name) for data, name in pairs]
        self.own = [ClientLoader(data, EVALUATION_BATCH, shuffle=False, name=name) for data, name in pairs]
        self.common = (
            None if eval_data is None else ClientLoader(eval_data, EVALUATION_BATCH, shuffle=False, name="eval_data")
        )
        self.sizes = [float(loader.size) for loader in self.loaders]
        self.state = self._copy(self.worker.state_dict())
        self.client_states = [self.state] * len(self.loaders)
        self.buffers = buffer_names(self.worker)
        at_home = {"fedbn": batch_norm_names(self.worker), "local": frozenset(self.state)}
        self.at_home = at_home.get(method, frozenset())
        self.history: list[dict[str, float]] = []
        self.reports: list[AggregationReport] = []

    def _copy(self, state: Mapping[str, Tensor], place: torch.device | None = None) -> State:
        return {name: value.detach().to(place or self.place, copy=True) for name, value in state.items()}

    def resume(self, before: FederatedResult, rounds: int) -> None:
        if not isinstance(before, FederatedResult):
            raise TypeError(f"resume_from must be a FederatedResult, got {type(before).__name__}")
        if len(before.history) > rounds:
            raise ValueError(f"rounds must be at least the {len(before.history)} of resume_from, got {rounds}")
        if len(before.client_states) != len(self.loaders):
            raise ValueError(
                f"resume_from must have as many clients as client_data, {len(self.loaders)},"
                f" got {len(before.client_states)}"
            )
        for state in (before.state, *before.client_states):
            load(self.worker, state, "resume_from")
        self.state = self._copy(before.state)
        self.client_states = [self._copy(state) for state in before.client_states]
        self.history, self.reports = copy.deepcopy(before.history), copy.deepcopy(before.reports)
        self.server.load_state_dict(before.aggregator_state)

    def round(self, number: int, participation: float, *, evaluated: bool) -> dict[str, float]:
        """Local training of the clients drawn, one step of the server, and the records."""
        drawn = self._draw(number, participation)
        losses = []
        for i in drawn:
            with local_seed(client_seed(self.seed, number, i)):
                start = {n: self.client_states[i][n] if n in self.at_home else v for n, v in self.state.items()}
                self.client_states[i], metrics = train_client(
                    self.worker, self.loaders[i], self.config, global_state=start, device=self.place
                )
            losses.append(metrics["train_loss"])
        report = self._aggregate(drawn)
        self.reports.append(report)
        sizes = [self.sizes[i] for i in drawn]
        mean_loss = math.fsum(n * loss for n, loss in zip(sizes, losses, strict=True)) / math.fsum(sizes)
        entry = {"step": float(number), "train_loss": mean_loss}
        if self.common is not None and evaluated:
            entry |= self._evaluate(report)
        self.history.append(entry)
        return entry

    def _draw(self, number: int, participation: float) -> list[int]:
        clients = len(self.loaders)
        count = max(1, round(participation * clients))
        draws = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(number,)))
        return sorted(draws.choice(clients, count, replace=False).tolist()) if count < clients else list(range(clients))

    def _aggregate(self, drawn: list[int]) -> AggregationReport:
        if self.method == "local":
            return AggregationReport(list(drawn), {})
        shared = {name: value for name, value in self.state.items() if name not in self.at_home}
        if not shared:
            return AggregationReport(list(drawn), {})
        states = [{name: self.client_states[i][name] for name in shared} for i in drawn]
        try:
            new, report = self.server.aggregate(
                shared, states, [self.sizes[i] for i in drawn], buffer_names=self.buffers & shared.keys()
            )
        except NoValidClientError as error:
            return AggregationReport([], {drawn[i]: reason for i, reason in error.rejected.items()})
        self.state = {**self.state, **new}
        return AggregationReport(
            [drawn[i] for i in report.accepted], {drawn[i]: reason for i, reason in report.rejected.items()}
        )

    def _evaluate(self, report: AggregationReport) -> dict[str, float]:
        """Losses on everybody's data, and their decomposition; terms without a valid client are NaN."""
        assert self.common is not None
        personal = self.method in ("local", "fedbn")
        clients = [i for i in range(len(self.loaders)) if i not in report.rejected] if personal else report.accepted
        own, cross, hits = [], [], []
        for i in clients:
            load(self.worker, self.client_states[i], "client state")
            own.append(evaluate(self.worker, self.own[i], self.place)[0])
            loss, accuracy, _ = evaluate(self.worker, self.common, self.place)
            cross.append(loss)
            hits.append(accuracy)
        share = [self.sizes[i] for i in clients]
        if personal and clients:
            whole = math.fsum(share)
            loss = math.fsum(n * value for n, value in zip(share, cross, strict=True)) / whole
            accuracy = math.fsum(n * value for n, value in zip(share, hits, strict=True)) / whole
        else:
            load(self.worker, self.state, "state")
            loss, accuracy, _ = evaluate(self.worker, self.common, self.place)
        terms = dict.fromkeys(("local", "shift", "aggregation", "total"), math.nan)
        if clients and all(map(math.isfinite, (*own, *cross, loss))):
            terms = loss_decomposition(own, cross, loss, share)
        return {"loss": loss, "accuracy": accuracy, **terms}

    def result(self) -> FederatedResult:
        return FederatedResult(
            state=self._copy(self.state, self.home),
            client_states=[self._copy(state, self.home) for state in self.client_states],
            history=self.history,
            reports=self.reports,
            aggregator_state=self.server.state_dict(),
        )
