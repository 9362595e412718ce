"""What the packages of the workspace have in common: tables, records of claims, changes, releases, new packages.

Standard library only, so that each command runs by hand: ``python tools/workspace.py --help``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

from common import ROOT, UsageError, members, metadata
from records import record
from skeletons import new
from tables import update


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
    """The member that a tag ``<name>-v<version>`` publishes.

    Refused when tag and version differ, when the changelog is silent about the version, and when a paper admits an
    older core than the one that it was tested with.
    """
    name, separator, version = tag.rpartition("-v")
    folders = members(root)
    if not separator or name not in folders:
        raise UsageError(f"tag {tag!r} is not <name>-v<version> with <name> one of: {', '.join(folders)}")
    declared = metadata(folders[name])["version"]
    if version != declared:
        raise UsageError(f"tag {tag!r} says version {version}, {name}/pyproject.toml says {declared}")
    changelog = (folders[name] / "CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(rf"^## {re.escape(version)} \(\d{{4}}-\d\d-\d\d\)$", changelog, re.MULTILINE):
        raise UsageError(f"{name}/CHANGELOG.md has no entry '## {version} (YEAR-MONTH-DAY)'")
    if name != "shared":
        check_bound(root, name)
    return name


def check_bound(root: Path, name: str) -> None:
    """Refuse a paper whose lowest version of the core is older than the core that its tests ran with."""
    tested = metadata(members(root)["shared"])["version"]
    project = metadata(members(root)[name])
    extras = project.get("optional-dependencies", {}).values()
    for requirement in itertools.chain(project["dependencies"], *extras):
        if not re.match(r"offprints-shared\b", requirement):
            continue
        lowest = re.search(r">=\s*([0-9.]+)", requirement)
        if lowest is None or _release(lowest[1]) < _release(tested):
            raise UsageError(f"{name} was tested with offprints-shared {tested} and asks for {requirement!r}: raise it")


def _release(version: str) -> tuple[int, ...]:
    """The numbers of a version, without zeros at its end: 0.1 and 0.1.0 are the same."""
    numbers = [int(number) for number in re.findall(r"\d+", version)]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 when it succeeds, 2 with one line on standard error when it cannot."""
    options = parser().parse_args(arguments)
    try:
        match options.command:
            case "tables" | "table":
                print("\n".join(update(ROOT, write=options.write)))
            case "record":
                path, remarks = record(ROOT, options.name, options.runs)
                print("\n".join([f"{path.relative_to(ROOT)}: written", *(f"warning: {line}" for line in remarks)]))
            case "affected":
                everything = options.base is None
                names = list(members(ROOT)) if everything else affected(ROOT, changed_paths(ROOT, options.base))
                print(json.dumps(names))
            case "release":
                print(release(ROOT, options.tag))
            case "new":
                extras = dict(options.extra)
                golden = options.golden
                print(new(ROOT, options.name, title=options.title, arxiv=options.arxiv, golden=golden, extras=extras))
    except UsageError as error:
        print(f"workspace: {error}", file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="workspace", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "tables", aliases=["table"], help="check the READMEs' tables against the files that have the numbers"
    )
    command.add_argument("--write", action="store_true", help="write them instead")
    command = commands.add_parser("record", help="write claims/<preset>.json from the folders of finished runs")
    command.add_argument("name")
    command.add_argument("runs", nargs="+", type=Path, help="one folder a seed")
    command = commands.add_parser("affected", help="the members that a change touches, as a JSON list")
    command.add_argument("base", nargs="?", help="compare HEAD with this revision; without it, all members")
    command = commands.add_parser("release", help="the member that a tag <name>-v<version> publishes")
    command.add_argument("tag")
    command = commands.add_parser("new", help="create the package of a new paper")
    command.add_argument("name")
    command.add_argument("--title", required=True)
    command.add_argument("--arxiv", required=True)
    command.add_argument("--golden", type=Path, help="folder of golden data to copy into the package's tests")
    extra = "an extra and what it installs, such as nifti=nibabel or onnx=onnx,onnxruntime; may be repeated"
    command.add_argument("--extra", action="append", default=[], type=_extra, metavar="NAME=PACKAGE[,...]", help=extra)
    return parser


def _extra(text: str) -> tuple[str, list[str]]:
    name, separator, packages = text.partition("=")
    if not separator or not name or not all(packages.split(",")):
        raise argparse.ArgumentTypeError(f"must be NAME=PACKAGE[,PACKAGE...], got {text!r}")
    return name, packages.split(",")


if __name__ == "__main__":
    raise SystemExit(main())
