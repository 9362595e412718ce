"""The pytest plugin: markers ``gpu`` and ``slow``, the fixtures of every package's tests, one hypothesis profile.

=================  ====================================================================================================
``golden``         ``golden("file")`` -> ``dict[str, Tensor]`` from ``tests/golden/file.npz``; text stays a NumPy array
``cli``            ``cli("run", "cotta", "--preset", "smoke")`` -> the finished process of the real console script
``paper_run``      ``paper_run("cotta", "--preset", "smoke", out=tmp_path)`` -> its result, claims, figures and folder
``two_processes``  ``two_processes(fn, *args)`` -> the results of ``fn(rank, *args)`` on two gloo processes
``readme_example`` ``readme_example()`` runs the Python of the README's section *Use* and returns its names
=================  ====================================================================================================

Tests marked ``gpu`` skip where there is no CUDA device, tests marked ``slow`` unless pytest is given ``--slow``.
Every pytest run of an environment with offprints-shared loads this: it imports pytest (and hypothesis, if there) alone.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from offprints.shared.testing.runs import FinishedRun


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--slow``."""
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers and the hypothesis profile: the same examples in every run, no deadline."""
    config.addinivalue_line("markers", "gpu: needs a CUDA device; skipped where there is none")
    config.addinivalue_line("markers", "slow: left out of the everyday run; pytest --slow runs it")
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OFFPRINTS_WORKERS", "1")  # the other cores have tests of their own to run
    try:
        from hypothesis import HealthCheck, settings
    except ImportError:
        return
    # A busy machine is not a failure: neither a deadline nor the check of how long drawing takes.
    slow = [HealthCheck.too_slow]
    settings.register_profile("offprints", derandomize=True, deadline=None, suppress_health_check=slow)
    if not config.getoption("--hypothesis-profile", default=None):
        settings.load_profile("offprints")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine or this run cannot do, with the reason."""
    if item.get_closest_marker("slow") and not item.config.getoption("--slow"):
        pytest.skip("slow: run with --slow")
    if item.get_closest_marker("gpu"):
        import torch

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an old driver warns, and is not a device
            available = torch.cuda.is_available()
        if not available:
            pytest.skip("needs a CUDA device")


@pytest.fixture(scope="module")
def golden(request: pytest.FixtureRequest) -> Callable[[str], dict[str, Tensor | np.ndarray]]:
    """``golden(file)``: the arrays of ``golden/<file>.npz`` beside the test, as tensors; arrays of text as they are.

    Compare with ``torch.testing.assert_close`` and the tolerances that the data's README states.
    """

    def load(file: str) -> dict[str, Tensor | np.ndarray]:
        import numpy as np
        import torch

        folder = next((p / "golden" for p in request.path.parents if (p / "golden").is_dir()), request.path.parent)
        path = folder / (file if file.endswith(".npz") else f"{file}.npz")
        if not path.is_file():
            raise FileNotFoundError(f"{path}; there are {sorted(p.name for p in folder.glob('*.npz'))}")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: a if a.dtype.kind in "US" else torch.from_numpy(a) for name, a in arrays.items()}

    return load


@pytest.fixture(scope="session")
def cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    """``cli(*args, env=None, cwd=None, timeout=300)``: the console script ``offprints`` of this environment.

    Returns the finished process with ``returncode``, ``stdout`` and ``stderr``; ``env`` is added to the environment.
    """
    suffix = ".exe" if os.name == "nt" else ""
    script = Path(sysconfig.get_path("scripts")) / f"offprints{suffix}"

    def run(
        *args: str | Path, env: Mapping[str, str] | None = None, cwd: str | Path | None = None, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        inherited = {key: value for key, value in os.environ.items() if key != "FORCE_COLOR"}
        return subprocess.run(
            [str(script), *map(str, args)],
            env={**inherited, "COLUMNS": "160", "PYTHONUTF8": "1", **(env or {})},
            cwd=cwd,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def paper_run(cli: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., FinishedRun]:
    """``paper_run(name, *flags, out=folder, status=0)``: ``offprints run name`` on the CPU, what it leaves in ``out``.

    Fails unless the exit status is ``status`` (or one of several) and ``finished_run`` finds one run of whole files.
    """
    from offprints.shared.testing.runs import finished_run

    def run(name: str, *flags: str | Path, out: Path, status: int | tuple[int, ...] = 0) -> FinishedRun:
        done = cli("run", name, *flags, "--device", "cpu", "--out", out)
        expected = (status,) if isinstance(status, int) else status
        if done.returncode not in expected:
            raise AssertionError(f"exit status {done.returncode}, not {status}:\n{done.stdout}\n{done.stderr}")
        return finished_run(out, name)

    return run


@pytest.fixture(scope="session")
def two_processes() -> Callable[..., tuple[Any, Any]]:
    """``two_processes(fn, *args, timeout=120)``: see `offprints.shared.testing.processes.two_processes`."""
    from offprints.shared.testing.processes import two_processes

    return two_processes


@pytest.fixture
def readme_example(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], dict[str, Any]]]:
    """``readme_example()``: the names left by the Python blocks under *## Use* of the package's README.

    The blocks run in this process, one after the other, in an empty folder; an error points at the README's line.
    """

    def run() -> dict[str, Any]:
        package = next(p for p in request.path.parents if (p / "pyproject.toml").is_file())
        readme = package / "README.md"
        module = ModuleType("readme")  # what a dataclass or a pickle looks its own definitions up in
        names: dict[str, Any] = vars(module)
        blocks = python_blocks(readme.read_text(encoding="utf-8"), "Use")
        if not blocks:
            raise AssertionError(f"{readme} has no ```python block under '## Use'")
        sys.modules["readme"] = module
        with chdir(tmp_path):
            for line, source in blocks:
                exec(compile("\n" * line + source, str(readme), "exec", dont_inherit=True), names)
        return names

    yield run
    sys.modules.pop("readme", None)
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


def python_blocks(markdown: str, section: str) -> list[tuple[int, str]]:
    """Return the Python blocks under ``## <section>``, each with the number of lines before it."""
    heading = re.search(rf"^## +{re.escape(section)}\b.*$", markdown, re.MULTILINE)
    if heading is None:
        return []
    fences = re.compile(r"^( *)```python\b.*\n(?P<source>(?:.*\n)*?)^\1``` *$", re.MULTILINE)
    following = re.compile(r"^## ", re.MULTILINE)
    end = len(markdown)
    inside = [(match.start(), match.end()) for match in fences.finditer(markdown)]
    for match in following.finditer(markdown, heading.end()):
        if not any(start < match.start() < stop for start, stop in inside):  # a comment inside a block is not a heading
            end = match.start()
            break
    return [
        (markdown.count("\n", 0, match.start("source")), textwrap.dedent(match["source"]))
        for match in fences.finditer(markdown, heading.end(), end)
    ]
