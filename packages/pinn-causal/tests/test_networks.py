"""Embeddings and networks."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from offprints.pinn_causal import MLP, ExactInitialCondition, FourierFeatures, ModifiedMLP, SpaceTimeEmbedding, jet
from offprints.pinn_causal.interpolant import TrigonometricInterpolant
from offprints.shared.testing import check_errors, check_module


def points(dimension: int):
    return lambda generator: (torch.rand(5, dimension, generator=generator),)


@pytest.mark.parametrize(
    ("module", "dimension"),
    [
        (SpaceTimeEmbedding(periods=[2.0, 1.0], modes=[2, 3], time_powers=(-2, 0)), 3),
        (FourierFeatures(2, 4, sigma=2.0, generator=torch.Generator().manual_seed(0)), 2),
        (MLP(2, (8, 8), 3, activation="sin"), 2),
        (ModifiedMLP(2, (8, 8), 1, embedding=SpaceTimeEmbedding(periods=[2.0], modes=[3])), 2),
        (ExactInitialCondition(MLP(1, (8,), 3), torch.tensor([1.0, 2.0, 3.0])), 1),
        (TrigonometricInterpolant(torch.randn(2, 6), [(0.0, 1.0)]), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_conformance(module, dimension) -> None:
    check_module(module, points(dimension))


def test_one_dimensional_features_in_order() -> None:
    embedding = SpaceTimeEmbedding(periods=[2.0], modes=[2], time_powers=(-1, 1))
    t, x = 0.3, 0.7
    expected = [
        0.03,
        3.0,
        1.0,
        *(math.cos(k * math.pi * x) for k in (1, 2)),
        *(math.sin(k * math.pi * x) for k in (1, 2)),
    ]
    torch.testing.assert_close(embedding(torch.tensor([t, x])), torch.tensor(expected))
    assert embedding.out_features == 7


def test_two_dimensional_features_in_order() -> None:
    embedding = SpaceTimeEmbedding(periods=[2 * math.pi, math.pi], modes=[3, 2], time_powers=(0, 1))
    t, x, y = 0.3, 0.7, 1.1
    cx, sx = ([f(k * x) for k in (1, 2, 3)] for f in (math.cos, math.sin))
    cy, sy = ([f(2 * k * y) for k in (1, 2)] for f in (math.cos, math.sin))
    pairs = [a * b for p, q in ((cx, cy), (cx, sy), (sx, cy), (sx, sy)) for b in q for a in p]
    expected = [1.0, t, 10 * t, *cx, *cy, *sx, *sy, *pairs]
    torch.testing.assert_close(embedding(torch.tensor([t, x, y])), torch.tensor(expected))
    assert embedding.out_features == len(expected)
    assert SpaceTimeEmbedding(periods=[1.0] * 2, modes=[5, 5], time_powers=(0, 1, 2)).out_features == 124


@settings(max_examples=20)
@given(x=st.floats(-3, 3), t=st.floats(0, 1), period=st.floats(0.5, 7), turns=st.integers(-2, 2))
def test_networks_are_periodic_with_all_derivatives(x, t, period, turns) -> None:
    torch.manual_seed(0)
    net = ModifiedMLP(2, (6, 6), 1, embedding=SpaceTimeEmbedding(periods=[period], modes=[2])).double()
    here = torch.tensor([t, x], dtype=torch.float64)
    there = torch.tensor([t, x + turns * period], dtype=torch.float64)
    along = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for a, b in zip(jet(net, here, along, 4), jet(net, there, along, 4), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-7 * (2 * math.pi / period) ** 4)


def test_float64_features_have_float64_digits() -> None:
    embedding = SpaceTimeEmbedding(periods=[0.7], modes=[1], time_powers=(-3,))
    found = embedding(torch.tensor([0.1, 0.2], dtype=torch.float64))
    angle = 2 * math.pi * 0.2 / 0.7
    expected = torch.tensor([1e-4, 1.0, math.cos(angle), math.sin(angle)], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-16)


def test_fourier_features_are_sine_then_cosine() -> None:
    features = FourierFeatures(2, 3, sigma=5.0, generator=torch.Generator().manual_seed(1))
    x = torch.rand(4, 2)
    angle = x @ features.frequencies
    torch.testing.assert_close(features(x), torch.cat([angle.sin(), angle.cos()], dim=-1))
    again = FourierFeatures(2, 3, sigma=5.0, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again.frequencies, features.frequencies)
    wide = FourierFeatures(20, 500, sigma=3.0, generator=torch.Generator().manual_seed(1))
    assert float(wide.frequencies.std()) == pytest.approx(3.0, rel=0.05)


def test_frequencies_are_normal_numbers_times_sigma() -> None:
    plain, scaled = (
        FourierFeatures(2, 500, sigma=sigma, generator=torch.Generator().manual_seed(0)) for sigma in (1.0, 5.0)
    )
    torch.testing.assert_close(scaled.frequencies, 5 * plain.frequencies)
    assert float(scaled.frequencies.std()) == pytest.approx(5, rel=0.1)


def test_modified_network_by_its_formula() -> None:
    net = ModifiedMLP(2, (5, 5), 3)
    x = torch.rand(7, 2)
    u, v = torch.tanh(net.gate_u(x)), torch.tanh(net.gate_v(x))
    z = x
    for layer in net.layers[:-1]:
        o = torch.tanh(layer(z))
        z = o * u + (1 - o) * v
    torch.testing.assert_close(net(x), net.layers[-1](z))


def test_glorot_normal_weights_and_zero_biases() -> None:
    torch.manual_seed(0)
    net = ModifiedMLP(100, (300, 300), 1)
    for layer in (*net.layers[:-1], net.gate_u, net.gate_v):
        fan = sum(layer.weight.shape)
        assert float(layer.weight.detach().std()) == pytest.approx(math.sqrt(2 / fan), rel=0.03)
        assert not layer.bias.detach().any()
    assert not torch.equal(net.gate_u.weight, net.gate_v.weight)


@settings(max_examples=20)
@given(t0=st.floats(-1, 1), seed=st.integers(0, 20))
def test_initial_condition_is_exact(t0, seed) -> None:
    torch.manual_seed(seed)
    x = torch.rand(6, 2, dtype=torch.float64)
    x[:, 0] = t0
    net = ExactInitialCondition(MLP(2, (5,), 2).double(), lambda s: torch.cat([s, s**2], dim=-1), t0=t0)
    torch.testing.assert_close(net(x), torch.cat([x[:, 1:], x[:, 1:] ** 2], dim=-1), rtol=0, atol=1e-15)
    state = torch.tensor([1.0, 2.0], dtype=torch.float64)
    net.set_initial(state)
    torch.testing.assert_close(net(x), state.expand(6, 2), rtol=0, atol=1e-15)
    assert "initial" in net.state_dict()


def test_exact_initial_condition_changes_its_kind() -> None:
    net = ExactInitialCondition(MLP(2, (5,), 1), torch.ones(1), time_index=1)
    x = torch.rand(4, 2)
    x[:, 1] = 0
    for initial, expected in [
        (torch.sin, torch.sin(x[:, :1])),
        (torch.full((1,), 3.0), torch.full((4, 1), 3.0)),
        (nn.Linear(1, 1), None),
        (torch.zeros(1), torch.zeros(4, 1)),
    ]:
        net.set_initial(initial)
        torch.testing.assert_close(net(x), initial(x[:, :1]) if expected is None else expected)


@pytest.mark.parametrize("n", [6, 7])
def test_interpolant_hits_the_grid_and_knows_its_derivatives(n) -> None:
    low, high = -1.0, 2.0
    grid = low + (high - low) * torch.arange(n, dtype=torch.float64) / n
    fields = torch.randn(2, n, dtype=torch.float64)
    line = TrigonometricInterpolant(fields, [(low, high)])
    torch.testing.assert_close(line(grid[:, None]).T, fields)
    square = torch.randn(1, n, n, dtype=torch.float64)
    plane = TrigonometricInterpolant(square, [(low, high)] * 2)
    mesh = torch.stack([grid.expand(n, n), grid[:, None].expand(n, n)], dim=-1)  # [iy, ix]
    torch.testing.assert_close(plane(mesh)[..., 0], square[0])
    wave = 2 * math.pi / (high - low)
    sine = TrigonometricInterpolant(torch.sin(wave * grid)[None], [(low, high)])
    z, along = torch.rand(5, 1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    torch.testing.assert_close(jet(sine, z, along, 4)[4], wave**4 * torch.sin(wave * z), rtol=1e-9, atol=1e-9)


def test_interpolant_leaves_rounding_out() -> None:
    """In float32 the fourth derivative of rounding noise would swamp that of the state."""
    grid = 2 * math.pi * torch.arange(512) / 512
    line = TrigonometricInterpolant(torch.sin(grid)[None], [(0.0, 2 * math.pi)])
    x = torch.rand(50, 1)
    fourth = jet(line, x, torch.ones(1), 4)[4]
    torch.testing.assert_close(fourth, torch.sin(x), rtol=0, atol=1e-3)


def test_errors() -> None:
    embedding = SpaceTimeEmbedding(periods=[2.0], modes=[2])
    check_errors(
        [
            (lambda: SpaceTimeEmbedding(periods=[1.0, 2.0], modes=[3]), ValueError, "modes"),
            (lambda: SpaceTimeEmbedding(periods=[1.0] * 3, modes=[1] * 3), ValueError, "periods"),
            (lambda: SpaceTimeEmbedding(periods=[], modes=[]), ValueError, "periods"),
            (lambda: SpaceTimeEmbedding(periods=[0.0], modes=[1]), ValueError, "periods"),
            (lambda: SpaceTimeEmbedding(periods=[1.0], modes=[0]), ValueError, "modes"),
            (lambda: SpaceTimeEmbedding(periods=[1.0], modes=[1.5]), TypeError, "modes"),
            (lambda: SpaceTimeEmbedding(periods=[1.0], modes=[1], time_powers=()), ValueError, "time_powers"),
            (lambda: embedding(torch.rand(4, 3)), ValueError, "last dimension 2"),
            (lambda: embedding(torch.tensor(1.0)), ValueError, "last dimension"),
            (lambda: embedding(torch.ones(4, 2, dtype=torch.long)), TypeError, "x"),
            (lambda: FourierFeatures(0, 2), ValueError, "in_features"),
            (lambda: FourierFeatures(1, 2, sigma=0.0), ValueError, "sigma"),
            (lambda: MLP(2, (4,), 1)(torch.rand(3)), ValueError, "last dimension 2"),
            (lambda: MLP(2, (4,), 1, activation="swish"), ValueError, "'tanh', 'sin'"),
            (lambda: MLP(2, (0,), 1), ValueError, "hidden"),
            (lambda: MLP(3, (4,), 1, embedding=embedding), ValueError, "embedding"),
            (lambda: ModifiedMLP(2, (4, 5), 1), ValueError, "hidden"),
            (lambda: ModifiedMLP(2, (), 1), ValueError, "hidden"),
            (lambda: ModifiedMLP(2, (4,), 1, activation="relu"), ValueError, "activation"),
            (lambda: ExactInitialCondition(MLP(1, (4,), 1), "zero"), TypeError, "initial"),
            (lambda: ExactInitialCondition(MLP(1, (4,), 1), torch.zeros(1, 1)), ValueError, "initial"),
            (lambda: ExactInitialCondition(MLP(1, (4,), 1), torch.zeros(1), time_index=-1), ValueError, "time_index"),
        ]
    )
