"""The core's layers: command -> experiment -> store, show; nothing below imports what is above it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import offprints.shared

ROOT = Path(next(iter(offprints.shared.__path__)))
LAYERS = {
    "store": {"command", "experiment", "show", "catalog"},
    "show": {"command", "experiment", "store", "catalog"},
    "experiment": {"command"},
}
# What methods import knows nothing of experiments.
DOORS = ("device", "distributed", "estimators", "extras", "labels", "lazy", "tables", "usage", "validation", "catalog")


def imported(path: Path) -> set[str]:
    """The parts of the core that a file imports, at its top or inside."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return {name.split(".")[2] for name in names if name.startswith("offprints.shared.")}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_none_above_it(layer: str) -> None:
    files = list((ROOT / layer).glob("*.py"))
    assert len(files) >= 5
    for path in files:
        assert not imported(path) & LAYERS[layer], path


@pytest.mark.parametrize("door", DOORS)
def test_what_methods_import_knows_nothing_of_experiments(door: str) -> None:
    assert not imported(ROOT / f"{door}.py") & {"command", "experiment", "store", "show", "testing"}


def test_only_the_console_script_imports_the_commands() -> None:
    others = [path for path in ROOT.rglob("*.py") if path.parent.name not in ("command", "testing")]
    assert {path.name for path in others if "command" in imported(path)} == {"__main__.py"}
