"""The READMEs' tables of papers, claims and benchmarks, each between its markers, each from the file with the numbers.

``<!-- papers -->`` in the workspace's README; in a package's README ``<!-- claims -->`` or ``<!-- claims medium -->``
(of ``claims/<preset>.json``) and ``<!-- benchmarks NAME ... -->`` (of ``benchmarks/results/NAME.json``).
"""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import UsageError, members, metadata

MARKERS = re.compile(r"(<!-- (papers|claims|benchmarks)((?: [^ \n]+)*) -->\n).*?(<!-- /\2 -->)", re.DOTALL)
COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq}


def update(root: Path, *, write: bool) -> list[str]:
    """Bring every table up to date.

    Returns:
        A line a README that was written.

    Raises:
        UsageError: One is out of date and `write` is false, or markers are missing.
    """
    stale = []
    for name, folder in {"": root, **members(root)}.items():
        readme = folder / "README.md"
        if not readme.is_file():
            continue
        text = readme.read_text(encoding="utf-8")
        fresh = filled(root, name, folder, text)
        if fresh != text:
            stale.append(str(readme.relative_to(root)))
            if write:
                readme.write_text(fresh, encoding="utf-8")
    if stale and not write:
        raise UsageError(f"{', '.join(stale)}: out of date; run: python tools/workspace.py tables --write")
    return [f"{path}: written" for path in stale] or ["every table is up to date"]


def filled(root: Path, name: str, folder: Path, text: str) -> str:
    """A README with its tables as the files have them."""

    def table(match: re.Match[str]) -> str:
        kind, words = match[2], match[3].split()
        if kind == "papers":
            content: str | None = papers_table(root)
        elif kind == "claims":
            content = claims_table(folder, words[0] if words else "quick")
        else:
            content = benchmarks_table(folder, words)
        return match[0] if content is None else match[1] + content + match[4]

    for path in sorted(folder.glob("claims/*.json")) if name else []:
        marker = "<!-- claims -->" if path.stem == "quick" else f"<!-- claims {path.stem} -->"
        if marker not in text:
            raise UsageError(f"{name}/README.md lacks the markers {marker} and <!-- /claims --> for {path.name}")
    if not name and "<!-- papers -->" not in text:
        raise UsageError("README.md lacks the markers <!-- papers --> and <!-- /papers -->")
    return MARKERS.sub(table, text)


def papers_table(root: Path) -> str:
    """The workspace's papers, a row a package, from the packages' metadata alone."""
    rows = []
    for name, folder in members(root).items():
        if name == "shared":
            continue
        project = metadata(folder)
        url = project["urls"]["Paper"]
        link = f"[{url.rstrip('/').rsplit('/', 1)[-1]}]({url})"
        rows.append([f"[`{project['name']}`](packages/{name}/README.md)", project["description"], link])
    return markdown(["package", "paper", "arXiv"], rows)


def claims_table(folder: Path, preset: str) -> str | None:
    """What a preset measured, claims first; None where no record exists."""
    path = folder / "claims" / f"{preset}.json"
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    seeds = f"seeds {', '.join(map(str, content['seeds']))}"
    claims = [claim for claim in content["claims"] if claim["kind"] == "claim"]
    checks = [claim for claim in content["claims"] if claim["kind"] == "check"]
    parts = []
    if claims:
        head = ["claim", "paper", seeds, "control", "bar", "holds"]
        parts.append(markdown(head, [_claim_row(claim) for claim in claims]))
    if checks:
        head = ["holds by construction, checked", "paper", seeds, "bar", "holds"]
        parts.append(markdown(head, [_claim_row(claim, control=False) for claim in checks]))
    if content["values"]:
        rows = [
            [value["statement"], number(value["paper_value"]), numbers(value["value"])] for value in content["values"]
        ]
        parts.append(markdown(["shown without a bar", "paper", seeds], rows))
    return "\n".join([*parts, _provenance(content)])


def _provenance(content: dict[str, Any]) -> str:
    seconds = " to ".join(dict.fromkeys(f"{f(content['seconds']):.0f}" for f in (min, max)))
    software = " ".join(("torch", content["versions"]["torch"]))
    return f"Preset `{content['preset']}` on {content['device']}, {software}, {content['date']}: {seconds} s a run.\n"


