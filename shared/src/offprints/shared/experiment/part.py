"""One long training among several of a run: what ``run.part(key)`` returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from offprints.shared import distributed
from offprints.shared.experiment.units import compute
from offprints.shared.store import files, states
from offprints.shared.store.training import Training, line

if TYPE_CHECKING:
    import torch

    from offprints.shared.experiment.run import Run

T = TypeVar("T")

RECORD = "finished.json"
NEEDS = ("key", "elapsed", "log_bytes")


class Part:
    """One long training among several of a run, with a log, checkpoints and a result of its own.

    What it keeps is in the folder ``parts/<key>`` of the run, apart from that of the other parts, so that each one goes
    on where it was stopped, whatever the others do. The lines of its log are in the run's ``metrics.jsonl`` too::

        def train(recipe: Recipe, part: Part) -> dict[str, Any]:
            model, optimizer = ...
            first = 0
            if (found := part.restore()) is not None:
                first, state = found
                model.load_state_dict(state["model"])
            for step in part.progress(range(first, recipe.steps)):
                ...
                part.log(step + 1, loss=loss)
                if (step + 1) % 1000 == 0:
                    part.checkpoint(step + 1, {"model": model.state_dict(), ...})
            return {"error": ..., "model": model.state_dict()}


        results = {name: run.part(name).once(partial(train, recipe)) for name, recipe in recipes.items()}

    Attributes:
        key: tells it from the other parts; logged scalars are called ``key/name``.
        preset, seed, device, precision: the run's.
    """

    def __init__(self, run: Run, key: str, training: Training) -> None:
        self.key = key
        self.preset = run.preset
        self.seed = run.seed
        self.device: torch.device = run.device
        self.precision: Literal["float32", "bfloat16", "float16"] = run.precision
        self._run = run
        self._training = training
        self._told = False
        distributed.on_main(self._take_up)

    def log(self, step: int, **scalars: float) -> None:
        """As ``run.log``; the scalars are called ``key/name``."""
        self._training.log(line(step, scalars, f"{self.key}/"))

    def checkpoint(self, step: int, state: Any) -> None:
        """As ``run.checkpoint``, for this part."""
        self._training.checkpoint(step, state)

    def restore(self) -> tuple[int, Any] | None:
        """As ``run.restore``, for this part: its own newest ``(step, state)``, or None where there is none."""
        return self._training.restore()

    def progress(self, iterable: Iterable[T], total: int | None = None, description: str = "") -> Iterator[T]:
        """As ``run.progress``, with the key as the description where none is given."""
        return self._run.progress(iterable, total, description or self.key)

    def once(self, function: Callable[[Part], dict[str, Any]]) -> dict[str, Any]:
        """What ``function(part)`` returns: numbers, strings, lists, tensors; a finished part is not run again.

        The global random streams inside depend on ``seed`` and the key alone and are restored with a checkpoint, those
        outside are left as they were. Once the result is stored the part's checkpoints are removed. Under torchrun
        every rank runs it, so that ranks may work together inside, and gets rank 0's result.

        Raises:
            UnitError: the function failed; the key is named and the original error is the cause.
        """
        packed = distributed.on_main(self._load)
        if packed is None:
            made = compute(self.key, partial(function, self), self.seed, kind="part")
            distributed.on_main(lambda: self._save(made))
            packed = distributed.share(made)
        return cast("dict[str, Any]", states.unpack(packed, self.device))

    def close(self) -> None:
        """Close the log."""
        self._training.close()

    # Inside

    def _take_up(self) -> None:
        if not self._path.exists():
            files.make_folder(self._training.folder)
            self._training.take_up(self._training.stored())
            self._told = True
        else:
            self._training.drop()  # a kill may have left them

    def _load(self) -> states.Packed | None:
        if not self._path.exists():
            return None
        record = states.read(self._path, fingerprint=self._training.fingerprint, key=self.key, needs=NEEDS)
        if not self._told:
            self._training.repeat(record["log_bytes"])
            self._told = True
        return states.load(self._path, record)

    def _save(self, packed: states.Packed) -> None:
        about = {"key": self.key, "elapsed": self._training.elapsed(), "log_bytes": self._training.flush()}
        states.save(self._path, packed, fingerprint=self._training.fingerprint, **about)
        self._training.drop()

    @property
    def _path(self) -> Path:
        return self._training.folder / RECORD


def folder_of(run: Path, key: str) -> Path:
    """The folder of the part ``key``."""
    return run / "parts" / files.label(key)
