"""What is kept of one training: its log and its newest checkpoint, which go on where it was stopped."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offprints.shared import distributed
from offprints.shared.store import checkpoint, files, states
from offprints.shared.usage import UsageError

if TYPE_CHECKING:
    import torch

NEEDS = ("key", "elapsed", "step", "log_bytes")


class Training:
    """The log ``metrics.jsonl`` and the folder ``checkpoint`` inside ``folder``. Every rank has one; rank 0 writes.

    Args:
        folder: holds both.
        key: tells its checkpoints from those of another training of the run; with None those of any are read.
        fingerprint: marks what belongs to this run.
        device: where tensors that were on an accelerator return to.
        elapsed: the seconds that the run took so far.
        tell: gets every line of the log too, and on resume the lines up to the checkpoint, once they are restored.
    """

    def __init__(
        self,
        folder: Path,
        *,
        key: str | None,
        fingerprint: str,
        device: torch.device,
        elapsed: Callable[[], float],
        tell: Callable[[bytes], None] | None = None,
    ) -> None:
        self.folder = folder
        self.key = key
        self.fingerprint = fingerprint
        self.device = device
        self.elapsed = elapsed
        self.tell = tell
        self._log: int | None = None
        # There is a checkpoint that is not read yet: the lines that the function logs on its way to it are there.
        self._waits = False

    @property
    def log_path(self) -> Path:
        """The log's file."""
        return self.folder / "metrics.jsonl"

    def begin(self) -> None:
        """Open an empty log."""
        self._open(0)

    def stored(self) -> dict[str, Any] | None:
        """The newest checkpoint's record, once it is sure that it and the log up to it are whole.

        Raises:
            UsageError: something of it was half-written or changed.
        """
        newest = checkpoint.newest(self.folder / "checkpoint")
        if newest is None:
            return None
        record = states.read(newest, fingerprint=self.fingerprint, key=self.key, needs=NEEDS)
        check_length(self.log_path, record["log_bytes"])
        return record

    def take_up(self, record: dict[str, Any] | None) -> None:
        """Open the log where ``record``, of `stored`, leaves it, and remove what a killed writer left."""
        self._waits = record is not None
        self._open(0 if record is None else record["log_bytes"])
        newest = checkpoint.newest(self.folder / "checkpoint")
        if record is not None and newest is not None:
            tensors = record["tensors"]
            checkpoint.tidy(newest.parent, [newest, newest.with_name(tensors["file"])] if tensors else [newest])

    def log(self, line: bytes) -> None:
        """Append one line."""
        if self._log is not None and not self._waits:
            with files.told(self.log_path):
                files.write_all(self._log, line)
            if self.tell is not None:
                self.tell(line)

    def flush(self) -> int:
        """Bring the log to the disk; its length."""
        assert self._log is not None  # rank 0 alone
        with files.told(self.log_path):
            os.fsync(self._log)
            return os.fstat(self._log).st_size

    def checkpoint(self, step: int, state: Any) -> None:
        """Store ``state`` and the random streams of each rank."""
        from offprints.shared.device import rng_state

        random = distributed.gather(rng_state(self.device))
        if distributed.is_main():
            checkpoint.save(
                self.folder / "checkpoint",
                {"state": state, "random": random},
                step=int(step),
                key=self.key,
                fingerprint=self.fingerprint,
                elapsed=self.elapsed(),
                log_bytes=self.flush(),
            )

    def restore(self) -> tuple[int, Any] | None:
        """The newest checkpoint's ``(step, state)``, or None where there is none."""
        from offprints.shared.device import set_rng_state

        found = distributed.on_main(self._load)
        if found is None:
            return None
        path, step, packed = found
        try:
            content = states.unpack(packed, self.device)
            if distributed.rank() < len(content["random"]):
                set_rng_state(content["random"][distributed.rank()])
            return step, content["state"]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise files.malformed(path) from error

    def repeat(self, length: int) -> None:
        """Tell the first ``length`` bytes of the log again."""
        check_length(self.log_path, length)
        if self.tell is not None:
            self.tell(files.read(self.log_path, length))

    def drop(self) -> None:
        """Remove the checkpoints."""
        checkpoint.tidy(self.folder / "checkpoint", ())
        with contextlib.suppress(OSError):  # not there, or not empty
            (self.folder / "checkpoint").rmdir()

    def close(self) -> None:
        """Close the log."""
        if self._log is not None:
            os.close(self._log)
            self._log = None

    def _load(self) -> tuple[Path, int, states.Packed] | None:
        path = checkpoint.newest(self.folder / "checkpoint")
        if path is None:
            return None
        record = states.read(path, fingerprint=self.fingerprint, key=self.key, needs=NEEDS)
        packed = states.load(path, record)
        self._open(record["log_bytes"])
        self._waits = False
        self.repeat(record["log_bytes"])
        return path, record["step"], packed

    def _open(self, length: int) -> None:
        check_length(self.log_path, length)
        self.close()
        self._log = files.open_to_append(self.log_path, length)


def check_length(path: Path, length: int) -> None:
    """Make sure that a log holds the ``length`` bytes that a checkpoint counts on.

    Raises:
        UsageError: it does not.
    """
    if length > (path.stat().st_size if path.exists() else 0):
        raise UsageError(f"{path} is shorter than it was at the checkpoint; it was changed")


def line(step: int, scalars: dict[str, float], prefix: str = "") -> bytes:
    """One line of the log: the step and numbers, tensors of one element too."""
    values = {f"{prefix}{name}": files.number(value, name) for name, value in scalars.items()}
    return files.to_json({"step": int(step)} | values).encode() + b"\n"
