"""Runs of experiments in tests: what a finished one left behind, and one that is interrupted."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offprints.shared.experiment import Experiment, Run


@dataclass(frozen=True)
class FinishedRun:
    """A run directory and its ``result.json``."""

    folder: Path
    result: dict[str, Any]

    @property
    def claims(self) -> dict[str, dict[str, Any]]:
        """The claims by their ids."""
        return {claim["id"]: claim for claim in self.result["claims"]}

    @property
    def figures(self) -> set[str]:
        """The names of the figures."""
        return {Path(figure).stem for figure in self.result["figures"]}


def finished_run(out: Path, name: str) -> FinishedRun:
    """The only run of a paper below ``out``, its figures checked to be images.

    Raises:
        AssertionError: another number of runs, no result, the result of another paper, a figure that is not a PNG file
            of some size.
    """
    folders = sorted((out / name).glob("*"))
    if len(folders) != 1:
        raise AssertionError(f"{out} holds {len(folders)} runs of {name}, not one")
    path = folders[0] / "result.json"
    if not path.is_file():
        raise AssertionError(f"the run in {folders[0]} has no result.json: it did not finish")
    result = json.loads(path.read_text(encoding="utf-8"))
    if result["paper"] != name:
        raise AssertionError(f"{path} is a result of {result['paper']}, not of {name}")
    for figure in result["figures"]:
        image = (folders[0] / figure).read_bytes()
        if not image.startswith(b"\x89PNG") or len(image) <= 1000:
            raise AssertionError(f"{folders[0] / figure} is not a PNG file of more than 1000 bytes")
    return FinishedRun(folders[0], result)


def interrupted(experiment: Experiment, *, checkpoints: int) -> Experiment:
    """The same experiment, interrupted (KeyboardInterrupt) after so many checkpoints, those of its parts too."""

    def function(config: Any, run: Run) -> None:
        from offprints.shared.store.training import Training

        write, written = Training.checkpoint, 0

        def write_and_stop(training: Training, step: int, state: Any) -> None:
            nonlocal written
            write(training, step, state)
            written += 1
            if written == checkpoints:
                raise KeyboardInterrupt

        Training.checkpoint = write_and_stop  # type: ignore[method-assign, assignment]
        try:
            experiment.function(config, run)
        finally:
            Training.checkpoint = write  # type: ignore[method-assign]

    return replace(experiment, function=function)