def _claim_row(claim: dict[str, Any], *, control: bool = True) -> list[str]:
    bar = f"{claim['relation']} {number(claim['threshold'])}"
    measured = numbers(claim["measured"], claim["relation"], claim["threshold"])
    beside = ""
    if any(value is not None for value in claim.get("control", [])):
        beside = f"{claim['control_name']}: {numbers(claim['control'], claim['relation'], claim['threshold'])}"
    held = sum(claim["holds"])
    holds = "yes" if held == len(claim["holds"]) else f"**{held} of {len(claim['holds'])}**"
    row = [claim["statement"], number(claim["paper_value"]), measured, beside, bar, holds]
    return row if control else row[:3] + row[4:]


def benchmarks_table(folder: Path, names: Sequence[str]) -> str:
    """The results that ``offprints.shared.benchmark.compare`` wrote, a row a peer, and where they were measured."""
    if not names:
        raise UsageError(f"{folder.name}/README.md: <!-- benchmarks NAME ... --> must name files of benchmarks/results")
    rows: list[list[str]] = []
    places: dict[str, list[str]] = {}
    for name in names:
        path = folder / "benchmarks" / "results" / f"{name}.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            for case in content["cases"]:
                rows += _case_rows(case)
            places.setdefault(_place(content), []).append(name)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path}: not a result of offprints.shared.benchmark.compare: {error!r}") from None
    table = markdown(["work", "ours", "beside it", "theirs / ours"], rows)
    if len(places) == 1:
        return f"{table}\n{next(iter(places))}\n"
    return table + "\n" + "".join(f"- {', '.join(files)}: {place}\n" for place, files in places.items())


def _case_rows(case: dict[str, Any]) -> list[list[str]]:
    ours = next(timing for timing in case["timings"] if timing["name"] == "ours")
    rows = []
    for timing in case["timings"]:
        if timing is not ours:
            peer = " ".join(filter(None, (timing["name"], timing["version"])))
            rows.append(["", "", f"{peer}: {duration(timing['median'])}", number(timing["ratio"])])
    rows = rows or [["", "", "", ""]]
    rows[0][:2] = [case["case"], duration(ours["median"])]
    return rows


def _place(content: dict[str, Any]) -> str:
    machine, threads = content["machine"], content["threads"]
    clock = "CPU time" if content["clock"] == "process_time" else "wall time"
    cpu = re.sub(r"\((R|TM)\)|\bProcessor\b|\bCPU\b.*", "", machine["cpu"])
    where = ", ".join([" ".join(cpu.split()), *machine["accelerators"]])
    one = "1 thread" if threads == 1 else f"{threads} threads"
    return f"{where}, {one}, torch {machine['torch']}, {content['date']}: {clock}, medians of interleaved rounds."


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; a bar inside a cell is escaped."""
    lines = [head, ["---"] * len(head), *[[cell.replace("|", r"\|") for cell in row] for row in rows]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def duration(seconds: float) -> str:
    """A time in the unit that makes it readable."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{number(seconds / size)} {unit}"
    return f"{number(seconds / 1e-9)} ns"


def numbers(values: Sequence[Any], relation: str | None = None, threshold: float | None = None) -> str:
    """The values of several runs: one where they are equal."""
    texts = [number(value, relation, threshold) for value in values]
    return texts[0] if len(set(texts)) == 1 else ", ".join(texts)


def number(value: Any, relation: str | None = None, threshold: float | None = None) -> str:
    """Three digits, or as many as it takes for the rounded number to be on the same side of its bar."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, int) or not math.isfinite(value):
        return str(value)
    for digits in range(3, 17):
        rounded = float(f"{value:.{digits}g}")
        if (
            relation is None
            or threshold is None
            or COMPARE[relation](rounded, threshold) == COMPARE[relation](value, threshold)
        ):
            break
    if rounded and not 1e-4 <= abs(rounded) < 1e6:
        return f"{value:.1e}".replace("e+", "e").replace("e0", "e").replace("e-0", "e-")
    return f"{rounded:.{digits}g}" if abs(rounded) < 1000 else f"{rounded:.0f}"
