"""Writing that survives a kill at any moment, and strict JSON."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: Path, name: Callable[[], Path] | None = None) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; what was written there is on disk before it gets its name.

    That name is ``path``, or ``name()`` where it depends on what was written. Whoever looks finds the old file or the
    whole new one. On an error the temporary file is removed.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path if name is None else name())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write(path: Path, data: str | bytes) -> None:
    """Replace the file by ``data`` in one step."""
    with replacing(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def sync_folder(folder: Path) -> None:
    """Make renames and removals in the folder durable, where the system can."""
    with contextlib.suppress(OSError):  # Windows cannot open folders, some network file systems cannot sync them
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def plain(value: Any) -> Any:
    """``value`` in strict JSON's terms: numbers that are not finite become "nan", "inf" and "-inf"."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # float("nan"), float("inf") read these strings
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Strict JSON of :func:`plain` values."""
    separators = (",", ":") if indent is None else None
    return json.dumps(plain(value), indent=indent, separators=separators, allow_nan=False, ensure_ascii=False)


def digest(value: Any) -> str:
    """SHA-256 of the value's canonical JSON."""
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True, allow_nan=False).encode()).hexdigest()


def label(key: str) -> str:
    """A file name for ``key``: what of it is readable, and a digest that no other key has."""
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', key)[:80]}-{digest(key)[:8]}"


def file_digest(path: Path) -> str:
    """SHA-256 of the file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def number(value: Any, name: str) -> float | int | bool:
    """A plain number of anything scalar: Python, NumPy, a tensor of one element.

    Raises:
        TypeError: it is none; ``name`` says which.
    """
    if not isinstance(value, bool | int | float):
        item = getattr(value, "item", None)
        try:
            value = item() if callable(item) else value
        except (ValueError, RuntimeError):  # an array or tensor of more than one element
            raise TypeError(f"{name} must be one number, got shape {tuple(value.shape)}") from None
    if isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return float(value)
    raise TypeError(f"{name} must be a number, got {type(value).__name__}")
