"""The strategy and the apps inside Flower's own round: a grid that passes messages to the ClientApp in this process."""

import random
from collections.abc import Iterable, Iterator

import pytest
import torch
from packages.fedld.tests.federation.silos.task import SIZES, data_fn, model_fn, tensors_of

pytest.importorskip("flwr", reason="needs the extra flower")

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result
from flwr.supercore.task_identity import TaskIdentity

from offprints.fedld import FedLDStrategy, LocalConfig, PrincipalGradientAggregator, client_app, server_app, simulate
from offprints.shared.testing import check_errors

CONFIG = LocalConfig(lr=0.1, batch_size=8)


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    """Outside of a running app a message has no sender."""
    kept = TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    yield
    TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = kept


class InProcessGrid(Grid):
    """Real messages to a real ClientApp, one node a partition; `spoil` may change or drop a reply."""

    def __init__(self, app: ClientApp, spoil=None) -> None:
        self.app, self.spoil = app, spoil
        # Ids of nodes are random in Flower, and replies come in any order.
        self.nodes = {node: i for i, node in enumerate(random.sample(range(10**6), len(SIZES)))}
        self.rounds = 0

    @property
    def run(self):
        raise NotImplementedError

    def create_message(self, *args, **kwargs):
        raise NotImplementedError

    push_messages = pull_messages = set_run = create_message

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        replies = []
        messages = list(messages)
        self.rounds += bool(messages) and messages[0].metadata.message_type == "train"
        for message in messages:
            message.metadata.__dict__["_message_id"] = (
                f"{self.rounds} {message.metadata.dst_node_id}"  # as Flower's grids
            )
            partition = self.nodes[message.metadata.dst_node_id]
            config = {"partition-id": partition, "num-partitions": len(SIZES)}
            context = Context(1, message.metadata.dst_node_id, config, RecordDict(), {})
            try:
                reply = self.app(message, context)
            except Exception as error:  # as a SuperNode does
                reply = Message(Error(code=0, reason=str(error)), reply_to=message)
            if self.spoil is not None and message.metadata.message_type == "train":
                reply = self.spoil(partition, self.rounds, message, reply)
            replies += [] if reply is None else [reply]
        return random.sample(replies, len(replies))


def run(strategy=None, *, rounds: int = 3, spoil=None, **options) -> tuple[Result, InProcessGrid]:
    grid, done = InProcessGrid(client_app(model_fn, data_fn, config=CONFIG, device="cpu", seed=3), spoil), []
    app = server_app(model_fn, rounds=rounds, strategy=strategy, on_result=done.append, **options)
    app(grid, Context(1, 1, {}, RecordDict(), {}))
    return done[0], grid


def test_gives_what_one_process_gives() -> None:
    """The same data and seed, in `simulate` and through Flower's rounds, bit for bit."""
    strategy = FedLDStrategy(min_train_nodes=3, fraction_evaluate=1.0)
    result, _ = run(strategy)
    whole = simulate(model_fn(), [tensors_of(i) for i in range(3)], rounds=3, config=CONFIG, device="cpu", seed=3)
    final = result.arrays.to_torch_state_dict()
    for name, value in whole.state.items():
        assert torch.equal(final[name], value), name
    losses = [result.train_metrics_clientapp[r]["train_loss"] for r in (1, 2, 3)]
    assert losses == pytest.approx([entry["train_loss"] for entry in whole.history])
    assert strategy.aggregator.state_dict() == whole.aggregator_state
    metrics = result.evaluate_metrics_clientapp[3]
    assert set(metrics) == {"eval_loss", "eval_accuracy"}
    assert strategy.last_report is not None
    assert strategy.last_report.rejected == {}


