"""Two real processes with a gloo process group, for what has to agree with one process."""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType
from typing import Any, Concatenate, ParamSpec, TypeVar

import cloudpickle
import numpy as np
import torch
import torch.distributed as dist

P = ParamSpec("P")
R = TypeVar("R")
WORLD_SIZE = 2


def two_processes(
    fn: Callable[Concatenate[int, P], R], /, *args: P.args, timeout: float = 120.0, **kwargs: P.kwargs
) -> tuple[R, R]:
    """Call ``fn(rank, *args, **kwargs)`` on two processes that share a gloo process group; return both results.

    `fn` may be a lambda or a nested function, and may use whatever its test module defines. Each process computes with
    one thread, on the CPU, with this process's warning filters; its global generators are seeded by its rank, so that
    what relies on equal global random numbers fails. The processes come from a server that has imported torch and
    nothing else (they inherit no state): the first call of a session waits for that import, later ones do not.

    Raises
    ------
    RuntimeError
        `fn` raised (the message ends with its traceback), or a process died.
    TimeoutError
        No answer within `timeout` seconds.
    """
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([__name__])
    payload = _dumps((fn, args, kwargs, warnings.filters))
    with tempfile.TemporaryDirectory() as folder:
        children, receivers = [], {}
        try:
            for rank in range(WORLD_SIZE):
                receiver, sender = context.Pipe(duplex=False)
                child = context.Process(target=_child, args=(rank, folder, payload, timeout, sender), daemon=True)
                child.start()
                sender.close()  # the child's copy is the only one: its death ends the wait
                children.append(child)
                receivers[receiver] = rank
            results = _collect(receivers, timeout)
        finally:
            for child in children:
                child.join(0 if sys.exc_info()[0] else 10)
                if child.is_alive():
                    child.kill()
                    child.join()
                child.close()
            for receiver in receivers:
                receiver.close()
    return results[0], results[1]


def _collect(receivers: dict[Connection, int], timeout: float) -> dict[int, Any]:
    results: dict[int, Any] = {}
    while len(results) < WORLD_SIZE:
        waiting = [receiver for receiver, rank in receivers.items() if rank not in results]
        ready = wait(waiting, timeout)
        if not ready:
            raise TimeoutError(f"no answer from rank {sorted(receivers[r] for r in waiting)} in {timeout:g} s")
        for receiver in ready:
            rank = receivers[receiver]  # type: ignore[index]
            try:
                succeeded, answer = cloudpickle.loads(receiver.recv_bytes())  # type: ignore[union-attr]
            except EOFError:
                raise RuntimeError(f"rank {rank} died without an answer") from None
            if not succeeded:
                raise RuntimeError(f"rank {rank} failed:\n{answer}")
            results[rank] = answer
    return results


def _child(rank: int, folder: str, payload: bytes, timeout: float, sender: Connection) -> None:
    try:
        # What torchrun would set, for libraries that ask the environment.
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": WORLD_SIZE, "LOCAL_WORLD_SIZE": WORLD_SIZE}
        os.environ.update({name: str(value) for name, value in place.items()})
        os.environ.update({"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"})
        if sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a host name need not resolve
        torch.set_num_threads(1)
        random.seed(rank)
        np.random.seed(rank)  # noqa: NPY002
        torch.manual_seed(rank)
        store = dist.FileStore(str(Path(folder) / "rendezvous"), WORLD_SIZE)
        dist.init_process_group(
            "gloo", store=store, rank=rank, world_size=WORLD_SIZE, timeout=timedelta(seconds=timeout)
        )
        fn, args, kwargs, filters = cloudpickle.loads(payload)
        with warnings.catch_warnings():
            warnings.filters[:] = filters  # type: ignore[index]
            result = fn(rank, *args, **kwargs)
        answer = _dumps((True, result))
        dist.barrier()
    except BaseException:
        answer = cloudpickle.dumps((False, traceback.format_exc()))
    # Before the group goes: the other process fails when it does, and must not be the first to report.
    with suppress(BrokenPipeError):
        sender.send_bytes(answer)
    sender.close()
    if dist.is_initialized():
        dist.destroy_process_group()


def _dumps(value: Any) -> bytes:
    """Pickle; what the test modules define goes by value, for another process cannot import them."""
    modules = [module for module in list(sys.modules.values()) if _belongs_to_tests(module)]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        return bytes(cloudpickle.dumps(value))
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def _belongs_to_tests(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    parts = Path(file).parts if isinstance(file, str) else ()
    return "tests" in parts and "site-packages" not in parts
