"""The run directory: making one, and taking one up that may have been made by somebody else."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from offprints.shared.store.settings import Settings
from offprints.shared.usage import UsageError

FILES = ("config.json", "metrics.jsonl", "report.md", "result.json", ".lock")
FOLDERS = ("checkpoint", "figures", "parts", "units")
_WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EROFS, errno.EACCES)


def create(out: Path, settings: Settings) -> Path:
    """A new directory for the run, with its ``config.json``.

    Raises:
        UsageError: the disk refused.
    """
    start = time.strftime("%Y%m%d-%H%M%S")
    try:
        (out / settings.paper).mkdir(parents=True, exist_ok=True)
        for attempt in itertools.count(1):
            unique = start if attempt == 1 else f"{start}.{attempt}"
            folder = out / settings.paper / f"{unique}-{settings.preset}-seed{settings.seed}"
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                break
    except OSError as error:
        raise UsageError(f"--out: cannot write to {out}: {error.strerror}") from error
    settings.save(folder)
    return folder


def check(folder: Path, settings: Settings) -> int:
    """The number of threads of the run in ``folder``, once it is sure that it was started with ``settings``.

    The device alone may be another one.

    Raises:
        UsageError: the folder is not a run's, or of a run with other settings: the first difference is named.
    """
    stored = Settings.load(folder)
    free = ("config", "device", "threads")
    differences = {
        name.replace("_", " "): (getattr(stored, name), getattr(settings, name))
        for name in [field.name for field in dataclasses.fields(Settings)]
        if name not in free
    }
    differences |= {
        f"--{name}": (stored.config.get(name), settings.config.get(name))
        for name in {**stored.config, **settings.config}
    }
    for name, (theirs, ours) in differences.items():
        if theirs != ours:
            raise UsageError(f"--resume: {folder} was started with {name} {theirs}, not {ours}")
    inspect(folder)
    return stored.threads


def inspect(folder: Path) -> None:
    """Make sure that what a run writes, reads and removes in the directory is inside the directory.

    Raises:
        UsageError: a file or folder of the run is a link or of another kind.
    """
    with _readable(folder), os.scandir(folder) as entries:
        for entry in entries:
            ours = entry.name in FILES or (entry.name.startswith(".") and entry.name.endswith(".tmp"))
            if ours:
                _require(entry, stat.S_ISREG, "file")
            elif entry.name in FOLDERS:
                _inspect_inside(entry)


def _inspect_inside(entry: os.DirEntry[str]) -> None:
    _require(entry, stat.S_ISDIR, "folder")
    with os.scandir(entry.path) as entries:
        for inner in entries:
            if inner.is_dir(follow_symlinks=False):
                _inspect_inside(inner)
            else:
                _require(inner, stat.S_ISREG, "file")


def _require(entry: os.DirEntry[str], kind: Callable[[int], bool], word: str) -> None:
    mode = entry.stat(follow_symlinks=False).st_mode
    if stat.S_ISLNK(mode):
        raise UsageError(f"--resume: {entry.path} is a link, which no run makes: what it leads to is not touched")
    if not kind(mode):
        raise UsageError(f"--resume: {entry.path} is malformed: it is not a {word}")


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"--resume: cannot read {error.filename or folder}: {error.strerror}") from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second process from writing to the directory; a kill releases it too.

    Raises:
        UsageError: another process has it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UsageError(f"--resume: {folder} is in use: the run is still going on") from None
    except (NotImplementedError, OSError) as error:  # a file system without locks, or a finished run to read alone
        if isinstance(error, OSError) and error.errno not in _WITHOUT_LOCKS:
            raise UsageError(f"cannot write {lock.lock_file}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()
