"""CPU time in place of wall time: for a machine that is shared with other work."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from offprints.shared.benchmark import Case, machine
from offprints.shared.experiment.files import to_json, write


def compare_cpu(cases: Sequence[Case], output: Path, *, rounds: int) -> None:
    """Median CPU seconds of interleaved single calls on one thread, after one untimed call; printed and written."""
    torch.set_num_threads(1)
    rows = []
    for case in cases:
        contenders = {"ours": case.ours, **case.peers}
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for call in contenders.values():
            call()
        for number in range(rounds):
            for name in list(contenders)[:: -1 if number % 2 else 1]:
                start = time.process_time()
                contenders[name]()
                seconds[name].append(time.process_time() - start)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        ratios = {name: value / medians["ours"] for name, value in medians.items()}
        rows.append({"case": case.name, "cpu_seconds": medians, "ratios": ratios, "all": seconds})
        print(case.name, {name: f"{1000 * value:.1f} ms" for name, value in medians.items()}, ratios, flush=True)
        record = {"clock": "CPU time, one thread", "machine": machine(), "rounds": rounds, "cases": rows}
        write(output, to_json(record, indent=2) + "\n")
