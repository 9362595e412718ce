"""A training's checkpoints: one folder in which at every instant the newest complete one is found."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from offprints.shared.store import files, states

_COMPLETE = re.compile(r"([0-9]{9,18})-step-?[0-9]+\.json")
# All names that are written here: checkpoints, their tensors, and the temporary names of both.
_OURS = re.compile(r"\.?[0-9]{9,18}-step-?[0-9]+(\.json|-[0-9a-f]{16}\.safetensors|\.tmp|\.json\.tmp)")


def newest(folder: Path) -> Path | None:
    """The checkpoint completed last."""
    return max((path for path in folder.glob("*.json") if _serial(path)), key=_serial, default=None)


def _serial(path: Path) -> int:
    match = _COMPLETE.fullmatch(path.name)
    return 0 if match is None else int(match[1])


def save(folder: Path, state: Any, *, step: int, **about: Any) -> None:
    """Store ``state`` as ``<serial>-step<step>.json`` with its tensors beside it, then remove what is older.

    The serial number, not the step, orders them: an experiment may count the steps of each of its stages anew.

    Raises:
        UsageError: the disk refused.
    """
    packed = states.pack(state)
    files.make_folder(folder)
    last = newest(folder)
    serial = 1 + (0 if last is None else _serial(last))
    tidy(folder, states.save(folder / f"{serial:09d}-step{step}.json", packed, step=step, **about))


def tidy(folder: Path, kept: Sequence[Path]) -> None:
    """Remove all but the files ``kept``: older checkpoints and what a killed writer left, nothing of another name."""
    others = [path for path in folder.glob("*") if path not in kept and _OURS.fullmatch(path.name)]
    for path in sorted(others, key=lambda path: path.suffix != ".json"):  # first what makes a state complete
        files.remove(path)
