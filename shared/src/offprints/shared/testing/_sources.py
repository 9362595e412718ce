"""What `check_package` reads in the files of a package: its imports, its reference, and the README's table."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

LONGEST_REFERENCE = 100
PAPER_IN_THE_CODE = "The paper in the code"
EXPERIMENT = "offprints.shared.experiment"


def folder_of(module: ModuleType) -> Path:
    """Return the folder of a package."""
    return Path(next(iter(module.__path__)))


def check_apart(module: ModuleType) -> None:
    """Nothing outside ``reproduce/`` imports it, or the experiments of the core."""
    folder, found = folder_of(module), []
    forbidden = (f"{module.__name__}.reproduce", EXPERIMENT)
    for path in sorted(folder.rglob("*.py")):
        inside = path.relative_to(folder)
        if inside.parts[0] in ("reproduce", "reproduce.py"):
            continue
        package = [*module.__name__.split("."), *inside.parts[:-1]]
        for line, name in imported_names(ast.parse(path.read_text(encoding="utf-8")), package):
            if any(name == start or name.startswith(f"{start}.") for start in forbidden):
                found.append(f"{inside.as_posix()}:{line} imports {name}")
    if found:
        raise AssertionError(f"the method imports the experiment: {'; '.join(found)}")


def imported_names(tree: ast.AST, package: list[str]) -> Iterator[tuple[int, str]]:
    """Yield line and full dotted name of everything that is imported, also by ``import_module("...")``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{start}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            name = node.args[0].value
            if called in ("import_module", "__import__") and isinstance(name, str):
                relative = name.startswith(".")
                yield node.lineno, importlib.util.resolve_name(name, ".".join(package)) if relative else name


def check_reference(module: ModuleType) -> None:
    """``reference.py`` is there and short."""
    path = folder_of(module) / "reference.py"
    if not path.is_file():
        raise AssertionError("there is no reference.py: the paper's algorithm as the paper writes it")
    count = len(path.read_text(encoding="utf-8").splitlines())
    if count > LONGEST_REFERENCE:
        raise AssertionError(f"reference.py has {count} lines, at most {LONGEST_REFERENCE} are allowed")
    importlib.import_module(f"{module.__name__}.reference")


def check_table(readme: str, module: ModuleType) -> None:
    """Every name in the column *Code* of the README's table of the paper is in the package."""
    heading = re.search(rf"^## +{PAPER_IN_THE_CODE}\s*$(?P<text>(?:.|\n)*?)(?=^## |\Z)", readme, re.MULTILINE)
    if heading is None:
        raise AssertionError(f"README.md lacks the section {PAPER_IN_THE_CODE!r}")
    rows = [_cells(line) for line in heading["text"].splitlines() if line.lstrip().startswith("|")]
    columns = [i for i, cell in enumerate(rows[0] if rows else []) if cell.lower() == "code"]
    if len(rows) < 3 or not columns:
        raise AssertionError(f"{PAPER_IN_THE_CODE!r} has no table with rows and a column called Code")
    empty, absent = [], []
    for row in rows[2:]:
        names = re.findall(r"`([^`]+)`", row[columns[0]]) if len(row) > columns[0] else []
        empty += [] if names else [row[0]]
        absent += [name for name in names if not _is_there(name, module)]
    if empty or absent:
        raise AssertionError(f"names that do not import: {absent}; rows without a name in backticks: {empty}")


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def _is_there(name: str, module: ModuleType) -> bool:
    """Look a dotted name up, from the package or in full; a call's brackets and its arguments do not matter."""
    parts = re.sub(r"\(.*", "", name).removeprefix(f"{module.__name__}.").split(".")
    value: object = module
    for i, part in enumerate(parts):
        if not part.isidentifier():
            return False
        if not hasattr(value, part):
            dotted = ".".join([module.__name__, *parts[: i + 1]])
            try:
                value = importlib.import_module(dotted)
            except ImportError:
                return False
        else:
            value = getattr(value, part)
    return True
