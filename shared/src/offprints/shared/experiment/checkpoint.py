"""The run's checkpoints: one folder in which at every instant the newest complete one is found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from offprints.shared.experiment import states


def newest(folder: Path) -> Path | None:
    """The checkpoint completed last."""
    return max(folder.glob("[0-9]*.json"), default=None)


def save(folder: Path, state: Any, *, step: int, **about: Any) -> None:
    """Store ``state`` as ``<serial>-step<step>.json`` with its tensors beside it, then remove what is older.

    The serial number, not the step, orders them: an experiment may count the steps of each of its stages anew.
    """
    packed = states.pack(state)
    folder.mkdir(exist_ok=True)
    last = newest(folder)
    serial = 1 + (0 if last is None else int(last.name.partition("-")[0]))
    tidy(folder, states.save(folder / f"{serial:09d}-step{step}.json", packed, step=step, **about))


def tidy(folder: Path, kept: Sequence[Path]) -> None:
    """Remove all but the files ``kept``: older checkpoints and what a killed writer left."""
    others = [file for file in folder.glob("*") if file not in kept]
    for file in sorted(others, key=lambda file: file.suffix != ".json"):  # first what makes a state complete
        file.unlink(missing_ok=True)
