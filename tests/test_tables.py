"""Numbers are written once: records of claims, and the READMEs' tables made of them."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
common, records, tables = (importlib.import_module(name) for name in ("common", "records", "tables"))
RECORDS = sorted(ROOT.glob("packages/*/claims/*.json"))


def test_every_readme_says_what_the_files_say() -> None:
    assert tables.update(ROOT, write=False) == ["every table is up to date"]


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_recorded_claims_hold_and_have_a_control_that_fails(path: Path) -> None:
    content = json.loads(path.read_text())
    assert content["paper"] == path.parts[-3]
    assert content["preset"] == path.stem
    if path.stem == "quick":
        assert content["seeds"] == [0, 1, 2]
        assert records.remarks(content) == []
    for claim in content["claims"]:
        for value, control, holds in zip(
            claim["measured"], claim.get("control", [None] * len(claim["measured"])), claim["holds"], strict=True
        ):
            clears = tables.COMPARE[claim["relation"]]
            finite = isinstance(value, int | float) and math.isfinite(value)
            fails = control is None or not isinstance(control, int | float) or not clears(control, claim["threshold"])
            passed = finite and clears(value, claim["threshold"]) and fails
            assert holds is passed, claim["id"]


def claim(**changes: Any) -> dict[str, Any]:
    fields = {
        "id": "robust",
        "statement": "error of the estimate",
        "kind": "claim",
        "measured": 0.2,
        "relation": "<=",
        "threshold": 0.5,
        "paper_value": "small",
        "spread": None,
        "holds": True,
        "control": 3.0,
        "control_name": "squared loss",
        "control_fails": True,
    }
    return fields | changes


def finished_run(folder: Path, seed: int, /, *claims: dict[str, Any], **changes: Any) -> Path:
    folder = folder / f"seed{seed}"
    folder.mkdir(parents=True)
    result = {
        "paper": "a-paper",
        "preset": "quick",
        "seed": seed,
        "device": "cpu",
        "versions": {"torch": "2.9.0"},
        "wall_seconds": 10.04 + seed,
        "claims": list(claims),
        "values": [{"id": "level", "statement": "level of chance", "value": 0.1 * seed, "paper_value": None}],
        "figures": ["figures/one.png"],
    }
    folder.joinpath("result.json").write_text(json.dumps(result | changes))
    return folder


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    package = tmp_path / "packages" / "a-paper"
    package.mkdir(parents=True)
    package.joinpath("pyproject.toml").write_text(
        '[project]\nname = "offprints-a-paper"\nversion = "1"\ndescription = "A title"\n'
        '[project.urls]\nPaper = "https://arxiv.org/abs/2211.15272"\n'
    )
    package.joinpath("README.md").write_text("before\n<!-- claims -->\n| by hand |\n<!-- /claims -->\nafter\n")
    tmp_path.joinpath("README.md").write_text("before\n<!-- papers -->\nold\n<!-- /papers -->\nafter\n")
    return tmp_path


def test_table_of_papers_goes_stale_and_is_rewritten(workspace: Path) -> None:
    with pytest.raises(common.UsageError, match=r"README.md: out of date"):
        tables.update(workspace, write=False)
    tables.update(workspace, write=True)
    text = (workspace / "README.md").read_text()
    assert "| A title | [2211.15272](https://arxiv.org/abs/2211.15272) |" in text
    assert text.startswith("before\n")
    assert text.endswith("<!-- /papers -->\nafter\n")
    assert "old" not in text
    # Without a record the table by hand stays.
    assert "| by hand |" in (workspace / "packages" / "a-paper" / "README.md").read_text()
    tables.update(workspace, write=False)


def test_record_and_its_table(workspace: Path) -> None:
    runs = [finished_run(workspace / "runs", seed, claim(measured=0.1 + seed / 10)) for seed in (2, 0, 1)]
    path, remarks = records.record(workspace, "a-paper", runs)
    content = json.loads(path.read_text())
    assert path == workspace / "packages" / "a-paper" / "claims" / "quick.json"
    assert content["seeds"] == [0, 1, 2]
    assert content["seconds"] == [10.0, 11.0, 12.0]
    assert content["claims"][0]["measured"] == [0.1, 0.2, pytest.approx(0.3)]
    assert content["claims"][0]["control"] == [3.0, 3.0, 3.0]
    assert content["values"][0]["value"] == [0.0, 0.1, 0.2]
    assert str(workspace) not in path.read_text()
    assert remarks == []

    tables.update(workspace, write=True)
    text = (workspace / "packages" / "a-paper" / "README.md").read_text()
    assert "| error of the estimate | small | 0.1, 0.2, 0.3 | squared loss: 3 | <= 0.5 | yes |\n" in text
    assert "| level of chance |  | 0, 0.1, 0.2 |\n" in text
    assert "Preset `quick` on cpu, torch 2.9.0, " in text
    assert ": 10 to 12 s a run.\n<!-- /claims -->\nafter\n" in text
    assert "by hand" not in text
    assert tables.update(workspace, write=False) == ["every table is up to date"]


def test_a_number_changed_by_hand_is_noticed(workspace: Path) -> None:
    records.record(workspace, "a-paper", [finished_run(workspace / "runs", seed, claim()) for seed in (0, 1, 2)])
    tables.update(workspace, write=True)
    readme = workspace / "packages" / "a-paper" / "README.md"
    readme.write_text(readme.read_text().replace("| 0.2 |", "| 0.1 |"))
    with pytest.raises(common.UsageError, match=r"packages/a-paper/README.md: out of date"):
        tables.update(workspace, write=False)
    readme.write_text("no markers\n")
    with pytest.raises(common.UsageError, match=r"lacks the markers <!-- claims -->"):
        tables.update(workspace, write=True)


def test_checks_stand_apart_from_claims(workspace: Path) -> None:
    exact = claim(id="exact", statement="difference", kind="check", control=None, control_name=None, control_fails=None)
    runs = [finished_run(workspace / "runs", seed, claim(), exact) for seed in (0, 1, 2)]
    _, remarks = records.record(workspace, "a-paper", runs)
    assert remarks == []
    tables.update(workspace, write=True)
    text = (workspace / "packages" / "a-paper" / "README.md").read_text()
    assert "| holds by construction, checked | paper | seeds 0, 1, 2 | bar | holds |" in text
    assert "| difference | small | 0.2 | <= 0.5 | yes |" in text


def test_remarks(workspace: Path) -> None:
    silent = claim(id="alone", control=None, control_name=None, control_fails=None)
    runs = [
        finished_run(workspace / "runs", seed, claim(measured=0.2 + seed, holds=not seed), silent) for seed in (0, 1, 2)
    ]
    _, remarks = records.record(workspace, "a-paper", runs)
    assert remarks == ["robust: does not hold for seed 1, 2", "alone: a claim without a negative control"]
    tables.update(workspace, write=True)
    assert "| **1 of 3** |" in (workspace / "packages" / "a-paper" / "README.md").read_text()


@pytest.mark.parametrize(
    ("second", "changes", "word"),
    [
        (claim(threshold=0.6), {}, "threshold"),
        (claim(id="other"), {}, "different claims"),
        (claim(), {"versions": {"torch": "2.8.0"}}, "versions"),
        (claim(), {"preset": "smoke"}, "preset"),
        (claim(), {"seed": 0}, "seeds must differ"),
    ],
)
def test_record_refuses_runs_that_differ(
    workspace: Path, second: dict[str, Any], changes: dict[str, Any], word: str
) -> None:
    runs = [finished_run(workspace / "runs", 0, claim()), finished_run(workspace / "runs", 1, second, **changes)]
    with pytest.raises(common.UsageError, match=word):
        records.record(workspace, "a-paper", runs)
    assert not (workspace / "packages" / "a-paper" / "claims").exists()


def test_record_refuses_a_run_that_did_not_finish(workspace: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "workspace.py"), "record", "stablemax", str(workspace)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert "did not finish" in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_benchmarks_table(workspace: Path) -> None:
    package = workspace / "packages" / "a-paper"
    results = package / "benchmarks" / "results"
    results.mkdir(parents=True)
    timing = {"name": "ours", "version": None, "median": 0.0012, "ratio": 1.0}
    peer = {"name": "POT", "version": "0.9", "median": 2.5e-6, "ratio": 12.345}
    content = {
        "date": "2026-01-31",
        "machine": {"cpu": "Intel(R) Xeon(R) Processor", "accelerators": [], "torch": "2.9.0"},
        "threads": 1,
        "clock": "wall",
        "cases": [{"case": "a | b", "timings": [timing, peer, peer | {"version": None}]}],
    }
    results.joinpath("step.json").write_text(json.dumps(content))
    readme = package / "README.md"
    readme.write_text("<!-- benchmarks step -->\n<!-- /benchmarks -->\n")
    tables.update(workspace, write=True)
    assert readme.read_text().splitlines()[3:-1] == [
        r"| a \| b | 1.2 ms | POT 0.9: 2.5 µs | 12.3 |",
        "|  |  | POT: 2.5 µs | 12.3 |",
        "",
        "Intel Xeon, 1 thread, torch 2.9.0, 2026-01-31: wall time, medians of interleaved rounds.",
    ]
    readme.write_text("<!-- benchmarks gone -->\n<!-- /benchmarks -->\n")
    with pytest.raises(common.UsageError, match=r"gone.json"):
        tables.update(workspace, write=True)


@pytest.mark.parametrize(
    ("value", "bar", "text"),
    [
        (0.95, None, "0.95"),
        (1 / 3, None, "0.333"),
        (0.94996, (">=", 0.95), "0.94996"),
        (1.7782794100389228e23, (">=", 1e6), "1.8e23"),
        (8.04e-17, ("<=", 1e-8), "8.0e-17"),
        (1234.56, None, "1230"),
        (0.0, ("==", 0), "0"),
        (3, (">=", 2), "3"),
        ("about 17", None, "about 17"),
        (None, None, ""),
        (float("nan"), None, "nan"),
    ],
)
def test_a_rounded_number_stays_on_its_side_of_the_bar(value: object, bar: tuple[str, float] | None, text: str) -> None:
    assert tables.number(value, *(bar or ())) == text
