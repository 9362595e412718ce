"""Units of work in parallel processes, with results that do not depend on how many there are.

This module is what worker processes import first: it stays free of torch at the top.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import multiprocessing.connection
import os
import pickle
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any, TypeVar

from offprints.shared.store import states
from offprints.shared.usage import UsageError, as_usage_error

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
Function = Callable[[], dict[str, Any]]


class UnitError(RuntimeError):
    """A unit failed; its cause is the original error."""


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
    except (Exception, SystemExit) as error:
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
    """Computes units in this process and, beside it, in worker processes that live until `close`.

    Workers import torch, which takes seconds. This process begins without waiting for them, and they are not started
    before it has worked for ``patience`` seconds: a grid of short units needs none. Each worker is an executor of one
    process, so that of a process that dies it is known which unit it computed.
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
        helpers = min(workers, len(jobs), _allowed()) - 1
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
                    result = self._workers[place].compute(key, pickled[key], seed, setting)
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
        for worker in self._workers.values():
            worker.kill()
        self._workers.clear()


def _allowed() -> int:
    """How many processes may compute: as many as this one has cores, and no more than the user allows.

    Raises:
        UsageError: ``OFFPRINTS_WORKERS`` is no whole number of at least 1.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    told = os.environ.get("OFFPRINTS_WORKERS", "").strip()
    if not told:
        return cores
    if not told.isdecimal() or int(told) < 1:
        raise UsageError(f"OFFPRINTS_WORKERS must be a whole number of at least 1, got {told!r}")
    return min(cores, int(told))


def _pickle(key: str, function: Function) -> bytes:
    try:
        return pickle.dumps(function)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(
            f"unit {key!r} cannot be sent to another process: use a function at the top of a module, with"
            f" functools.partial for its arguments, or workers=1 ({error})"
        ) from error


class _Spawn(SpawnContext):
    """Remembers the processes that it starts: an executor has no public way to end one that computes."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[BaseProcess] = []

    def Process(self, *args: Any, **kwargs: Any) -> SpawnProcess:  # type: ignore[override]  # noqa: N802
        process = SpawnProcess(*args, **kwargs)
        self.started.append(process)
        return process


class _Worker:
    """One process, spawned so that it inherits no thread and no state of this one."""

    def __init__(self, setup: Setup) -> None:
        self._context = _Spawn()
        self._executor = ProcessPoolExecutor(1, mp_context=self._context, initializer=_begin, initargs=(setup,))
        self._begun: Future[int] = self._executor.submit(os.getpid)  # answered once the initializer is through

    def alive(self) -> bool:
        """Whether it can still take work."""
        return any(process.is_alive() for process in self._context.started)

    def ready(self) -> bool:
        """Whether it has imported the paper; looks for a moment.

        Raises:
            UnitError: it could not.
        """
        if wait([self._begun], timeout=0.02).done:
            self._result(self._begun, "the start of a worker")
        return self._begun.done()

    def compute(self, key: str, function: bytes, seed: int, setting: _Setting) -> states.Packed:
        try:
            future = self._executor.submit(_compute, key, function, seed, setting)
        except BrokenExecutor:  # it died before
            raise self._died(f"unit {key!r}") from None
        return states.from_bytes(self._result(future, f"unit {key!r}"))

    def _result(self, future: Future[T], what: str) -> T:
        try:
            return future.result()
        except BrokenExecutor:
            raise self._died(what) from None

    def _died(self, what: str) -> UnitError:
        for process in self._context.started:
            process.join(timeout=10)
        codes = ", ".join(str(process.exitcode) for process in self._context.started)
        return UnitError(f"{what} failed: its process ended with exit code {codes}")

    def kill(self) -> None:
        for process in self._context.started:
            process.kill()
        self._executor.shutdown(wait=True, cancel_futures=True)


def _begin(setup: Setup) -> None:
    """What a worker process does first: import all that its units need."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # Ctrl-C goes to the parent too, which ends this process
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB_MAXIMUM"):
        os.environ[f"{library}_NUM_THREADS"] = "1"  # libraries read it when they are loaded, below
    import torch

    torch.set_num_threads(1)
    seed_process(0, deterministic=setup.deterministic)
    if setup.module != "__main__":
        importlib.import_module(setup.module)


def _compute(key: str, function: bytes, seed: int, setting: _Setting) -> bytes:
    setting.take()
    return states.to_bytes(compute(key, pickle.loads(function), seed))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        sys.stderr.flush()
        os._exit(1)
