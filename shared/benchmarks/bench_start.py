"""What a user waits for before any work begins: the command line, and the import of each package over torch's."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path

from rich.console import Console
from rich.table import Table

from offprints.shared.benchmark import machine
from offprints.shared.store.files import to_json, write

ROUNDS = 10
CORE = ("device", "distributed", "datasets", "validation", "experiment", "testing", "benchmark")


def command_seconds(*arguments: str) -> float:
    start = time.perf_counter()
    subprocess.run([Path(sys.executable).with_name("offprints"), *arguments], check=True, capture_output=True)
    return time.perf_counter() - start


def import_seconds(module: str) -> float:
    code = f"import torch, time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def torch_seconds() -> float:
    code = "import time; start = time.perf_counter(); import torch; print(time.perf_counter() - start)"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def median(measure: Callable[[], float]) -> float:
    measure()  # the first call reads the files into the system's cache and writes the bytecode
    return statistics.median(measure() for _ in range(ROUNDS))


def main() -> None:
    names = sorted(d.name.removeprefix("offprints-") for d in distributions() if d.name.startswith("offprints-"))
    modules = [f"offprints.shared.{name}" for name in CORE]
    modules += [f"offprints.{name.replace('-', '_')}" for name in names if name != "shared"]
    seconds = {
        "offprints list": median(lambda: command_seconds("list")),
        "offprints --help": median(lambda: command_seconds("--help")),
        "import torch": median(torch_seconds),
    }
    for module in modules:
        seconds[f"import {module}, after torch"] = median(lambda module=module: import_seconds(module))  # type: ignore[misc]
    table = Table("what", "median of 10, s", title="start")
    for name, value in seconds.items():
        table.add_row(name, f"{value:.3f}")
    Console().print(table)
    result = {"machine": machine(), "rounds": ROUNDS, "seconds": seconds}
    output = Path(__file__).parent / "results" / "start.json"
    output.parent.mkdir(exist_ok=True)
    write(output, (to_json(result) + "\n").encode())


if __name__ == "__main__":
    main()
