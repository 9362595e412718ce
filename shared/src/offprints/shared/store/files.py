"""Writing that survives a kill at any moment, and strict JSON."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

from offprints.shared.usage import UsageError

_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)  # Windows has no such flags
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)
_BINARY = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_BROKEN = (errno.EIO, errno.ENOSPC, errno.EDQUOT)


def malformed(path: Path, why: str = "it was half-written or changed") -> UsageError:
    """The error of a stored file that is not what a run writes."""
    return UsageError(f"{path} is malformed: {why}; remove it to compute again what it held")


@contextlib.contextmanager
def told(what: Path | str) -> Iterator[None]:
    """An error of the disk inside the block as the user is told it.

    Raises:
        UsageError: an OSError was raised; ``what`` and its reason are named.
    """
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot write {what}: {error.strerror or error}") from error


@contextlib.contextmanager
def replacing(path: Path, name: Callable[[], Path] | None = None) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; what was written there is on disk before it gets its name.

    That name is ``path``, or ``name()`` where it depends on what was written. Whoever looks finds the old file or the
    whole new one. On an error the temporary file is removed. The temporary file is always a new one, so that a link
    which lies there does not lead elsewhere.

    Raises:
        UsageError: the disk refused.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with told(path):
        temporary.unlink(missing_ok=True)
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW | _BINARY, 0o666))
        try:
            yield temporary
            descriptor = os.open(temporary, os.O_RDWR | _NOFOLLOW | _BINARY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(temporary, path if name is None else name())
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write(path: Path, data: str | bytes) -> None:
    """Replace the file by ``data`` in one step.

    Raises:
        UsageError: the disk refused.
    """
    with replacing(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | _NOFOLLOW | _BINARY)
        try:
            write_all(descriptor, data.encode() if isinstance(data, str) else data)
        finally:
            os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of ``data``, in as many steps as the system takes."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def sync_folder(folder: Path) -> None:
    """Make renames and removals in the folder durable, where the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:  # Windows cannot open folders, some network file systems cannot sync them
        if error.errno in _BROKEN:
            raise


def read(path: Path, length: int = -1) -> bytes:
    """The content, or the first ``length`` bytes, of a regular file that is not a link.

    Raises:
        OSError: there is none, or it cannot be read.
    """
    with _open_to_read(path) as file:
        return file.read(length)


def _open_to_read(path: Path) -> BufferedReader:
    descriptor = os.open(path, os.O_RDONLY | _NOFOLLOW | _NONBLOCK | _BINARY)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # of a pipe one would wait for ever
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return open(descriptor, "rb")


def open_to_append(path: Path, length: int) -> int:
    """A descriptor that appends to the first ``length`` bytes of the file, which is made where there is none.

    Raises:
        UsageError: the disk refused, or the file is a link, has other names or is not a regular file.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | _NOFOLLOW | _NONBLOCK | _BINARY
    with told(path):
        descriptor = os.open(path, flags, 0o666)
        try:
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode) or about.st_nlink > 1:
                raise UsageError(f"{path} is not a file of the run alone: it has other names or is of another kind")
            if about.st_size > length:
                os.ftruncate(descriptor, length)
        except BaseException:
            os.close(descriptor)
            raise
    return descriptor


def make_folder(folder: Path) -> None:
    """Make the folder, and those above it, where they are not there.

    Raises:
        UsageError: the disk refused.
    """
    with told(folder):
        folder.mkdir(parents=True, exist_ok=True)


def remove(path: Path) -> None:
    """Remove the file where it is there.

    Raises:
        UsageError: the disk refused.
    """
    with told(path):
        path.unlink(missing_ok=True)


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
    """Strict JSON of `plain` values."""
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
    with _open_to_read(path) as file:
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
