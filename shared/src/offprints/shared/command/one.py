"""Running one installed paper."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING

from offprints.shared import catalog
from offprints.shared.command.status import say
from offprints.shared.usage import UsageError

if TYPE_CHECKING:
    from offprints.shared.experiment import Experiment
    from offprints.shared.experiment.launch import Outcome

# What the extra `claims` installs, by the names under which it is imported.
CLAIMS = ("filelock", "matplotlib", "rich", "safetensors", "sklearn", "threadpoolctl", "tyro")


def run_one(name: str, argv: Sequence[str]) -> Outcome | None:
    """Run one installed paper with these flags; None where they only ask for help.

    Raises:
        UsageError: the paper or a flag is unknown, or what claims need is not installed.
    """
    paper = catalog.find(name)
    experiment = load(paper)
    from offprints.shared.command.flags import parse
    from offprints.shared.experiment.launch import execute

    arguments = parse(experiment, argv)
    return None if arguments is None else execute(experiment, **arguments)


def load(paper: catalog.Paper) -> Experiment:
    """The paper's experiment.

    Raises:
        UsageError: it needs something that is not installed, or is none.
    """
    require_claims(f"offprints-{paper.name}")
    if not paper.owner.startswith("offprints-"):
        say(f"{paper.name} comes from the distribution {paper.owner} {paper.version}")
    try:
        experiment = paper.entry_point.load()
    except ModuleNotFoundError as error:
        root = (error.name or "").partition(".")[0]
        if not root or root == "offprints":
            raise
        extra = f"pip install '{paper.owner}[claims]'"
        raise UsageError(f"running {paper.name} needs {root}, which is not installed; run: {extra}") from error
    except SystemExit as stop:
        raise RuntimeError(f"{paper.entry_point.module} ended the program while it was imported") from stop
    from offprints.shared.experiment import Experiment

    if not isinstance(experiment, Experiment) or experiment.name != paper.name:
        found = f"the experiment {experiment.name!r}" if isinstance(experiment, Experiment) else type(experiment)
        raise UsageError(f"{paper.owner} is malformed: its paper {paper.name!r} is {found}")
    return experiment


def require_claims(distribution: str) -> None:
    """Make sure that the extra ``claims`` is installed.

    Raises:
        UsageError: it is not; the line that installs it is told.
    """
    missing = [module for module in CLAIMS if importlib.util.find_spec(module) is None]
    if missing:
        raise UsageError(
            f"running claims needs {', '.join(missing)}, not installed here; run: pip install '{distribution}[claims]'"
        )
