"""The index of claims, from what ``nox -s claims -- --record`` has written into ``packages/*/claims``."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from offprints_site.members import Member


def claims_page(papers: list[Member]) -> str:
    """Every claim of every paper, a section a paper; one without a record says how to make it."""
    sections = []
    total = held = 0
    for paper in papers:
        records = read_records(paper)
        parts = [f"## [{paper.heading}](/papers/{paper.name}/index.md)", "", f"*{paper.title}*", ""]
        for record in records:
            count, good, text = record_section(record)
            total, held = total + count, held + good
            parts += [text, ""]
        if not records:
            parts += [f'Not recorded yet: `nox -s "claims({paper.name})" -- --record` writes `claims/quick.json`.', ""]
        sections.append("\n".join(parts))
    count = f"{held} of {total} claims hold for every seed." if total else "No claims are recorded yet."
    return "\n\n".join([count, *sections])


def read_records(paper: Member) -> list[dict[str, Any]]:
    """The records of a paper, the quick preset first."""
    paths = sorted((paper.folder / "claims").glob("*.json"), key=lambda path: (path.stem != "quick", path.stem))
    return [read_record(path) for path in paths]


def read_record(path: Path) -> dict[str, Any]:
    """One record.

    Raises:
        ValueError: It is no record of claims; the message names the file.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for claim in record["claims"]:
            if not len(claim["measured"]) == len(claim["holds"]) == len(record["seeds"]):
                raise ValueError(f"{claim['id']} is not measured for every seed")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a record of claims: {error}") from error
    return record


def record_section(record: dict[str, Any]) -> tuple[int, int, str]:
    """How many claims a record has, how many hold for every seed, and its tables."""
    claims = [claim for claim in record["claims"] if claim.get("kind", "claim") == "claim"]
    checks = [claim for claim in record["claims"] if claim.get("kind", "claim") == "check"]
    seeds = ", ".join(str(seed) for seed in record["seeds"])
    parts = []
    if claims:
        head = ["claim", "paper", f"seeds {seeds}", "bar", "negative control", "holds"]
        parts.append(table(head, [claim_row(claim) for claim in claims]))
    if checks:
        head = ["true by construction or theorem, checked", "paper", f"seeds {seeds}", "bar", "holds"]
        rows = [claim_row(claim) for claim in checks]
        parts.append(table(head, [row[:4] + row[5:] for row in rows]))
    values = record.get("values", [])
    if values:
        head = ["shown without a bar", "paper", f"seeds {seeds}"]
        rows = [[cell(v["statement"]), number(v.get("paper_value")), numbers(v["value"])] for v in values]
        parts.append(table(head, rows))
    where = [f"Preset `{record.get('preset', 'quick')}`"]
    where += [f"on {record['device']}"] if record.get("device") else []
    where += [f"torch {record['versions']['torch']}"] if record.get("versions", {}).get("torch") else []
    where += [str(record["date"])] if record.get("date") else []
    parts.append(", ".join(where) + ".")
    return len(claims), sum(all(claim["holds"]) for claim in claims), "\n\n".join(parts)


def claim_row(claim: dict[str, Any]) -> list[str]:
    """The cells of a claim: statement, paper, measured, bar, control, verdict."""
    held = sum(claim["holds"])
    every = len(claim["holds"])
    verdict = "[yes]{.holds}" if held == every else f"[{f'{held} of {every}' if held else 'no'}]{{.fails}}"
    bar = f"{claim['relation']} {number(claim['threshold'])}"
    control = numbers(claim.get("control") or [])
    if control and claim.get("control_name"):
        control = f"{cell(claim['control_name'])}: {control}"
    return [
        cell(claim["statement"]),
        number(claim.get("paper_value")),
        numbers(claim["measured"]),
        bar,
        control,
        verdict,
    ]


def numbers(values: Sequence[Any]) -> str:
    """The values of several seeds, one where they are equal."""
    texts = [number(value) for value in values if value is not None]
    return texts[0] if texts and len(set(texts)) == 1 else ", ".join(texts)


def number(value: Any) -> str:
    """Three digits; words and nothing as they are."""
    if value is None or isinstance(value, str):
        return cell(value or "")
    if isinstance(value, int) or not math.isfinite(value):
        return str(value)
    return f"{value:.3g}".replace("e+0", "e").replace("e-0", "e-").replace("e+", "e")


def cell(text: str) -> str:
    """Words for a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table in the style of the index."""
    lines = [head, ["---"] * len(head), *rows]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"::::{{div}} claims-table\n\n{body}\n\n::::"
