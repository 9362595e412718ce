"""The workspace's own promises: README, licenses, releases, the skeleton of a new paper."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("workspace", ROOT / "tools" / "workspace.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


workspace = load()
MEMBERS: dict[str, Path] = workspace.members(ROOT)
PAPERS = [name for name in MEMBERS if name != "shared"]


def test_readme_table_is_up_to_date() -> None:
    workspace.table(ROOT, write=False)


def test_readme_table_goes_stale_and_is_rewritten(tmp_path: Path) -> None:
    package = tmp_path / "packages" / "a-paper"
    package.mkdir(parents=True)
    package.joinpath("pyproject.toml").write_text(
        '[project]\nname = "offprints-a-paper"\nversion = "1"\ndescription = "A title"\n'
        '[project.urls]\nPaper = "https://arxiv.org/abs/2211.15272"\n'
    )
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- papers -->\nold\n<!-- /papers -->\nafter\n")
    with pytest.raises(workspace.UsageError, match="out of date"):
        workspace.table(tmp_path, write=False)
    workspace.table(tmp_path, write=True)
    text = readme.read_text()
    assert "| A title | [2211.15272](https://arxiv.org/abs/2211.15272) |" in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    workspace.table(tmp_path, write=False)


def test_ci_runs_the_readmes_test_command() -> None:
    commands = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    command = next(command for command in commands if command.rstrip().endswith("run nox"))
    assert (ROOT / ".ci" / "run").read_text().endswith(command)


@pytest.mark.parametrize("name", MEMBERS)
def test_member(name: str) -> None:
    folder = MEMBERS[name]
    settings = tomllib.loads((folder / "pyproject.toml").read_text())
    module = f"offprints.{name.replace('-', '_')}"
    assert settings["project"]["name"] == f"offprints-{name}"
    assert settings["tool"]["uv"]["build-backend"]["module-name"] == module
    # Without these keys uv reuses a wheel built from older sources.
    assert settings["tool"]["uv"]["cache-keys"] == [{"file": "pyproject.toml"}, {"file": "src/**/*"}]
    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert not (folder / "src" / "offprints" / "__init__.py").exists()
    assert (folder / "src" / Path(*module.split(".")) / "py.typed").exists()


@pytest.mark.parametrize("name", PAPERS)
def test_no_paper_imports_another(name: str) -> None:
    own = name.replace("-", "_")
    for path in (MEMBERS[name] / "src").rglob("*.py"):
        imported = set(re.findall(r"^\s*(?:from|import) offprints\.(\w+)", path.read_text(), flags=re.MULTILINE))
        assert imported <= {"shared", own}, path


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["packages/betti-matching/src/x.py"], ["betti-matching"]),
        (["packages/gone/README.md", "CONTRIBUTING.md"], []),
        (["shared/src/offprints/shared/device.py"], list(MEMBERS)),
        (["uv.lock", "packages/betti-matching/README.md"], list(MEMBERS)),
    ],
)
def test_affected(paths: list[str], expected: list[str]) -> None:
    assert workspace.affected(ROOT, paths) == expected


@pytest.mark.parametrize("name", MEMBERS)
def test_release(name: str) -> None:
    version = workspace.metadata(MEMBERS[name])["version"]
    assert workspace.release(ROOT, f"{name}-v{version}") == name
    for tag in (f"{name}-v{version}.1", f"{name}-{version}", f"unknown-v{version}", "v1"):
        with pytest.raises(workspace.UsageError, match="tag"):
            workspace.release(ROOT, tag)


def test_release_by_hand_refuses_with_one_line() -> None:
    command = [sys.executable, str(ROOT / "tools" / "workspace.py"), "release", "shared-v999"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1
    assert "version 999" in answer.stderr


def test_workflows_name_sessions_that_exist() -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "nox", "--list", "-f", str(ROOT / "noxfile.py")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    sessions = set(re.findall(r"^[*-] (\w+)", listed, flags=re.MULTILINE))
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            for step in job["steps"]:
                for call in re.findall(r"nox -s (.*?)(?: -- |$)", step.get("run", ""), flags=re.MULTILINE):
                    assert set(re.findall(r'(?:^|[ "])(\w+)', re.sub(r"\(.*?\}\}\)", "", call))) <= sessions, call


def test_new_paper_passes_its_own_tests(tmp_path: Path) -> None:
    (tmp_path / "packages").mkdir()
    shutil.copyfile(ROOT / "LICENSE", tmp_path / "LICENSE")
    golden = tmp_path / "golden"
    golden.mkdir()
    (golden / "README.md").write_text("provenance\n")
    folder = workspace.new(tmp_path, "a-new-paper", title="A new paper", arxiv="2211.15272", golden=golden)
    assert (folder / "tests" / "golden" / "README.md").exists()
    assert not [path for path in folder.rglob("*") if "@" in path.name or path.suffix == ".in"]

    # Of the member's own metadata only what needs no workspace is built: the core is installed here already.
    site = tmp_path / "site"
    subprocess.run(
        ["uv", "pip", "install", "--quiet", "--no-sources", "--no-deps", "--target", str(site), str(folder)], check=True
    )
    answer = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", str(ROOT / "pyproject.toml"), str(folder / "tests")],
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "passed" in answer.stdout

    with pytest.raises(workspace.UsageError, match="exists"):
        workspace.new(tmp_path, "a-new-paper", title="A new paper", arxiv="2211.15272")


@pytest.mark.parametrize(
    ("name", "title", "arxiv", "word"),
    [
        ("Upper", "A title", "2211.15272", "name"),
        ("shared", "A title", "2211.15272", "name"),
        ("../up", "A title", "2211.15272", "name"),
        ("paper", 'A "title"', "2211.15272", "title"),
        ("paper", " ", "2211.15272", "title"),
        ("paper", "A title", "cs/0101", "arxiv"),
    ],
)
def test_new_paper_refuses(tmp_path: Path, name: str, title: str, arxiv: str, word: str) -> None:
    with pytest.raises(workspace.UsageError, match=word):
        workspace.new(tmp_path, name, title=title, arxiv=arxiv)
    assert not list(tmp_path.iterdir())
