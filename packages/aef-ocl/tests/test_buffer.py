"""The random buffer: the same matrix everywhere, float64, whatever surrounds the call."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from offprints.aef_ocl import RandomBuffer
from offprints.aef_ocl.buffer import fingerprint
from offprints.shared.testing import check_module


def inputs(generator: torch.Generator) -> tuple[torch.Tensor]:
    return (torch.randn(5, 6, generator=generator),)


@pytest.mark.parametrize("activation", ["relu", None])
def test_conformance(activation) -> None:
    check_module(RandomBuffer(6, 11, activation=activation), inputs)


def test_the_matrix_is_that_of_the_seed_alone() -> None:
    weight = RandomBuffer(16, 400, seed=3).weight
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert torch.equal(RandomBuffer(16, 400, seed=3).weight, weight)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(RandomBuffer(16, 400, seed=4).weight, weight)
    assert weight.dtype == torch.float64
    assert weight.abs().max() <= 0.25  # torch.nn.Linear's bound, 1 / sqrt(16)
    assert weight.std().item() == pytest.approx(0.25 / 3**0.5, rel=0.02)
    assert weight.mean().abs() < 0.01
    single = RandomBuffer(16, 400, seed=3, dtype=torch.float32).weight
    assert torch.equal(single, weight.float())
    try:
        torch.set_default_device("meta")
        assert torch.equal(RandomBuffer(16, 400, seed=3, device="cpu").weight, weight)
    finally:
        torch.set_default_device(None)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(RandomBuffer(16, 400, seed=3).weight, weight)
    finally:
        torch.set_default_dtype(torch.float32)


def test_activations() -> None:
    x = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    linear = RandomBuffer(6, 11, activation=None)(x)
    torch.testing.assert_close(linear, x @ RandomBuffer(6, 11).weight.T)
    for name, function in (("relu", torch.relu), ("tanh", torch.tanh), ("gelu", nn.functional.gelu)):
        assert torch.equal(RandomBuffer(6, 11, activation=name)(x), function(linear))
    assert torch.equal(RandomBuffer(6, 11, activation=torch.sin)(x), linear.sin())


def test_precision_does_not_depend_on_the_surroundings() -> None:
    buffer = RandomBuffer(6, 11)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    expected = buffer(x)
    assert expected.dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(buffer(x), expected)
        single = RandomBuffer(6, 11, dtype=torch.float32)
        assert single(x).dtype == torch.float32
        torch.testing.assert_close(single(x), expected.float(), rtol=1e-5, atol=1e-6)
    with torch.inference_mode():
        assert torch.equal(buffer(x), expected)
    torch.testing.assert_close(buffer(x.bfloat16()), buffer(x.bfloat16().double()), rtol=0, atol=0)


def test_fingerprint_tells_buffers_apart() -> None:
    one = RandomBuffer(6, 11)
    assert fingerprint(one) == fingerprint(RandomBuffer(6, 11))
    others = [RandomBuffer(6, 11, seed=1), RandomBuffer(6, 11, activation="tanh"), RandomBuffer(6, 12)]
    others += [RandomBuffer(6, 11, dtype=torch.float32), nn.Linear(6, 11, bias=False)]
    moved = RandomBuffer(6, 11)
    moved.weight[0, 0] += 1e-15
    assert len({fingerprint(buffer) for buffer in (one, moved, *others)}) == 7


def test_half_types_do_not_round_the_matrix() -> None:
    buffer = RandomBuffer(3, 8)
    assert torch.equal(torch.nn.Sequential(RandomBuffer(3, 8)).half()[0].weight, buffer.weight)
    assert RandomBuffer(3, 8).float().weight.dtype == torch.float32
