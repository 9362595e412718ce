"""The workspace's own promises: README, licenses, releases, the skeleton of a new paper."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent


sys.path.insert(0, str(ROOT / "tools"))
workspace = importlib.import_module("workspace")
MEMBERS: dict[str, Path] = workspace.members(ROOT)
PAPERS = [name for name in MEMBERS if name != "shared"]


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
    version = settings["project"]["version"]
    assert re.search(rf"(?m)^## ({re.escape(version)} \(.+\)|Unreleased)$", (folder / "CHANGELOG.md").read_text())


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


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The members' metadata, changelogs and READMEs, to be changed at will."""
    for path in [ROOT / "README.md", *ROOT.glob("shared/*.*"), *ROOT.glob("packages/*/*.*")]:
        if path.is_file():
            target = tmp_path / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return tmp_path


@pytest.mark.parametrize("name", MEMBERS)
def test_release(name: str, copy: Path) -> None:
    folder = workspace.members(copy)[name]
    version = workspace.metadata(folder)["version"]
    changelog = folder / "CHANGELOG.md"
    text = re.sub(rf"(?m)^## {re.escape(version)} .*$", f"## {version} (2026-01-31)", changelog.read_text())
    changelog.write_text(text)
    assert workspace.release(copy, f"{name}-v{version}") == name
    for tag in (f"{name}-v{version}.1", f"{name}-{version}", f"unknown-v{version}", "v1"):
        with pytest.raises(workspace.UsageError, match="tag"):
            workspace.release(copy, tag)
    changelog.write_text(text.replace("(2026-01-31)", "(unreleased)"))
    with pytest.raises(workspace.UsageError, match="CHANGELOG"):
        workspace.release(copy, f"{name}-v{version}")


def test_release_refuses_a_bound_older_than_the_core_that_was_tested(copy: Path) -> None:
    settings = copy / "shared" / "pyproject.toml"
    for version, refused in (("0.1", False), ("0.1.1", True), ("0.2.0", True)):
        settings.write_text(re.sub(r'(?m)^version = ".*"$', f'version = "{version}"', settings.read_text()))
        if refused:
            with pytest.raises(workspace.UsageError, match=rf"tested with offprints-shared {version}"):
                workspace.check_bound(copy, "stablemax")
        else:
            workspace.check_bound(copy, "stablemax")
    path = copy / "packages" / "stablemax" / "pyproject.toml"
    path.write_text(path.read_text().replace(">=0.1,<0.2", ">=0.2,<0.3"))
    workspace.check_bound(copy, "stablemax")


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
                    if "$SESSION" in call:
                        called = set(job["strategy"]["matrix"]["session"])
                    else:
                        called = set(re.findall(r'(?:^|[ "])(\w+)', re.sub(r"\(\$\w+\)", "", call)))
                    assert called, call
                    assert called <= sessions, call


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["--preset", "quick"]),
        (["--record", "--device", "cpu"], ["--device", "cpu", "--preset", "quick"]),
        (["--record", "--preset", "medium"], ["--preset", "medium"]),
        (["--preset=medium", "--record", "--download"], ["--preset", "medium", "--download"]),
    ],
)
def test_arguments_of_a_record(words: list[str], expected: list[str]) -> None:
    sys.path.insert(0, str(ROOT))
    try:
        assert importlib.import_module("noxfile").run_arguments(words) == expected
    finally:
        sys.path.remove(str(ROOT))


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.name)
def test_workflows_pin_actions_and_keep_no_token(path: Path) -> None:
    settings = yaml.safe_load(path.read_text())
    assert settings["permissions"] == {}
    for job in settings["jobs"].values():
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", step["uses"]), step["uses"]
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False
    assert all(re.search(r"# v\d+\.\d+", line) for line in path.read_text().splitlines() if "uses:" in line)


