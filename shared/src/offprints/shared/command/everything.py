"""``offprints run --all``: every installed paper, each in a process of its own, one table at the end."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from offprints.shared import catalog
from offprints.shared.command.one import run_one
from offprints.shared.command.status import Interrupted, guarded, write
from offprints.shared.experiment import ranks
from offprints.shared.show import report
from offprints.shared.usage import UsageError

COMMON = ("--preset", "--seed", "--device", "--precision", "--out")


def run_all(argv: Sequence[str]) -> int:
    """Run all papers with the flags that all have; the worst of their exit statuses.

    A process of its own gives each paper the results that it has alone.
    """
    if ranks.launched():
        raise UsageError("run --all runs in one process; with torchrun, name one paper")
    flags = [argument.partition("=")[0] for argument in argv if argument.startswith("--")]
    for flag in flags:
        if flag not in COMMON:
            raise UsageError(f"{flag} cannot go with --all; the flags that all papers have are {', '.join(COMMON)}")
    names = list(catalog.papers())
    if not names:
        raise UsageError("no papers are installed")
    context = multiprocessing.get_context("spawn")
    results, statuses = [], {}
    for number, name in enumerate(names, 1):
        sys.stderr.write(f"[{number}/{len(names)}] {name}\n")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_run_alone, args=(theirs, name, list(argv)))
        process.start()
        theirs.close()
        try:
            try:
                results.append(ours.recv())
            except EOFError:  # it failed, and has said why
                results.append(None)
            process.join()
        except KeyboardInterrupt as stop:
            if isinstance(stop, Interrupted) and process.pid is not None:  # Ctrl-C it has heard itself
                os.kill(process.pid, stop.number)
            process.join()
            raise
        statuses[name] = process.exitcode if process.exitcode is not None else 3
        if statuses[name] == 130:
            raise KeyboardInterrupt
        if statuses[name] in (129, 143):
            raise Interrupted(statuses[name] - 128)
    report.show([result["result"] for result in results if result is not None], several=True)
    write("\n")
    for (name, status), result in zip(statuses.items(), results, strict=True):
        if result is None:
            write(f"{name}: failed, exit status {status}\n")
        else:
            write(f"{name}: {report.verdict(result['result'])}; {result['dir']}\n")
    return max(3 if status < 0 else status for status in statuses.values())


def _run_alone(connection: Connection, name: str, argv: list[str]) -> None:
    def run() -> int:
        outcome = run_one(name, argv)
        if outcome is None:
            return 0
        answer: dict[str, Any] = {"result": outcome.result, "dir": Path(outcome.dir)}
        connection.send(answer)
        return outcome.status

    sys.exit(guarded(run))
