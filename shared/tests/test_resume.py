"""A run killed at any moment and resumed ends as the uninterrupted one does, bit for bit."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

# Fsyncs and renames of one run of the trial, in order: config.json 3, units 3 x 6, checkpoints 4 x (1 + 6),
# report.md 3, result.json 3.
MOMENTS = 55


def measured(folder: Path) -> Any:
    result = json.loads((folder / "result.json").read_text())
    return result["claims"], result["values"]


@pytest.fixture(scope="module")
def uninterrupted(
    server: Callable[[list[dict[str, Any]]], list[int]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    job = {"argv": ["run", "trial"], "cwd": str(folder), "out": str(folder / "out"), "err": str(folder / "err")}
    assert server([job]) == [0], (folder / "err").read_text()
    (run,) = folder.glob("runs/trial/*")
    return run


def traced(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def check(run: Path, uninterrupted: Path) -> None:
    assert measured(run) == measured(uninterrupted)
    assert (run / "metrics.jsonl").read_bytes() == (uninterrupted / "metrics.jsonl").read_bytes()
    assert sorted(path.name for path in run.rglob("*.tmp")) == []
    assert len(list((run / "checkpoint").iterdir())) == 2


def test_killed_between_any_two_writes(offprints: Any, uninterrupted: Path, tmp_path: Path) -> None:
    moments = [*range(1, MOMENTS, 6), MOMENTS - 1]
    killed = offprints.each(["run", "trial", "--trace", tmp_path / f"{m}", {"kill_at": m}] for m in moments)
    assert {finished.status for finished in killed} == {-signal.SIGKILL}
    before = [traced(tmp_path / f"{moment}") for moment in moments]
    finished = offprints.each(["run", "trial", "--resume", trial.run] for trial in killed)
    for moment, done, trial in zip(moments, before, finished, strict=True):
        if moment <= 2:  # config.json has not got its name
            assert trial.status == 2
            assert "no config.json" in trial.err
            continue
        assert trial.status == 0, trial.err
        check(trial.run, uninterrupted)
        # Never more than the work of one unit, or of the steps since the last checkpoint, is done again.
        again = traced(tmp_path / f"{moment}")[len(done) :]
        assert sum(line.startswith("unit") for line in done + again) <= 4
        last = max((int(line.split()[1]) for line in done if line.startswith("checkpoint")), default=0)
        (start,) = (int(line.split()[1]) for line in again if line.startswith("start"))
        assert last <= start <= last + 3


def test_the_run_has_the_moments_that_are_tried(offprints: Any) -> None:
    assert offprints("run", "trial", kill_at=MOMENTS).status == -signal.SIGKILL
    assert offprints("run", "trial", kill_at=MOMENTS + 1).status == 0


def test_killed_in_the_middle_of_a_file(offprints: Any, uninterrupted: Path) -> None:
    killed = offprints.each(["run", "trial", {"tear_at": number}] for number in (1, 5))
    assert {finished.status for finished in killed} == {-signal.SIGKILL}
    for finished in offprints.each(["run", "trial", "--resume", trial.run] for trial in killed):
        assert finished.status == 0
        check(finished.run, uninterrupted)


PARTS = ("run", "trial", "--steps", "0", "--widths", "4", "--parts", "one", "two")
# As above: config.json 3, the unit 6, a part 3 x (1 + 6) + (1 + 6) each, report.md and result.json 3 each.
PART_MOMENTS = 71


def logged(run: Path) -> tuple[Any, ...]:
    return measured(run), *[path.read_bytes() for path in sorted(run.rglob("metrics.jsonl"))]


def test_parts_killed_at_any_moment_go_on_and_finished_ones_are_not_run_again(offprints: Any, tmp_path: Path) -> None:
    whole = offprints(*PARTS)
    assert whole.status == 0, whole.err
    lines = [json.loads(line) for line in (whole.run / "metrics.jsonl").read_text().splitlines()]
    names = [key for line in lines for key in line if key != "step"]
    assert names == ["loss", *["one/length"] * 6, *["two/length"] * 6, "parts"]
    assert lines[1]["one/length"] != lines[7]["two/length"]
    assert not list(whole.run.glob("parts/*/checkpoint"))

    moments = [*range(11, PART_MOMENTS, 7), PART_MOMENTS - 1]
    killed = offprints.each([*PARTS, "--trace", tmp_path / f"{m}", {"kill_at": m}] for m in moments)
    assert {finished.status for finished in killed} == {-signal.SIGKILL}
    finished = offprints.each(["run", "trial", "--resume", trial.run] for trial in killed)
    for moment, done in zip(moments, finished, strict=True):
        assert done.status == 0, done.err
        assert logged(done.run) == logged(whole.run)
        starts = [line.split()[1::2] for line in traced(tmp_path / f"{moment}") if line.startswith("part")]
        assert starts == sorted(starts)  # each from where it was stopped, and none after it was finished
        assert len(starts) <= 3


def test_parts_do_not_depend_on_one_another(offprints: Any) -> None:
    both, alone = offprints.each([PARTS, [*PARTS[:-2], "two"]])
    assert both.result()["claims"][1] == alone.result()["claims"][0]


def test_records_of_another_part_are_refused(offprints: Any) -> None:
    killed = offprints(*PARTS, kill_at=64)
    one, two = sorted(killed.run.glob("parts/*"))
    for path in one.glob("finished*"):
        shutil.copy(path, two)
    shutil.copy(one / "metrics.jsonl", two)
    refused = offprints("run", "trial", "--resume", killed.run)
    assert refused.status == 2
    assert f"{two / 'finished.json'} belongs to 'one', not to 'two'" in refused.err


def test_killed_again_and_again(offprints: Any, uninterrupted: Path) -> None:
    finished = offprints("run", "trial", kill_at=8)
    for attempt in itertools.count(1):
        assert finished.status == -signal.SIGKILL
        finished = offprints("run", "trial", "--resume", finished.run, kill_at=11)
        if finished.status == 0:
            break
        assert attempt < 10
    check(finished.run, uninterrupted)


def test_a_half_written_line_of_the_log_goes(offprints: Any, uninterrupted: Path) -> None:
    killed = offprints("run", "trial", kill_at=36)
    with open(killed.run / "metrics.jsonl", "a") as log:
        log.write('{"step":7,"los')
    assert offprints("run", "trial", "--resume", killed.run).status == 0
    check(killed.run, uninterrupted)


def test_parallel_units_killed_and_resumed(offprints: Any, uninterrupted: Path) -> None:
    killed = offprints("run", "trial", "--workers", "2", kill_at=12)
    assert killed.status == -signal.SIGKILL
    assert len(list((killed.run / "units").glob("*.json"))) == 1
    assert offprints("run", "trial", "--resume", killed.run).status == 0
    check(killed.run, uninterrupted)


def test_a_finished_run_is_shown_again_and_left_alone(offprints: Any, uninterrupted: Path) -> None:
    before = {path: path.read_bytes() for path in uninterrupted.rglob("*") if path.is_file()}
    shown = offprints("run", "trial", "--resume", uninterrupted)
    assert shown.status == 0
    assert "6 of 6 claims hold" in shown.out
    assert {path: path.read_bytes() for path in uninterrupted.rglob("*") if path.is_file()} == before


def damage_json(run: Path) -> Path:
    (path,) = (run / "checkpoint").glob("*.json")
    path.write_text(path.read_text().replace('"step":3', '"step":4', 1))
    return path


def damage_tensors(run: Path) -> Path:
    (path,) = (run / "checkpoint").glob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return run / "checkpoint"


def cut_json(run: Path) -> Path:
    (path,) = (run / "checkpoint").glob("*.json")
    path.write_bytes(path.read_bytes()[:100])
    return path


def cut_tensors(run: Path) -> Path:
    (path,) = (run / "checkpoint").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-4])
    return run / "checkpoint"


def remove_tensors(run: Path) -> Path:
    (path,) = (run / "checkpoint").glob("*.safetensors")
    path.unlink()
    return run / "checkpoint"


def damage_unit(run: Path) -> Path:
    path = sorted((run / "units").glob("*.json"))[0]
    path.write_text("{}")
    return path


def other_configuration(run: Path) -> Path:
    config = json.loads((run / "config.json").read_text())
    config["config"]["hidden"] = 9
    (run / "config.json").write_text(json.dumps(config))
    return run / "units"


def shorten_log(run: Path) -> Path:
    (run / "metrics.jsonl").write_text("")
    return run / "metrics.jsonl"


@pytest.fixture(scope="module")
def stopped(server: Callable[[list[dict[str, Any]]], list[int]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a checkpoint and units, killed."""
    folder = tmp_path_factory.mktemp("stopped")
    job = {"argv": ["run", "trial"], "cwd": str(folder), "out": str(folder / "out"), "err": str(folder / "err")}
    assert server([job | {"kill_at": 30}]) == [-signal.SIGKILL]
    (run,) = folder.glob("runs/trial/*")
    return run


