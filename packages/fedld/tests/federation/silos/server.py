"""The server: as the package makes it; the reports and the final arrays go to files."""

import json

import torch
from flwr.app import ArrayRecord

from offprints.fedld import FedLDStrategy, server_app
from silos.faults import OUT, TIMEOUT
from silos.task import ROUNDS, model_fn

strategy = FedLDStrategy(fraction_evaluate=0.0, min_train_nodes=3, min_available_nodes=3)


def record(number: int, arrays: ArrayRecord) -> None:
    report = strategy.last_report
    if report is not None:
        told = {"accepted": len(report.accepted), "rejected": sorted(report.rejected.values())}
        (OUT / f"round{number}.json").write_text(json.dumps(told))


def finish(result) -> None:
    torch.save(result.arrays.to_torch_state_dict(), OUT / "final.part")
    (OUT / "final.part").rename(OUT / "final.pt")


app = server_app(model_fn, rounds=ROUNDS, strategy=strategy, evaluate_fn=record, timeout=TIMEOUT, on_result=finish)
