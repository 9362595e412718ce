"""Every check of the workspace, per package and in isolation: ``uv run nox --list``.

Packages are discovered from ``packages/*/pyproject.toml``: adding one needs no edit here.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import nox

nox.needs_version = ">=2025.5"
nox.options.default_venv_backend = "uv"
nox.options.sessions = ["lint", "types", "workspace", "tests"]

# A fresh environment has no bytecode: what the first process of a session compiles serves those that tests start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

ROOT = Path(__file__).parent
PAPERS = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
NAMES = ["shared", *PAPERS]

each_member = nox.parametrize("name", NAMES, ids=NAMES)
each_paper = nox.parametrize("name", PAPERS, ids=PAPERS)


def folder(name: str) -> Path:
    return ROOT / "shared" if name == "shared" else ROOT / "packages" / name


def sync(session: nox.Session, *options: str, environment: str | None = None) -> None:
    """Make an environment, the session's own by default, exactly what the lock says, members as wheels.

    What else is in it is removed, so that nothing undeclared is there.
    """
    python = sys.executable if environment else session.virtualenv.location
    environment = environment or python
    session.run_install(
        *("uv", "sync", "--quiet", "--locked", "--no-default-groups", "--no-editable", *options),
        f"--python={python}",
        env={"UV_PROJECT_ENVIRONMENT": environment},
    )


def run_tests(session: nox.Session, python: str, name: str, *options: str) -> None:
    """Two processes, a file of tests never in both; one torch thread each, or they would wait for one another."""
    command = (python, "-m", "pytest", str(folder(name) / "tests"), "--numprocesses=2", "--dist=loadfile")
    session.run(*command, *options, *session.posargs, env={"OMP_NUM_THREADS": "1"})


def source_paths() -> str:
    return os.pathsep.join(str(folder(name) / "src") for name in NAMES)


@nox.session(venv_backend="none")
@each_member
def tests(session: nox.Session, name: str) -> None:
    """One package alone, installed as a wheel from the lock; arguments after -- go to pytest."""
    # One environment serves all members, made exact for each: torch is linked and compiled to bytecode once.
    environment = ROOT / ".nox" / "tests"
    sync(session, "--package", f"offprints-{name}", "--group", "test", environment=str(environment))
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    run_tests(session, str(python), name)


@nox.session
def workspace(session: nox.Session) -> None:
    """What the packages have in common: the README's table, licenses, the skeleton of a new package, the releases."""
    sync(session, "--only-group", "workspace")
    session.run("pytest", "tests", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style of the code, spelling, schema and security of the workflows."""
    sync(session, "--only-group", "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("codespell")
    session.run("zizmor", "--offline", "--quiet", "--no-progress", ".github")
    workflows = [str(path) for path in sorted(ROOT.glob(".github/workflows/*.yml"))]
    session.run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *workflows)


@nox.session
def types(session: nox.Session) -> None:
    """Mypy, strict, over every package."""
    sync(session, "--all-packages", "--no-install-workspace", "--all-extras", "--group", "types", "--group", "test")
    modules = [f"offprints.{name.replace('-', '_')}" for name in NAMES]
    arguments = [argument for module in modules for argument in ("-p", module)]
    session.run("mypy", *arguments, env={"MYPYPATH": source_paths()})
    session.run("mypy", "noxfile.py", "tools", env={"MYPYPATH": "tools"})


@nox.session
@each_member
def build(session: nox.Session, name: str) -> None:
    """Wheel and sdist; their metadata; the wheel in an empty environment outside the tree."""
    sync(session, "--only-group", "build")
    session.run("twine", "check", "--strict", *map(str, built(session, name)))
    wheels = [path for member in {"shared", name} for path in built(session, member) if path.suffix == ".whl"]

    with tempfile.TemporaryDirectory() as scratch:
        python = empty_environment(session, Path(scratch), name, wheels)
        session.chdir(scratch)
        session.run(str(python), str(ROOT / "tools" / "installed.py"), name, external=True)
        offprints = str(python.with_name("offprints"))
        session.run(offprints, "list", external=True)
        if name != "shared":
            session.run(offprints, "info", name, external=True)
            session.run(offprints, "run", name, success_codes=[2], external=True)  # says what to install


BUILT: set[str] = set()


def built(session: nox.Session, name: str) -> list[Path]:
    """Wheel and sdist of a member, built once for all sessions of a call."""
    out = ROOT / "dist" / name
    if name not in BUILT:
        shutil.rmtree(out, ignore_errors=True)
        session.run("uv", "build", "--quiet", "--package", f"offprints-{name}", "--out-dir", str(out), external=True)
        BUILT.add(name)
    return sorted(out.glob("offprints_*"))


def empty_environment(
    session: nox.Session, scratch: Path, name: str, wanted: Sequence[Path | str], *options: str
) -> Path:
    """An environment with what is wanted, in the versions of the lock, and nothing else; its Python."""
    environment, pins = scratch / "venv", scratch / "pins.txt"
    session.run(
        *("uv", "export", "--quiet", "--locked", "--no-default-groups", "--no-emit-workspace", "--no-hashes"),
        *("--package", f"offprints-{name}", "--all-extras", "--output-file", str(pins)),
        external=True,
    )
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    session.run("uv", "venv", "--quiet", f"--python={session.virtualenv.location}", str(environment), external=True)
    install = ("uv", "pip", "install", "--quiet", f"--python={python}", "--constraint", str(pins))
    session.run(*install, *options, *map(str, wanted), external=True)
    return python


@nox.session
@each_member
def bench(session: nox.Session, name: str) -> None:
    """The package beside its peers, on this machine; results go to its benchmarks/results/."""
    # The core's benchmark is how fast everything starts.
    everything = ["--all-packages", "--extra", "claims"]
    sync(session, *(everything if name == "shared" else ["--package", f"offprints-{name}", "--group", "bench"]))
    scripts = sorted((folder(name) / "benchmarks").glob("bench_*.py"))
    if not scripts:
        session.skip(f"{name} has no benchmarks")
    for script in scripts:
        session.run("python", str(script), *session.posargs)


def run_arguments(words: Sequence[str]) -> list[str]:
    """What goes to ``offprints run``: --preset=medium is --preset medium, and without either it is quick."""
    arguments: list[str] = []
    for word in words:
        if word != "--record":
            arguments += word.split("=", 1) if word.startswith("--") else [word]
    return arguments if "--preset" in arguments[:-1] else [*arguments, "--preset", "quick"]


@nox.session
@each_paper
def claims(session: nox.Session, name: str) -> None:
    """The paper's claims at the quick preset; arguments after -- go to ``offprints run``.

    ``-- --record [--preset medium]`` runs seeds 0, 1 and 2 and writes claims/<preset>.json and the README's table.
    """
    sync(session, "--package", f"offprints-{name}", "--extra", "claims")
    arguments = run_arguments(session.posargs)
    if "--record" not in session.posargs:
        session.run("offprints", "run", name, *arguments)
        return
    runs = ROOT / "runs" / "record" / f"{name}-{arguments[arguments.index('--preset') + 1]}"
    shutil.rmtree(runs, ignore_errors=True)
    for seed in ("0", "1", "2"):
        command = ("offprints", "run", name, *arguments, "--seed", seed, "--out", str(runs))
        session.run(*command, success_codes=[0, 1])  # a claim that does not hold is recorded too
    folders = sorted(str(path.parent) for path in runs.rglob("result.json"))
    session.run("python", "tools/workspace.py", "record", name, *folders)
    session.run("python", "tools/workspace.py", "tables", "--write")


@nox.session
@each_paper
def faults(session: nox.Session, name: str) -> None:
    """The smoke preset under kills, torn writes, full and broken disks: each run resumes to the same result."""
    sync(session, "--package", f"offprints-{name}", "--group", "test")
    session.run("python", "-m", "offprints.shared.testing.faults", name, *session.posargs)


@nox.session
@each_member
def lowest(session: nox.Session, name: str) -> None:
    """The tests with the lowest version of each direct dependency that the package admits."""
    members = [str(folder(member)) for member in ("shared", name)]
    session.install("--resolution=lowest-direct", "--group", f"{folder(name) / 'pyproject.toml'}:test", *members)
    run_tests(session, "python", name, "-W", "default")


@nox.session
@each_paper
def released(session: nox.Session, name: str) -> None:
    """The paper's wheel with the offprints-shared that the index has; skips until one is published."""
    install = ("uv", "pip", "install", "--quiet", f"--python={session.virtualenv.location}", "--no-sources")
    found = subprocess.run([*install, "--no-deps", "offprints-shared"], capture_output=True, check=False, cwd=ROOT)
    if found.returncode:
        session.skip("offprints-shared is not on the index")
    wheel = next(path for path in built(session, name) if path.suffix == ".whl")
    session.run(*install, "--group", f"{folder(name) / 'pyproject.toml'}:test", str(wheel), external=True)
    run_tests(session, "python", name)


@nox.session
def rehearse(session: nox.Session) -> None:
    """Publication on a local index: every wheel and sdist uploaded, two papers installed by name and used."""
    sync(session, "--only-group", "build")
    method, experiment = "stablemax", "dis-vs-gen"
    distributions = [path for name in NAMES for path in built(session, name)]
    with tempfile.TemporaryDirectory() as scratch, local_index(session, Path(scratch) / "index") as url:
        account = ("--username", "rehearsal", "--password", "rehearsal")
        session.run("twine", "upload", "--disable-progress-bar", "--repository-url", url, *account, *distributions)
        wanted = [f"offprints-{method}", f"offprints-{experiment}[claims]"]
        python = empty_environment(session, Path(scratch), experiment, wanted, "--index", f"{url}simple/")
        session.chdir(scratch)
        readme = (folder(method) / "README.md").read_text(encoding="utf-8")
        block = readme.split("```python\n", 1)[1].split("```", 1)[0]
        session.run(str(python), "-c", block, external=True)
        session.run(str(python.with_name("offprints")), "run", experiment, "--preset", "smoke", external=True)


@contextlib.contextmanager
def local_index(session: nox.Session, store: Path) -> Iterator[str]:
    """A package index on this machine alone, for as long as the block takes; its address."""
    store.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = (str(Path(session.bin) / "pypi-server"), "run", "--interface=127.0.0.1", f"--port={port}")
    open_to_all = ("--passwords=.", "--authenticate=.", "--disable-fallback")
    url = f"http://127.0.0.1:{port}/"
    with subprocess.Popen([*command, *open_to_all, str(store)], stdout=subprocess.DEVNULL) as server:
        try:
            for _ in range(100):
                with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
                    break
                time.sleep(0.1)
            else:
                session.error("the local index does not answer")
            yield url
        finally:
            server.terminate()


@nox.session
def docs(session: nox.Session) -> None:
    """The site, warnings are errors; after --: ``--no-gallery`` runs no example, ``--offline`` fetches nothing."""
    switches = {"--no-gallery": ("OFFPRINTS_DOCS_GALLERY", "0"), "--offline": ("OFFPRINTS_DOCS_OFFLINE", "1")}
    settings = dict(switches[argument] for argument in session.posargs if argument in switches)
    options = [argument for argument in session.posargs if argument not in switches]
    sync(session, "--all-packages", "--all-extras", "--group", "docs")
    doctrees = session.cache_dir / "doctrees"
    command = ("sphinx-build", "--fail-on-warning", "--keep-going", "--builder", "html", "--doctree-dir", str(doctrees))
    session.run(*command, *options, "docs", "dist/docs", env=settings)


@nox.session(venv_backend="none")
def new(session: nox.Session) -> None:
    """A new paper's package: ``nox -s new -- NAME --title "..." --arxiv 2211.15272 [--extra nifti=nibabel]``."""
    session.run("uv", "run", "--no-project", "python", "tools/workspace.py", "new", *session.posargs, external=True)
    session.run("uv", "lock", "--quiet", external=True)
