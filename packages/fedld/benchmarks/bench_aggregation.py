"""The server's step beside the rule written out and beside Flower's own average; results/fedld.json, fedld-12.json."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from torch import Tensor
from torchvision.models import resnet18

from offprints.fedld import PrincipalGradientAggregator
from offprints.fedld.baselines import buffer_names
from offprints.fedld.reference import principal_rule
from offprints.shared.benchmark import Case, compare

State = Mapping[str, Tensor]


def silos(m: int, classes: int) -> tuple[dict[str, Tensor], list[dict[str, Tensor]], frozenset[str]]:
    """A ResNet-18 and what m clients made of it: updates with a common part."""
    generator = torch.Generator().manual_seed(0)
    model = resnet18(num_classes=classes)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    clients: list[dict[str, Tensor]] = [{} for _ in range(m)]
    for name, value in start.items():
        common = torch.randn(value.shape, generator=generator)
        for client in clients:
            own = 0.01 * (common + torch.randn(value.shape, generator=generator))
            client[name] = value + own if value.is_floating_point() else value + 10
    return start, clients, buffer_names(model)


def ours(start: State, clients: Sequence[State], buffers: frozenset[str]) -> dict[str, Tensor]:
    server = PrincipalGradientAggregator(warmup_rounds=0)
    return server.aggregate(start, clients, buffer_names=buffers)[0]


def written_out(start: State, clients: Sequence[State], buffers: frozenset[str]) -> dict[str, Tensor]:
    new = {}
    for name, value in start.items():
        values = torch.stack([client[name].flatten() for client in clients])
        if name in buffers:
            new[name] = values.double().mean(0).to(value.dtype).reshape(value.shape)
        else:
            step = principal_rule(values - value.flatten(), 0.8)
            new[name] = value + step.reshape(value.shape)
    return new


def flower(records: list[RecordDict]) -> ArrayRecord:
    return aggregate_arrayrecords(records, "num-examples")


def ours_from_records(start: ArrayRecord, records: list[RecordDict], buffers: frozenset[str]) -> ArrayRecord:
    """What the strategy does with the replies: read, aggregate, write."""
    states: list[Any] = [record["arrays"].to_torch_state_dict() for record in records]  # type: ignore[union-attr]
    return ArrayRecord(ours(start.to_torch_state_dict(), states, buffers))


def close(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    for name, value in one.items():
        # The rule written out in float32 has rounding in its eigenvectors.
        torch.testing.assert_close(value, other[name], rtol=1e-2, atol=1e-2)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, nargs="+", default=[5, 12])
    for m in parser.parse_args().clients:
        start, clients, buffers = silos(m, 10)
        step = Case(
            f"ResNet-18 (11.2 M values), {m} clients: the step",
            ours=partial(ours, start, clients, buffers),
            peers={"rule written out, tensor by tensor": partial(written_out, start, clients, buffers)},
            agree=close,
        )
        metrics = MetricRecord({"num-examples": 10})
        records = [RecordDict({"arrays": ArrayRecord(client), "metrics": metrics}) for client in clients]
        real = Case(
            f"ResNet-18, {m} clients: from the records of Flower's clients to a new one",
            ours=partial(ours_from_records, ArrayRecord(start), records, buffers),
            peers={"flwr": partial(flower, records)},
        )
        results = Path(__file__).parent / "results" / f"fedld{'' if m == 5 else f'-{m}'}.json"
        # The rule written out takes m * k passes: with twelve clients half a minute a call.
        compare([step, real], results, threads=1, rounds=5 if m < 10 else 2, seconds=0.05)


if __name__ == "__main__":
    main()
