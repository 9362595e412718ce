"""What a user waits for before any work begins: the command line, and the import of each package over torch's.

Every measurement starts a process of its own. The start of a process differs by a few per cent from one to the next:
three rounds tell what there is to tell, and take some two minutes for eight papers on two cores.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import distributions
from pathlib import Path

CORE = ("device", "distributed", "datasets", "validation", "experiment", "testing", "benchmark")


def command_seconds(*arguments: str) -> float:
    start = time.perf_counter()
    subprocess.run([Path(sys.executable).with_name("offprints"), *arguments], check=True, capture_output=True)
    return time.perf_counter() - start


def code_seconds(code: str) -> float:
    """Run code that prints seconds in a process of its own."""
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def import_seconds(module: str) -> float:
    return code_seconds(f"import torch, time; s = time.perf_counter(); import {module}; print(time.perf_counter() - s)")


def torch_seconds() -> float:
    return code_seconds("import time; s = time.perf_counter(); import torch; print(time.perf_counter() - s)")


def median(measure: Callable[[], float], rounds: int) -> float:
    measure()  # the first call reads the files into the system's cache and writes the bytecode
    return statistics.median(measure() for _ in range(rounds))


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive, default=3, help="measurements of each, default 3")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "start.json")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="papers to import; default: all that are installed")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = parse(arguments)
    names = sorted(d.name.removeprefix("offprints-") for d in distributions() if d.name.startswith("offprints-"))
    papers = [name for name in names if name != "shared" and (chosen.only is None or name in chosen.only)]
    if unknown := sorted(set(chosen.only or ()) - set(papers)):
        raise SystemExit(f"not installed: {', '.join(unknown)}; there are {', '.join(names)}")
    # Not before: --help and a wrong name are answered at once.
    from rich.console import Console
    from rich.table import Table

    from offprints.shared.benchmark import machine
    from offprints.shared.store.files import to_json, write

    modules = [f"offprints.shared.{name}" for name in CORE] + [f"offprints.{name.replace('-', '_')}" for name in papers]
    rounds = chosen.rounds
    seconds = {
        "offprints list": median(lambda: command_seconds("list"), rounds),
        "offprints --help": median(lambda: command_seconds("--help"), rounds),
        "import torch": median(torch_seconds, rounds),
    }
    for module in modules:
        seconds[f"import {module}, after torch"] = median(lambda m=module: import_seconds(m), rounds)  # type: ignore[misc]
    table = Table("what", f"median of {rounds}, s", title="start")
    for name, value in seconds.items():
        table.add_row(name, f"{value:.3f}")
    Console().print(table)
    result = {"machine": machine(), "rounds": rounds, "seconds": seconds}
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    write(chosen.output, (to_json(result) + "\n").encode())


if __name__ == "__main__":
    main()
