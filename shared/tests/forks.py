"""Runs ``offprints`` many times from one process that has imported torch once: each run is a fork of it.

Reads one JSON list of jobs a line, runs the jobs of a list at once, answers with their wait statuses. A job has argv,
out, err (files), and may have env, cwd, kill_at (SIGKILL itself before the n-th fsync or rename), tear_at (SIGKILL in
the middle of the n-th file of tensors), limit (the largest file in bytes) and threads.
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

import matplotlib.backends.backend_agg  # noqa: F401
import rich.table  # noqa: F401
import safetensors.torch
import torch
import torch._dynamo  # optimizers do at their first step
import tyro  # noqa: F401 - imported for all forks at once

import offprints.shared.experiment.flags
import offprints.shared.experiment.launch
import offprints.trial.reproduce  # type: ignore[import-not-found]  # noqa: F401
from offprints.shared.__main__ import main


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killing(calls: list[int], kill_at: int, function: Callable[..., Any]) -> Callable[..., Any]:
    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == kill_at:
            die()
        return function(*args, **kwargs)

    return counted


def tearing(calls: list[int], tear_at: int, save_file: Callable[..., Any]) -> Callable[..., Any]:
    def torn(tensors: Any, path: Path) -> None:
        calls[0] += 1
        save_file(tensors, path)
        if calls[0] == tear_at:
            os.truncate(path, path.stat().st_size // 2)
            die()

    return torn


def run(job: dict[str, Any]) -> None:
    signal.alarm(120)
    os.environ.update(job.get("env", {}))
    os.chdir(job.get("cwd", "."))
    for descriptor, path in ((1, job["out"]), (2, job["err"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    torch.set_num_threads(job.get("threads", 1))
    warnings.simplefilter("error")
    if "kill_at" in job:
        calls = [0]
        os.fsync = killing(calls, job["kill_at"], os.fsync)
        os.replace = killing(calls, job["kill_at"], os.replace)
    if "tear_at" in job:
        safetensors.torch.save_file = tearing([0], job["tear_at"], safetensors.torch.save_file)
    if "limit" in job:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"], job["limit"]))
    status = 99
    try:
        status = main(job["argv"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


for line in sys.stdin:
    children = []
    for job in json.loads(line):
        child = os.fork()
        if not child:
            run(job)
        children.append(child)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    sys.stdout.write(json.dumps(statuses) + "\n")
    sys.stdout.flush()
os._exit(0)  # torch takes its time to leave
