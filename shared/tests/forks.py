"""Runs ``offprints`` many times from one process that has imported torch once: each run is a fork of it.

Reads one JSON list of jobs a line, runs the jobs of a list at once, answers with their exit statuses (negative: the
signal). A job has argv, cwd, out, err (files), and may have kill_at (SIGKILL itself before the n-th fsync or rename),
signal_at (the same with the signal in ``signal``), tear_at (SIGKILL in the middle of the n-th file of tensors), limit
(the largest file in bytes), papers (those that count as installed), torchrun (the number of processes that torchrun's
launcher starts).
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any


def killing(
    calls: list[int], kill_at: int, function: Callable[..., Any], number: int = signal.SIGKILL
) -> Callable[..., Any]:
    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == kill_at:
            os.kill(os.getpid(), number)
        return function(*args, **kwargs)

    return counted


def tearing(calls: list[int], tear_at: int, save_file: Callable[..., Any]) -> Callable[..., Any]:
    def torn(tensors: Any, path: Path) -> None:
        calls[0] += 1
        save_file(tensors, path)
        if calls[0] == tear_at:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    return torn


def rank_main(argv: list[str]) -> None:
    from offprints.shared.__main__ import main

    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the launcher's own handler came along with the fork
    status = main(argv)
    sys.stdout.flush()
    sys.stderr.flush()
    if status:
        os._exit(status)


def torchrun(processes: int, argv: list[str]) -> int:
    """What the command torchrun does, with forks of this process."""
    import logging

    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable()  # to word its error the launcher imports torch's compiler: seconds
    backend = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": str(os.getpid())}
    config = LaunchConfig(1, 1, processes, start_method="fork", max_restarts=0, monitor_interval=0.05, **backend)
    try:
        elastic_launch(config, rank_main)(argv)
    except ChildFailedError as error:
        return int(next(iter(error.failures.values())).exitcode)
    return 0


def run(job: dict[str, Any]) -> int:
    import safetensors.torch
    import torch

    from offprints.shared import catalog
    from offprints.shared.__main__ import main

    signal.alarm(120)
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)
    os.chdir(job["cwd"])
    for descriptor, path in ((1, job["out"]), (2, job["err"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    torch.set_num_threads(1)
    if "papers" in job:
        papers = catalog.papers
        catalog.papers = lambda: {name: paper for name, paper in papers().items() if name in job["papers"]}
    if "kill_at" in job or "signal_at" in job:
        calls, moment = [0], job.get("kill_at", job.get("signal_at"))
        number = job.get("signal", signal.SIGKILL)
        os.fsync = killing(calls, moment, os.fsync, number)
        os.replace = killing(calls, moment, os.replace, number)
    if "tear_at" in job:
        safetensors.torch.save_file = tearing([0], job["tear_at"], safetensors.torch.save_file)
    if "limit" in job:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"], job["limit"]))
    if "torchrun" in job:
        return torchrun(job["torchrun"], job["argv"])
    warnings.simplefilter("error")
    return main(job["argv"])


def serve() -> None:
    """Import what all jobs need, then fork."""
    import importlib

    needed = ["offprints.shared.command.flags", "offprints.shared.experiment.launch", "offprints.trial.reproduce"]
    needed += ["tyro", "rich.table", "matplotlib.backends.backend_agg"]
    for module in [*needed, "torch.distributed.launcher.api", "torch.distributed.elastic.rendezvous.registry"]:
        importlib.import_module(module)
    for line in sys.stdin:
        children = []
        for job in json.loads(line):
            child = os.fork()
            if not child:
                status = 99
                try:
                    status = run(job)
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(status)
            children.append(child)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        sys.stdout.write(json.dumps(statuses) + "\n")
        sys.stdout.flush()
    os._exit(0)  # torch takes its time to leave


if __name__ == "__main__":  # not in the processes that a job spawns
    serve()
