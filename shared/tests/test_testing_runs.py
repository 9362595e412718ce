"""What tests ask of a finished run, and the interruption of one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from offprints.shared.experiment import Experiment, Part, Run
from offprints.shared.experiment.launch import execute
from offprints.shared.testing.runs import finished_run, interrupted


@dataclass(frozen=True)
class Config:
    steps: int = 3


def climb(config: Config, run: Run) -> None:
    found = run.restore()
    first = 0 if found is None else found[0]
    for step in range(first, config.steps):
        run.checkpoint(step + 1, {"step": step + 1})
    run.claim("top", "Steps", config.steps, ">=", 2)
    with run.figure("steps") as (_, axes):
        axes.plot(range(config.steps))


CLIMB = Experiment(
    name="climb", title="Steps", arxiv="0000.00000", config=Config, presets={"smoke": Config()}, function=climb
)


def test_finished_run(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="0 runs of climb, not one"):
        finished_run(tmp_path, "climb")
    execute(CLIMB, Config(), preset="smoke", device="cpu", out=tmp_path)
    run = finished_run(tmp_path, "climb")
    assert run.claims["top"]["measured"] == 3
    assert run.figures == {"steps"}
    assert run.folder.parent == tmp_path / "climb"
    (run.folder / "figures" / "steps.png").write_bytes(b"no image")
    with pytest.raises(AssertionError, match=r"steps\.png is not a PNG file"):
        finished_run(tmp_path, "climb")
    (run.folder / "result.json").unlink()
    with pytest.raises(AssertionError, match="did not finish"):
        finished_run(tmp_path, "climb")


def test_interrupted_and_resumed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        execute(interrupted(CLIMB, checkpoints=2), Config(), preset="smoke", device="cpu", out=tmp_path)
    (folder,) = (tmp_path / "climb").iterdir()
    assert not (folder / "result.json").exists()
    execute(CLIMB, Config(), preset="smoke", device="cpu", out=tmp_path, resume=folder)
    assert finished_run(tmp_path, "climb").claims["top"]["holds"]


def stairs(config: Config, run: Run) -> None:
    """Climb two flights of steps, each a part."""

    def flight(part: Part) -> dict[str, Any]:
        first = found[0] if (found := part.restore()) is not None else 0
        for step in range(first, 2):
            part.checkpoint(step + 1, {"step": step})
        return {"first": first}

    starts = [run.part(name).once(flight)["first"] for name in ("lower", "upper")]
    run.claim("upper", "the upper flight goes on from its first step", starts[1], "==", 1)


def test_parts_interrupted_and_resumed(tmp_path: Path) -> None:
    flights = replace(CLIMB, function=stairs)
    with pytest.raises(KeyboardInterrupt):
        execute(interrupted(flights, checkpoints=3), Config(), preset="smoke", device="cpu", out=tmp_path)
    (folder,) = (tmp_path / "climb").iterdir()
    execute(flights, Config(), preset="smoke", device="cpu", out=tmp_path, resume=folder)
    assert finished_run(tmp_path, "climb").claims["upper"]["holds"]
