"""The flags of ``offprints run NAME``: the command line's own and the config's fields, by tyro."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from offprints.shared.experiment.launch import PRECISIONS
from offprints.shared.store.configs import decode
from offprints.shared.store.settings import Settings
from offprints.shared.usage import UsageError

if TYPE_CHECKING:
    from offprints.shared.experiment.experiment import Experiment


def parse(experiment: Experiment, argv: Sequence[str]) -> dict[str, Any] | None:
    """The arguments of `offprints.shared.experiment.launch.execute` that ``argv`` gives; None after ``--help``.

    With ``--resume`` the directory's ``config.json`` gives what the flags do not.

    Raises:
        UsageError: an unknown flag, a value of the wrong kind, an unreadable directory.
    """
    import tyro

    resume = _value(argv, "resume")
    preset = _value(argv, "preset")
    seed, device, precision = 0, "auto", "float32"
    default = next(iter(experiment.presets)) if "quick" not in experiment.presets else "quick"
    if resume is not None:
        stored = Settings.load(Path(resume))
        if stored.paper != experiment.name:
            raise UsageError(f"--resume: {resume} is a run of {stored.paper}, not of {experiment.name}")
        try:
            config = decode(experiment.config, stored.config)
        except Exception as error:  # the config's own checks may meet anything in a file that somebody changed
            raise UsageError(
                f"--resume: {Path(resume) / 'config.json'} does not fit {experiment.name}: {error}"
            ) from error
        default, seed, device, precision = stored.preset, stored.seed, stored.device, stored.precision
        if _value(argv, "out") is not None:
            raise UsageError("--out has no meaning with --resume: the run goes on in its directory")
    else:
        config = experiment.presets.get(default if preset is None else preset, experiment.presets[default])

    def about(help: str, metavar: str | None = None) -> Any:
        return tyro.conf.arg(help=help, metavar=metavar, help_behavior_hint=None if metavar is None else "")

    options = dataclasses.make_dataclass(
        "options",
        [
            ("preset", Annotated[Literal[tuple(experiment.presets)], about("settings to start from")], default),
            ("seed", Annotated[int, about("seed of everything random")], seed),
            ("device", Annotated[str, about("auto, cpu, cuda, cuda:1, mps")], device),
            ("precision", Annotated[Literal[PRECISIONS], about("of the forward passes, under autocast")], precision),
            ("out", Annotated[Path, about("folder of the run directories")], Path("runs")),
            ("resume", Annotated[Path | None, about("finish the run in this directory", "DIR")], None),
        ],
    )
    arguments = dataclasses.make_dataclass(
        "arguments",
        [
            ("options", Annotated[options, tyro.conf.arg(name="")]),
            ("config", Annotated[experiment.config, tyro.conf.arg(name="")]),
        ],
    )
    prog = f"offprints run {experiment.name}"
    described = f"{experiment.title} (arXiv {experiment.arxiv})"
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed = tyro.cli(
                arguments, prog=prog, description=described, args=list(argv), default=arguments(options(), config)
            )
    except SystemExit as stop:
        if not stop.code:
            return None
        raise UsageError(f"{_one_line(said.getvalue())} (see {prog} --help)") from None
    except (TypeError, ValueError) as error:  # the config's own checks
        raise UsageError(str(error)) from error
    sys.stderr.write(said.getvalue())  # warnings
    return {**vars(parsed.options), "config": parsed.config}


def _value(argv: Sequence[str], flag: str) -> str | None:
    """The last value of a flag, which decides the defaults of the others."""
    value = None
    for i, argument in enumerate(argv):
        if argument == f"--{flag}" and i + 1 < len(argv):
            value = argv[i + 1]
        elif argument.startswith(f"--{flag}="):
            value = argument.partition("=")[2]
    return value


def _one_line(box: str) -> str:
    """What tyro says in a box of several paragraphs, as one line."""
    lines = [re.sub(r"^[│|\s]+|[│|\s]+$", "", re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in box.splitlines()]
    paragraphs: list[list[str]] = [[]]
    for line in lines:
        if re.match(r"[─-]+$", line):
            paragraphs.append([])
        elif not re.match(r"[╭╰+]", line):
            paragraphs[-1].append(line)
    said = " ".join(" ".join(paragraphs[0]).split()).rstrip(".")
    for paragraph in paragraphs[1:]:
        if paragraph[0] == "Perhaps you meant:":
            return f"{said}; did you mean {paragraph[1].split()[0].rstrip(',')}?"
    return said
