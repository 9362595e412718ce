"""The command line: what it prints, what it writes, how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from offprints.shared.experiment import Claim
from offprints.shared.show import report


def command(*argv: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "offprints.shared", *argv]
    return subprocess.run(program, env=environment, capture_output=True, text=True, check=False)


# list, info, help


def test_list_reads_metadata_alone(environment: dict[str, str]) -> None:
    script = (
        "import sys\nfrom offprints.shared.__main__ import main\n"
        "for argv in (['list'], ['--help'], ['info', 'trial']): assert main(argv) == 0\n"
        "heavy = {'torch', 'numpy', 'tyro', 'rich', 'matplotlib', 'argparse', 'offprints.trial'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.split(maxsplit=2) == ["trial", "2400.00001", "A trial of the command line"] for line in lines)
    assert any(line.startswith("broken ") for line in lines)  # is not imported


def test_info(environment: dict[str, str]) -> None:
    done = command("info", "trial", environment=environment)
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout == (
        "# trial 0.3\n\nA trial of the command line\n\n<https://arxiv.org/abs/2400.00001>\n\n"
        "## API\n\nIn `offprints.trial`: `fit`, `Line`\n\n"
        "## Claims\n\n| claim | paper | measured |\n| --- | --- | --- |\n| the loss falls | 0.1 | 0.2 |\n\n"
        "## Citation\n\n@misc{trial, title = {A trial}, eprint = {2400.00001}}\n"
    )


def test_help_names_every_command_and_status(environment: dict[str, str]) -> None:
    done = command(environment=environment)
    assert done.returncode == 0
    for word in ("list", "info NAME", "run NAME", "--resume", "--all", "Exit status", "torchrun"):
        assert word in done.stdout


def test_the_reader_of_a_pipe_may_leave(environment: dict[str, str]) -> None:
    script = f"{sys.executable} -m offprints.shared --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_run_help_shows_every_field_with_the_presets_values(offprints: Any) -> None:
    shown = offprints("run", "trial", "--preset", "paper", "--help")
    assert shown.status == 0
    assert shown.runs == []
    text = " ".join(shown.out.replace("│", "").split())
    assert "--steps INT Steps of training. (default: 1000)" in text
    for flag in ("--preset {smoke,quick,paper}", "--seed", "--device", "--precision", "--out", "--resume", "--hidden"):
        assert flag in text


# Usage errors


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("frobnicate", "unknown command 'frobnicate'"),
        ("list trial", "list takes no arguments, got 'trial'"),
        ("info", "info takes the name of one paper"),
        ("info trail", "unknown paper 'trail'; did you mean 'trial'?"),
        ("run", "name comes first"),
        ("run --preset smoke trial", "name comes first"),
        ("run Trial", "did you mean 'trial'?"),
        ("run zzz", "unknown paper 'zzz'"),
        ("run trial --preset fast", "'smoke', 'quick', 'paper'"),
        ("run trial --preset fast", "--preset"),
        ("run trial --preset", "--preset"),
        ("run trial --step 3", "did you mean --steps? (see offprints run trial --help)"),
        ("run trial --frob", "--frob"),
        ("run trial more", "more"),
        ("run trial --steps many", "--steps: invalid literal for int() with base 10: 'many'"),
        ("run trial --learning-rate high", "--learning-rate: could not convert string to float: 'high'"),
        ("run trial --widths 1 x", "--widths: "),
        ("run trial --fail often", "'often'"),
        ("run trial --fail often", "--fail"),
        ("run trial --seed 0.5", "--seed: invalid literal for int() with base 10: '0.5'"),
        ("run trial --seed -1", "--seed must be in 0..4294966, got -1"),
        ("run trial --seed 4294967", "--seed must be in 0..4294966"),
        ("run trial --precision float8", "'float8'"),
        ("run trial --precision float8", "--precision"),
        ("run trial --device cuda:99", "--device 'cuda:99' is not available"),
        ("run trial --device tpu", "--device must be"),
        ("run trial --out /dev/null", "--out: cannot write to /dev/null"),
        ("run trial --resume nowhere", "--resume: there is no folder nowhere"),
        ("run trial --resume", "--resume"),
        ("run trial --resume . --out x", "--resume: . is not a run directory"),
        ("run --all --steps 3", "--steps cannot go with --all"),
        ("run --all --resume x", "--resume cannot go with --all"),
    ],
)
def test_usage_errors_are_one_line(offprints: Any, argv: str, said: str) -> None:
    refused = offprints(*argv.split())
    assert refused.status == 2
    assert said in refused.err
    assert refused.err.startswith("offprints: ")
    assert refused.err.count("\n") == 1
    assert refused.out == ""
    assert refused.runs == []


@pytest.fixture(scope="module")
def quick(server: Callable[[list[dict[str, Any]]], list[int]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run at the preset quick."""
    folder = tmp_path_factory.mktemp("quick")
    job = {"argv": ["run", "trial"], "cwd": str(folder), "out": str(folder / "out"), "err": str(folder / "err")}
    assert server([job]) == [0]
    (run,) = folder.glob("runs/trial/*")
    return run


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--steps 13", "was started with --steps 12, not 13"),
        ("--preset paper", "was started with preset quick, not paper"),
        ("--seed 1", "was started with seed 0, not 1"),
        ("--precision bfloat16", "was started with precision float32, not bfloat16"),
        ("--out x", "--out has no meaning with --resume"),
    ],
)
def test_a_run_of_another_configuration_is_not_resumed(offprints: Any, quick: Path, flags: str, said: str) -> None:
    refused = offprints("run", "trial", "--resume", quick, *flags.split())
    assert refused.status == 2
    assert said in refused.err
    assert refused.err.count("\n") == 1


