"""The commands: list, info, run. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence

from offprints.shared import catalog
from offprints.shared.command.one import require_claims, run_one
from offprints.shared.command.status import guarded, say, speaks, write
from offprints.shared.show.text import clean, one_line
from offprints.shared.usage import UsageError

HELP = """\
Machine-learning papers whose claims can be run.

  offprints list                     the installed papers
  offprints info NAME                what it does, its API, its claims, its citation
  offprints run NAME [flags]         run the paper's claims and see whether they hold
  offprints run NAME --help          every setting of the experiment is a flag
  offprints run NAME --resume DIR    finish a run that was stopped, with the same result
  offprints run --all [flags]        run every installed paper

Flags of run: --preset smoke|quick|medium|paper (quick), --seed INT (0), --device auto|cpu|cuda|mps (auto),
--precision float32|bfloat16|float16 (float32), --out DIR (runs).
Exit status: 0 all claims hold (smoke asserts none), 1 one does not, 2 usage error, 3 the experiment failed,
130, 143, 129 interrupted by Ctrl-C, SIGTERM, SIGHUP.
Several GPUs or machines: torchrun --nproc-per-node N -m offprints.shared run NAME [flags].
"""


def command(argv: list[str]) -> int:
    """Run one command; its exit status."""
    return guarded(lambda: _command(argv))


def _command(argv: list[str]) -> int:
    first, *rest = argv or ["--help"]
    if first in ("-h", "--help", "help"):
        write(HELP)
        return 0
    if first in ("list", "info", "run"):
        for problem in catalog.survey().problems if speaks() else ():
            say(one_line(problem))
        if first != "run" and any(argument in ("-h", "--help") for argument in rest):
            write(HELP)
            return 0
        return {"list": _list, "info": _info, "run": _run}[first](rest)
    raise UsageError(f"unknown command {first!r}; the commands are list, info and run (see offprints --help)")


def _list(argv: Sequence[str]) -> int:
    if argv:
        raise UsageError(f"list takes no arguments, got {argv[0]!r}")
    papers = catalog.papers().values()
    if not papers:
        write("no papers are installed; pip install offprints-NAME installs one\n")
        return 0
    names = max(len(paper.name) for paper in papers)
    arxiv = max(len(paper.arxiv) for paper in papers)
    for paper in papers:
        write(f"{paper.name:<{names}}  {paper.arxiv:<{arxiv}}  {paper.title}".rstrip() + "\n")
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
    if _styled():
        from rich.console import Console
        from rich.markdown import Markdown

        console = Console(highlight=False)
        console.print(f"{paper.name} {paper.version}\n", style="bold", markup=False)
        console.print(Markdown(clean(text)))
    else:
        write(f"# {paper.name} {paper.version}\n\n{text.strip()}\n")
    if citation:  # as it is, to be copied
        lines = [line for line in citation.splitlines() if not line.startswith("```")]
        write("\n" + ("" if _styled() else "## Citation\n\n") + "\n".join(lines).strip() + "\n")
    return 0


def _styled() -> bool:
    """Whether stdout is a terminal and rich, which the extra ``claims`` brings, is there."""
    return sys.stdout.isatty() and importlib.util.find_spec("rich") is not None


def _run(argv: Sequence[str]) -> int:
    if not argv or argv[0].startswith("-"):
        if "-h" in argv or "--help" in argv:
            write(HELP)
            return 0
        if "--all" in argv:
            require_claims("offprints-shared")
            from offprints.shared.command.everything import run_all

            return run_all([argument for argument in argv if argument != "--all"])
        raise UsageError("the paper's name comes first: offprints run NAME [flags], or offprints run --all")
    outcome = run_one(argv[0], argv[1:])
    if outcome is None:  # --help
        return 0
    if speaks():
        from offprints.shared.show import report

        report.show([outcome.result])
        write(f"\n{report.verdict(outcome.result)}. Report, figures and numbers: {outcome.dir}\n")
    return outcome.status