def spoiled(partition: int, number: int, message: Message, reply: Message) -> Message | None:
    """A fault of every kind, one a round, at the third partition."""
    if partition != 2:
        return reply
    if number == 1:
        return None
    if number == 2:
        error = Message(Error(code=0, reason="killed"), reply_to=message)
        error.metadata.__dict__["_src_node_id"] = 1  # the SuperLink's, which tells of nodes that died
        return error
    arrays = {name: torch.full((2,), float("nan")) for name in ("a", "b")} if number == 3 else {}
    if number == 4:
        arrays = {n: v * float("nan") for n, v in model_fn().state_dict().items() if v.is_floating_point()}
        arrays |= {n: v for n, v in model_fn().state_dict().items() if not v.is_floating_point()}
    content = {"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 12, "train_loss": 1.0})}
    if number == 5:
        content["metrics"] = MetricRecord({"train_loss": 1.0})
    if number == 6:
        content["again"] = ArrayRecord({})
    if number == 7:
        good = reply.content["arrays"]
        next(iter(good.values())).data = b"no array"
        return reply
    if number == 8:
        content = {"arrays": reply.content["arrays"], "metrics": MetricRecord({"num-examples": -5, "train_loss": 9e9})}
    return Message(content=RecordDict(content), reply_to=message)


WORDS = {
    1: "no reply in time",
    2: "an error: killed",
    3: "keys differ",
    4: "is not finite",
    5: "no number 'num-examples'",
    6: "2 ArrayRecords and 1 MetricRecords",
    7: "arrays that cannot be read",
    8: "num_examples must be positive",
}


def test_faulty_replies_are_left_out_and_told() -> None:
    reports, losses = [], []
    strategy = FedLDStrategy(min_train_nodes=3, fraction_evaluate=0.0)

    def watch(number: int, arrays: ArrayRecord) -> MetricRecord:
        if number:
            reports.append(strategy.last_report)
        return MetricRecord({"norm": sum(v.float().norm().item() for v in arrays.to_torch_state_dict().values())})

    result, grid = run(strategy, rounds=8, spoil=spoiled, evaluate_fn=watch)
    node = {partition: node for node, partition in grid.nodes.items()}
    for number, words in WORDS.items():
        report = reports[number - 1]
        assert report.accepted == [node[0], node[1]]  # in the order of the partitions, whatever the ids
        assert list(report.rejected) == [node[2]]
        assert words in report.rejected[node[2]]
        losses.append(result.train_metrics_clientapp[number]["train_loss"])
    assert max(losses) < 5  # metrics are those of the accepted alone
    alone = simulate(model_fn(), [tensors_of(i) for i in (0, 1)], rounds=8, config=CONFIG, device="cpu", seed=3)
    for name, value in alone.state.items():
        assert torch.equal(result.arrays.to_torch_state_dict()[name], value), name


def test_flowers_own_average_ends_the_run_on_other_keys() -> None:
    """What the strategy is for: FedAvg refuses the whole round."""

    def other_keys(partition: int, number: int, message: Message, reply: Message) -> Message | None:
        return spoiled(partition, 3, message, reply)

    from flwr.serverapp.exception import InconsistentMessageReplies

    with pytest.raises(InconsistentMessageReplies):
        run(FedAvg(min_train_nodes=3, fraction_evaluate=0.0), rounds=1, spoil=other_keys)


def test_round_without_a_valid_reply_keeps_the_weights() -> None:
    strategy = FedLDStrategy(min_train_nodes=3, fraction_evaluate=0.0)
    for kind in (1, 2, 4):
        result, _ = run(
            strategy, rounds=1, spoil=lambda p, n, message, reply, kind=kind: spoiled(2, kind, message, reply)
        )
        assert not result.arrays  # Flower has no arrays to give: those sent are the last
        assert strategy.last_report.accepted == []
        assert len(strategy.last_report.rejected) == 3
    assert strategy.aggregator.state_dict()["round"] == 0


def test_model_buffers_are_found() -> None:
    strategy = FedLDStrategy(min_train_nodes=3, fraction_evaluate=0.0)
    run(strategy, rounds=1)
    assert strategy.buffer_names == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    mine = FedLDStrategy(min_train_nodes=3, fraction_evaluate=0.0, buffer_names=("1.running_mean",))
    run(mine, rounds=1)
    assert mine.buffer_names == ("1.running_mean",)


def test_options_reach_the_aggregator() -> None:
    options = {
        "k_proportion": 0.5,
        "rule": "projection",
        "warmup_rounds": 0,
        "buffers": "principal",
        "server_lr": 0.5,
        "on_bad_update": "raise",
        "max_update_norm": 1e-9,
    }
    strategy = FedLDStrategy(min_train_nodes=3, weighted_by_key="num-examples", **options)
    assert repr(strategy.aggregator) == repr(PrincipalGradientAggregator(**options))
    with pytest.raises(ValueError, match="norm of the update"):
        run(strategy, rounds=1)


def test_other_strategies_run_with_the_apps() -> None:
    result, _ = run(FedAvg(min_train_nodes=3), rounds=2)
    assert result.arrays.to_torch_state_dict()["0.weight"].isfinite().all()
    assert set(result.train_metrics_clientapp[2]) == {"train_loss"}


def test_node_without_a_partition_is_told_how_to_start() -> None:
    app = client_app(model_fn, data_fn, config=CONFIG)
    content = RecordDict({"arrays": ArrayRecord(model_fn().state_dict()), "config": ConfigRecord({"server-round": 1})})
    message = Message(content=content, message_type="train", dst_node_id=2)
    with pytest.raises(ValueError, match="--node-config 'partition-id=0 num-partitions=2'"):
        app(message, Context(1, 2, {}, RecordDict(), {}))


def test_bad_inputs() -> None:
    check_errors(
        [
            (lambda: FedLDStrategy(k_proportion=0.0), ValueError, "k_proportion"),
            (lambda: FedLDStrategy(rule="mean"), ValueError, "rule"),
            (lambda: FedLDStrategy(fraction=1.0), TypeError, "fraction"),
            (lambda: client_app(None, data_fn, config=CONFIG), TypeError, "model_fn"),
            (lambda: client_app(model_fn, 3, config=CONFIG), TypeError, "data_fn"),
            (lambda: client_app(model_fn, data_fn, config={}), TypeError, "config"),
            (lambda: client_app(model_fn, data_fn, config=CONFIG, seed=-1), ValueError, "seed"),
            (lambda: server_app(3, rounds=1), TypeError, "model_fn"),
            (lambda: server_app(model_fn, rounds=0), ValueError, "rounds"),
            (lambda: server_app(model_fn, rounds=1, timeout=0), ValueError, "timeout"),
            (lambda: server_app(model_fn, rounds=1, strategy="fedld"), TypeError, "strategy"),
            (lambda: server_app(model_fn, rounds=1, evaluate_fn=3), TypeError, "evaluate_fn"),
            (lambda: server_app(model_fn, rounds=1, on_result=3), TypeError, "on_result"),
        ]
    )


@pytest.mark.slow
def test_ray_simulation_gives_the_same() -> None:
    pytest.importorskip("ray", reason="needs the extra simulation")
    from flwr.simulation import run_simulation

    done: list[Result] = []
    strategy = FedLDStrategy(min_train_nodes=3, min_available_nodes=3, fraction_evaluate=0.0)
    run_simulation(
        server_app(model_fn, rounds=2, strategy=strategy, on_result=done.append),
        client_app(model_fn, data_fn, config=CONFIG, device="cpu", seed=3),
        num_supernodes=3,
    )
    whole = simulate(model_fn(), [tensors_of(i) for i in range(3)], rounds=2, config=CONFIG, device="cpu", seed=3)
    final = done[0].arrays.to_torch_state_dict()
    assert all(torch.equal(final[name], value) for name, value in whole.state.items())
