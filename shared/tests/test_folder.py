"""A run directory that somebody else made: nothing outside it is touched, nothing in it is believed unseen."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from offprints.shared.store.files import digest

Job = dict[str, Any]


@pytest.fixture(scope="module")
def stopped(server: Callable[[list[Job]], list[int]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with units and a checkpoint, killed."""
    folder = tmp_path_factory.mktemp("stopped")
    job = {"argv": ["run", "trial"], "cwd": str(folder), "out": str(folder / "out"), "err": str(folder / "err")}
    assert server([job | {"kill_at": 30}]) == [-signal.SIGKILL]
    (run,) = folder.glob("runs/trial/*")
    return run


@pytest.fixture(scope="module")
def finished(server: Callable[[list[Job]], list[int]], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two finished runs, of the seeds 0 and 1."""
    runs = []
    for seed in ("0", "1"):
        folder = tmp_path_factory.mktemp(f"finished{seed}")
        job = {"argv": ["run", "trial", "--seed", seed], "cwd": str(folder)}
        assert server([job | {"out": str(folder / "out"), "err": str(folder / "err")}]) == [0]
        runs += folder.glob("runs/trial/*")
    return runs


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def refused(offprints: Any, run: Path, *words: str) -> None:
    done = offprints("run", "trial", "--resume", run)
    assert done.status == 2, done.err
    assert done.err.count("\n") == 1, done.err
    for word in words:
        assert word in done.err


# Links


@pytest.mark.parametrize("name", ["checkpoint", "units", "parts", "figures"])
def test_a_folder_that_is_a_link_is_refused(offprints: Any, stopped: Path, tmp_path: Path, name: str) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    elsewhere = tmp_path / "elsewhere"
    if (run / name).exists():
        (run / name).rename(elsewhere)
    else:
        elsewhere.mkdir()
    (elsewhere / "000000000-step1.json").write_text("mine")
    (run / name).symlink_to(elsewhere)
    before = contents(elsewhere)
    refused(offprints, run, f"{run / name} is a link")
    assert contents(elsewhere) == before


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "result.json", "report.md", ".lock", ".result.json.tmp", "units/x.json", "config.json"]
)
def test_a_file_that_is_a_link_is_refused(offprints: Any, stopped: Path, tmp_path: Path, name: str) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    elsewhere = tmp_path / "elsewhere"
    shutil.copy(run / "config.json", elsewhere)
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(elsewhere)
    before = elsewhere.read_bytes()
    refused(offprints, run, str(run / name))
    assert elsewhere.read_bytes() == before


def test_a_log_that_has_another_name_elsewhere_is_refused(offprints: Any, stopped: Path, tmp_path: Path) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    with open(run / "metrics.jsonl", "a") as log:
        log.write("more, which a resume cuts off\n")
    os.link(run / "metrics.jsonl", tmp_path / "mine")
    before = (tmp_path / "mine").read_bytes()
    refused(offprints, run, "metrics.jsonl", "other names")
    assert (tmp_path / "mine").read_bytes() == before


def test_a_pipe_is_no_unit(offprints: Any, stopped: Path, tmp_path: Path) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    unit = sorted((run / "units").glob("*.json"))[0]
    unit.unlink()
    os.mkfifo(unit)
    refused(offprints, run, f"{unit} is malformed")


def test_a_users_own_files_stay(offprints: Any, stopped: Path, tmp_path: Path) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    own = [run / "checkpoint" / name for name in ("notes.txt", "000000001.json", "best.safetensors", ".hidden.tmp")]
    own += [run / "notes.md", run / "units" / "readme.json"]
    for path in own:
        path.write_text("mine")
    (run / "link").symlink_to(tmp_path)
    done = offprints("run", "trial", "--resume", run)
    assert done.status == 0, done.err
    assert {path.read_text() for path in own} == {"mine"}
    left = sorted((run / "checkpoint").iterdir())
    assert len(left) == len(own) - 2 + 2  # the newest checkpoint and its tensors beside them
    assert (run / "link").is_symlink()


# Tampering, with checksums made anew


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    record = json.loads(path.read_text())
    del record["sha256"]
    change(record)
    path.write_text(json.dumps(record | {"sha256": digest(record)}))
    return path


def checkpoint(run: Path) -> Path:
    (path,) = (run / "checkpoint").glob("*.json")
    return path


def retensor(path: Path, data: bytes) -> Path:
    """Give the record another file of tensors, under the name that it must have."""
    import hashlib

    sha256 = hashlib.sha256(data).hexdigest()
    name = f"{path.stem}-{sha256[:16]}.safetensors"
    (path.parent / name).write_bytes(data)
    return rewrite(path, lambda record: record.update(tensors={"file": name, "sha256": sha256}))


def replaced_dtype(record: dict[str, Any], dtype: str) -> None:
    text = json.dumps(record["state"])
    assert '"tensor": ' in text
    record["state"] = json.loads(text.replace('{"tensor": ', f'{{"dtype": "{dtype}", "tensor": '))


def nest(path: Path) -> Path:
    path.write_text("[" * 100_000 + "]" * 100_000)
    return path


TAMPERED: dict[str, Callable[[Path], Path]] = {
    "a header of 2**62 bytes": lambda run: retensor(checkpoint(run), struct.pack("<Q", 2**62) + b"{}"),
    "no tensors": lambda run: retensor(checkpoint(run), struct.pack("<Q", 2) + b"{}"),
    "nested lists": lambda run: nest(checkpoint(run)),
    "nested state": lambda run: rewrite(checkpoint(run), lambda r: r.update(state=json.loads("[" * 400 + "]" * 400))),
    "a dtype that is a function": lambda run: rewrite(checkpoint(run), lambda r: replaced_dtype(r, "save")),
    "a dtype of objects": lambda run: rewrite(checkpoint(run), lambda r: replaced_dtype(r, "object")),
    "a folder above": lambda run: rewrite(checkpoint(run), lambda r: r["tensors"].update(file="../config.json")),
    "a negative log": lambda run: rewrite(checkpoint(run), lambda r: r.update(log_bytes=-1)),
    "no log": lambda run: rewrite(checkpoint(run), lambda r: r.pop("log_bytes")),
    "no step": lambda run: rewrite(checkpoint(run), lambda r: r.pop("step")),
    "no state": lambda run: rewrite(checkpoint(run), lambda r: r.pop("state")),
    "no streams": lambda run: rewrite(checkpoint(run), lambda r: r.update(state={"dict": [["state", 1]]})),
    "a time that is no number": lambda run: rewrite(checkpoint(run), lambda r: r.update(elapsed="long")),
    "an infinite time": lambda run: rewrite(checkpoint(run), lambda r: r.update(elapsed="inf")),
    "a list": lambda run: Path(shutil.copy(__file__, checkpoint(run))),
    "a unit without a key": lambda run: rewrite(sorted((run / "units").glob("*.json"))[0], lambda r: r.pop("key")),
}


@pytest.mark.parametrize("kind", TAMPERED)
def test_what_no_run_has_written_is_malformed(offprints: Any, stopped: Path, tmp_path: Path, kind: str) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    path = TAMPERED[kind](run)
    refused(offprints, run, f"{path} is malformed")


@pytest.mark.parametrize(
    ("name", "value"),
    [("threads", 0), ("threads", -1), ("threads", 10**9), ("world_size", 0), ("seed", "x"), ("config", [])],
)
def test_settings_that_no_run_has(offprints: Any, stopped: Path, tmp_path: Path, name: str, value: Any) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    config = json.loads((run / "config.json").read_text()) | {name: value}
    (run / "config.json").write_text(json.dumps(config))
    refused(offprints, run, f"{run / 'config.json'} is malformed")


def test_a_units_record_under_another_key_is_refused(offprints: Any, stopped: Path, tmp_path: Path) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    four, six = (next((run / "units").glob(f"width_{width}-*.json")) for width in (4, 6))
    record = json.loads(four.read_text())
    tensors = record["tensors"]["file"].replace(four.stem, six.stem)
    shutil.copy(four.with_name(record["tensors"]["file"]), four.with_name(tensors))
    record["tensors"]["file"] = tensors
    six.write_text(json.dumps(record))
    rewrite(six, lambda record: None)
    refused(offprints, run, f"{six} belongs to 'width/4', not to 'width/6'")


# Results


def forge(result: dict[str, Any], claim: dict[str, Any]) -> None:
    result["claims"][0] |= claim


@pytest.mark.parametrize("signed", [False, True])
def test_a_forged_result_is_not_believed(offprints: Any, finished: list[Path], tmp_path: Path, signed: bool) -> None:
    run = shutil.copytree(finished[0], tmp_path / "run")
    path = run / "result.json"
    if signed:  # what was measured does not meet the bar, whatever is said
        rewrite(path, lambda result: forge(result, {"measured": 1e9}))
    else:
        result = json.loads(path.read_text())
        forge(result, {"measured": 0.0})
        path.write_text(json.dumps(result))
    refused(offprints, run, f"{path} is malformed")


def test_the_result_of_another_run_is_not_believed(offprints: Any, finished: list[Path], tmp_path: Path) -> None:
    run = shutil.copytree(finished[0], tmp_path / "run")
    shutil.copy(finished[1] / "result.json", run)
    refused(offprints, run, f"{run / 'result.json'} is the result of another run")
    (run / "result.json").unlink()
    again = offprints("run", "trial", "--resume", run)
    assert again.status == 0
    claims = [json.loads((folder / "result.json").read_text())["claims"] for folder in (run, finished[0])]
    assert claims[0] == claims[1]
