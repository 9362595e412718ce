"""Several processes under torchrun's launcher: one run directory, the same values on every rank."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def single(server: Callable[[list[dict[str, Any]]], list[int]], tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The claims of one process."""
    folder = tmp_path_factory.mktemp("single")
    job = {"argv": ["run", "trial"], "cwd": str(folder), "out": str(folder / "out"), "err": str(folder / "err")}
    assert server([job]) == [0]
    (result,) = folder.glob("runs/trial/*/result.json")
    return list(json.loads(result.read_text())["claims"])


def test_two_ranks_write_and_print_once(offprints: Any, single: list[Any], tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    done = offprints("run", "trial", "--trace", trace, torchrun=2)
    assert done.status == 0, done.err
    assert done.result()["claims"] == single
    assert done.out.count("claims hold") == 1
    assert json.loads((done.run / "config.json").read_text())["world_size"] == 2
    lines = trace.read_text().splitlines()
    units = [line.split() for line in lines if line.startswith("unit")]
    assert sorted(unit[1] for unit in units) == ["4", "6", "8"]
    assert len({unit[3] for unit in units}) == 2  # each rank took its share
    assert lines.count("checkpoint 12") == 2


def test_a_failing_rank_ends_all_and_the_run_can_be_resumed(offprints: Any, single: list[Any]) -> None:
    failed = offprints("run", "trial", "--fail", "rank 1", torchrun=2)
    assert failed.status == 3
    assert "the function fails" in failed.err
    assert failed.out == ""

    killed = offprints("run", "trial", torchrun=2, kill_at=30)
    assert killed.status != 0
    assert not (killed.run / "result.json").exists()
    refused = offprints("run", "trial", "--resume", killed.run)
    assert refused.status == 2
    assert "was started with world size 2, not 1" in refused.err
    resumed = offprints("run", "trial", "--resume", killed.run, torchrun=2)
    assert resumed.status == 0, resumed.err
    assert resumed.result()["claims"] == single


def test_parts_of_several_ranks_go_on(offprints: Any) -> None:
    parts = ("run", "trial", "--steps", "0", "--widths", "4", "--parts", "one", "two")
    whole, killed = offprints.each([[*parts, {"torchrun": 2}], [*parts, {"torchrun": 2, "kill_at": 50}]])
    assert killed.status != 0
    assert list(killed.run.glob("parts/two-*/checkpoint/*"))
    resumed = offprints("run", "trial", "--resume", killed.run, torchrun=2)
    assert resumed.status == 0, resumed.err
    assert resumed.result()["claims"] == whole.result()["claims"]
    assert (resumed.run / "metrics.jsonl").read_bytes() == (whole.run / "metrics.jsonl").read_bytes()


def test_usage_errors_and_failing_units_end_all(offprints: Any) -> None:
    refused, unit = offprints.each(
        [
            ["run", "trial", "--out", "/dev/null", {"torchrun": 2}],
            ["run", "trial", "--fail", "unit", {"torchrun": 2}],
        ]
    )
    assert refused.status == 2
    assert [line for line in refused.err.splitlines() if line.startswith("offprints:")] == [
        "offprints: --out: cannot write to /dev/null: Not a directory"
    ]
    assert unit.status == 3
    assert "unit 'width/6' failed: ArithmeticError: six is too many" in unit.err


@pytest.mark.slow
def test_the_command_torchrun(environment: dict[str, str], tmp_path: Path, single: list[Any]) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "offprints.shared"]
    done = subprocess.run(
        [*launcher, "run", "trial"],
        cwd=tmp_path,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (result,) = tmp_path.glob("runs/trial/*/result.json")
    assert json.loads(result.read_text())["claims"] == single
    assert done.stdout.count("claims hold") == 1
