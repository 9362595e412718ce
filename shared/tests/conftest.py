"""A small paper of its own, installed for the tests, and a quick way to run the command line on it."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent

os.environ["OFFPRINTS_WORKERS"] = "2"  # what has several processes is tested with them


@dataclass
class Finished:
    """A finished command: its exit status (negative: the signal), what it said, its run directories."""

    status: int
    out: str
    err: str
    runs: list[Path]

    @property
    def run(self) -> Path:
        (folder,) = self.runs
        return folder

    @staticmethod
    def of(job: dict[str, Any], status: int) -> Finished:
        argv = job["argv"]
        resumed = [Path(argv[argv.index("--resume") + 1])] if "--resume" in argv[:-1] else []
        runs = [path for path in resumed if path.name.endswith("seed0")] or sorted(Path(job["cwd"]).glob("runs/*/*"))
        return Finished(status, Path(job["out"]).read_text(), Path(job["err"]).read_text(), runs)

    def result(self) -> dict[str, Any]:
        return dict(json.loads((self.run / "result.json").read_text()))


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH in which the paper ``trial`` is installed."""
    site = tmp_path_factory.mktemp("site")
    shutil.copytree(HERE / "trial", site / "offprints" / "trial")
    information = site / "offprints_trial-0.3.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(
        "Metadata-Version: 2.4\nName: offprints-trial\nVersion: 0.3\nSummary: A trial of the command line\n"
        "Project-URL: Code, https://example.org\nProject-URL: Paper, https://arxiv.org/abs/2400.00001\n"
        "Requires-Dist: safetensors>=0.5\nRequires-Dist: pytest>=1; extra == 'x'\n"
        "Description-Content-Type: text/markdown\n\n" + (HERE / "trial" / "README.md").read_text()
    )
    entries = "trial = offprints.trial.reproduce:experiment\nbroken = offprints.trial.missing:experiment\n"
    entries += "ends = offprints.trial.ends:experiment\n"
    (information / "entry_points.txt").write_text(f"[offprints.papers]\n{entries}")
    return site


@pytest.fixture(scope="session")
def environment(site: Path) -> dict[str, str]:
    """The environment in which the paper ``trial`` is installed."""
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    kept = {key: value for key, value in os.environ.items() if key not in ("FORCE_COLOR", "COLUMNS")}
    return kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": "2"}


@pytest.fixture(scope="session")
def server(environment: dict[str, str]) -> Iterator[Callable[[list[dict[str, Any]]], list[int]]]:
    """``forks.py``, as a function from jobs to exit statuses."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / "forks.py")],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    requests, answers = process.stdin, process.stdout

    def run(jobs: list[dict[str, Any]]) -> list[int]:
        requests.write(json.dumps(jobs) + "\n")
        requests.flush()
        return list(json.loads(answers.readline()))

    with process:
        yield run
        requests.close()


@pytest.fixture(scope="session", autouse=True)
def _early(request: pytest.FixtureRequest) -> None:
    """Start the server before the first test, so that it imports torch while others run."""
    if any("server" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("server")


class Offprints:
    """``main(argv)`` in fresh forks of the server, each in a folder of its own."""

    def __init__(self, server: Callable[[list[dict[str, Any]]], list[int]], folder: Path) -> None:
        self._server, self._folder, self._count = server, folder, itertools.count()

    def __call__(self, *argv: str | Path, **job: Any) -> Finished:
        (finished,) = self.each([[*argv, job]])
        return finished

    def each(self, commands: Iterable[Sequence[Any]], *, at_once: int = 2) -> list[Finished]:
        """Every command, two at a time; a dict in it says more about the job (see forks.py)."""
        jobs = []
        for command in commands:
            folder = self._folder / f"job{next(self._count)}"
            folder.mkdir()
            job: dict[str, Any] = {"cwd": str(folder), "out": str(folder / "out"), "err": str(folder / "err")}
            for part in command:
                job |= part if isinstance(part, dict) else {}
            jobs.append(job | {"argv": [str(part) for part in command if not isinstance(part, dict)]})
        statuses = [status for first in range(0, len(jobs), at_once) for status in self._server(jobs[first:][:at_once])]
        return [Finished.of(job, status) for job, status in zip(jobs, statuses, strict=True)]


@pytest.fixture
def offprints(server: Callable[[list[dict[str, Any]]], list[int]], tmp_path: Path) -> Offprints:
    """``offprints("run", "trial")``: the finished command."""
    return Offprints(server, tmp_path)
