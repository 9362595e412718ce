"""FedLD in Flower: a strategy, and the two apps around a model; needs the extra `flower`.

The apps are those of Flower's message API: they run in `flwr.simulation.run_simulation` (extra `simulation`) and in
SuperLink and SuperNodes alike.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from offprints.fedld.aggregator import PrincipalGradientAggregator
from offprints.fedld.baselines import buffer_names as buffer_names_of
from offprints.fedld.principal import Rule
from offprints.fedld.states import AggregationReport, NoValidClientError
from offprints.fedld.training import LocalConfig, client_seed, evaluate, load, train_client
from offprints.shared.device import local_seed, resolve_device
from offprints.shared.extras import require
from offprints.shared.validation import check_number

require("flwr", package="fedld", extra="flower")

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402
from flwr.serverapp import Grid, ServerApp  # noqa: E402
from flwr.serverapp.strategy import FedAvg, Result, Strategy  # noqa: E402

log = logging.getLogger(__name__)

ModelFn = Callable[[], nn.Module]
Loader = Iterable[tuple[Tensor, Tensor]]
PARTITION = "partition-id"


class FedLDStrategy(FedAvg):
    """Flower's FedAvg with the aggregation of `PrincipalGradientAggregator`, and a report of every round.

    A node is left out of a round, and the round goes on, where Flower's FedAvg would end the run: its reply is an
    error, has not come when the time is over, has other arrays or no number of examples, NaN or infinity. A round
    without a valid reply keeps the global weights.

    Args:
        k_proportion, rule, warmup_rounds, buffers, server_lr, on_bad_update, max_update_norm: As
            `PrincipalGradientAggregator`.
        buffer_names: Names of the arrays that are buffers. `server_app` takes the model's where there are none.
        fedavg: All keywords of Flower's FedAvg.

    Attributes:
        aggregator: The `PrincipalGradientAggregator`; its `state_dict` is what a resumed run needs.
        last_report: Report of the last round; clients are told by the ids of their nodes.

    Raises:
        TypeError, ValueError: As `PrincipalGradientAggregator`.

    Example:
        >>> strategy = FedLDStrategy(fraction_evaluate=0.5, min_available_nodes=3)
        >>> strategy.aggregator.rule, strategy.min_available_nodes
        ('signed', 3)
    """

    def __init__(
        self,
        *,
        k_proportion: float = 0.8,
        rule: Rule = "signed",
        warmup_rounds: int = 1,
        buffers: Literal["average", "principal"] = "average",
        buffer_names: Collection[str] = (),
        server_lr: float = 1.0,
        on_bad_update: Literal["reject", "raise"] = "reject",
        max_update_norm: float | None = None,
        **fedavg: Any,
    ) -> None:
        super().__init__(**fedavg)
        self.aggregator = PrincipalGradientAggregator(
            k_proportion=k_proportion,
            rule=rule,
            warmup_rounds=warmup_rounds,
            server_lr=server_lr,
            buffers=buffers,
            on_bad_update=on_bad_update,
            max_update_norm=max_update_norm,
        )
        self.buffer_names = buffer_names
        self.last_report: AggregationReport | None = None
        self._sent = ArrayRecord()
        self._asked: list[Any] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As FedAvg; what is sent, and to whom, is kept for `aggregate_train`."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self._sent = arrays
        self._asked = [message.metadata for message in messages]
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The new arrays and the mean of the clients' metrics, or None and None where no reply is valid."""
        valid, faults = self._sorted_out(list(replies))
        nodes = [self._node_of(message) for message, _, _ in valid]
        arrays = metrics = None
        accepted: list[int] = []
        if valid:
            try:
                new, report = self.aggregator.aggregate(
                    self._sent.to_torch_state_dict(),
                    [state for _, state, _ in valid],
                    [size for _, _, size in valid],
                    buffer_names=self.buffer_names,
                )
            except NoValidClientError as error:
                faults |= {nodes[i]: reason for i, reason in error.rejected.items()}
            else:
                faults |= {nodes[i]: reason for i, reason in report.rejected.items()}
                accepted = [nodes[i] for i in report.accepted]
                arrays = ArrayRecord(new)
                contents = [valid[i][0].content for i in report.accepted]
                metrics = self.train_metrics_aggr_fn(contents, self.weighted_by_key)
        self.last_report = AggregationReport(accepted, faults)
        for node, reason in faults.items():
            log.warning("round %d: node %d is left out: %s", server_round, node, reason)
        return arrays, metrics

    def _sorted_out(self, replies: list[Message]) -> tuple[list[tuple[Message, Any, float]], dict[int, str]]:
        """Replies that can be read, their states and sizes, in an order of their own; who else, and why not."""
        faults = {asked.dst_node_id: "no reply in time" for asked in self._asked}
        valid = []
        for message in replies:
            node = self._node_of(message)
            try:
                state, size = self._read(message)
            except _UnreadableError as error:
                faults[node] = str(error)
            else:
                valid.append((message, state, size))
                faults.pop(node, None)
        # Replies come in any order, and ids of nodes are drawn anew in every run: numbers of partitions are not.
        valid.sort(key=lambda item: (_partition_of(item[0]), item[0].metadata.src_node_id))
        return valid, faults

    def _node_of(self, message: Message) -> int:
        # That a node has died is told by the SuperLink, in its own name. A message has its id once it is sent.
        asked = {one.message_id: one.dst_node_id for one in self._asked if one.message_id}
        node: int = asked.get(message.metadata.reply_to_message_id, message.metadata.src_node_id)
        return node

    def _read(self, message: Message) -> tuple[Any, float]:
        if message.has_error():
            raise _UnreadableError(f"an error: {(message.error.reason or '').strip() or 'no reason given'}")
        arrays, metrics = message.content.array_records, message.content.metric_records
        if len(arrays) != 1 or len(metrics) != 1:
            told = f"{len(arrays)} ArrayRecords and {len(metrics)} MetricRecords"
            raise _UnreadableError(f"{told} instead of one of each")
        size = next(iter(metrics.values())).get(self.weighted_by_key)
        if not isinstance(size, (int, float)):
            raise _UnreadableError(f"no number {self.weighted_by_key!r} in the MetricRecord")
        try:
            return next(iter(arrays.values())).to_torch_state_dict(), float(size)
        except Exception as error:  # bytes of a stranger: whatever NumPy makes of them
            raise _UnreadableError(f"arrays that cannot be read ({type(error).__name__}: {error})") from error


