"""Faults of the system while a run writes: a kill, a torn write, a full disk, an error of the disk, each resumed.

``python -m offprints.shared.testing.faults NAME [--preset smoke] [--moments 4] [flags of run]`` runs an installed paper
once to count the calls with which it writes into its folder. Then it runs it again for every kind of fault, which
strikes at a call here and there: killed runs must resume, killed once more on the way, to the same claims and the same
log, and an error of the disk must be told in one line with exit status 2. POSIX only: every run is a fork.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KINDS = ("kill", "torn", "ENOSPC", "EIO")
_WRITES = ("write", "save_file")  # what can be torn
_GROWS = ("open", "write", "mkdir", "save_file")  # what a full disk refuses
# What every run imports, once before the forks.
IMPORTED = (
    *("offprints.shared.command.flags", "offprints.shared.experiment.launch"),
    *("filelock", "rich.markdown", "rich.table", "safetensors.torch", "threadpoolctl", "tyro"),
)


@dataclass(frozen=True)
class Fault:
    """What happens at the call of the number ``at``, the first being 1; at none where it is 0."""

    kind: str = "kill"
    at: int = 0


class Shim:
    """Stands between the run and the functions that write below ``folder``; counts their calls.

    Calls of other folders and files pass through uncounted.
    """

    def __init__(self, folder: Path, fault: Fault) -> None:
        self.calls: list[str] = []
        self._folder = os.path.realpath(folder)
        self._fault = fault
        self._descriptors: set[int] = set()

    def install(self) -> None:
        """Put the shim into this process, for good."""
        import safetensors.torch

        real_open, real_close = os.open, os.close

        def opening(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            def call() -> int:
                return real_open(path, flags, *args, **kwargs)

            counted = self._below(path)
            descriptor = self._call("open", call) if counted and flags & os.O_CREAT else call()
            if counted:
                self._descriptors.add(descriptor)
            return int(descriptor)

        def closing(fd: int) -> None:
            self._descriptors.discard(fd)
            real_close(fd)

        os.open, os.close = opening, closing
        for name in ("write", "fsync", "ftruncate"):
            self._wrap(os, name, lambda target: target in self._descriptors)
        for name in ("replace", "unlink", "mkdir"):
            self._wrap(os, name, self._below)
        self._wrap(safetensors.torch, "save_file", lambda _: True)

    def _wrap(self, module: Any, name: str, counted: Callable[[Any], bool]) -> None:
        real = getattr(module, name)

        def wrapped(target: Any, *args: Any, **kwargs: Any) -> Any:
            def call() -> Any:
                return real(target, *args, **kwargs)

            def half() -> None:
                if name == "write":
                    real(target, args[0][: len(args[0]) // 2])
                else:
                    call()
                if name == "save_file":
                    os.truncate(args[0], os.stat(args[0]).st_size // 2)

            return self._call(name, call, half) if counted(target) else call()

        setattr(module, name, wrapped)

    def _below(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and os.path.realpath(path).startswith(self._folder + os.sep)

    def _call(self, name: str, call: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        self.calls.append(name)
        number, kind = len(self.calls), self._fault.kind
        if self._fault.at and number >= self._fault.at:
            if number == self._fault.at and kind in ("kill", "torn"):
                if kind == "torn":
                    (half or call)()
                os.kill(os.getpid(), signal.SIGKILL)
            if (number == self._fault.at and kind == "EIO") or (kind == "ENOSPC" and name in _GROWS):
                _refuse(getattr(errno, kind), name)
        return call()


def _refuse(number: int, name: str) -> None:
    if name == "save_file":  # which says it in words of its own
        import safetensors

        raise safetensors.SafetensorError(f"I/O error: {os.strerror(number)} (os error {number})")
    raise OSError(number, os.strerror(number))


@dataclass(frozen=True)
class Attempt:
    """A finished command: its exit status (negative: the signal), what it said, the calls that were counted."""

    status: int
    err: str
    calls: list[str]

    @property
    def told(self) -> list[str]:
        """The lines that the command itself said at its end."""
        return [line for line in self.err.splitlines() if line.startswith(("offprints:", "Traceback"))]


def attempt(argv: Sequence[str], folder: Path, fault: Fault) -> Attempt:
    """``offprints`` with ``argv`` in a fork of this process, working in ``folder``, with the fault."""
    from offprints.shared.__main__ import main

    files = {name: folder / f".{name}" for name in ("out", "err", "calls")}
    child = os.fork()
    if not child:
        status = 99
        try:
            os.chdir(folder)
            for descriptor, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(files[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
            files["calls"].unlink(missing_ok=True)
            shim = Shim(folder / "runs", fault)
            shim.install()
            status = main(list(argv))
            files["calls"].write_text(json.dumps(shim.calls))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    calls = json.loads(files["calls"].read_text()) if files["calls"].exists() else []
    return Attempt(status, files["err"].read_text(errors="replace"), calls)


def outcome(folder: Path) -> tuple[Any, ...]:
    """What must not depend on interruptions: claims, values and logs of the only run below ``folder``."""
    (run,) = folder.glob("runs/*/*")
    result = json.loads((run / "result.json").read_text())
    logs = [(str(path.relative_to(run)), path.read_bytes()) for path in sorted(run.rglob("metrics.jsonl"))]
    left = [str(path.relative_to(run)) for path in run.rglob(".*.tmp")]
    return result["claims"], result["values"], logs, left


def strike(argv: Sequence[str], folder: Path, fault: Fault, expected: tuple[Any, ...], status: int) -> str | None:
    """Run with the fault, resume until the run is over; what was wrong, or None."""
    struck = attempt(argv, folder, fault)
    if fault.kind in ("kill", "torn") and struck.status != -signal.SIGKILL:
        return f"ended with status {struck.status}, not by the kill: {' '.join(struck.told)}"
    refused = struck.status == 2 and len(struck.told) == 1 and not struck.told[0].startswith("Traceback")
    # A fault in tidying up may go unnoticed.
    if fault.kind in ("ENOSPC", "EIO") and not (refused or struck.status == status):
        return f"ended with status {struck.status} and said {struck.told or struck.err[-300:]}"
    runs = [run for run in folder.glob("runs/*/*") if (run / "config.json").exists()]
    if not runs:  # nothing was stored yet: there is nothing to resume
        return None
    resume = [argv[0], argv[1], "--resume", str(runs[0])]
    if fault.kind in ("kill", "torn"):
        attempt(resume, folder, Fault("kill", fault.at // 2 + 3))  # killed again, where it lasts so long
    last = attempt(resume, folder, Fault())
    if last.status != status:
        return f"resumed with status {last.status}: {' '.join(last.told) or last.err[-300:]}"
    if outcome(folder) != expected:
        return "resumed to another result than that of the uninterrupted run"
    return None


def moments(calls: Sequence[str], kind: str, count: int) -> list[int]:
    """``count`` of the calls, spread over all, other ones for every kind."""
    numbers = [n for n, name in enumerate(calls, 1) if kind != "torn" or name in _WRITES]
    shift = KINDS.index(kind) / len(KINDS)
    return sorted({numbers[int((i + shift) * len(numbers) / count)] for i in range(count)})


def main(argv: Sequence[str] | None = None) -> int:
    """Strike a paper's run; 0 where everything went as it should, else 1."""
    parser = argparse.ArgumentParser(prog="python -m offprints.shared.testing.faults", description=__doc__)
    parser.add_argument("name", help="the paper")
    parser.add_argument("--preset", default="smoke")
    parser.add_argument("--moments", type=int, default=4, help="calls at which each kind of fault strikes")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    known, flags = parser.parse_known_args(argv)
    from offprints.shared import catalog

    for module in IMPORTED:
        importlib.import_module(module)
    catalog.find(known.name).entry_point.load()
    command = ["run", known.name, "--preset", known.preset, *flags]
    failures = tried = 0
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole"
        whole.mkdir()
        first = attempt(command, whole, Fault())
        if first.status not in (0, 1):
            sys.stderr.write(f"without a fault: status {first.status}\n{first.err}")
            return 1
        expected = outcome(whole)
        for kind in known.kinds:
            for at in moments(first.calls, kind, known.moments):
                folder = Path(place) / f"{kind}-{at}"
                folder.mkdir()
                wrong = strike(command, folder, Fault(kind, at), expected, first.status)
                tried += 1
                if wrong is not None:
                    failures += 1
                    sys.stdout.write(f"{known.name}: {kind} at call {at} ({first.calls[at - 1]}): {wrong}\n")
    met = f"{tried - failures} of {tried} faults in {len(first.calls)} calls went as they should"
    sys.stdout.write(f"{known.name}: {met}\n")
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
