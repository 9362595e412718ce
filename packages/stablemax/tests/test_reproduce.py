"""The experiment through the real command line."""

import json
import math
from pathlib import Path


def result_of(folder: Path) -> dict:
    (path,) = folder.glob("stablemax/*/result.json")
    result = json.loads(path.read_text())
    assert result["figures"]
    for figure in result["figures"]:
        assert (path.parent / figure).stat().st_size > 1000
    return result


def test_smoke(cli, tmp_path) -> None:
    run = cli("run", "stablemax", "--preset", "smoke", "--device", "cpu", "--out", tmp_path)
    assert run.returncode == 0, run.stderr
    result = result_of(tmp_path)
    assert result["paper"] == "stablemax"
    assert {Path(figure).stem for figure in result["figures"]} == {"grokking", "parity", "collapse", "terms"}
    claims = {claim["id"]: claim for claim in result["claims"]}
    # What concerns rounding alone holds at any size of the experiment.
    for name in ("softmax-collapses", "exact-survives", "stablemax-survives"):
        assert claims[name]["holds"] is not False, claims[name]


def test_paper_curves(cli, tmp_path) -> None:
    """The paper's 21 curves at a modulus of 7 and a five-thousandth of their steps: nothing groks, all are drawn."""
    small = ("--p", 7, "--step-scale", 0.0002, "--device", "cpu")
    run = cli("run", "stablemax", "--preset", "paper", *small, "--out", tmp_path)
    assert run.returncode == 1, run.stderr
    result = result_of(tmp_path)
    assert {"figure1", "figure2", "figure4", "figure6"} <= {Path(figure).stem for figure in result["figures"]}
    assert all(math.isfinite(claim["measured"]) for claim in result["claims"])
    (report,) = tmp_path.glob("stablemax/*/report.md")
    assert report.read_text().count("fraction 0.") >= 9
    assert "nan" not in report.read_text().lower()
