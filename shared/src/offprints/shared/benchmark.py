"""A package beside its peers on the same work, in one interleaved run.

::

    case = Case("64 voxels a side", ours=lambda: compute_barcode(a), peers={"gudhi": lambda: gudhi_barcode(a)})
    compare([case], Path(__file__).parent / "results" / "barcode.json")
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.benchmark import Timer
from torch.utils.benchmark.utils.timer import timer as wall

from offprints.shared.store.files import to_json, write
from offprints.shared.validation import check_number


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds per call of one contender: median and quartiles over the rounds."""

    name: str
    version: str | None  # of the distribution of this name; None for a baseline
    median: float
    lower: float
    upper: float
    calls: int
    ratio: float  # median over ours: 2.0 is twice our time


@dataclass(frozen=True)
class Case:
    """One piece of work.

    Attributes:
        name: What is timed, with its size.
        ours: A call without arguments.
        peers: The same work by others: name of the distribution (its version is looked up), or of a baseline.
        agree: ``agree(our result, the peer's)`` raises where they are not the same work; called once per peer, untimed.
    """

    name: str
    ours: Callable[[], Any]
    peers: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    agree: Callable[[Any, Any], object] | None = None


def compare(
    cases: Sequence[Case],
    output: str | Path | None = None,
    *,
    rounds: int = 9,
    seconds: float = 0.2,
    threads: int | None = None,
    clock: Callable[[], float] | None = None,
    console: Console | None = None,
) -> dict[str, list[Timing]]:
    """Time every case, print a table, and write it as JSON.

    The contenders of a case take turns, forwards and backwards, so that a machine that slows down slows all of them.
    Every call is awaited on an accelerator too (``torch.utils.benchmark.Timer``).

    Args:
        cases: With distinct names.
        output: The JSON file, replaced in one step; its folder is created.
        rounds: Measurements per contender; a few untimed calls go before each.
        seconds: Length of a measurement, at least one call.
        threads: torch's threads; None: as they are.
        clock: None: time on the wall. On a machine that is busy with other work ``time.process_time`` counts what the
            contenders themselves use (of all their threads together, and not on an accelerator).
        console: Where the table goes; default: standard output.

    Returns:
        Case to its timings, ours first.

    Raises:
        TypeError, ValueError: No case, a name twice, `rounds` or `seconds` out of range.
    """
    names = [case.name for case in cases]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"cases must have distinct names, got {names}")
    check_number(rounds, "rounds", low=1, integer=True)
    check_number(seconds, "seconds", low=0, open_low=True)
    threads = torch.get_num_threads() if threads is None else threads
    check_number(threads, "threads", low=1, integer=True)

    timings = {case.name: _time(case, rounds, seconds, threads, clock) for case in cases}
    (console or Console()).print(_table(timings))
    if output is not None:
        output = Path(output)
        output.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "benchmark": output.stem,
            "date": datetime.now(UTC).date().isoformat(),
            "machine": machine(),
            "threads": threads,
            "rounds": rounds,
            "clock": "wall" if clock is None else clock.__name__,
            "cases": [{"case": name, "timings": [asdict(t) for t in of_case]} for name, of_case in timings.items()],
        }
        write(output, to_json(record, indent=2) + "\n")
    return timings


def machine() -> dict[str, Any]:
    """Describe this machine and its software: what a time means nothing without."""
    facts: dict[str, Any] = {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": _memory(),
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    return facts | {name: version(name) for name in ("torch", "numpy")}


def version(name: str) -> str | None:
    """Return the version of a distribution, None where there is none of this name."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _time(case: Case, rounds: int, seconds: float, threads: int, clock: Callable[[], float] | None) -> list[Timing]:
    contenders = {"ours": case.ours, **case.peers}
    if "ours" in case.peers:
        raise ValueError(f"a peer of {case.name!r} is called 'ours'")
    results = {name: call() for name, call in contenders.items()}  # warm-up: caches, compilation
    if case.agree is not None:
        for name in case.peers:
            case.agree(results["ours"], results[name])
    del results

    timers = {
        name: Timer("call()", timer=clock or wall, globals={"call": call}, num_threads=threads)
        for name, call in contenders.items()
    }
    # A call that is shorter than the clock's tick is repeated often enough all the same.
    calls = {name: math.ceil(seconds / max(timer.timeit(1).mean, 1e-6)) for name, timer in timers.items()}
    measured: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name in list(contenders)[:: -1 if number % 2 else 1]:
            measured[name].append(timers[name].timeit(calls[name]).mean)
    ours = statistics.median(measured["ours"])
    return [_timing(name, values, calls[name] * rounds, ours) for name, values in measured.items()]


def _timing(name: str, values: list[float], calls: int, ours: float) -> Timing:
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return Timing(
        name=name,
        version=version(name),
        median=median,
        lower=lower,
        upper=upper,
        calls=calls,
        ratio=median / ours,
    )


def _table(timings: Mapping[str, list[Timing]]) -> Table:
    table = Table("case", "contender", "median", "quartiles", "ratio", box=None, pad_edge=False)
    for name, of_case in timings.items():
        for row, t in enumerate(of_case):
            contender = f"{t.name} {t.version}" if t.version else t.name
            quartiles = f"{_duration(t.lower)} to {_duration(t.upper)}"
            ratio = "" if t.name == "ours" else f"{t.ratio:.2f}"
            table.add_row("" if row else name, contender, _duration(t.median), quartiles, ratio)
    return table


def _duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
