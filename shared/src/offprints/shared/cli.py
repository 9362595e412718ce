"""The commands: list, info, run. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from offprints.shared import catalog
from offprints.shared.usage import UsageError, as_usage_error

if TYPE_CHECKING:
    from offprints.shared.experiment.launch import Outcome

HELP = """\
Machine-learning papers whose claims can be run.

  offprints list                     the installed papers
  offprints info NAME                what it does, its API, its claims, its citation
  offprints run NAME [flags]         run the paper's claims and see whether they hold
  offprints run NAME --help          every setting of the experiment is a flag
  offprints run NAME --resume DIR    finish a run that was stopped, with the same result
  offprints run --all [flags]        run every installed paper

Flags of run: --preset smoke|quick|paper (quick), --seed INT (0), --device auto|cpu|cuda|mps (auto),
--precision float32|bfloat16|float16 (float32), --out DIR (runs).
Exit status: 0 all claims hold (smoke asserts none), 1 one does not, 2 usage error, 3 the experiment failed.
Several GPUs or machines: torchrun --nproc-per-node N -m offprints.shared run NAME [flags].
"""


def command(argv: list[str]) -> int:
    """Run one command; its exit status."""
    return guarded(lambda: _command(argv))


def guarded(run: Callable[[], int]) -> int:
    """The exit status of ``run``, what it raises told on stderr: in one line where the error is the user's."""
    try:
        return run()
    except SystemExit as stop:  # tyro's --help
        return stop.code if isinstance(stop.code, int) else 0
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as interrupt:
        folder = str(interrupt)
        _say("interrupted" + (f"; --resume {folder} goes on from what is stored" if folder else ""))
        return 130
    except Exception as error:
        usage = as_usage_error(error)
        if usage is None:
            import traceback

            traceback.print_exc()
            return 3
        _say(str(usage))
        return 2


def _command(argv: list[str]) -> int:
    first, *rest = argv or ["--help"]
    if first in ("-h", "--help", "help"):
        _write(HELP)
        return 0
    if first in ("list", "info", "run"):
        if first != "run" and any(argument in ("-h", "--help") for argument in rest):
            _write(HELP)
            return 0
        return {"list": _list, "info": _info, "run": _run}[first](rest)
    raise UsageError(f"unknown command {first!r}; the commands are list, info and run (see offprints --help)")


def _list(argv: Sequence[str]) -> int:
    if argv:
        raise UsageError(f"list takes no arguments, got {argv[0]!r}")
    papers = catalog.papers().values()
    if not papers:
        _write("no papers are installed; pip install offprints-NAME installs one\n")
        return 0
    names = max(len(paper.name) for paper in papers)
    arxiv = max(len(paper.arxiv) for paper in papers)
    for paper in papers:
        _write(f"{paper.name:<{names}}  {paper.arxiv:<{arxiv}}  {paper.title}".rstrip() + "\n")
    return 0


def _info(argv: Sequence[str]) -> int:
    if len(argv) != 1:
        raise UsageError("info takes the name of one paper: offprints info NAME")
    paper = catalog.find(argv[0])
    api = ", ".join(f"`{name}`" for name in paper.api())
    text = "\n\n".join(
        [
            paper.title,
            f"<{paper.url}>" if paper.url else "",
            f"## API\n\nIn `{paper.package}`: {api}" if api else "",
            f"## Claims\n\n{paper.section('Claims')}" if paper.section("Claims") else "",
        ]
    )
    citation = paper.section("Citation")
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.markdown import Markdown

        console = Console(highlight=False)
        console.print(f"{paper.name} {paper.version}\n", style="bold")
        console.print(Markdown(text))
    else:
        _write(f"# {paper.name} {paper.version}\n\n{text.strip()}\n")
    if citation:  # as it is, to be copied
        lines = [line for line in citation.splitlines() if not line.startswith("```")]
        _write("\n" + ("" if sys.stdout.isatty() else "## Citation\n\n") + "\n".join(lines).strip() + "\n")
    return 0


def _run(argv: Sequence[str]) -> int:
    if not argv or argv[0].startswith("-"):
        if "-h" in argv or "--help" in argv:
            _write(HELP)
            return 0
        if "--all" in argv:
            from offprints.shared.experiment.everything import run_all

            return run_all([argument for argument in argv if argument != "--all"])
        raise UsageError("the paper's name comes first: offprints run NAME [flags], or offprints run --all")
    outcome = run_one(argv[0], argv[1:])
    if _speaks():
        from offprints.shared.experiment import report

        report.show([outcome.result])
        _write(f"\n{report.verdict(outcome.result)}. Report, figures and numbers: {outcome.dir}\n")
    return outcome.status


def run_one(name: str, argv: Sequence[str]) -> Outcome:
    """Run one installed paper with these flags."""
    paper = catalog.find(name)
    experiment = paper.entry_point.load()
    from offprints.shared.experiment.flags import parse
    from offprints.shared.experiment.launch import execute

    return execute(experiment, **parse(experiment, argv))


def _speaks() -> bool:
    """Whether this process is the one that prints; known before and after there is a process group."""
    return os.environ.get("RANK", "0") == "0"


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _say(text: str) -> None:
    if _speaks():
        sys.stderr.write(f"offprints: {text}\n")
        sys.stderr.flush()
