"""Flower's real processes on loopback: a SuperLink, three SuperNodes, and four kinds of faults in three rounds."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

from offprints.fedld import PrincipalGradientAggregator, train_client
from offprints.fedld.baselines import buffer_names
from offprints.fedld.training import client_seed
from offprints.shared.device import local_seed

pytest.importorskip("flwr", reason="needs the extra flower")
APP = Path(__file__).parent / "federation"
# Long enough for a client on a busy machine; the last round always takes all of it.
TIMEOUT = float(os.environ.get("SILOS_TIMEOUT", "25"))


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


@contextmanager
def process(folder: Path, name: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A console script of this environment, in a session of its own that ends with the block."""
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]),
        "FLWR_HOME": str(folder / "home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "SILOS_OUT": str(folder),
        "SILOS_TIMEOUT": str(TIMEOUT),
        "OMP_NUM_THREADS": "1",
        "PYTHONUTF8": "1",
    }
    with (folder / f"{name}-{len(list(folder.glob('*.log')))}.log").open("wb") as log:
        command = [str(Path(sysconfig.get_path("scripts")) / name), *arguments]
        started = subprocess.Popen(
            command,
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield started
        finally:
            kill_tree(started.pid)
            started.wait(30)


def kill_tree(pid: int) -> None:
    """End a process and all that it started, also what has a session of its own."""
    children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout.split()
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    for child in children:
        kill_tree(int(child))


def wait_for(path: Path, seconds: float, running: list[subprocess.Popen[bytes]]) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        dead = [one.args for one in running if one.poll() is not None]
        if dead or time.monotonic() > end:
            logs = "\n".join(f"{log.name}:\n{log.read_text()[-3000:]}" for log in sorted(path.parent.glob("*.log")))
            raise AssertionError(f"{path.name} is not there; ended: {dead}\n{logs}")
        time.sleep(0.1)


def expected() -> dict[str, torch.Tensor]:
    """The same three rounds by hand: of the third partition nothing, of the second nothing in the last round."""
    sys.path.insert(0, str(APP))
    try:
        from silos import task
    finally:
        sys.path.remove(str(APP))
    state, server = task.model_fn().state_dict(), PrincipalGradientAggregator()
    for number, partitions in ((1, (0, 1)), (2, (0, 1)), (3, (0,))):
        states = []
        for i in partitions:
            loader = task.data_fn(i, 3)[0]
            with local_seed(client_seed(task.SEED, number, i)):
                states.append(train_client(task.model_fn(), loader, task.CONFIG, global_state=state, device="cpu")[0])
        sizes = [task.SIZES[i] for i in partitions]
        state, _ = server.aggregate(state, states, sizes, buffer_names=buffer_names(task.model_fn()))
    return state


@pytest.mark.slow  # a minute and more, and Flower ends a run whose processes stand still for long
@pytest.mark.skipif(shutil.which("pgrep") is None, reason="needs pgrep to end the processes that Flower starts")
def test_faults_in_real_processes(tmp_path: Path) -> None:
    link, *nodes = free_ports(4)
    (tmp_path / "home").mkdir()
    connection = f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{link}"\ninsecure = true\n'
    (tmp_path / "home" / "config.toml").write_text(connection)
    superlink = ("--insecure", "--host", "127.0.0.1", "--port", str(link), "--disable-runtime-dependency-installation")
    with process(tmp_path, "flower-superlink", *superlink) as server:
        running = [server]
        wait_for_port(link, server)
        started = []
        for i, port in enumerate(nodes):
            config = f"partition-id={i} num-partitions=3"
            options = ("--insecure", "--superlink", f"127.0.0.1:{link}", "--host", "127.0.0.1", "--port", str(port))
            started.append(process(tmp_path, "flower-supernode", *options, "--node-config", config))
        with started[0] as first, started[1] as second, started[2] as third:
            with process(tmp_path, "flwr", "run", str(APP), "here") as submitted:
                assert submitted.wait(120) == 0, (tmp_path / "flwr-4.log").read_text()
            wait_for(tmp_path / "working", 120 + 4 * TIMEOUT, [*running, first, second, third])
            kill_tree(third.pid)
            with suppress(ProcessLookupError):
                os.kill(int((tmp_path / "working").read_text()), signal.SIGKILL)
            wait_for(tmp_path / "final.pt", 120 + 2 * TIMEOUT, [*running, first, second])
    reports = [json.loads((tmp_path / f"round{number}.json").read_text()) for number in (1, 2, 3)]
    assert [report["accepted"] for report in reports] == [2, 2, 1]
    assert reports[0]["rejected"] == ["0.weight is not finite"]
    assert reports[1]["rejected"] == ["keys differ: lacks 0.bias, 0.weight, 1.bias and has other ..."]
    late, killed = sorted(reports[2]["rejected"], reverse=True)  # Flower notices after a minute that a node has died
    assert late == "no reply in time"
    assert killed == "no reply in time" or "Node Unavailable" in killed
    final = torch.load(tmp_path / "final.pt", weights_only=True)
    for name, value in expected().items():
        assert torch.equal(final[name], value), name


def wait_for_port(port: int, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and server.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise AssertionError(f"the SuperLink does not listen; exit status {server.poll()}")
