"""Taylor mode: `jet`, partial derivatives on grids, the arithmetic of series."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from offprints.pinn_causal import (
    MLP,
    ExactInitialCondition,
    FourierFeatures,
    ModifiedMLP,
    SpaceTimeEmbedding,
    derivatives,
    jet,
)
from offprints.pinn_causal.algebra import algebra
from offprints.pinn_causal.exact import WithoutRate
from offprints.pinn_causal.interpolant import TrigonometricInterpolant
from offprints.pinn_causal.jets import takes_series
from offprints.pinn_causal.series import horner
from offprints.shared.testing import check_errors

PERIODIC = {"periods": [2.0], "modes": [3], "time_powers": (-1, 0)}


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    square = SpaceTimeEmbedding(periods=[2.0, 3.0], modes=[2, 1])
    fields = torch.randn(1, 8, dtype=torch.float64)
    made = {
        "mlp": MLP(2, (7, 5), 2),
        "linear": MLP(2, (), 2),
        "sine": MLP(2, (7, 5), 2, activation="sin"),
        "periodic": MLP(2, (7, 5), 1, embedding=SpaceTimeEmbedding(**PERIODIC)),
        "fourier": MLP(2, (7,), 1, embedding=FourierFeatures(2, 4)),
        "modified": ModifiedMLP(2, (6, 6), 1, embedding=SpaceTimeEmbedding(**PERIODIC)),
        "modified sine": ModifiedMLP(2, (6, 6), 1, activation="sin"),
        "square": ModifiedMLP(3, (6, 6), 2, embedding=square),
        "foreign": MLP(2, (6,), 1, embedding=nn.Linear(2, 4)),
        "exact constant": ExactInitialCondition(MLP(1, (5,), 3), torch.tensor([1.0, 2.0, 3.0]), t0=0.5),
        "exact callable": ExactInitialCondition(MLP(2, (5,), 1), lambda x: torch.sin(2 * x)),
        "exact interpolant": ExactInitialCondition(MLP(2, (5,), 1), TrigonometricInterpolant(fields, [(0.0, 2.0)])),
    }
    for net in made.values():
        for module in net.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.bias, std=0.5)
    return {name: net.double() for name, net in made.items()}


NETWORKS = networks()


def dimensions(net: nn.Module) -> int:
    return (net.net if isinstance(net, ExactInitialCondition) else net).in_features


def opaque(net: nn.Module):
    """The same function, of which nothing but its values is known."""
    return lambda x: net(x)


@pytest.mark.parametrize("name", NETWORKS)
def test_jet_equals_nested_reverse_mode(name) -> None:
    net = NETWORKS[name]
    x = torch.rand(4, dimensions(net), dtype=torch.float64)
    direction = torch.randn(4, dimensions(net), dtype=torch.float64)
    taylor, nested = jet(net, x, direction, 3), jet(opaque(net), x, direction, 3)
    assert len(taylor) == 4
    for a, b in zip(taylor, nested, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * float(b.detach().abs().max() + 1))
    torch.testing.assert_close(taylor[0], net(x))


@pytest.mark.parametrize("name", NETWORKS)
def test_grid_derivatives_and_their_gradients_equal_directional_ones(name) -> None:
    """One pass for all partial derivatives; one jet per direction and polarization; nested reverse mode."""
    net, d = NETWORKS[name], dimensions(NETWORKS[name])
    t, x, y = torch.rand(3, 1), torch.rand(1, 4), torch.rand(1, 4)
    coordinates = [c.double() for c in (t, x, y)][:d] if d > 1 else [t[:, 0].double()]
    indices = {
        1: [(0,), (1,), (2,)],
        2: [(0, 0), (1, 0), (0, 1), (0, 2), (1, 2), (0, 4)],
        3: [(0, 0, 0), (1, 1, 0), (0, 1, 1), (0, 2, 1), (0, 0, 3)],
    }[d]
    compare(net, derivatives(net, coordinates, indices), derivatives(opaque(net), coordinates, indices))


@pytest.mark.parametrize("name", NETWORKS)
def test_operators_are_sums_of_derivatives(name) -> None:
    """Those that share their highest derivatives, and a derivative that is asked for by itself too."""
    net, d = NETWORKS[name], dimensions(NETWORKS[name])
    coordinates = [torch.rand(3, 1).double(), torch.rand(1, 4).double(), torch.rand(1, 4).double()][:d]
    indices, operators = {
        1: ([(0,)], [(((2,), 0.5), ((0,), 3.0))]),
        2: ([(0, 1), (0, 3)], [(((1, 0), 1.0), ((0, 2), 0.5), ((0, 4), -0.1)), (((0, 3), 2.0), ((1, 0), -1.0))]),
        3: ([(0, 1, 1)], [(((1, 1, 0), 1.0), ((0, 3, 0), -0.1)), (((0, 0, 3), 1.0), ((0, 3, 0), 2.0))]),
    }[d]  # fmt: skip
    alone = [sum(w * derivatives(net, coordinates, [i])[0] for i, w in operator) for operator in operators]
    together = derivatives(net, coordinates, indices, operators)
    assert len(together) == len(indices) + len(operators)
    compare(net, together, [*derivatives(net, coordinates, indices), *alone])
    if name == "exact constant":
        for a, b in zip(together, derivatives(opaque(net), coordinates, indices, operators), strict=True):
            assert_near(a, b, 1e-8)


def test_an_operator_passes_as_one_coefficient() -> None:
    heat = algebra(((0, 0),), ((((1, 0), 1.0), ((0, 2), -0.3)),))
    assert heat.size == 3  # u, u_x, u_t - 0.3 u_xx
    assert algebra(((0, 0), (1, 0), (0, 2))).size == 4


def compare(net: nn.Module, fast: list[Tensor], slow: list[Tensor]) -> None:
    """Values, and gradients of a sum of squares."""
    parameters = list(net.parameters())
    for a, b in zip(fast, slow, strict=True):
        assert_near(a.expand_as(b), b, 1e-8)
    weights = [torch.randn_like(b) for b in slow]
    sums = [sum((w * f.square()).sum() for w, f in zip(weights, found, strict=True)) for found in (fast, slow)]
    gradients = [torch.autograd.grad(total, parameters, materialize_grads=True) for total in sums]
    for a, b in zip(*gradients, strict=True):
        assert_near(a, b, 1e-8)


def assert_near(a: Tensor, b: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(a, b, rtol=10 * tolerance, atol=tolerance * float(b.detach().abs().max() + 1))


@settings(max_examples=8)
@given(coefficients=st.lists(st.floats(-3, 3), min_size=1, max_size=5), x=st.floats(-2, 2), direction=st.floats(-2, 2))
def test_jet_of_a_polynomial_is_exact(coefficients, x, direction) -> None:
    c = torch.tensor(coefficients, dtype=torch.float64)

    def polynomial(z: Tensor) -> Tensor:
        return horner(list(c), z)

    found = jet(polynomial, torch.tensor([x], dtype=torch.float64), torch.tensor([direction], dtype=torch.float64), 3)
    for order, value in enumerate(found):
        expected = (
            sum(float(a) * math.perm(k, order) * x ** (k - order) for k, a in enumerate(c) if k >= order)
            * direction**order
        )
        assert float(value) == pytest.approx(expected, rel=1e-9, abs=1e-8)


def test_jet_is_linear_in_the_function() -> None:
    f, g = NETWORKS["mlp"], NETWORKS["sine"]
    x, v = torch.rand(3, 2, dtype=torch.float64), torch.tensor([0.3, -1.0], dtype=torch.float64)
    both = jet(lambda z: 2 * f(z) - g(z), x, v, 3)
    for total, a, b in zip(both, jet(f, x, v, 3), jet(g, x, v, 3), strict=True):
        torch.testing.assert_close(total, 2 * a - b, rtol=1e-9, atol=1e-9)


def test_jet_of_order_zero_and_second_derivatives_of_parameters() -> None:
    net = NETWORKS["modified"]
    x, v = torch.rand(2, 2, dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    (value,) = jet(net, x, v, 0)
    torch.testing.assert_close(value, net(x))

    def loss(fn) -> Tensor:
        return jet(fn, x, v, 2)[2].square().sum()

    weight = net.layers[0].weight
    for fn in (net, opaque(net)):
        (first,) = torch.autograd.grad(loss(fn), weight, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), weight)
        if fn is net:
            expected = second
    torch.testing.assert_close(second, expected, rtol=1e-8, atol=1e-8 * float(expected.abs().max()))


def test_a_subclass_that_changes_forward_loses_taylor_mode_not_correctness() -> None:
    class Squared(MLP):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) ** 2

    net = Squared(2, (5,), 1).double()
    x, v = torch.rand(3, 2, dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)
    for a, b in zip(jet(net, x, v, 2), jet(opaque(net), x, v, 2), strict=True):
        torch.testing.assert_close(a, b)
    grid = [torch.rand(2, 1, dtype=torch.float64), torch.rand(1, 2, dtype=torch.float64)]
    torch.testing.assert_close(derivatives(net, grid, [(0, 2)]), derivatives(opaque(net), grid, [(0, 2)]))


def test_a_foreign_module_takes_part_by_forward_jet() -> None:
    class Cube(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            return x[..., :1] ** 3

        def forward_jet(self, coeffs: list[Tensor]) -> list[Tensor]:
            type(self).calls += 1
            c = [z[..., :1] for z in coeffs] + [torch.zeros_like(coeffs[0][..., :1])] * 3
            return [c[0] ** 3, 3 * c[0] ** 2 * c[1], 3 * c[0] * c[1] ** 2, c[1] ** 3][: len(coeffs)]

    x, v = torch.rand(5, 2), torch.tensor([1.0, 1.0])
    found = jet(Cube(), x, v, 3)
    assert Cube.calls == 1
    torch.testing.assert_close(found[3], torch.full((5, 1), 6.0))
    torch.testing.assert_close(found[2], 6 * x[:, :1])


def test_float32_and_shapes() -> None:
    net = MLP(2, (8, 8), 3)
    found = jet(net, torch.rand(2, 5, 2), torch.tensor([1.0, 0.0]), 2)
    assert [f.shape for f in found] == [(2, 5, 3)] * 3
    assert all(f.dtype == torch.float32 for f in found)


def test_errors() -> None:
    net, x = MLP(2, (3,), 1), torch.rand(4, 2)
    check_errors(
        [
            (lambda: jet(net, x, torch.ones(2), -1), ValueError, "order"),
            (lambda: jet(net, x, torch.ones(2), 1.5), TypeError, "order"),
            (lambda: jet(net, x, torch.ones(3), 1), ValueError, "direction"),
            (lambda: jet(net, x, torch.ones(7, 4, 2), 1), ValueError, "direction"),
            (lambda: jet(net, x.numpy(), torch.ones(2), 1), TypeError, "x"),
            (lambda: jet(net, x, torch.ones(2, dtype=torch.long), 1), TypeError, "direction"),
        ]
    )


class Normalized(nn.Module):
    """A network with layer normalization, by torch or by hand."""

    def __init__(self, by_hand: bool) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(2, 5), nn.LayerNorm(5), nn.Linear(5, 1)
        self.by_hand = by_hand
        with torch.no_grad():
            self.norm.weight.copy_(torch.linspace(0.5, 1.5, 5))
            self.norm.bias.copy_(torch.linspace(-0.3, 0.4, 5))

    def forward(self, z: Tensor) -> Tensor:
        h = self.first(z)
        if self.by_hand:
            h = h - h.mean(-1, keepdim=True)
            h = h / (h.square().mean(-1, keepdim=True) + 1e-5).sqrt() * self.norm.weight + self.norm.bias
        else:
            h = self.norm(h)
        return self.last(torch.sin(h))


def test_layer_normalization_beyond_what_torch_differentiates() -> None:
    """The third derivative, and the parameters' gradient of the second, which torch.autograd.grad gets wrong."""
    torch.manual_seed(0)
    net, plain = Normalized(False).double(), Normalized(True).double()
    plain.load_state_dict(net.state_dict())
    t, x = torch.rand(3, 1, dtype=torch.float64), torch.rand(1, 4, dtype=torch.float64)
    z = torch.stack(torch.broadcast_tensors(t, x), dim=-1).requires_grad_()

    def by_autograd(axes: tuple[int, ...]) -> Tensor:
        value = plain(z)[..., 0]
        for axis in axes:
            value = torch.autograd.grad(value.sum(), z, create_graph=True)[0][..., axis]
        return value

    indices = {(0, 2): (1, 1), (0, 3): (1, 1, 1), (2, 1): (0, 0, 1), (0, 4): (1, 1, 1, 1)}
    for found, axes in zip(derivatives(net, [t, x], list(indices)), indices.values(), strict=True):
        torch.testing.assert_close(found[..., 0], by_autograd(axes), rtol=1e-7, atol=1e-7)
    found = torch.autograd.grad(derivatives(net, [t, x], [(0, 2)])[0].square().sum(), list(net.parameters())[:-1])
    expected = torch.autograd.grad(by_autograd((1, 1)).square().sum(), list(plain.parameters())[:-1])
    for ours, right in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-7, atol=1e-7)
    # Inside transforms of torch.func derivatives are nested in forward mode.
    values = dict(net.named_parameters())

    def squared(values: dict[str, Tensor]) -> Tensor:
        return derivatives(lambda z: torch.func.functional_call(net, values, (z,)), [t, x], [(0, 2)])[0].square().sum()

    gradients = torch.func.grad(squared)(values)
    for name, right in zip(list(values)[:-1], expected, strict=True):
        torch.testing.assert_close(gradients[name], right, rtol=1e-7, atol=1e-7)


