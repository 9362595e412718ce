"""Claims as they were measured: several runs of one preset become one file, ``claims/<preset>.json``.

The README's tables and the documentation's index of claims are made of these files: a number is written once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common import UsageError, members

# Of a claim: what must be the same in every run, and what is measured anew in each.
FIXED = ("id", "statement", "kind", "relation", "threshold", "paper_value", "control_name")
MEASURED = ("measured", "spread", "holds", "control", "control_fails")


def read_result(folder: Path) -> dict[str, Any]:
    """The ``result.json`` of a finished run."""
    path = folder / "result.json"
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{folder} holds no result.json: the run did not finish") from None
    except ValueError as error:
        raise UsageError(f"{path} is malformed: {error}") from None
    return result


def _joined(entries: Sequence[dict[str, Any]], fixed: Sequence[str], varying: Sequence[str]) -> dict[str, Any]:
    """One entry of the runs' entries for the same claim: a list, run by run, of what varies."""
    differing = [key for key in fixed if any(entry.get(key) != entries[0].get(key) for entry in entries)]
    if differing:
        raise UsageError(f"{entries[0]['id']}: {' and '.join(differing)} differ between the runs: a bar is set before")
    joined = {key: entries[0].get(key) for key in fixed}
    joined["kind"] = joined.get("kind") or "claim"
    return joined | {
        key: [entry.get(key) for entry in entries]
        for key in varying
        if any(entry.get(key) is not None for entry in entries)
    }


def record(root: Path, name: str, folders: Sequence[Path]) -> tuple[Path, list[str]]:
    """Write ``claims/<preset>.json`` of a paper from the folders of its runs, one a seed.

    Returns:
        The file, and a line for everything that a reader should be told: claims that do not hold, or have no control.
    """
    papers = members(root)
    if name not in papers or name == "shared":
        raise UsageError(f"unknown paper {name!r}")
    results = sorted((read_result(folder) for folder in folders), key=lambda result: int(result["seed"]))
    for key in ("paper", "preset", "device", "versions"):
        if any(result.get(key) != results[0].get(key) for result in results):
            raise UsageError(f"the runs differ in {key}: {', '.join(str(result.get(key)) for result in results)}")
    if results[0]["paper"] != name:
        raise UsageError(f"these are runs of {results[0]['paper']}, not of {name}")
    seeds = [int(result["seed"]) for result in results]
    if len(set(seeds)) != len(seeds):
        raise UsageError(f"the seeds must differ, got {', '.join(map(str, seeds))}")

    claims, values = (_collect(results, part) for part in ("claims", "values"))
    content = {
        "paper": name,
        "preset": results[0]["preset"],
        "device": results[0]["device"],
        "date": datetime.now(UTC).date().isoformat(),
        "seeds": seeds,
        "seconds": [round(float(result["wall_seconds"]), 1) for result in results],
        "versions": results[0]["versions"],
        "claims": [_joined(entries, FIXED, MEASURED) for entries in claims],
        "values": [_joined_value(entries) for entries in values],
    }
    path = papers[name] / "claims" / f"{content['preset']}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path, remarks(content)


def _collect(results: Sequence[dict[str, Any]], part: str) -> list[list[dict[str, Any]]]:
    """The entries of all runs, claim by claim."""
    orders = [[entry["id"] for entry in result.get(part, [])] for result in results]
    if any(order != orders[0] for order in orders):
        raise UsageError(f"the runs have different {part}: {sorted(set().union(*orders))}")
    return [list(entries) for entries in zip(*(result.get(part, []) for result in results), strict=True)]


def _joined_value(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A value without a bar; its statement may hold a number of the run, and is then the first run's."""
    fixed = {key: entries[0].get(key) for key in ("id", "statement", "paper_value")}
    return fixed | {"value": [entry.get("value") for entry in entries]}


def remarks(content: dict[str, Any]) -> list[str]:
    """What is to be said of a record: claims that do not hold for every seed, and claims without a control."""
    lines = []
    for claim in content["claims"]:
        failed = [seed for seed, holds in zip(content["seeds"], claim["holds"], strict=True) if not holds]
        if failed:
            lines.append(f"{claim['id']}: does not hold for seed {', '.join(map(str, failed))}")
        if claim["kind"] == "claim" and None in claim.get("control", [None]):
            lines.append(f"{claim['id']}: a claim without a negative control")
    return lines
