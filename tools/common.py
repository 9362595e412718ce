"""What the tools of the workspace share: its members and their metadata."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


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
