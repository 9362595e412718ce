"""Units of work in parallel processes, with results that do not depend on how many there are.

This module is what worker processes import first: it stays free of torch at the top.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from offprints.shared.experiment import states
from offprints.shared.usage import UsageError, as_usage_error

if TYPE_CHECKING:
    import torch

Function = Callable[[], dict[str, Any]]


class UnitError(RuntimeError):
    """A unit failed; its cause is the original error."""


class _WorkerTracebackError(Exception):
    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


@dataclass(frozen=True)
class Setup:
    """What a worker process does before its first unit, so that it computes as this one does."""

    module: str  # of the paper; imported while other processes already work
    deterministic: bool


@dataclass(frozen=True)
class _Setting:
    """What the experiment may have set for the whole process, and its units depend on."""

    dtype: torch.dtype
    matmul: str

    @staticmethod
    def here() -> _Setting:
        import torch

        return _Setting(torch.get_default_dtype(), torch.get_float32_matmul_precision())

    def take(self) -> None:
        import torch

        torch.set_default_dtype(self.dtype)
        torch.set_float32_matmul_precision(self.matmul)


_Job = tuple[str, bytes, int, _Setting]  # the key, the pickled function, the run's seed


def unit_seed(seed: int, key: str) -> int:
    """The seed of the global random streams in one unit: its own, whatever ran before it."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:4], "little")


def seed_process(seed: int, *, deterministic: bool) -> None:
    """Seed every global random stream, and ask torch for its deterministic algorithms."""
    import torch

    from offprints.shared.device import seed_everything

    seed_everything(seed)
    if deterministic:
        # As use_deterministic_algorithms(True, warn_only=True), which imports torch's compiler: seconds.
        torch.set_deterministic_debug_mode("warn")


def compute(key: str, function: Function, seed: int, kind: str = "unit") -> states.Packed:
    """The result of a unit, or of a work of another ``kind``, its random streams its own and those outside untouched.

    Raises:
        UnitError: the function failed or returned something that cannot be stored.
        UsageError: it failed for want of data, an extra or space.
    """
    from offprints.shared.device import local_seed

    try:
        with local_seed(unit_seed(seed, key)):
            value = function()
        if not isinstance(value, dict):
            raise TypeError(f"a {kind} returns a dict, got {type(value).__name__}")
        return states.pack(value)
    except Exception as error:
        usage = as_usage_error(error)
        if usage is not None:
            raise usage from error
        raise UnitError(f"{kind} {key!r} failed: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """torch and BLAS on one thread inside the block."""
    import torch
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)


class Pool:
    """Computes units in this process and, beside it, in worker processes that live until :meth:`close`.

    Workers import torch, which takes seconds. This process begins without waiting for them, and they are not started
    before it has worked for ``patience`` seconds: a grid of short units needs none.
    """

    def __init__(self, setup: Setup, patience: float = 2.0) -> None:
        self.patience = patience
        self._setup = setup
        self._workers: dict[int, _Worker] = {}
        self._lock = threading.Lock()

    def run(
        self, jobs: Mapping[str, Function], seed: int, workers: int, store: Callable[[str, states.Packed], None]
    ) -> None:
        """Compute all jobs and ``store`` each result, one at a time, as soon as it is there.

        After a failure nothing new is begun, and what is under way elsewhere is stored too. Ctrl-C ends the workers.

        Raises:
            TypeError: there are to be several processes and a job cannot be pickled.
            UnitError: a job failed.
        """
        helpers = min(workers, len(jobs), _cores()) - 1
        pickled = {key: _pickle(key, function) for key, function in jobs.items()} if workers > 1 else {}
        queue, errors = deque(jobs), list[BaseException]()
        begun = time.monotonic()
        setting = _Setting.here()

        def take() -> str | None:
            try:
                return queue.popleft()
            except IndexError:
                return None

        def serve(place: int) -> None:
            try:
                while queue and place not in self._workers and time.monotonic() - begun < self.patience:
                    time.sleep(0.02)
                with self._lock:
                    if queue and place not in self._workers:
                        self._workers[place] = _Worker(self._setup)
                while queue and not self._workers[place].ready():
                    pass
                while (key := take()) is not None:
                    result = self._workers[place].compute(key, (key, pickled[key], seed, setting))
                    with self._lock:
                        store(key, result)
            except BaseException as error:
                queue.clear()
                errors.append(error)

        self._workers = {place: worker for place, worker in self._workers.items() if worker.alive()}
        threads = [threading.Thread(target=serve, args=(place,), daemon=True) for place in range(helpers)]
        for thread in threads:
            thread.start()
        try:
            with one_thread():
                while (key := take()) is not None:
                    result = compute(key, jobs[key], seed)
                    with self._lock:
                        store(key, result)
        except Exception as error:
            queue.clear()
            errors.insert(0, error)
        except BaseException:
            queue.clear()
            self.close()
            raise
        try:
            for thread in threads:
                thread.join()
        except BaseException:
            self.close()
            raise
        if errors:
            raise errors[0]

    def close(self) -> None:
        """End the workers."""
        with self._lock:
            for worker in self._workers.values():
                worker.kill()
            self._workers.clear()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _pickle(key: str, function: Function) -> bytes:
    try:
        return pickle.dumps(function)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(
            f"unit {key!r} cannot be sent to another process: use a function at the top of a module, with"
            f" functools.partial for its arguments, or workers=1 ({error})"
        ) from error


class _Worker:
    """One process, spawned so that it inherits no thread and no state of this one."""

    def __init__(self, setup: Setup) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, setup))  # no daemon: units may start processes
        self._process.start()
        theirs.close()
        self._ready = False

    def alive(self) -> bool:
        """Whether it can still take work."""
        return self._process.is_alive()

    def ready(self) -> bool:
        """Whether it has imported the paper; looks for a moment."""
        if not self._ready and self._connection.poll(0.02):
            self._receive("its start")
            self._ready = True
        return self._ready

    def compute(self, key: str, job: _Job) -> states.Packed:
        return states.from_bytes(self._receive(f"unit {key!r}", job))

    def _receive(self, what: str, job: _Job | None = None) -> bytes:
        try:
            if job is not None:
                self._connection.send(job)
            data, error, text = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            raise UnitError(f"{what} failed: its process ended with exit code {self._process.exitcode}") from None
        if error is None:
            return bytes(data)
        raise error from _WorkerTracebackError(text)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()


def _work(connection: Connection, setup: Setup) -> None:
    """A worker process: import, then compute what comes until the connection ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent, which ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB_MAXIMUM"):
        os.environ[f"{library}_NUM_THREADS"] = "1"  # libraries read it when they are loaded, below
    import torch

    torch.set_num_threads(1)
    seed_process(0, deterministic=setup.deterministic)
    if setup.module != "__main__":
        importlib.import_module(setup.module)
    connection.send((b"", None, ""))
    with contextlib.suppress(EOFError, OSError):
        while True:
            key, function, seed, setting = connection.recv()
            setting.take()
            try:
                answer: tuple[Any, ...] = (states.to_bytes(compute(key, pickle.loads(function), seed)), None, "")
            except (UnitError, UsageError) as error:
                shown = error.__cause__ if isinstance(error, UnitError) else error
                answer = (b"", type(error)(str(error)), "".join(traceback.format_exception(shown)))
            connection.send(answer)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        sys.stderr.flush()
        os._exit(1)