# Runs


def test_quick_run(quick: Path) -> None:
    assert sorted(path.name for path in quick.iterdir()) == [
        ".lock",
        "checkpoint",
        "config.json",
        "metrics.jsonl",
        "report.md",
        "result.json",
        "units",
    ]
    assert quick.name.endswith("-quick-seed0")
    config = json.loads((quick / "config.json").read_text())
    assert config["paper"] == "trial"
    assert config["config"]["widths"] == [4, 6, 8]
    assert [json.loads(line)["step"] for line in (quick / "metrics.jsonl").read_text().splitlines()] == [*range(13)]
    result = json.loads((quick / "result.json").read_text())
    assert {key: result[key] for key in ("paper", "preset", "seed", "device", "figures")} == {
        "paper": "trial",
        "preset": "quick",
        "seed": 0,
        "device": "cpu",
        "figures": [],
    }
    assert set(result["versions"]) == {"python", "torch", "numpy", "offprints-trial", "safetensors"}
    assert result["versions"]["torch"] == version("torch")
    assert result["wall_seconds"] > 0
    assert result["peak_memory_mib"] > 0
    assert [claim["id"] for claim in result["claims"]] == ["average", "weight", "mean", "rows", "draw", "threads"]
    assert set(result["claims"][0]) >= {"statement", "measured", "relation", "threshold", "paper_value", "holds"}
    assert result["values"] == [{"id": "seeds", "statement": "seeds tried", "value": 2, "paper_value": "5"}]
    report = (quick / "report.md").read_text()
    assert "| the loss falls | 0.1 |" in report
    assert "## widths" in report
    out = (quick.parents[2] / "out").read_text()
    assert "the loss falls" in out
    assert out.splitlines()[-1].startswith("6 of 6 claims hold. Report, figures and numbers: runs/trial/")


