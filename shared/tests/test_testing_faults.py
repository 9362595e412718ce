"""Faults of the system at the n-th call, and that a store that does not write in one step is found out."""

from __future__ import annotations

import subprocess
import sys

FLAGS = ("trial", "--preset", "quick", "--steps", "3", "--widths", "4", "--parts", "one")


def struck(environment: dict[str, str], *argv: str, before: str = "") -> subprocess.CompletedProcess[str]:
    script = f"{before}\nimport sys\nfrom offprints.shared.testing.faults import main\nsys.exit(main(sys.argv[1:]))\n"
    program = [sys.executable, "-c", script, *FLAGS, *argv]
    return subprocess.run(
        program, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )


def test_a_run_survives_every_kind_of_fault(environment: dict[str, str]) -> None:
    done = struck(environment, "--moments", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("trial: 8 of 8 faults in ")


IN_PLACE = """
import contextlib, os
from offprints.shared.store import files, states

@contextlib.contextmanager
def replacing(path, name=None):
    yield path  # over what is there
    if name is not None:
        os.replace(path, name())

files.replacing = states.replacing = replacing
files.write = states.write = lambda path, data: files.write_all(
    os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), data.encode() if isinstance(data, str) else data)
"""


def test_a_store_that_writes_in_place_is_found_out(environment: dict[str, str]) -> None:
    done = struck(environment, "--moments", "2", "--kinds", "torn", before=IN_PLACE)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "trial: torn at call " in done.stdout
    assert "is malformed" in done.stdout