class _UnreadableError(Exception):
    """Why a reply cannot be used."""


def _partition_of(message: Message) -> int:
    for record in message.content.config_records.values():
        if isinstance(number := record.get(PARTITION), int):
            return number
    return -1


def client_app(
    model_fn: ModelFn,
    data_fn: Callable[[int, int], tuple[Loader, Loader]],
    *,
    config: LocalConfig,
    device: str | torch.device = "auto",
    seed: int = 0,
) -> ClientApp:
    """A Flower ClientApp that trains with `train_client` and evaluates by cross-entropy and accuracy.

    The global random streams in client i's training in round r depend on `(seed, r, i)` alone, as in `simulate`: with
    a loader `DataLoader(dataset, batch_size, shuffle=True)` of the same data both give the same weights.

    Args:
        model_fn: Makes the model; its weights are replaced by the server's.
        data_fn: `data_fn(partition_id, num_partitions)` gives the loaders of training and of evaluation. The two
            numbers are those of the node's configuration, `partition-id=0 num-partitions=2`.
        config: Local training; the batch size is that of the loader.
        device: Where to train; "auto" is an accelerator if there is one.
        seed: Of all draws.

    Returns:
        The app. Its replies have the arrays, and the metrics `train_loss`, `eval_loss` and `eval_accuracy`.

    Raises:
        ImportError: Flower is not installed.
        TypeError: An argument is of another kind.
        ValueError: `seed` is negative.

    Example:
        >>> data = [(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))]
        >>> app = client_app(lambda: torch.nn.Linear(3, 2), lambda i, n: (data, data), config=LocalConfig())
        >>> type(app).__name__
        'ClientApp'
    """
    _check_callables(model_fn=model_fn, data_fn=data_fn)
    if not isinstance(config, LocalConfig):
        raise TypeError(f"config must be a LocalConfig, got {type(config).__name__}")
    check_number(seed, "seed", low=0, integer=True)
    app = ClientApp()

    def prepared(message: Message, context: Context) -> tuple[nn.Module, dict[str, Tensor], int, tuple[Loader, Loader]]:
        partition, partitions = _node(context)
        arrays = next(iter(message.content.array_records.values())).to_torch_state_dict()
        return model_fn(), arrays, partition, data_fn(partition, partitions)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model, arrays, partition, (loader, _) = prepared(message, context)
        settings = next(iter(message.content.config_records.values()), ConfigRecord())
        number: Any = settings.get("server-round", 0)
        with local_seed(client_seed(seed, int(number), partition)):
            state, metrics = train_client(model, loader, config, global_state=arrays, device=device)
        content: dict[str, ArrayRecord | MetricRecord | ConfigRecord] = {
            "arrays": ArrayRecord(state),
            "metrics": MetricRecord(
                {"train_loss": metrics["train_loss"], "num-examples": int(metrics["num_examples"])}
            ),
            "client": ConfigRecord({PARTITION: partition}),
        }
        return Message(content=RecordDict(content), reply_to=message)

    @app.evaluate()
    def test(message: Message, context: Context) -> Message:
        model, arrays, _, (_, loader) = prepared(message, context)
        load(model, arrays, "arrays")
        place = resolve_device(device)
        loss, accuracy, count = evaluate(model.to(place), loader, place)
        metrics = MetricRecord({"eval_loss": loss, "eval_accuracy": accuracy, "num-examples": count})
        return Message(content=RecordDict({"metrics": metrics}), reply_to=message)

    return app


