"""The run: what an experiment's function measures with and writes through."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from offprints.shared import distributed
from offprints.shared.experiment import part, ranks
from offprints.shared.experiment.claims import Claim, Relation
from offprints.shared.experiment.part import Part, folder_of
from offprints.shared.experiment.units import Function, Pool, Setup, compute
from offprints.shared.show.progress import Display, Task, duration
from offprints.shared.store import files, states
from offprints.shared.store.settings import Settings
from offprints.shared.store.training import Training, check_length, line

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

T = TypeVar("T")

SEEDS_PER_RUN = 1000


class Run:
    """One run of an experiment, in its own directory. Under torchrun every rank has one and rank 0 writes.

    Attributes:
        dir: the run directory.
        preset, seed, device, precision: as on the command line, the device resolved.
        claims, values, tables, figures: what was recorded so far.
    """

    def __init__(self, folder: Path, settings: Settings, *, module: str, device: torch.device, resumed: bool) -> None:

        self.dir = folder
        self.preset = settings.preset
        self.seed = settings.seed
        self.device = device
        self.precision = cast('Literal["float32", "bfloat16", "float16"]', settings.precision)
        self.claims: list[Claim] = []
        self.values: list[dict[str, Any]] = []
        self.tables: dict[str, list[dict[str, Any]]] = {}
        self.figures: list[str] = []

        self._main = distributed.is_main()
        self._display = Display(visible=self._main)
        self._fingerprint = settings.fingerprint
        self._pool = Pool(Setup(module=module, deterministic=device.type == "cpu"))
        self._start = time.monotonic()
        self._before = 0.0  # seconds that earlier processes of this run worked, as far as they stored
        self._training = self._training_in(folder, "")
        self._parts: dict[str, Part] = {}
        distributed.on_main(self._take_up if resumed else self._training.begin)

    # Seeds and progress

    def seeds(self, n: int) -> list[int]:
        """``n`` seeds derived from `seed`, the same at every call, none in common with another ``--seed``'s.

        Raises:
            ValueError: ``n`` is not in 1..1000.
        """
        if not 1 <= n <= SEEDS_PER_RUN:
            raise ValueError(f"n must be in 1..{SEEDS_PER_RUN}, got {n}")
        return [self.seed * SEEDS_PER_RUN + i for i in range(n)]

    def progress(self, iterable: Iterable[T], total: int | None = None, description: str = "") -> Iterator[T]:
        """Yield the items, showing how many are done, the rate and the time left."""
        return self._display.track(iterable, total, description)

    # Claims, values, tables, figures

    def claim(
        self,
        id: str,
        statement: str,
        measured: float,
        relation: Relation,
        threshold: float,
        *,
        paper_value: float | str | None = None,
        spread: float | None = None,
        control: float | None = None,
        control_name: str | None = None,
    ) -> Claim:
        """Record that ``measured relation threshold`` should hold, and should not hold without the mechanism.

        A measurement that is not finite never clears the bar.

        Args:
            id: a short name, unique in the run.
            statement: the claim in plain words.
            measured: a number or a tensor of one; never a time, since equal seeds must give equal claims.
            relation: one of >=, <=, >, <, ==.
            threshold: finite.
            paper_value: the paper's own figure.
            spread: of ``measured`` over seeds; shown beside it.
            control: the negative control, the same quantity measured with the mechanism switched off. Where it clears
                the bar too, the claim does not hold.
            control_name: what was switched off, in a few words ("no averaging").

        Raises:
            TypeError, ValueError: an argument is of the wrong kind, or the id was used already.
        """
        claim = Claim(id, statement, measured, relation, threshold, paper_value, spread, control, control_name)
        return self._record(claim)

    def check(
        self,
        id: str,
        statement: str,
        measured: float,
        relation: Relation,
        threshold: float,
        *,
        paper_value: float | str | None = None,
    ) -> Claim:
        """Record what holds by construction or by a theorem: a check of exactness, labeled as such and not a finding.

        It is not counted among the claims and needs no control; one that fails is an error of the code, and the run
        ends with exit status 1. Arguments as in `claim`.
        """
        return self._record(Claim(id, statement, measured, relation, threshold, paper_value, kind="check"))

    def _record(self, claim: Claim) -> Claim:
        self._unused(claim.id)
        self.claims.append(claim)
        return claim

    def report_value(
        self, id: str, statement: str, value: float | str, *, paper_value: float | str | None = None
    ) -> None:
        """Record a number or words that are shown without a bar to clear."""
        self._unused(id)
        told = {"value": value, "paper_value": paper_value}
        for name, item in told.items():
            told[name] = item if item is None or isinstance(item, str) else files.number(item, f"{name} of {id!r}")
        self.values.append({"id": id, "statement": statement, **told})

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table of the report; the columns are the rows' keys in the order in which they first appear.

        A row with ``"reference": True`` (no column of its own) is a baseline or a level of collapse that belongs beside
        the claims: it is set in italics.
        """
        if not rows:
            raise ValueError(f"rows of table {name!r} are empty")
        if name in self.tables:
            raise ValueError(f"there is a table {name!r} already")
        self.tables[name] = [
            {
                key: value if isinstance(value, str | None) else files.number(value, f"{key} in table {name!r}")
                for key, value in row.items()
            }
            for row in rows
        ]

    @contextlib.contextmanager
    def figure(self, name: str, nrows: int = 1, ncols: int = 1, **options: Any) -> Iterator[tuple[Figure, Any]]:
        """``with run.figure("errors", ncols=2) as (figure, axes):`` saves ``figures/errors.png`` at the end.

        ``options`` are those of *pyplot.subplots*. Neither pyplot nor the caller's matplotlib settings are touched.
        """
        from offprints.shared.show.figures import drawing, to_png

        if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
            raise ValueError(f"name of a figure must be letters, digits, '.', '_' and '-', got {name!r}")
        path = f"figures/{name}.png"
        if path in self.figures:
            raise ValueError(f"there is a figure {name!r} already")
        with drawing(nrows, ncols, **options) as (figure, axes):
            yield figure, axes
            if self._main:
                files.make_folder(self.dir / "figures")
                files.write(self.dir / path, to_png(figure))
        self.figures.append(path)

    # Log

    def log(self, step: int, **scalars: float) -> None:
        """One line of ``metrics.jsonl``: the step and numbers (tensors of one element too).

        Numbers that are not finite are written as the strings "nan", "inf", "-inf".
        """
        self._training.log(line(step, scalars))

    # What is stored and found again

    def checkpoint(self, step: int, state: Any) -> None:
        """Store ``state``: nested dicts, lists, tuples of tensors, arrays and plain values.

        Every rank calls it; rank 0's state is stored, and the random streams (python, numpy, torch) of each rank. There
        is a complete checkpoint at every instant from the first one on, whenever the process is killed.

        Raises:
            TypeError: a part of the state is of another kind; its path is named.
        """
        self._training.checkpoint(step, state)

    def restore(self) -> tuple[int, Any] | None:
        """The newest checkpoint's ``(step, state)``, or None where there is none.

        Tensors that were on an accelerator are on `device`, the others on the CPU; those that shared one memory
        share it again. The random streams continue where they were when the checkpoint was taken, and the log ends
        there.

        Raises:
            UsageError: the checkpoint was half-written or changed.
        """
        return self._training.restore()

    def part(self, key: str) -> Part:
        """One long training among several: `Part` has its log, checkpoints and result, kept under ``key``.

        ``run.part(key).once(function)`` runs ``function(part)`` unless the part is finished, and goes on from its
        newest checkpoint where it was stopped.
        """
        if key not in self._parts:
            self._parts[key] = Part(self, key, self._training_in(folder_of(self.dir, key), key, self._training.log))
        return self._parts[key]

    def unit(self, key: str, function: Function) -> dict[str, Any]:
        """Run ``function`` once and store the numbers, strings, lists and tensors of the dict that it returns.

        On resume the stored ones are returned. The global random streams inside depend on `seed` and ``key``
        alone, those outside are left as they were. Under torchrun every rank runs it, so that ranks may work together
        inside, and gets rank 0's result.

        Raises:
            UnitError: the function failed; the key is named and the original error is the cause.
        """
        packed = distributed.on_main(lambda: self._load_unit(key))
        if packed is None:
            made = compute(key, function, self.seed)
            distributed.on_main(lambda: self._save_unit(key, made))
            packed = distributed.share(made)
        return cast("dict[str, Any]", states.unpack(packed, self.device))

    def units(self, functions: Mapping[str, Function], workers: int = 2) -> dict[str, dict[str, Any]]:
        """Several `unit` calls at once; each is stored as soon as it is done.

        On the CPU up to ``workers`` processes share the work, this one among them: never more than there are cores, nor
        than ``OFFPRINTS_WORKERS`` says where the user has set it. Functions must be picklable (from the top of a
        module, arguments through functools.partial). Every unit runs on one thread, so that its result does not depend
        on the number of workers. On an accelerator they run one after another in this process. Under torchrun each rank
        takes its share, one unit at a time, and every rank gets all results; the functions must not communicate.

        Raises:
            UnitError: one failed; those finished before are stored.
        """
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        found = distributed.on_main(lambda: {key: self._load_unit(key) for key in functions})
        done = {key: packed for key, packed in found.items() if packed is not None}
        missing = {key: function for key, function in functions.items() if key not in done}
        if missing:
            task = Task(self._display, "units", len(functions), done=len(done))
            told = time.monotonic()

            def store(key: str, packed: states.Packed) -> None:
                nonlocal told
                done[key] = packed
                if self._main:
                    self._save_unit(key, packed)
                task.advance(f"{key} ({duration(time.monotonic() - told)})")
                told = time.monotonic()

            try:
                if ranks.launched():
                    self._compute_by_ranks(missing, store)
                else:
                    self._pool.run(missing, self.seed, workers if self.device.type == "cpu" else 1, store)
            finally:
                task.finish()
        return {key: states.unpack(done[key], self.device) for key in functions}

    # Inside

    def _compute_by_ranks(self, missing: Mapping[str, Function], store: Any) -> None:
        from offprints.shared.experiment.units import one_thread

        keys = list(missing)
        for first in range(0, len(keys), distributed.world_size()):
            mine = keys[first + distributed.rank()] if first + distributed.rank() < len(keys) else None
            answer: Any = None
            if mine is not None:
                try:
                    with one_thread():
                        answer = compute(mine, missing[mine], self.seed)
                except Exception as error:
                    answer = error
            answers = distributed.gather(answer)
            for key, result in zip(keys[first : first + distributed.world_size()], answers, strict=False):
                if not isinstance(result, Exception):
                    store(key, result)
            for result in [answer, *answers]:  # one's own first: it has its traceback
                if isinstance(result, Exception):
                    raise result

    def _training_in(self, folder: Path, key: str | None, tell: Callable[[bytes], None] | None = None) -> Training:
        return Training(
            folder, key=key, fingerprint=self._fingerprint, device=self.device, elapsed=self.elapsed, tell=tell
        )

    def _unit_path(self, key: str) -> Path:
        return self.dir / "units" / f"{files.label(key)}.json"

    def _load_unit(self, key: str) -> states.Packed | None:
        path = self._unit_path(key)
        if not path.exists():
            return None
        return states.load(path, states.read(path, fingerprint=self._fingerprint, key=key))

    def _save_unit(self, key: str, packed: states.Packed) -> None:
        path = self._unit_path(key)
        files.make_folder(path.parent)
        states.save(path, packed, fingerprint=self._fingerprint, key=key, elapsed=self.elapsed())

    def _take_up(self) -> None:
        """Make sure that all that is stored is whole, before anything is changed; continue its clock and its log."""
        units = sorted((self.dir / "units").glob("*-????????.json"))
        records: list[dict[str, Any] | None] = [
            states.read(path, fingerprint=self._fingerprint, needs=("key", "elapsed")) for path in units
        ]
        for path in sorted((self.dir / "parts").glob(f"*/{part.RECORD}")):
            record = states.read(path, fingerprint=self._fingerprint, needs=part.NEEDS)
            check_length(path.with_name("metrics.jsonl"), record["log_bytes"])
            records.append(record)
        records += [self._training_in(folder, None).stored() for folder in sorted((self.dir / "parts").glob("*"))]
        whole = self._training.stored()
        self._before = max((record["elapsed"] for record in [whole, *records] if record is not None), default=0.0)
        self._training.take_up(whole)

    def elapsed(self) -> float:
        """Seconds that this run took so far, the time before a resume included as far as it was stored."""
        return self._before + time.monotonic() - self._start

    def _unused(self, id: str) -> None:
        if id in [claim.id for claim in self.claims] + [value["id"] for value in self.values]:
            raise ValueError(f"there is a claim or value {id!r} already")

    def close(self) -> None:
        """End worker processes, progress bars and the logs."""
        self._pool.close()
        self._display.close()
        for opened in self._parts.values():
            opened.close()
        self._training.close()