def test_smoke_asserts_nothing_and_other_presets_do(offprints: Any) -> None:
    smoke, quick, nan = offprints.each(
        [
            ["run", "trial", "--preset", "smoke"],
            ["run", "trial", "--threshold", "-1"],
            ["run", "trial", "--fail", "nan"],
        ]
    )
    assert (smoke.status, quick.status, nan.status) == (0, 1, 1)
    for run, failing in ((smoke, "average"), (quick, "average"), (nan, "weight")):
        assert [claim["id"] for claim in run.result()["claims"] if not claim["holds"]] == [failing]
        assert "5 of 6 claims hold" in run.out
    assert "smoke asserts none" in smoke.out
    assert (smoke.run / "figures" / "line.png").stat().st_size > 1000
    assert nan.result()["claims"][1]["measured"] == "nan"
    json.loads((nan.run / "result.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def test_equal_seeds_give_equal_claims_and_runs_of_one_second_get_their_own_folders(
    offprints: Any, quick: Path
) -> None:
    together = ["run", "trial", "--out", quick.parents[3] / "together"]
    first, second, other = offprints.each([together, together, ["run", "trial", "--seed", "1"]], at_once=3)
    assert (first.status, second.status, other.status) == (0, 0, 0)
    runs = sorted((quick.parents[3] / "together").glob("trial/*"))
    assert len(runs) == 2
    expected = json.loads((quick / "result.json").read_text())["claims"]
    for run in runs:
        assert json.loads((run / "result.json").read_text())["claims"] == expected
        assert (run / "metrics.jsonl").read_bytes() == (quick / "metrics.jsonl").read_bytes()
    measured = {claim["id"]: claim["measured"] for claim in other.result()["claims"]}
    assert all(measured[claim["id"]] != claim["measured"] for claim in expected if claim["id"] != "threads")


def test_failures_are_told_and_what_is_stored_stays(offprints: Any) -> None:
    unit, function, extra, interrupt = offprints.each(
        ["run", "trial", "--fail", fail] for fail in ("unit", "function", "extra", "interrupt")
    )
    assert unit.status == function.status == 3
    assert "UnitError: unit 'width/6' failed: ArithmeticError: six is too many" in unit.err
    assert 'raise ArithmeticError("six is too many")' in unit.err
    assert len(list((unit.run / "units").glob("*.json"))) == 1
    assert 'raise ArithmeticError("the function fails")' in function.err
    folder = function.run.relative_to(function.run.parents[2])
    assert f"--resume {folder} goes on" in function.err
    assert extra.status == 2
    lines = [line for line in extra.err.splitlines() if not line.startswith("units ")]
    assert len(lines) == 1
    assert "no_such_module" in lines[0]
    assert interrupt.status == 130
    assert interrupt.err.splitlines()[-1].startswith("offprints: interrupted; --resume runs/trial/")
    for failed in (unit, function, extra, interrupt):
        assert failed.out == ""
        assert not (failed.run / "result.json").exists()


def test_data_that_is_missing_is_told_by_its_class(offprints: Any) -> None:
    missing = offprints("run", "trial", "--fail", "data")
    assert missing.status == 2
    assert told(missing.err) == ["offprints: no pictures in /data; get them from example.org"]


def test_code_that_ends_the_program_is_no_success(offprints: Any) -> None:
    module, function, unit = offprints.each(
        [["run", "ends"], ["run", "trial", "--fail", "exit"], ["run", "trial", "--fail", "unit exit"]], at_once=3
    )
    assert (module.status, function.status, unit.status) == (3, 3, 3)
    assert "RuntimeError: offprints.trial.ends ended the program while it was imported" in module.err
    assert told(function.err) == ["offprints: the paper's code ended the program itself, with exit status 0"]
    assert "UnitError: unit 'width/4' failed: SystemExit: 0" in unit.err
    assert [done.out for done in (module, function, unit)] == ["", "", ""]


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_signals_say_how_to_go_on(offprints: Any, name: str, status: int) -> None:
    stopped = offprints("run", "trial", signal_at=30, signal=int(getattr(signal, name)))
    assert stopped.status == status
    folder = stopped.run.relative_to(stopped.run.parents[2])
    assert told(stopped.err) == [f"offprints: interrupted; --resume {folder} goes on from what is stored"]
    assert offprints("run", "trial", "--resume", stopped.run).status == 0


def test_sigterm_ends_the_workers(offprints: Any) -> None:
    # When the last unit is stored the second process was started and imports, or waits for more.
    stopped = offprints("run", "trial", "--workers", "2", "--pause", "1", signal_at=20, signal=int(signal.SIGTERM))
    assert stopped.status == 143
    wait_until_none_works_in(stopped.run.parents[2])


def test_statements_do_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    claim = Claim("a", "clears \x1b[2J and [bold]brackets[/bold]", 0.5, "<", 1.0).to_dict()
    report.show([{"paper": "a", "claims": [claim], "values": []}])
    shown = capsys.readouterr().out
    assert "\x1b[2J" not in shown
    assert r"clears \x1b[2J and [bold]brackets[/bold]" in shown


def test_run_all_goes_on_after_a_paper_that_fails(offprints: Any) -> None:
    done = offprints("run", "--all", papers=["broken"])
    assert done.status == 3
    assert "No module named 'offprints.trial.missing'" in done.err
    assert done.out.splitlines()[-1] == "broken: failed, exit status 3"
    assert offprints("run", "--all", papers=[]).err == "offprints: no papers are installed\n"


@pytest.mark.slow
def test_run_all(offprints: Any) -> None:
    done = offprints("run", "--all", papers=["trial", "broken"])
    assert done.status == 3
    assert "No module named 'offprints.trial.missing'" in done.err
    assert done.result()["paper"] == "trial"
    lines = done.out.splitlines()
    assert lines[0].split()[:2] == ["paper", "claim"]
    assert "broken: failed, exit status 3" in lines
    assert lines[-1].startswith("trial: 6 of 6 claims hold; runs/trial/")


# Full disks


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")}


def told(err: str) -> list[str]:
    return [line for line in err.splitlines() if not line.startswith(("units ", "training "))]


def test_files_too_large(offprints: Any) -> None:
    small = offprints("run", "trial", kill_at=30)
    assert small.status == -signal.SIGKILL
    before = files(small.run)
    refused = offprints("run", "trial", "--resume", small.run, limit=1500)
    assert refused.status == 2
    (line,) = told(refused.err)
    assert line.startswith(f"offprints: cannot write {small.run}/")
    assert line.endswith(": File too large")
    assert {path: data for path, data in files(small.run).items() if path.name != "metrics.jsonl"} == {
        path: data for path, data in before.items() if path.name != "metrics.jsonl"
    }
    assert offprints("run", "trial", "--resume", small.run).status == 0
    (line,) = told(offprints("run", "trial", limit=100).err)
    assert re.fullmatch(r"offprints: cannot write runs/trial/.*/config\.json: File too large", line)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A file system of so many KiB."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a file system needs root on Linux")
    place = tmp_path / "disk"
    place.mkdir()

    def mount(kib: int) -> Path:
        options = f"size={kib}k" + (",remount" if os.path.ismount(place) else "")
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=False)
        if done.returncode:
            pytest.skip("mounting a file system is not allowed here")
        return place

    yield mount
    if os.path.ismount(place):
        subprocess.run(["umount", str(place)], check=True)


