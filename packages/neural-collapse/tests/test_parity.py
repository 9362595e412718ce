"""Equality with the official implementation's numbers and with an independent closed form (tests/golden)."""

import pytest
import torch

from offprints.neural_collapse import (
    DeepLinearUFM,
    GOFSolution,
    NCMetrics,
    gof_solution,
    minimum_class_count,
    nc_metrics,
    reference,
)

FIELDS = ("nc1", "nc2_w", "nc2_h", "nc3_wh", "nc3_w_h")


def solved(data, case: str) -> GOFSolution:
    return gof_solution(
        data[f"{case}_counts"].long().tolist(),
        weight_decay=data[f"{case}_weight_decay"].reshape(-1).tolist(),
        feature_decay=float(data[f"{case}_feature_decay"]),
    )


@pytest.mark.parametrize("number", range(8))
def test_closed_form(golden, number: int) -> None:
    data, case = golden("golden"), f"gof{number}"
    solution = solved(data, case)
    for name, ours in (
        ("x", solution.x),
        ("s", solution.singular_values),
        ("ww", solution.ww),
        ("hh", solution.hh),
        ("wh", solution.wh),
        ("loss", torch.tensor(solution.loss, dtype=torch.float64)),
        ("b", torch.tensor(solution.b, dtype=torch.float64)),
    ):
        expected = data[f"{case}_{name}"].reshape(ours.shape)
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-14, msg=lambda m, n=name: f"{n}: {m}")
    assert torch.equal(solution.collapsed, data[f"{case}_x"] == 0)


@pytest.mark.parametrize("number", range(8))
def test_reference(golden, number: int) -> None:
    data, case = golden("golden"), f"gof{number}"
    ours, counts = solved(data, case), data[f"{case}_counts"].long().tolist()
    decays = data[f"{case}_weight_decay"].reshape(-1).tolist()
    plain = reference.general_orthogonal_frame(counts, decays, float(data[f"{case}_feature_decay"]))
    for name, value in (("x", ours.x), ("s", ours.singular_values), ("ww", ours.ww), ("hh", ours.hh), ("wh", ours.wh)):
        expected = torch.tensor(plain[name], dtype=torch.float64)
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-14)
    assert ours.loss == pytest.approx(plain["loss"][0], rel=1e-13)


def test_a_class_is_collapsed_in_case_5(golden) -> None:
    data = golden("golden")
    solution, counts = solved(data, "gof5"), data["gof5_counts"]
    assert 0 < solution.collapsed.sum() < len(counts)
    smallest = minimum_class_count(
        int(counts.sum()),
        weight_decay=data["gof5_weight_decay"].tolist(),
        feature_decay=float(data["gof5_feature_decay"]),
    )
    assert torch.equal(solution.collapsed, counts <= smallest)


def test_official_singular_values(golden) -> None:
    data = golden("golden")
    decay, feature_decay, depth = data["gof_metric_args"].tolist()
    ours = gof_solution(data["counts"].tolist(), weight_decay=[decay] * int(depth), feature_decay=feature_decay)
    torch.testing.assert_close(ours.singular_values, data["official_s"].double(), rtol=1e-6, atol=0)


def measured(data, geometry: str) -> NCMetrics:
    target = None
    if geometry == "gof":
        decay, feature_decay, depth = data["gof_metric_args"].tolist()
        target = gof_solution(data["counts"].tolist(), weight_decay=[decay] * int(depth), feature_decay=feature_decay)
    return nc_metrics(data["H"], data["y"].long(), data["W"], geometry=geometry, target=target)


def test_official_metrics(golden) -> None:
    data = golden("golden")
    etf, of, gof = (measured(data, geometry) for geometry in ("etf", "of", "gof"))
    pairs = {
        "nc1": (etf.nc1, of.nc1, gof.nc1),
        **{f"{name}_etf": (getattr(etf, name),) for name in FIELDS[1:4]},
        **{f"{name}_of": (getattr(of, name),) for name in FIELDS[1:4]},
        **{f"{name}_gof": (getattr(gof, name),) for name in FIELDS[1:]},
        "nc3_w_h_centered": (etf.nc3_w_h,),
        "nc3_w_h": (of.nc3_w_h,),
    }
    for key, values in pairs.items():
        for value in values:
            assert value == pytest.approx(float(data[key]), rel=1e-6), key


@pytest.mark.parametrize("geometry", ["etf", "of"])
def test_metrics_of_the_reference(golden, geometry: str) -> None:
    data = golden("golden")
    plain = reference.metrics(data["H"], data["y"].long(), data["W"], geometry)
    ours = measured(data, geometry)
    assert {name: getattr(ours, name) for name in FIELDS} == pytest.approx(plain, rel=1e-10)


def test_objective_of_the_reference() -> None:
    model = DeepLinearUFM([3, 2, 2], [4, 5], weight_decay=[1e-2, 2e-2], feature_decay=3e-2, init_std=1.0)
    plain = reference.objective(list(model.weights), model.features, model.labels, [1e-2, 2e-2], 3e-2)
    torch.testing.assert_close(model.objective(), plain, rtol=1e-13, atol=0)
