"""Residuals, initial states and temporal losses."""

import math
import warnings

import pytest
import torch
from torch import Tensor

from offprints.pinn_causal import (
    MLP,
    AllenCahn,
    ExactInitialCondition,
    KuramotoSivashinsky,
    Lorenz,
    ModifiedMLP,
    NavierStokes2d,
    Problem,
    SpaceTimeEmbedding,
    solve_navier_stokes_2d,
)
from offprints.pinn_causal.equation import state_at
from offprints.shared.testing import check_errors

T = torch.linspace(0, 0.5, 4, dtype=torch.float64)
X = torch.linspace(-0.9, 0.8, 6, dtype=torch.float64)
XY = torch.rand(7, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(
    "problem", [AllenCahn(), KuramotoSivashinsky.regular(), KuramotoSivashinsky.chaotic(), Lorenz(), NavierStokes2d()]
)
def test_every_problem_keeps_the_protocol(problem) -> None:
    assert isinstance(problem, Problem)
    d = len(problem.domain)
    torch.manual_seed(0)
    net = MLP(1 + d, (5,), problem.n_outputs).double()
    x = {0: None, 1: X, 2: XY}[d]
    residuals = problem.residual(net, T, x)
    shape = (4,) if d == 0 else (4, len(x))
    assert [r.shape for r in residuals] == [shape] * len(problem.equation_weights)
    squares = sum(c * r**2 for c, r in zip(problem.equation_weights, residuals, strict=True))
    losses = problem.temporal_losses(net, T, x)
    torch.testing.assert_close(losses, squares if d == 0 else squares.mean(1))
    if d == 1:
        torch.testing.assert_close(problem.residual(net, T, x[:, None])[0], residuals[0])
    # A module of which only values are known has the same residual.
    for a, b in zip(problem.residual(lambda z: net(z), T, x), residuals, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8 * float(b.detach().abs().max() + 1))


def test_allen_cahn_by_hand() -> None:
    def net(z: Tensor) -> Tensor:  # u = t x^2
        return (z[..., 0] * z[..., 1] ** 2)[..., None]

    t, x = T[:, None], X[None]
    expected = x**2 - 0.3 * 2 * t + 2 * ((t * x**2) ** 3 - t * x**2)
    (residual,) = AllenCahn(nu=0.3, reaction=2.0).residual(net, T, X)
    torch.testing.assert_close(residual, expected)
    torch.testing.assert_close(AllenCahn().initial(X), X**2 * torch.cos(math.pi * X))


def test_kuramoto_sivashinsky_by_hand() -> None:
    def net(z: Tensor) -> Tensor:  # u = exp(-t) sin 2x
        return (torch.exp(-z[..., 0]) * torch.sin(2 * z[..., 1]))[..., None]

    decay, s, c = torch.exp(-T)[:, None], torch.sin(2 * X), torch.cos(2 * X)
    expected = decay * s * (-1 - 0.4 * 4 + 0.05 * 16) + 3 * decay**2 * s * 2 * c
    (residual,) = KuramotoSivashinsky(alpha=3.0, beta=0.4, gamma=0.05).residual(net, T, X)
    torch.testing.assert_close(residual, expected, rtol=1e-9, atol=1e-9)
    chaotic = KuramotoSivashinsky.chaotic()
    assert (chaotic.alpha, chaotic.beta, chaotic.gamma) == (100 / 16, 100 / 256, 100 / 65536)
    assert chaotic.domain == ((0.0, 2 * math.pi),)
    torch.testing.assert_close(chaotic.initial(X), torch.cos(X) * (1 + torch.sin(X)))


def test_taylor_green_vortex_has_no_residual() -> None:
    """w = 2 cos x cos y exp(-2 nu t) solves the equations."""
    nu = 0.05

    def net(z: Tensor) -> Tensor:
        t, x, y = z.unbind(-1)
        decay = torch.exp(-2 * nu * t)
        return torch.stack([-torch.cos(x) * torch.sin(y) * decay, torch.sin(x) * torch.cos(y) * decay], dim=-1)

    problem = NavierStokes2d(viscosity=nu)
    for residual in problem.residual(net, T, XY * 6):
        assert float(residual.abs().max()) < 1e-12
    grid = 2 * math.pi * torch.arange(8, dtype=torch.float64) / 8
    state = state_at(problem, net, 0.0, grid)
    expected = 2 * torch.cos(grid)[None, :] * torch.cos(grid)[:, None]
    torch.testing.assert_close(state[2], expected)
    assert float(problem.initial_loss(net, grid, state)) < 1e-20


def test_initial_flow_is_that_of_the_solver() -> None:
    n = 32
    grid = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    flow = solve_navier_stokes_2d([0.0], n=n)
    state = NavierStokes2d().initial(grid)
    band = torch.fft.rfft2(state)  # the solver's grid of 32 points keeps |k| <= 10
    keep = (torch.fft.fftfreq(n, 1 / n).abs()[:, None] <= n / 3) & (torch.arange(n // 2 + 1)[None] <= n / 3)
    for field, expected in zip(torch.fft.irfft2(band * keep, s=(n, n)), (flow.u, flow.v, flow.w), strict=True):
        torch.testing.assert_close(field, torch.from_numpy(expected[0]), rtol=1e-9, atol=1e-9)


def test_initial_loss_of_a_wrong_state() -> None:
    net = ExactInitialCondition(MLP(2, (4,), 1).double(), lambda x: torch.sin(x))
    state = torch.sin(X) + torch.arange(6)
    loss = AllenCahn().initial_loss(net, X, state)
    assert float(loss.detach()) == pytest.approx(float(torch.arange(6.0).square().mean()))
    lorenz = Lorenz(state0=(1.0, 2.0, 3.0))
    constant = ExactInitialCondition(MLP(1, (4,), 3).double(), lorenz.initial(T))
    assert float(lorenz.initial_loss(constant, T[:1], lorenz.initial(T) + 2).detach()) == pytest.approx(4)


def test_kuramoto_sivashinsky_keeps_the_mean_of_its_residual() -> None:
    """For a periodic network the mean over x of the residual is the rate of the mean of u."""
    torch.manual_seed(0)
    net = ModifiedMLP(2, (8, 8), 1, embedding=SpaceTimeEmbedding(periods=[2.0], modes=[1])).double()
    n = 256
    x = -1 + 2 * torch.arange(n, dtype=torch.float64) / n
    (residual,) = KuramotoSivashinsky.regular().residual(net, T, x)
    h = 1e-5

    def mean(t: Tensor) -> Tensor:
        return net(torch.stack(torch.broadcast_tensors(t[:, None], x[None]), dim=-1)).mean((1, 2))

    torch.testing.assert_close(residual.mean(1), (mean(T + h) - mean(T - h)) / (2 * h), rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_losses_can_be_compiled() -> None:
    torch.manual_seed(0)
    net = ModifiedMLP(1, (4,), 3).double()
    problem = Lorenz()
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the compiler itself warns of
        compiled = torch.compile(lambda t: problem.temporal_losses(net, t), backend="aot_eager")(T)
    plain = problem.temporal_losses(net, T)
    torch.testing.assert_close(compiled, plain)
    gradients = [torch.autograd.grad(losses.sum(), list(net.parameters())) for losses in (compiled, plain)]
    torch.testing.assert_close(*gradients)


def test_equal_neighbors_are_sorted() -> None:
    net = MLP(2, (4,), 1).double()
    losses = AllenCahn().temporal_losses(net, torch.tensor([0.1, 0.1, 0.3], dtype=torch.float64), X)
    assert losses[0] == losses[1]


def test_float32_and_gradients() -> None:
    torch.manual_seed(0)
    net = ModifiedMLP(3, (8, 8), 2, embedding=SpaceTimeEmbedding(periods=[2 * math.pi] * 2, modes=[2, 2]))
    losses = NavierStokes2d().temporal_losses(net, T.float(), XY.float())
    assert losses.dtype == torch.float32
    losses.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters())


def test_errors() -> None:
    net, flow, ode = MLP(2, (4,), 1).double(), MLP(3, (4,), 2).double(), MLP(1, (4,), 3).double()
    wide = MLP(2, (4,), 2).double()
    ac, ns, lz = AllenCahn(), NavierStokes2d(), Lorenz()
    check_errors(
        [
            (lambda: ac.residual(net, T[:, None], X), ValueError, "t must"),
            (lambda: ac.residual(net, T.flip(0), X), ValueError, "t must"),
            (lambda: ac.residual(net, T.numpy(), X), TypeError, "t must"),
            (lambda: ac.residual(net, torch.arange(3), X), TypeError, "t must"),
            (lambda: ac.residual(net, T), ValueError, "x must"),
            (lambda: ac.residual(net, T, X.expand(2, 6)), ValueError, "x must"),
            (lambda: ac.residual(wide, T, X), ValueError, "1 output"),
            (lambda: ac.temporal_losses(net, T.flip(0), X), ValueError, "t must"),
            (lambda: ac.initial_loss(net, X, X[:-1]), ValueError, "state"),
            (lambda: AllenCahn(nu=-1.0), ValueError, "nu"),
            (lambda: KuramotoSivashinsky(alpha=1.0, beta=1.0, gamma=-1.0), ValueError, "gamma"),
            (lambda: KuramotoSivashinsky.regular().residual(net, T.flip(0), X), ValueError, "t must"),
            (lambda: lz.residual(ode, T.flip(0)), ValueError, "t must"),
            (lambda: lz.residual(ode, T, X), ValueError, "x must"),
            (lambda: lz.residual(MLP(1, (4,), 2).double(), T), ValueError, "3 outputs"),
            (lambda: Lorenz(state0=(1.0, 1.0)), ValueError, "state0"),
            (lambda: ns.residual(flow, T, X), ValueError, "x must"),
            (lambda: ns.residual(flow, T), ValueError, "x must"),
            (lambda: ns.residual(MLP(3, (4,), 1).double(), T, XY), ValueError, "2 outputs"),
            (lambda: ns.initial_loss(flow, X, torch.zeros(3, 6, 5, dtype=torch.float64)), ValueError, "state"),
            (lambda: NavierStokes2d(viscosity=-0.1), ValueError, "viscosity"),
        ]
    )
