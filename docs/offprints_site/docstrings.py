"""Docstrings as this workspace writes them: plain sentences, Google's sections, one kind of backticks.

They are no reStructuredText: outside backticks an asterisk may be a product, a bar an absolute value, and an underscore
at the end of a word belongs to the name of a method that acts in place. Tables and fences are Markdown's.
"""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

CODE = re.compile(r"(``.+?``|`[^`]+`)", re.DOTALL)
EMPHASIS = re.compile(r"(?<![\w*\\])(\*{1,2})(?=[^\s*])([^*`]+?)(?<=[^\s*\\])\1(?![\w*])")
RULE = re.compile(r"\s*=+(\s+=+)*\s*")
NOT_PROSE = re.compile(r"\s*(:\w[^:]*:|\.\. |[-*+] |\d+[.)] |>>> |\|)")
FENCE = re.compile(r"(\s*)```(\w*)\s*")
MADE_BY_METADATA_ROUTING = re.compile(r"set_\w+_request")


def escape(text: str) -> str:
    """Escape what reStructuredText would read as markup, outside backticks."""
    pieces = CODE.split(text)
    for place in range(0, len(pieces), 2):
        piece = re.sub(r"(?<!\\)\|", r"\\|", pieces[place])
        piece = re.sub(r"(?<=\w)_(?=\W|$)", r"\\_", piece)
        kept, end = [], 0
        for match in EMPHASIS.finditer(piece):
            kept += [re.sub(r"(?<!\\)\*", r"\\*", piece[end : match.start()]), match[0]]
            end = match.end()
        pieces[place] = "".join([*kept, re.sub(r"(?<!\\)\*", r"\\*", piece[end:])])
    return "".join(pieces)


def cells(row: str) -> list[str]:
    """The cells of a row of a Markdown table."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip().strip("|"))]


def list_table(rows: list[list[str]], indent: str) -> list[str]:
    """A table of reStructuredText with the first row as its header."""
    table = [f"{indent}.. list-table::", f"{indent}   :header-rows: 1", ""]
    for row in rows:
        table += [f"{indent}   {'  - ' if place else '* - '}{escape(cell)}" for place, cell in enumerate(row)]
    return table


def ruled_rows(lines: list[str]) -> list[list[str]]:
    """The rows of a table under rules of ``=``; a row that starts empty continues the one before."""
    starts = [match.start() for match in re.finditer(r"=+", lines[0])]
    rows: list[list[str]] = []
    for line in lines:
        if RULE.fullmatch(line):
            continue
        row = [line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]
        if rows and not row[0]:
            rows[-1] = [f"{old} {new}".strip() for old, new in zip(rows[-1], row, strict=True)]
        else:
            rows.append(row)
    return rows


def paragraph(lines: list[str]) -> list[str]:
    """One block of lines between blank ones."""
    first = lines[0].lstrip()
    indent = lines[0][: len(lines[0]) - len(first)]
    if first.startswith((".. ", ">>> ")):
        return lines
    if RULE.fullmatch(lines[0]) and RULE.fullmatch(lines[-1]) and len(lines) > 2:
        return list_table(ruled_rows(lines), indent)
    if len(lines) > 1 and first.startswith("|") and re.fullmatch(r"\s*\|[\s:|-]+\|\s*", lines[1]):
        return list_table([cells(line) for line in [lines[0], *lines[2:]]], indent)
    return escape("\n".join(lines)).split("\n")


def fences(lines: list[str]) -> list[str]:
    """Fenced code becomes a literal block."""
    result: list[str] = []
    inside: str | None = None
    for line in lines:
        match = FENCE.fullmatch(line)
        if match and inside is None:
            inside = match[1]
            result += ["", f"{inside}.. code-block:: {match[2] or 'text'}", ""]
        elif match:
            inside = None
            result.append("")
        else:
            result.append(line if inside is None or not line.strip() else f"   {line}")
    return result


def convert(lines: list[str]) -> list[str]:
    """The lines of a docstring, ready for Sphinx; literal blocks and code stay as they are."""
    result: list[str] = []
    literal: int | None = None  # the indentation above a literal block
    prose: int | None = None  # the indentation of plain prose just before
    for blank, group in groupby(fences(lines), key=lambda line: not line.strip()):
        block = list(group)
        if blank:
            result += block
            continue
        first, last = block[0], block[-1]
        indent, end = (len(line) - len(line.lstrip()) for line in (first, last))
        if literal is not None and indent > literal:
            result += block
            continue
        if prose is not None and min(len(line) - len(line.lstrip()) for line in block) >= prose + 4:
            # What prose indents by four is a formula or code, as in Markdown.
            result += [" " * prose + "::", "", *block]
            literal = prose
            continue
        opens = last.rstrip().endswith("::") or first.lstrip().startswith(".. code-block")
        literal = end if opens else None
        prose = None if opens or NOT_PROSE.match(last) or NOT_PROSE.match(first) else indent
        result += paragraph(block)
    return result


def process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Convert one docstring in place, after napoleon has."""
    inherited = (type(obj).__doc__ or "").strip().splitlines() if what in ("data", "attribute") else []
    lines[:] = [] if inherited and lines[:1] == inherited[:1] else convert(lines)


def bases(app: Any, name: str, obj: Any, options: Any, found: list[Any]) -> None:
    """A private base class says nothing to a user: the public ones behind it stand in its place."""
    public: list[Any] = []
    pending = list(found)
    while pending:
        base = pending.pop(0)
        if getattr(base, "__name__", "").startswith("_") and isinstance(base, type):
            pending = [*base.__bases__, *pending]
        elif base not in public and base is not object:
            public.append(base)
    found[:] = public


def skip(app: Any, what: str, name: str, obj: Any, skipped: bool, options: Any) -> bool | None:
    """Leave out the methods that scikit-learn makes for its metadata routing; everything else as it is."""
    return True if MADE_BY_METADATA_ROUTING.fullmatch(name) else None


def connect(app: Any) -> None:
    """Put the conversion behind napoleon's."""
    app.connect("autodoc-process-docstring", process, priority=800)
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-bases", bases)
