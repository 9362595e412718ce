"""What the packages of the workspace have in common: the table of papers, changes, releases, new packages.

Standard library only, so that each command runs by hand: ``python tools/workspace.py --help``.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SKELETON = ROOT / "tools" / "skeleton"
TABLE = re.compile(r"(<!-- papers -->\n).*(<!-- /papers -->)", re.DOTALL)
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


class UsageError(Exception):
    """What the user asked for cannot be done; the message says why."""


def members(root: Path) -> dict[str, Path]:
    """Folder of each distribution by its short name: ``shared`` first, then the papers in order."""
    papers = sorted(path.parent for path in root.glob("packages/*/pyproject.toml"))
    return {"shared": root / "shared"} | {path.name: path for path in papers}


def metadata(folder: Path) -> dict[str, Any]:
    """The ``[project]`` table of a package."""
    project: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project


def papers_table(root: Path) -> str:
    """The README's table of papers, a row a package, from the packages' metadata alone."""
    rows = ["| package | paper | arXiv |", "| --- | --- | --- |"]
    for name, folder in members(root).items():
        if name == "shared":
            continue
        project = metadata(folder)
        url = project["urls"]["Paper"]
        link = f"[{url.rstrip('/').rsplit('/', 1)[-1]}]({url})"
        rows.append(f"| [`{project['name']}`](packages/{name}/README.md) | {project['description']} | {link} |")
    return "\n".join(rows) + "\n"


def table(root: Path, *, write: bool) -> str:
    """Put the table of papers between the README's markers, or say that it is out of date."""
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8")
    if not TABLE.search(text):
        raise UsageError("README.md lacks the markers <!-- papers --> and <!-- /papers -->")
    fresh = TABLE.sub(lambda match: match[1] + papers_table(root) + match[2], text)
    if fresh == text:
        return "README.md: the table of papers is up to date"
    if not write:
        raise UsageError("README.md: the table of papers is out of date; run: python tools/workspace.py table --write")
    readme.write_text(fresh, encoding="utf-8")
    return "README.md: table of papers written"


def affected(root: Path, paths: list[str]) -> list[str]:
    """Members whose tests a change of these paths can alter: all for a change outside the papers' folders."""
    names = members(root)
    touched = set()
    for path in paths:
        parts = Path(path).parts
        if len(parts) > 2 and parts[0] == "packages":
            touched.add(parts[1])  # a deleted package is not in names any more
        elif Path(path).suffix != ".md":
            return list(names)
    return [name for name in names if name in touched]


def changed_paths(root: Path, base: str) -> list[str]:
    """Paths that differ between the merge base with ``base`` and HEAD."""
    command = ["git", "diff", "--name-only", f"{base}...HEAD"]
    answer = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise UsageError(f"git cannot compare with {base!r}: {answer.stderr.strip()}")
    return answer.stdout.splitlines()


def release(root: Path, tag: str) -> str:
    """The member that a tag ``<name>-v<version>`` publishes; refused when tag and version differ."""
    name, separator, version = tag.rpartition("-v")
    folders = members(root)
    if not separator or name not in folders:
        raise UsageError(f"tag {tag!r} is not <name>-v<version> with <name> one of: {', '.join(folders)}")
    declared = metadata(folders[name])["version"]
    if version != declared:
        raise UsageError(f"tag {tag!r} says version {version}, {name}/pyproject.toml says {declared}")
    return name


def new(root: Path, name: str, *, title: str, arxiv: str, golden: Path | None = None) -> Path:
    """Create ``packages/<name>`` from the skeleton; its tests pass at once."""
    if not NAME.fullmatch(name) or name == "shared":
        raise UsageError(f"name {name!r} is not lower-case words joined by hyphens")
    if not re.fullmatch(r"\d{4}\.\d{4,5}", arxiv):
        raise UsageError(f"--arxiv {arxiv!r} is not an identifier such as 2211.15272")
    if not title.strip() or any(character in title for character in '"\\\n'):
        raise UsageError("--title must be one line without quotation marks or backslashes")
    if golden is not None and not golden.is_dir():
        raise UsageError(f"--golden {golden} is not a folder")
    target = root / "packages" / name
    if target.exists():
        raise UsageError(f"{target} exists")
    fields = {"NAME": name, "MODULE": name.replace("-", "_"), "TITLE": title.strip(), "ARXIV": arxiv}

    def fill(text: str) -> str:
        return re.sub("@(" + "|".join(fields) + ")@", lambda match: fields[match[1]], text)

    draft = target.with_name(f".{name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    for source in sorted(path for path in SKELETON.rglob("*") if path.is_file()):
        relative = source.relative_to(SKELETON)
        destination = draft / fill(str(relative.with_suffix("") if relative.suffix == ".in" else relative))
        destination.parent.mkdir(parents=True, exist_ok=True)
        destination.write_text(fill(source.read_text(encoding="utf-8")), encoding="utf-8")
    shutil.copyfile(root / "LICENSE", draft / "LICENSE")
    if golden is not None:
        shutil.copytree(golden, draft / "tests" / "golden")
    draft.rename(target)
    return target


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 when it succeeds, 2 with one line on standard error when it cannot."""
    parser = argparse.ArgumentParser(prog="workspace", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("table", help="check the README's table of papers against the packages' metadata")
    command.add_argument("--write", action="store_true", help="write it instead")
    command = commands.add_parser("affected", help="the members that a change touches, as a JSON list")
    command.add_argument("base", nargs="?", help="compare HEAD with this revision; without it, all members")
    command = commands.add_parser("release", help="the member that a tag <name>-v<version> publishes")
    command.add_argument("tag")
    command = commands.add_parser("new", help="create the package of a new paper")
    command.add_argument("name")
    command.add_argument("--title", required=True)
    command.add_argument("--arxiv", required=True)
    command.add_argument("--golden", type=Path, help="folder of golden data to copy into the package's tests")
    options = parser.parse_args(arguments)
    try:
        match options.command:
            case "table":
                print(table(ROOT, write=options.write))
            case "affected":
                everything = options.base is None
                names = list(members(ROOT)) if everything else affected(ROOT, changed_paths(ROOT, options.base))
                print(json.dumps(names))
            case "release":
                print(release(ROOT, options.tag))
            case "new":
                print(new(ROOT, options.name, title=options.title, arxiv=options.arxiv, golden=options.golden))
    except UsageError as error:
        print(f"workspace: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