def _node(context: Context) -> tuple[int, int]:
    numbers = [context.node_config.get(key) for key in (PARTITION, "num-partitions")]
    if not all(isinstance(number, int) for number in numbers):
        raise ValueError(
            f"node_config must have the integers {PARTITION!r} and 'num-partitions', got {dict(context.node_config)}:"
            f" start the SuperNode with --node-config '{PARTITION}=0 num-partitions=2'"
        )
    return int(numbers[0]), int(numbers[1])  # type: ignore[arg-type]


def server_app(
    model_fn: ModelFn,
    *,
    rounds: int,
    strategy: Strategy | None = None,
    evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    timeout: float = 3600.0,
    on_result: Callable[[Result], None] | None = None,
) -> ServerApp:
    """A Flower ServerApp that runs a strategy from the weights of a new model.

    Args:
        model_fn: Makes the initial model.
        rounds: Number of rounds.
        strategy: Any strategy of Flower's; None: `FedLDStrategy`. One without `buffer_names` gets the model's.
        evaluate_fn: Evaluates the arrays after each round, and before the first.
        timeout: Seconds to wait for the replies of a round; who has not answered then is left out of it.
        on_result: Called with Flower's Result at the end, to store the final arrays.

    Returns:
        The app.

    Raises:
        ImportError: Flower is not installed.
        TypeError: An argument is of another kind.
        ValueError: `rounds` below 1, `timeout` not positive.

    Example:
        >>> app = server_app(lambda: torch.nn.Linear(3, 2), rounds=3, strategy=FedLDStrategy(rule="projection"))
        >>> type(app).__name__
        'ServerApp'
    """
    _check_callables(model_fn=model_fn, evaluate_fn=evaluate_fn, on_result=on_result)
    check_number(rounds, "rounds", low=1, integer=True)
    check_number(timeout, "timeout", low=0, open_low=True)
    if strategy is not None and not isinstance(strategy, Strategy):
        raise TypeError(f"strategy must be a Strategy of Flower's, got {type(strategy).__name__}")
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        model = model_fn()
        chosen = FedLDStrategy() if strategy is None else strategy
        if isinstance(chosen, FedLDStrategy) and not chosen.buffer_names:
            chosen.buffer_names = buffer_names_of(model)
        result = chosen.start(grid, ArrayRecord(model.state_dict()), rounds, timeout=timeout, evaluate_fn=evaluate_fn)
        if on_result is not None:
            on_result(result)

    return app


def _check_callables(**functions: object) -> None:
    for name, function in functions.items():
        optional = name in ("evaluate_fn", "on_result")
        if not callable(function) and not (optional and function is None):
            raise TypeError(f"{name} must be callable, got {type(function).__name__}")
