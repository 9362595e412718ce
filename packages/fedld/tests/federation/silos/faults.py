"""What goes wrong: partition and round to the fault."""

import os
import time
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Message

from silos.task import model_fn

FAULTS = {(2, 1): "nan", (2, 2): "keys", (2, 3): "killed", (1, 3): "late"}
OUT = Path(os.environ["SILOS_OUT"])
TIMEOUT = float(os.environ["SILOS_TIMEOUT"])


def before(fault: str | None) -> None:
    if fault == "killed":  # the test kills this process and its SuperNode
        (OUT / "working.part").write_text(str(os.getpid()))
        (OUT / "working.part").rename(OUT / "working")
        time.sleep(600)
    if fault == "late":
        time.sleep(TIMEOUT + 20)


def after(fault: str | None, reply: Message) -> None:
    if fault == "nan":
        state = model_fn().state_dict()
        state["0.weight"] = state["0.weight"] + float("nan")
        reply.content["arrays"] = ArrayRecord(state)
    if fault == "keys":
        reply.content["arrays"] = ArrayRecord({"other": torch.zeros(2)})