def test_layer_normalization_in_half_precision() -> None:
    torch.manual_seed(0)
    net = Normalized(False).bfloat16()
    t, x = torch.rand(3, 1).bfloat16(), torch.rand(1, 4).bfloat16()
    u, rate = derivatives(net, [t, x], [(0, 0), (1, 0)])
    assert u.dtype == rate.dtype == torch.bfloat16
    right = derivatives(net.float(), [t.float(), x.float()], [(1, 0)])[0].detach()
    torch.testing.assert_close(rate.detach().float(), right, rtol=0, atol=0.05 * float(right.abs().max()))


def test_attention_has_second_derivatives() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(4, 2, batch_first=True).double()
    first, last = nn.Linear(2, 8).double(), nn.Linear(8, 1).double()

    def net(z: Tensor) -> Tensor:
        tokens = torch.sin(first(z)).reshape(-1, 2, 4)
        return last(attention(tokens, tokens, tokens, need_weights=False)[0].flatten(1)).reshape(*z.shape[:-1], 1)

    t, x, h = torch.rand(3, 1, dtype=torch.float64), torch.rand(1, 4, dtype=torch.float64), 1e-3

    def at(dx: float) -> Tensor:
        return net(torch.stack(torch.broadcast_tensors(t, x + dx), dim=-1)).detach()

    difference = (16 * (at(h) + at(-h)) - at(2 * h) - at(-2 * h) - 30 * at(0.0)) / (12 * h * h)
    torch.testing.assert_close(derivatives(net, [t, x], [(0, 2)])[0].detach(), difference, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("net", [lambda z: z[..., :1] * z[..., 1:] ** 3, MLP(2, (5,), 1).double()], ids=["any", "ours"])
def test_weights_of_operators_may_be_tensors(net) -> None:
    """Unknown coefficients and ones that vary from point to point."""
    t, x = torch.rand(3, 1, dtype=torch.float64), torch.rand(1, 4, dtype=torch.float64)
    nu = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
    speed = (t + x)[..., None]
    u, whole, varying, only = derivatives(
        net, [t, x], [(0, 0)], [{(1, 0): 1, (0, 2): -nu}, {(1, 0): 1.0, (0, 1): speed, (0, 2): -0.5}, {(0, 2): nu}]
    )
    right, u_t, u_x, u_xx = (f.expand(3, 4, 1) for f in derivatives(net, [t, x], [(0, 0), (1, 0), (0, 1), (0, 2)]))
    torch.testing.assert_close(u.expand(3, 4, 1), right)
    torch.testing.assert_close(whole, u_t - nu * u_xx)
    torch.testing.assert_close(varying, u_t + speed * u_x - 0.5 * u_xx)
    torch.testing.assert_close(only, nu * u_xx)
    torch.testing.assert_close(torch.autograd.grad(whole.sum(), nu, retain_graph=True)[0], -u_xx.sum())
    with pytest.raises(TypeError, match="operators"):
        derivatives(net, [t, x], [], [{(1, 0): torch.tensor(1)}])


@pytest.mark.parametrize("state", [None, lambda s: torch.sin(s)], ids=["soft", "exact"])
def test_a_network_without_its_rate(state) -> None:
    """Derivatives in space remain, those with a time in them vanish; by series, by jets and by autograd."""
    torch.manual_seed(0)
    inner = ModifiedMLP(2, (5, 5), 1, embedding=SpaceTimeEmbedding(**PERIODIC))
    net = (inner if state is None else ExactInitialCondition(inner, state, t0=0.2)).double()
    still = WithoutRate(net)
    t, x = torch.rand(3, 1, dtype=torch.float64), torch.rand(1, 4, dtype=torch.float64)
    assert takes_series(still)
    indices = [(0, 0), (1, 0), (0, 2), (1, 1), (0, 4)]
    expected = derivatives(net, [t, x], indices)
    expected = [torch.zeros_like(e) if index[0] else e for e, index in zip(expected, indices, strict=True)]
    operator = {(1, 0): 1.0, (0, 4): -0.3}
    for module in (still, lambda z: still(z)):
        *found, rate = derivatives(module, [t, x], indices, [operator])
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a.expand(3, 4, 1), b.expand(3, 4, 1), rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(rate.expand(3, 4, 1), -0.3 * expected[-1].expand(3, 4, 1), rtol=1e-8, atol=1e-8)
    z = torch.rand(6, 2, dtype=torch.float64)
    for a, b in zip(jet(still, z, torch.ones(2), 3), jet(net, z, torch.tensor([0.0, 1.0]), 3), strict=True):
        torch.testing.assert_close(a, b)
