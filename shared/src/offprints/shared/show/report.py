"""The report of a run: Markdown on disk, a table of claims in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from offprints.shared.show.text import clean, fitting

SECTIONS = (
    (
        "claim",
        "Claims",
        ("The control is the same with the mechanism switched off; it must miss the bar.",),
    ),
    ("check", "Checks", ("These hold by construction or by a theorem: no findings, but an error where one fails.",)),
)


def shown(value: Any, *, apart_from: Any = None) -> str:
    """A value for reading: four significant digits, more where it would look equal to ``apart_from`` and is not."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return str(value)
    for digits in range(4, 18):
        text = f"{value:.{digits}g}"
        if not isinstance(apart_from, int | float) or value == apart_from or float(text) != apart_from:
            break
    return text


def cells(claim: Mapping[str, Any]) -> tuple[str, str, str, str, str, str]:
    """Statement, paper, measured, control, needed, holds."""
    measured = shown(claim["measured"], apart_from=claim["threshold"])
    if claim["spread"] is not None:
        measured += f" ± {shown(claim['spread'])}"
    needed = f"{claim['relation']} {shown(claim['threshold'])}"
    control = ""
    if claim["control"] is not None:
        control = f"{shown(claim['control'], apart_from=claim['threshold'])} ({claim['control_name']})"
    return claim["statement"], shown(claim["paper_value"]), measured, control, needed, shown(claim["holds"])


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (header, *rows)]
    lines = [" | ".join(row) for row in escaped]
    return "\n".join(f"| {line} |" for line in [lines[0], " | ".join(["---"] * len(header)), *lines[1:]])


def markdown(
    title: str, arxiv: str, result: Mapping[str, Any], settings: Mapping[str, Any], tables: Mapping[str, Any]
) -> str:
    """The content of ``report.md``."""
    parts = [f"# {title}", f"[arXiv {arxiv}](https://arxiv.org/abs/{arxiv})"]
    about = [f"preset `{result['preset']}`", f"seed {result['seed']}", f"device {result['device']}"]
    about += [f"{result['wall_seconds']:.1f} s", f"peak memory {result['peak_memory_mib']:.0f} MiB"]
    parts.append(", ".join(about))
    for kind, heading, note in SECTIONS:
        rows: list[tuple[str, ...]] = [cells(claim) for claim in result["claims"] if claim["kind"] == kind]
        header = [kind, "paper", "measured", "control", "needed", "holds"]
        if not any(row[3] for row in rows):  # no controls: no column
            header, rows = [*header[:3], *header[4:]], [(*row[:3], *row[4:]) for row in rows]
        if rows:
            parts += [
                f"## {heading}",
                *(note if len(header) == 6 or kind == "check" else ()),
                _markdown_table(header, rows),
            ]
    if result["values"]:
        told = [(item["statement"], shown(item["paper_value"]), shown(item["value"])) for item in result["values"]]
        parts += ["## Also measured", _markdown_table(("what", "paper", "measured"), told)]
    for name, entries in tables.items():
        columns = list(dict.fromkeys(key for row in entries for key in row if key != "reference"))
        body = []
        for row in entries:
            texts = [shown(row[column]) if column in row else "" for column in columns]
            body.append([f"*{text}*" if text else "" for text in texts] if row.get("reference") else texts)
        parts += [f"## {name}", _markdown_table(columns, body)]
        if any(row.get("reference") for row in entries):
            parts.append("In italics: for reference.")
    for path in result["figures"]:
        parts += [f"## {path.removeprefix('figures/').removesuffix('.png')}", f"![{path}]({path})"]
    parts += [
        "## Settings",
        _markdown_table(("setting", "value"), [(key, f"`{shown(value)}`") for key, value in settings.items()]),
    ]
    parts += ["## Versions", ", ".join(f"{name} {version}" for name, version in result["versions"].items())]
    return clean("\n\n".join(parts)) + "\n"


def verdict(result: Mapping[str, Any]) -> str:
    """How many claims hold."""
    said = []
    for kind, verb in (("claim", "claims hold"), ("check", "checks")):
        held = [claim["holds"] for claim in result["claims"] if claim["kind"] == kind]
        if held or kind == "claim":
            said.append(f"{sum(held)} of {len(held)} {verb}")
    return ", ".join(said) + (" (preset smoke asserts none)" if result["preset"] == "smoke" else "")


def show(results: Sequence[Mapping[str, Any]], *, several: bool = False) -> None:
    """The table of the claims of one run, or of several with the paper's name before each."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def texts(cells: Sequence[str]) -> list[Text]:  # not strings, whose brackets rich would read as markup
        return [Text(fitting(clean(cell))) for cell in cells]

    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    long = any(len(claim["statement"]) > 50 for result in results for claim in result["claims"])
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, leading=int(long))
    for name in ["paper"] * several + ["claim"]:
        table.add_column(name, ratio=None if name == "paper" else 1)
    table.add_column("in the paper", justify="right", max_width=24)
    controlled = any(claim["control"] is not None for result in results for claim in result["claims"])
    table.add_column("measured", justify="right", no_wrap=True)
    if controlled:
        table.add_column("control", justify="right", max_width=24)
    table.add_column("needed", justify="right", no_wrap=True)
    table.add_column("holds", no_wrap=True)
    for result in results:
        for i, claim in enumerate(result["claims"]):
            statement, paper, measured, control, needed, holds = cells(claim)
            verdict = Text(holds, style="green" if claim["holds"] else "bold red")
            if claim["kind"] == "check":
                statement += " (holds by construction)"
            told = [paper, measured, *[control] * controlled, needed]
            table.add_row(*texts([result["paper"] if i == 0 else ""] * several), *texts([statement, *told]), verdict)
        for value in result["values"]:
            told = [shown(value["paper_value"]), shown(value["value"]), *[""] * controlled]
            table.add_row(*[""] * several, *texts([value["statement"], *told]), "", "")
        if several:
            table.add_section()
    if table.row_count:
        console.print(table)
