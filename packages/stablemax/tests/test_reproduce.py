"""The experiment through the real command line."""

import math


def test_smoke(paper_run, tmp_path) -> None:
    run = paper_run("stablemax", "--preset", "smoke", out=tmp_path)
    assert run.figures == {"grokking", "parity", "collapse", "terms"}
    # What concerns rounding alone holds at any size of the experiment.
    for name in ("softmax-collapses", "exact-survives", "stablemax-survives"):
        assert run.claims[name]["holds"] is not False, run.claims[name]
    # The paper's formula in float32 loses the gradient where ours goes on.
    claim = run.claims["stablemax-survives"]
    assert claim["control"] < 1e9 < 1e15 < claim["measured"]


def test_paper_curves(paper_run, tmp_path) -> None:
    """The paper's 21 curves at a modulus of 7 and a five-thousandth of their steps: nothing groks, all are drawn."""
    small = ("--p", 7, "--step-scale", 0.0002)
    run = paper_run("stablemax", "--preset", "paper", *small, out=tmp_path, status=1)
    assert {"figure1", "figure2", "figure4", "figure6"} <= run.figures
    assert all(math.isfinite(claim["measured"]) for claim in run.claims.values())
    report = (run.folder / "report.md").read_text()
    assert report.count("fraction 0.") >= 9
    assert "nan" not in report.lower()