def test_what_is_published_is_built_apart_from_the_tests() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "publish.yml").read_text())["jobs"]
    assert set(jobs["publish"]["needs"]) == {"build", "rebuild", "test"}
    assert "needs" not in jobs["build"]
    assert not [step for step in jobs["build"]["steps"] if "nox" in step.get("run", "")]
    for job in jobs.values():
        for step in job["steps"]:
            if step.get("uses", "").startswith("astral-sh/setup-uv@"):
                assert step["with"]["enable-cache"] is False


@pytest.mark.parametrize("name", PAPERS)
def test_citation(name: str) -> None:
    """The citation file and the README's entry name the same paper: all that a wheel holds is the README.

    `offprints info` shows its section, and services that read repositories show the file.
    """
    citation = yaml.safe_load((MEMBERS[name] / "CITATION.cff").read_text())["preferred-citation"]
    entry = (MEMBERS[name] / "README.md").read_text().partition("```bibtex\n")[2].partition("```")[0]
    fields = dict(re.findall(r"(\w+)\s*=\s*\{(.*?)\}(?=,\n|\s*\n|, \w+\s*=)", entry))
    authors = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in citation["authors"])
    assert fields["author"] == authors
    assert int(fields["year"]) == citation["year"]
    words = [re.sub(r"[^a-z0-9]", "", text.lower().replace("²", "2")) for text in (fields["title"], citation["title"])]
    assert words[0] == words[1]
    assert citation["url"] == workspace.metadata(MEMBERS[name])["urls"]["Paper"]
    assert citation["identifiers"][0]["value"] == f"arXiv:{citation['url'].rsplit('/', 1)[-1]}"
    kind = {"inproceedings": "conference-paper", "article": "article"}[entry.partition("{")[0].removeprefix("@")]
    assert citation["type"] == kind
    venue = citation["collection-title"] if kind == "conference-paper" else citation["journal"]
    published = fields["booktitle" if kind == "conference-paper" else "journal"]
    assert published in (venue, f"{venue} {citation['identifiers'][0]['value']}")
    for here, there in (("volume", "volume"), ("number", "issue"), ("pages", "start")):
        assert fields.get(here, "").partition("--")[0] == str(citation.get(there, ""))
    assert fields.get("url", citation["url"]) == citation["url"]


@pytest.mark.parametrize("name", PAPERS)
def test_extras(name: str) -> None:
    """What runs the claims is an extra, and nothing of it comes with the method."""
    project = workspace.metadata(MEMBERS[name])
    assert any(
        re.match(r"offprints-shared\[(.*,)?claims\b", need) for need in project["optional-dependencies"]["claims"]
    )
    apparatus = (
        r"(matplotlib|safetensors|threadpoolctl|tyro|rich|filelock|pytest|hypothesis|scikit-image|torchvision)\b"
    )
    assert not [need for need in project["dependencies"] if re.match(apparatus, need) or "claims" in need]
    group = tomllib.loads((MEMBERS[name] / "pyproject.toml").read_text())["dependency-groups"]["test"]
    assert any(re.match(rf"offprints-{name}\[(.*,)?claims\b", need) for need in group)


LONG_TITLE = (
    "A title of many words that does not fit into any line of any file " + "and goes on and on " * 5 + "to its end"
)