@pytest.mark.parametrize(
    "damage",
    [damage_json, damage_tensors, cut_json, cut_tensors, remove_tensors, damage_unit, other_configuration, shorten_log],
)
def test_damage_is_told_in_one_line_and_nothing_is_touched(
    offprints: Any, stopped: Path, tmp_path: Path, damage: Callable[[Path], Path]
) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    place = damage(run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    refused = offprints("run", "trial", "--resume", run)
    assert refused.status == 2
    assert refused.err.count("\n") == 1, refused.err
    assert str(place) in refused.err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("{", "malformed"),
        ("[]", "malformed"),
        ("{}", "malformed"),
        ('{"paper": "another"}', "malformed"),
        (None, "no config.json"),
        ("another paper", "another"),
        ("another field", "steps"),
        ("another type", "steps"),
    ],
)
def test_unreadable_configuration(offprints: Any, uninterrupted: Path, tmp_path: Path, content: str, word: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    config = json.loads((uninterrupted / "config.json").read_text())
    if content == "another paper":
        content = json.dumps(config | {"paper": "another"})
    elif content == "another field":
        del config["config"]["steps"]
        content = json.dumps(config)
    elif content == "another type":
        config["config"]["steps"] = "many"
        content = json.dumps(config)
    if content is not None:
        (folder / "config.json").write_text(content)
    refused = offprints("run", "trial", "--resume", folder)
    assert refused.status == 2
    assert refused.err.count("\n") == 1
    assert word in refused.err


def test_a_run_that_goes_on_is_not_resumed(offprints: Any, stopped: Path) -> None:
    with FileLock(stopped / ".lock"):
        refused = offprints("run", "trial", "--resume", stopped)
    assert refused.status == 2
    assert "in use" in refused.err
