"""Equal to an independent float64 computation of the paper's recursions: golden data."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from offprints.lr_perceptron import (
    METHODS,
    iteration_bound,
    logistic_gradient,
    logistic_loss,
    margin,
    radius,
    separate,
    sweep,
    worst_case_dataset,
)
from offprints.lr_perceptron.reproduce.digits import digit_pair

Golden = Callable[[str], dict[str, Tensor]]
GRADIENT_METHODS = METHODS[:2]


@pytest.mark.parametrize("method", GRADIENT_METHODS)
@pytest.mark.parametrize("place", range(4))
def test_trajectories(golden: Golden, method: str, place: int) -> None:
    data = golden("golden")
    X, y, step_size = data["X"], data["y"], float(data["gammas"][place])
    expected = data[f"{method}_{place}_iterates"]
    options = {"method": method, "step_size": step_size}
    result = separate(X, y, max_iter=40, stop=False, keep_iterates=True, record_every=1, **options)
    assert result.iterates is not None
    torch.testing.assert_close(result.iterates, expected, rtol=0, atol=1e-8 * float(expected.abs().max()))
    for key in ("loss", "accuracy", "grad_norm"):
        torch.testing.assert_close(result.history[key], data[f"{method}_{place}_{key}"], rtol=1e-7, atol=1e-9)
    assert separate(X, y, **options).n_iter == int(data[f"{method}_{place}_n_iter"])
    # The functions alone say the same of every iterate.
    for t in (0, 1, 40):
        loss = logistic_loss(X, y, expected[t])
        assert float(loss) == pytest.approx(float(data[f"{method}_{place}_loss"][t]), rel=1e-9, abs=1e-300)
        norm = float(logistic_gradient(X, y, expected[t]).norm())
        assert norm == pytest.approx(float(data[f"{method}_{place}_grad_norm"][t]), rel=1e-9, abs=1e-300)
    step = -step_size * logistic_gradient(X, y, expected[3], normalized=method != "lr_gd")
    scale = float(expected.abs().max())
    torch.testing.assert_close(expected[3] + step, expected[4], rtol=0, atol=1e-9 * scale)


@pytest.mark.parametrize("method", METHODS[2:])
def test_perceptrons(golden: Golden, method: str) -> None:
    data = golden("golden")
    result = separate(data["X"], data["y"], method=method, keep_iterates=True)
    assert result.n_iter == int(data[f"{method}_n_iter"])
    assert result.iterates is not None
    torch.testing.assert_close(result.iterates, data[f"{method}_iterates"], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(result.theta, data[f"{method}_theta"], rtol=1e-10, atol=1e-10)


def test_margin_and_radius(golden: Golden) -> None:
    data = golden("golden")
    assert margin(data["X"], data["y"]) == pytest.approx(float(data["margin"]), rel=2e-4)
    assert radius(data["X"]) == pytest.approx(float(data["radius"]), rel=1e-12)


def test_worst_case_of_table_1(golden: Golden) -> None:
    data = golden("golden")
    X, y = worst_case_dataset(int(data["worst_n"]))
    gammas = data["worst_gammas"]
    counts = sweep(X, y, gammas, method="normalized_lr_gd").n_iter
    assert torch.equal(counts, data["worst_normalized_n_iter"].long())
    assert separate(X, y, method="lr_gd", step_size=100.0).n_iter == int(data["worst_lr_gd_100_n_iter"]) == 308
    batch = separate(X, y, method="batch_perceptron").n_iter
    assert batch == int(data["worst_batch_perceptron_n_iter"]) == 301
    # T = 157 of at most 613.
    bound = iteration_bound("normalized_lr_gd", n=1000, radius=radius(X), margin=margin(X, y), step_size=0.1)
    assert round(bound) == 613


def test_digits(golden: Golden) -> None:
    """Digits 3 and 5 in the file's order: the counts, and the loss that misleads."""
    data = golden("golden")
    X, y = digit_pair((3, 5))
    for method in GRADIENT_METHODS:
        counts = sweep(X, y, [0.1, 1.0, 10.0, 100.0], method=method).n_iter
        torch.testing.assert_close(counts, data[f"digits_3v5_{method}_n_iter"].long(), rtol=0, atol=2)
    for method in ("batch_perceptron", "perceptron"):
        assert separate(X, y, method=method).n_iter == int(data[f"digits_3v5_{method}_n_iter"])
    losses = {
        step_size: separate(X, y, method="lr_gd", step_size=step_size, record_every=1, max_iter=200).history["loss"]
        for step_size in (0.1, 10.0)
    }
    assert float(losses[10.0].max()) == pytest.approx(15.6, abs=0.05)
    assert float(losses[0.1][1:].max()) == pytest.approx(0.67, abs=0.005)
    assert bool((losses[0.1].diff() < 0).all())