@pytest.fixture(scope="module", params=[("a-new-paper", "A new paper"), ("zeta", LONG_TITLE)], ids=["short", "long"])
def new_paper(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package made of the skeleton, in a workspace that has the core's metadata and the tools' settings."""
    root = tmp_path_factory.mktemp("workspace")
    (root / "packages").mkdir()
    (root / "shared").mkdir()
    for file in ("LICENSE", "pyproject.toml", "shared/pyproject.toml"):
        shutil.copyfile(ROOT / file, root / file)
    golden = root / "golden"
    golden.mkdir()
    (golden / "README.md").write_text("provenance\n")
    name, title = request.param
    extras = {"nifti": ["nibabel>=5"], "onnx": ["onnx", "onnxruntime"]} if name == "zeta" else {}
    folder: Path = workspace.new(root, name, title=title, arxiv="2211.15272", golden=golden, extras=extras)
    with pytest.raises(workspace.UsageError, match="exists"):
        workspace.new(root, name, title=title, arxiv="2211.15272")
    return folder


def run_in(folder: Path, *command: str | Path, **environment: str) -> str:
    answer = subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        cwd=folder.parent.parent,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def test_new_paper_is_complete(new_paper: Path) -> None:
    assert (new_paper / "tests" / "golden" / "README.md").exists()
    assert not [path for path in new_paper.rglob("*") if "@" in path.name or path.suffix == ".in"]
    assert not [path for path in new_paper.rglob("*.*") if re.search(r"@[A-Z_]+@", path.read_text(encoding="utf-8"))]
    settings = tomllib.loads((new_paper / "pyproject.toml").read_text())
    extras = settings["project"]["optional-dependencies"]
    name = new_paper.name
    assert settings["dependency-groups"]["test"][0] == f"offprints-{name}[{','.join(extras)}]"
    assert settings["tool"]["uv"]["sources"][f"offprints-{name}"] == {"workspace": True}
    if name == "zeta":
        assert extras["nifti"] == ["nibabel>=5"]
        assert extras["onnx"] == ["onnx", "onnxruntime"]
        assert 'pip install "offprints-zeta[onnx]"' in (new_paper / "README.md").read_text()
    workspace.check_bound(new_paper.parent.parent, name)
    citation = yaml.safe_load((new_paper / "CITATION.cff").read_text())
    assert citation["preferred-citation"]["year"] == 2022


def test_new_paper_passes_lint(new_paper: Path) -> None:
    run_in(new_paper, "ruff", "check", "--no-cache", new_paper)
    run_in(new_paper, "ruff", "format", "--no-cache", "--check", new_paper)
    run_in(new_paper, "codespell_lib", new_paper)


@pytest.mark.parametrize("new_paper", [("zeta", LONG_TITLE)], ids=["long"], indirect=True)
def test_new_paper_passes_types(new_paper: Path) -> None:
    source = f"{new_paper / 'src'}{os.pathsep}{ROOT / 'shared' / 'src'}"
    run_in(new_paper, "mypy", "--cache-dir", new_paper.parent.parent / "mypy", "-p", "offprints.zeta", MYPYPATH=source)


@pytest.mark.parametrize("new_paper", [("zeta", LONG_TITLE)], ids=["long"], indirect=True)
def test_new_paper_builds_and_passes_its_own_tests(new_paper: Path, tmp_path: Path) -> None:
    # Of the member's own metadata only what needs no workspace is built: the core is installed here already.
    site = tmp_path / "site"
    install = ["uv", "pip", "install", "--quiet", "--no-sources", "--no-deps", "--target", str(site), str(new_paper)]
    subprocess.run(install, check=True)
    output = run_in(new_paper, "pytest", "-q", new_paper / "tests", PYTHONPATH=str(site))
    assert "passed" in output
    assert "skipped" not in output
    run_in(
        new_paper, "runpy_example", PYTHONPATH=f"{site}{os.pathsep}{_example(new_paper, tmp_path)}", MPLBACKEND="Agg"
    )


def _example(folder: Path, scratch: Path) -> Path:
    """The example as a module of its own, so that the same Python runs it."""
    (example,) = (folder / "examples").glob("plot_*.py")
    shutil.copyfile(example, scratch / "runpy_example.py")
    return scratch


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


@pytest.mark.parametrize("extra", ["claims=x", "Upper=x", 'a="x', "a=b c"])
def test_new_paper_refuses_extras(tmp_path: Path, extra: str) -> None:
    name, _, package = extra.partition("=")
    with pytest.raises(workspace.UsageError, match="--extra"):
        workspace.new(tmp_path, "paper", title="A title", arxiv="2211.15272", extras={name: [package]})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", PAPERS)
def test_nothing_of_the_skeleton_is_left(name: str) -> None:
    """REPLACE marks what the author of a new package has still to write."""
    left = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in MEMBERS[name].rglob("*")
        if path.suffix in (".py", ".md", ".cff", ".toml") and "__pycache__" not in path.parts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if "REPLACE" in line
    ]
    assert not left
