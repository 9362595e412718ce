"""Carrying out an experiment: its directory, its processes, its result."""

from __future__ import annotations

import contextlib
import json
import platform
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offprints.shared import catalog, distributed
from offprints.shared.experiment import ranks
from offprints.shared.experiment.claims import Claim
from offprints.shared.experiment.run import SEEDS_PER_RUN, Run
from offprints.shared.experiment.units import seed_process
from offprints.shared.show import report
from offprints.shared.store import files
from offprints.shared.store.configs import encode
from offprints.shared.store.folder import check, create, locked
from offprints.shared.store.settings import Settings
from offprints.shared.usage import UsageError

if TYPE_CHECKING:
    from offprints.shared.experiment.experiment import Experiment

PRECISIONS = ("float32", "bfloat16", "float16")
MAX_SEED = 2**32 // SEEDS_PER_RUN - 1  # NumPy's seeds are below 2**32


@dataclass(frozen=True)
class Outcome:
    """What a run came to: its directory and the content of its ``result.json``."""

    dir: Path
    result: dict[str, Any]

    @property
    def status(self) -> int:
        """0 where all claims hold or the preset is ``smoke``, else 1."""
        return 0 if self.result["preset"] == "smoke" or all(claim["holds"] for claim in self.result["claims"]) else 1


def execute(
    experiment: Experiment,
    config: Any,
    *,
    preset: str,
    seed: int = 0,
    device: str = "auto",
    precision: str = "float32",
    out: Path | str = "runs",
    resume: Path | str | None = None,
) -> Outcome:
    """Run the experiment, or finish the run in the directory ``resume``, which must have been started like this.

    Raises:
        UsageError: a wrong argument, an unavailable device, a directory that cannot be used, a full disk.
    """
    if preset not in experiment.presets:
        raise UsageError(f"unknown preset {preset!r} of {experiment.name}; it has {', '.join(experiment.presets)}")
    if not 0 <= seed <= MAX_SEED:
        raise UsageError(f"--seed must be in 0..{MAX_SEED}, got {seed}")
    if precision not in PRECISIONS:
        raise UsageError(f"--precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")

    import torch

    from offprints.shared.device import reset_peak_memory, resolve_device

    with ranks.group(device), contextlib.ExitStack() as held:
        try:
            place = resolve_device(device)
        except ValueError as error:
            raise UsageError(f"--{error}") from error  # "device ..."
        settings = Settings(
            paper=experiment.name,
            version=paper_version(experiment.name),
            preset=preset,
            seed=seed,
            device=str(place),
            precision=precision,
            threads=torch.get_num_threads(),
            world_size=distributed.world_size(),
            config=encode(config),
        )

        def take() -> tuple[Path, int, dict[str, Any] | None]:
            if resume is None:
                folder, threads = create(Path(out), settings), settings.threads
            else:
                folder, threads = Path(resume), check(Path(resume), settings)
            held.enter_context(locked(folder))
            return folder, threads, finished(folder, settings)

        folder, threads, result = distributed.on_main(take)
        if result is None:
            torch.set_num_threads(threads)
            seed_process(seed, deterministic=place.type == "cpu")
            reset_peak_memory(place)
            module = experiment.function.__module__
            run = Run(folder, settings, module=module, device=place, resumed=resume is not None)
            try:
                experiment.function(config, run)
                result = distributed.on_main(lambda: finish(experiment, run, settings))
            except KeyboardInterrupt as stop:
                stop.args = (str(folder),)
                raise
            except Exception as error:
                error.add_note(f"The run is in {folder}; --resume {folder} goes on from what is stored there.")
                raise
            finally:
                run.close()
        return Outcome(folder, result)


def finished(folder: Path, settings: Settings) -> dict[str, Any] | None:
    """The content of ``result.json`` where the run is over.

    Raises:
        UsageError: it was changed, or is the result of another run.
    """
    path = folder / "result.json"
    if not path.exists():
        return None
    try:
        result = json.loads(files.read(path))
        told = result.pop("sha256")
        sound = told == files.digest(result)
        for claim in result["claims"]:
            report.cells(claim)
            sound = sound and claim == _judged(claim)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise files.malformed(path)
    if result.get("fingerprint") != settings.fingerprint:
        raise UsageError(f"{path} is the result of another run; remove it to finish this one")
    return dict(result)


def _judged(claim: dict[str, Any]) -> dict[str, Any]:
    """The claim, judged again."""
    numbers: dict[str, Any] = {
        key: float(value) if value in ("nan", "inf", "-inf") else value for key, value in claim.items()
    }
    return Claim(**{key: value for key, value in numbers.items() if key not in ("holds", "control_fails")}).to_dict()


def finish(experiment: Experiment, run: Run, settings: Settings) -> dict[str, Any]:
    """Write the report and, last, ``result.json``."""
    from offprints.shared.device import peak_memory_mib

    result = files.plain(
        {
            "paper": experiment.name,
            "preset": run.preset,
            "seed": run.seed,
            "device": str(run.device),
            "fingerprint": settings.fingerprint,
            "versions": versions(experiment.name),
            "wall_seconds": run.elapsed(),
            "peak_memory_mib": peak_memory_mib(run.device),
            "claims": [claim.to_dict() for claim in run.claims],
            "values": run.values,
            "figures": run.figures,
        }
    )
    about = {"precision": settings.precision, "threads": settings.threads, "processes": settings.world_size}
    text = report.markdown(experiment.title, experiment.arxiv, result, about | settings.config, run.tables)
    files.write(run.dir / "report.md", text)
    signed = result | {"sha256": files.digest(result)}
    files.write(run.dir / "result.json", files.to_json(signed, indent=2) + "\n")
    return dict(result)


def paper_version(name: str) -> str:
    """The version of the paper's distribution; "0" for an experiment that is not installed."""
    paper = catalog.papers().get(name)
    return "0" if paper is None else paper.version


def versions(name: str) -> dict[str, str]:
    """Python's, and those of torch, NumPy, the paper's distribution and its direct dependencies."""
    paper = catalog.papers().get(name)
    names = ["torch", "numpy"]
    if paper is not None:
        names.append(paper.distribution.metadata["Name"])
        for requirement in paper.distribution.requires or ():
            match = re.match(r"[A-Za-z0-9._-]+", requirement)
            if match and "extra ==" not in requirement:
                names.append(match[0])
    found = {"python": platform.python_version()}
    for dependency in dict.fromkeys(names):
        with contextlib.suppress(PackageNotFoundError):
            found[dependency] = version(dependency)
    return found
