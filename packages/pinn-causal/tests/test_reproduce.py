"""The experiment through the command line, and the paper's rows in miniature."""

from dataclasses import replace

import pytest

from offprints.pinn_causal.reproduce.experiment import choose, experiment
from offprints.pinn_causal.reproduce.settings import PAPER
from offprints.shared.testing import check_errors


def test_smoke(paper_run, tmp_path) -> None:
    run = paper_run("pinn-causal", "--preset", "smoke", out=tmp_path)
    assert set(run.claims) == {"allen-cahn", "lorenz"}
    assert {claim["control_name"] for claim in run.claims.values()} == {"plain PINN, eps = 0"}
    assert len(run.figures) == 5
    assert (run.folder / "metrics.jsonl").read_text().count("\n") == 8


def test_paper_preset_in_miniature(paper_run, tmp_path) -> None:
    """A row of each problem, a window, a few steps: networks, batches, checkpoints, references, claims, figures."""
    rows = ("allen-cahn-mlp", "lorenz", "ks-chaotic", "navier-stokes")
    small = ("--rows", *rows, "--max-steps", "1", "--check-every", "1", "--n-windows", "1", "--width", "4")
    # Nothing is learned, and the claims say so.
    run = paper_run("pinn-causal", "--preset", "paper", *small, out=tmp_path, status=1)
    assert len(run.claims) == len(rows)
    assert not any(claim["holds"] for claim in run.claims.values())
    assert {claim["paper_value"] for claim in run.claims.values()} == {None, 1.662e-3}
    steps = sum(len(PAPER[name].eps) for name in rows) + 1
    assert (run.folder / "metrics.jsonl").read_text().count("\n") == steps


def test_rows() -> None:
    paper = experiment.presets["paper"]
    assert paper.rows == ("allen-cahn", "allen-cahn-mlp", "lorenz", "ks-regular", "ks-chaotic", "navier-stokes")
    assert choose(paper) == {name: PAPER[name] for name in paper.rows}
    assert choose(replace(paper, width=7))["ks-chaotic"].hidden == (7,) * 8
    check_errors([(lambda: choose(replace(paper, rows=("heat",))), ValueError, "allen-cahn")])


@pytest.mark.parametrize("name", PAPER)
def test_networks_of_the_paper(name) -> None:
    row = PAPER[name]
    net = row.make_net()
    inner = getattr(net, "net", net)
    assert [layer.out_features for layer in inner.layers] == [*row.hidden, row.make_problem().n_outputs]
    if name == "navier-stokes":
        assert inner.embedding.out_features == 124
