"""Real processes: two with a gloo group, for what has to agree with one; one that has imported nothing else."""

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
from typing import Any, TypeVar

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
import torch
import torch.distributed as dist

R = TypeVar("R")


def two_processes(fn: Callable[..., R], /, *args: Any, timeout: float = 120.0, **kwargs: Any) -> tuple[R, R]:
    """Call ``fn(rank, *args, **kwargs)`` on two processes that share a gloo process group; return both results.

    `fn` may be a lambda or a nested function, and may use whatever its test module defines. Each process computes with
    one thread, on the CPU, with this process's warning filters; its global generators are seeded by its rank, so that
    what relies on equal global random numbers fails. The processes come from a server that has imported torch and
    nothing else (they inherit no state): the first call of a session waits for that import, later ones do not.

    Raises:
        RuntimeError: `fn` raised (the message ends with its traceback), or a process died.
        TimeoutError: No answer within `timeout` seconds.
    """
    first, second = _run(2, fn, args, kwargs, timeout)
    return first, second


def fresh_process(fn: Callable[[], R], *, timeout: float = 120.0) -> R:
    """Call `fn` on one process of the same kind, without a process group, and return its result."""
    (result,) = _run(1, lambda rank: fn(), (), {}, timeout)
    return result


def _run(count: int, fn: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float) -> list[R]:
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        # These take seconds in every child: where this process has needed one, so will they.
        late = [name for name in ("torch._dynamo", "torch.distributed.tensor", "numba") if name in sys.modules]
        context.set_forkserver_preload([__name__, *late])
    # A filter of some library's own category would import that library over there.
    filters = [one for one in warnings.filters if one[2].__module__ == "builtins"]
    payload = _dumps((fn, args, kwargs, filters))
    children, receivers = [], {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for rank in range(count):
                receiver, sender = context.Pipe(duplex=False)
                options = (rank, count, folder, payload, timeout, sender)
                child = context.Process(target=_child, args=options)  # type: ignore[attr-defined]
                child.start()
                sender.close()  # the child's copy is the only one: its death ends the wait
                children.append(child)
                receivers[receiver] = rank
            results = _collect(receivers, timeout)
            for child in children:
                child.join(10)
        finally:
            for child in children:
                if child.is_alive():
                    child.kill()
                child.join()
                child.close()
            for receiver in receivers:
                receiver.close()
    return [results[rank] for rank in range(count)]


def _collect(receivers: dict[Connection, int], timeout: float) -> dict[int, Any]:
    results: dict[int, Any] = {}
    while len(results) < len(receivers):
        waiting = [receiver for receiver, rank in receivers.items() if rank not in results]
        ready = wait(waiting, timeout)
        if not ready:
            raise TimeoutError(f"no answer from rank {sorted(receivers[r] for r in waiting)} in {timeout:g} s")
        for receiver in waiting:
            if receiver not in ready:
                continue
            rank = receivers[receiver]
            try:
                succeeded, answer = cloudpickle.loads(receiver.recv_bytes())
            except EOFError:
                raise RuntimeError(f"rank {rank} died without an answer") from None
            if not succeeded:
                raise RuntimeError(f"rank {rank} failed:\n{answer}")
            results[rank] = answer
    return results


def _child(rank: int, count: int, folder: str, payload: bytes, timeout: float, sender: Connection) -> None:
    try:
        # What torchrun would set, for libraries that ask the environment.
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        os.environ.update({name: str(value) for name, value in place.items() if count > 1})
        os.environ.update({"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"})
        if sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a host name need not resolve
        torch.set_num_threads(1)
        random.seed(rank)
        np.random.seed(rank)  # noqa: NPY002
        torch.manual_seed(rank)
        if count > 1:
            store = dist.FileStore(f"{folder}/rendezvous", count)  # type: ignore[attr-defined]
            limit = timedelta(seconds=timeout)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=limit)
        fn, args, kwargs, filters = cloudpickle.loads(payload)
        with warnings.catch_warnings():
            warnings.filters[:] = filters  # type: ignore[index]
            result = fn(rank, *args, **kwargs)
        answer = _dumps((True, result))
        if count > 1:
            dist.barrier()  # neither leaves while the other still talks to it
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
    file = vars(module).get("__file__")  # getattr would set off the imports of a lazy module
    parts = Path(file).parts if isinstance(file, str) else ()
    return "tests" in parts and "site-packages" not in parts
