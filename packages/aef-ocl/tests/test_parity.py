"""The official implementation's outputs, and the joint solution in NumPy, on two recorded streams."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from offprints.aef_ocl import AEFOCLClassifier, PseudoFeatureGenerator, RandomBuffer, RecursiveRidge, ridge_solution

STREAMS = ("stream_small.npz", "stream_gamma01_noise05.npz")


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    """Relative to the largest weight."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * float(theirs.abs().max()))


@pytest.fixture(params=STREAMS)
def stream(request, golden) -> dict[str, Tensor]:
    return golden(request.param)


def buffer_of(stream: dict[str, Tensor]) -> RandomBuffer:
    matrix = stream["buffer_weight"]
    buffer = RandomBuffer(matrix.shape[1], matrix.shape[0])
    buffer.load_state_dict({"weight": matrix})
    return buffer


@pytest.mark.parametrize("solver", ["cholesky", "recursive"])
def test_classifier(stream, solver) -> None:
    """Half of the stream, a balanced solution, the rest, another one: the first leaves no trace in the second."""
    x, y, size, half = stream["x"], stream["y"].long(), int(stream["batch_size"]), int(stream["half"])
    model = AEFOCLClassifier(
        buffer=buffer_of(stream), gamma=float(stream["gamma"]), noise=float(stream["noise"]), solver=solver
    )
    for start in range(0, half, size):
        model.partial_fit(x[start : start + size], y[start : start + size])
    close(model.ridge_.weight, stream["weight_real_half"], 1e-6)
    model.rebalance(normals=stream["normals_half"])
    close(model.coef_, stream["weight_balanced_half"], 1e-6)
    assert model.generator_.count_.tolist() == stream["count_half"].tolist()
    for start in range(half, len(x), size):
        model.partial_fit(x[start : start + size], y[start : start + size])
    close(model.ridge_.weight, stream["weight_real"], 1e-6)
    close(model.ridge_.weight, stream["joint_real"], 1e-8)
    model.rebalance(normals=stream["normals"])
    close(model.coef_, stream["weight_balanced"], 1e-6)
    close(model.coef_, stream["joint_balanced"], 1e-8)
    close(torch.as_tensor(model.decision_function(stream["x_query"])), stream["scores_query"], 1e-6)
    assert torch.equal(model.predict(stream["x_query"]), stream["scores_query"].argmax(1))


def test_moments(stream) -> None:
    x, y = stream["x"], stream["y"].long()
    generator = PseudoFeatureGenerator(x.shape[1])
    for start in range(0, len(x), 7):
        generator.partial_fit(x[start : start + 7], y[start : start + 7])
    assert torch.equal(generator.count_, stream["count"].long())
    torch.testing.assert_close(generator.mean_, stream["mean"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(generator.std_, stream["std"], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(generator.std_, stream["std_official"], rtol=1e-7, atol=0)


@pytest.mark.parametrize("solver", ["cholesky", "recursive"])
def test_ridge(stream, solver) -> None:
    phi, y = buffer_of(stream)(stream["x"]), stream["y"].long()
    ridge = RecursiveRidge(phi.shape[1], gamma=float(stream["gamma"]), solver=solver)
    for rows, labels in zip(phi.split(10), y.split(10), strict=True):
        ridge.partial_fit(rows, labels)
    close(ridge.weight, stream["joint_real"], 1e-8)
    close(ridge_solution(phi, y, float(stream["gamma"])), stream["joint_real"], 1e-8)
