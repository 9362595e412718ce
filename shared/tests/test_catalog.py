"""Distributions that other people made: a bad one leaves the papers as they are."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import offprints.shared

Command = Callable[..., "subprocess.CompletedProcess[str]"]


def distribution(site: Path, name: str, entries: str | bytes, metadata: str | bytes | None = None) -> None:
    folder = site / f"{name.replace('-', '_')}-1.0.dist-info"
    folder.mkdir(parents=True)
    described = (
        f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nSummary: Another\n" if metadata is None else metadata
    )
    for file, text in (("METADATA", described), ("entry_points.txt", entries)):
        (folder / file).write_bytes(text.encode() if isinstance(text, str) else text)


@pytest.fixture
def command(environment: dict[str, str], tmp_path: Path) -> Command:
    """The command line, with the distributions of ``tmp_path / "others"`` before all others."""
    path = f"{tmp_path / 'others'}{os.pathsep}{environment['PYTHONPATH']}"

    def run(*argv: str, encoding: str = "utf-8", **variables: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-m", "offprints.shared", *argv]
        there = environment | {"PYTHONPATH": path} | variables
        return subprocess.run(program, env=there, capture_output=True, check=False, encoding=encoding, cwd=tmp_path)

    return run


ENTRY = "[offprints.papers]\n{} = offprints.trial.reproduce:experiment\n"


@pytest.mark.parametrize(
    ("entries", "metadata"),
    [
        ("[offprints.papers]\nno equals sign\n", None),
        (ENTRY.format("other").encode() + b"# Ren\xe9\n", None),
        (ENTRY.format("other"), b"Metadata-Version: 2.1\nName: bad\nVersion: 1.0\nSummary: Ren\xe9\n"),
        (ENTRY.format("other"), "Metadata-Version: 2.1\n"),
        (ENTRY.format("\x1b[2J"), None),
        ("[offprints.papers]\nother = not a module!\n", None),
    ],
)
def test_a_malformed_distribution_is_told_and_left_out(
    command: Command, tmp_path: Path, entries: str | bytes, metadata: str | bytes | None
) -> None:
    distribution(tmp_path / "others", "bad", entries, metadata)
    for argv in (["list"], ["info", "trial"]):
        done = command(*argv)
        assert done.returncode == 0, done.stderr
        assert "A trial of the command line" in done.stdout
        assert re.fullmatch(r"offprints: a distribution is left out, .*bad-1\.0\.dist-info: .*\n", done.stderr)
        assert "\x1b" not in done.stdout + done.stderr


def test_a_name_that_another_distribution_takes_stays_its_owners(command: Command, tmp_path: Path) -> None:
    distribution(tmp_path / "others", "evil", ENTRY.format("trial"))
    done = command("info", "trial")
    assert done.returncode == 0
    assert done.stdout.startswith("# trial 0.3\n")
    assert done.stderr == "offprints: evil takes the name of the paper trial too; that of offprints-trial is used\n"


def test_a_name_that_two_others_take_is_nobodys(command: Command, tmp_path: Path) -> None:
    for name in ("evil", "worse"):
        distribution(tmp_path / "others", name, ENTRY.format("new"))
    done = command("list")
    assert done.returncode == 0
    assert not any(line.startswith("new ") for line in done.stdout.splitlines())
    assert re.search(r"(evil and worse|worse and evil) both have a paper new; uninstall one of them\n", done.stderr)
    assert command("info", "new").returncode == 2


def test_the_same_distribution_twice_on_the_path_is_that_which_is_imported(command: Command, tmp_path: Path) -> None:
    distribution(tmp_path / "others", "offprints-trial", ENTRY.format("trial"))
    done = command("info", "trial")
    assert done.stdout.startswith("# trial 1.0\n")
    assert done.stderr == ""


def test_metadata_do_not_steer_the_terminal(command: Command, tmp_path: Path) -> None:
    summary = "Clears \x1b[2J the screen \u202e backwards"
    metadata = f"Metadata-Version: 2.1\nName: offprints-red\nVersion: 1.0\nSummary: {summary}\n"
    distribution(tmp_path / "others", "offprints-red", ENTRY.format("red"), metadata)
    for argv in (["list"], ["info", "red"]):
        done = command(*argv)
        assert done.returncode == 0
        assert r"Clears \x1b[2J the screen \u202e backwards" in done.stdout
        assert "\x1b" not in done.stdout


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", "Erd?s - R?nyi +/- 1"), ("latin-1", "Erd?s - R\xe9nyi +/- 1")]
)
def test_terminals_without_unicode(command: Command, tmp_path: Path, encoding: str, shown: str) -> None:
    metadata = "Metadata-Version: 2.1\nName: offprints-red\nVersion: 1.0\nSummary: Erdős \u2013 Rényi ± 1\n"
    distribution(tmp_path / "others", "offprints-red", ENTRY.format("red"), metadata)
    done = command("list", PYTHONIOENCODING=encoding, encoding=encoding)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout


@pytest.mark.parametrize(("encoding", "spread"), [("ascii", "+/- 0.5"), ("latin-1", "\xb1 0.5")])
def test_a_run_on_a_terminal_without_unicode_succeeds(
    environment: dict[str, str], tmp_path: Path, encoding: str, spread: str
) -> None:
    program = [sys.executable, "-m", "offprints.shared", "run", "trial", "--steps", "0", "--widths", "4"]
    there = environment | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(program, env=there, capture_output=True, check=False, encoding=encoding, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert spread in done.stdout


def test_a_distribution_that_is_none_of_ours_is_named_when_it_runs(command: Command, tmp_path: Path) -> None:
    distribution(tmp_path / "others", "evil", ENTRY.format("new"))
    done = command("run", "new")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "offprints: new comes from the distribution evil 1.0",
        "offprints: evil is malformed: its paper 'new' is the experiment 'trial'",
    ]


def test_without_the_extra_claims(site: Path, tmp_path: Path) -> None:
    # -S leaves out site-packages: the core and the trial are there, and nothing that the extra brings.
    core = tmp_path / "core"
    (core / "offprints").mkdir(parents=True)
    (core / "offprints" / "shared").symlink_to(next(iter(offprints.shared.__path__)))
    script = (
        f"import sys; sys.path[:0] = [{str(core)!r}, {str(site)!r}]\n"
        "from offprints.shared.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )

    def bare(*argv: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-S", "-c", script, *argv]
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        return subprocess.run(program, env=kept, capture_output=True, text=True, check=False, cwd=tmp_path)

    for argv in (["list"], ["info", "trial"], ["--help"]):
        assert (bare(*argv).returncode, bare(*argv).stderr) == (0, "")
    for argv, name in ((["run", "trial"], "trial"), (["run", "--all"], "shared")):
        refused = bare(*argv)
        assert refused.returncode == 2
        assert refused.stderr.count("\n") == 1
        assert refused.stderr.startswith("offprints: running claims needs filelock, matplotlib, rich, safetensors,")
        assert refused.stderr.endswith(f"; run: pip install 'offprints-{name}[claims]'\n")
