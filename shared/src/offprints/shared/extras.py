"""What a user may have to install or to fetch: missing extras and missing data, told in words that say what to do."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType


class MissingExtra(ImportError):  # noqa: N818 - a name that says what is the matter
    """An optional dependency is not installed; the message has the line that installs it."""


class MissingData(FileNotFoundError):  # noqa: N818 - the same
    """Data is not where it is looked for; the message shows the expected layout and where to get it."""


def require(module: str, *, package: str, extra: str) -> ModuleType:
    """Import an optional dependency; where it is missing, the error has the line that installs it.

    Args:
        module: The module to import, dotted.
        package: The paper (or ``"shared"``) whose extra it is.
        extra: Name of the extra.

    Raises:
        MissingExtra: The module is not installed. A module that is there and fails to import raises its own error.

    Example:
        >>> require("math", package="shared", extra="vision").floor(2.5)
        2
        >>> try:
        ...     require("no_such_module", package="cotta", extra="claims")
        ... except MissingExtra as error:
        ...     print(error)
        no_such_module is needed here and not installed; run: pip install 'offprints-cotta[claims]'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        name = package if package.startswith("offprints-") else f"offprints-{package}"
        raise MissingExtra(f"{module} is needed here and not installed; run: pip install '{name}[{extra}]'") from error


def require_folder(path: str | os.PathLike[str], layout: str) -> Path:
    """The folder, if it is there.

    Raises:
        MissingData: it is missing or not a folder; the message shows ``layout``, the expected tree.

    Example:
        >>> try:
        ...     require_folder("no/such/folder", "folder/train/*.png")
        ... except MissingData as error:
        ...     print(str(error).splitlines()[1])
        folder/train/*.png
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        state = "is not a folder" if folder.exists() else "does not exist"
        raise MissingData(f"{folder} {state}; expected there (OFFPRINTS_DATA moves the root):\n{layout}")
    return folder
