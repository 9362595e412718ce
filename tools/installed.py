"""What an installed wheel holds, imported: every module of a method must do without the extras.

Run by the Python of an environment that holds the wheel and its dependencies alone: ``python tools/installed.py NAME``.
Standard library only.
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

# Parts that only an extra makes complete, by the package's folders and modules: they may ask for it on import.
APPARATUS = {"reproduce", "experiment", "command", "store", "show", "testing", "benchmark"}


def modules(package: str) -> list[str]:
    """The modules of an installed package by their full names, the package itself first."""
    origin = importlib.import_module(package).__file__
    if origin is None:
        raise ImportError(f"{package} has no __init__.py")
    folder = Path(origin).parent
    names = []
    for path in sorted(folder.rglob("*.py")):
        parts = list(path.relative_to(folder).with_suffix("").parts)
        if parts[-1] in ("__init__", "__main__"):
            parts.pop()
        names.append(".".join([package, *parts]))
    return list(dict.fromkeys(names))


def asks_for_extra(error: ImportError, name: str) -> bool:
    """Whether the error says which extra of the package, or of the core, is missing."""
    return re.search(rf"offprints-({re.escape(name)}|shared)\[[a-z0-9,-]+\]", str(error)) is not None


def check(name: str) -> tuple[list[str], list[str]]:
    """Import every module of the method.

    Returns:
        The modules that were imported, and for each that was not a line that says why.
    """
    package = f"offprints.{name.replace('-', '_')}"
    imported, failed = [], []
    for module in modules(package):
        part = module.removeprefix(package).lstrip(".").partition(".")[0]
        if part in APPARATUS:
            continue
        try:
            importlib.import_module(module)
        except ImportError as error:
            if not asks_for_extra(error, name):
                failed.append(f"{module}: {type(error).__name__}: {error}")
        else:
            imported.append(module)
    return imported, failed


def main(arguments: list[str]) -> int:
    """Print what was imported; 1 when a module was not."""
    (name,) = arguments
    imported, failed = check(name)
    for line in failed:
        print(f"not importable without an extra: {line}", file=sys.stderr)
    print(f"offprints-{name}: {len(imported)} modules imported, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
