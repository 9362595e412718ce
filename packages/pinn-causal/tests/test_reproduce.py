"""The experiment through the command line, and the paper's rows in miniature."""

import json
from dataclasses import replace

import pytest

from offprints.pinn_causal.reproduce import choose, experiment
from offprints.pinn_causal.settings import PAPER
from offprints.shared.testing import check_errors


def test_smoke(cli, tmp_path) -> None:
    run = cli("run", "pinn-causal", "--preset", "smoke", "--device", "cpu", "--out", tmp_path)
    assert run.returncode == 0, run.stderr
    (result,) = tmp_path.glob("pinn-causal/*/result.json")
    record = json.loads(result.read_text())
    assert record["paper"] == "pinn-causal"
    assert {claim["id"] for claim in record["claims"]} == {"allen-cahn", "allen-cahn-ratio", "lorenz", "lorenz-plain"}
    assert len(record["figures"]) == 5
    assert (result.parent / "metrics.jsonl").read_text().count("\n") == 8


def test_paper_preset_in_miniature(cli, tmp_path) -> None:
    """Every row, a window, a few steps: networks, batches, checkpoints, references, claims, figures."""
    run = cli(
        *("run", "pinn-causal", "--preset", "paper", "--device", "cpu", "--out", tmp_path),
        *("--max-steps", "1", "--check-every", "1", "--n-windows", "1", "--width", "4"),
    )
    assert run.returncode == 1, run.stderr  # nothing is learned, and the claims say so
    (result,) = tmp_path.glob("pinn-causal/*/result.json")
    record = json.loads(result.read_text())
    assert len(record["claims"]) == 7
    assert not any(claim["holds"] for claim in record["claims"])
    assert {claim["paper_value"] for claim in record["claims"]} == {None, 1.662e-3, 3.49e-4}
    steps = sum(len(PAPER[name].eps) for name in experiment.presets["paper"].rows) + 1
    assert (result.parent / "metrics.jsonl").read_text().count("\n") == steps


def test_rows() -> None:
    paper = experiment.presets["paper"]
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