def test_full_disk(offprints: Any, tiny_disk: Callable[[int], Path], quick: Path) -> None:
    disk = tiny_disk(40)  # enough for the units and some checkpoint files
    (disk / "thesis").write_bytes(b"x" * 5000)
    full = offprints("run", "trial", "--out", disk)
    assert full.status == 2
    (line,) = told(full.err)
    assert "No space left on device" in line
    assert (disk / "thesis").read_bytes() == b"x" * 5000
    assert not list(disk.rglob("*.tmp"))
    tiny_disk(1000)
    (run,) = disk.glob("trial/*")
    assert offprints("run", "trial", "--resume", run).status == 0
    results = [json.loads((folder / "result.json").read_text())["claims"] for folder in (run, quick)]
    assert results[0] == results[1]


def test_a_worker_does_not_outlive_its_run(offprints: Any) -> None:
    # Killed when the last unit is stored: the second process was started and imports, or waits for more.
    killed = offprints("run", "trial", "--workers", "2", "--pause", "1", kill_at=20)
    assert killed.status == -signal.SIGKILL
    wait_until_none_works_in(killed.run.parents[2])


def wait_until_none_works_in(folder: Path) -> None:
    for _ in range(1200):
        if not any(str(folder) in cwd for cwd in working_folders()):
            return
        time.sleep(0.1)
    raise AssertionError("a process is left")


def working_folders() -> Iterator[str]:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            yield os.readlink(process / "cwd")
        except OSError:
            continue
