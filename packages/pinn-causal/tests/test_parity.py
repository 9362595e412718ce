"""Equality with the official code: golden/README.md says where the numbers come from."""

import math

import pytest
import torch
from torch import Tensor

from offprints.pinn_causal import (
    CausalLoss,
    ExactInitialCondition,
    KuramotoSivashinsky,
    Lorenz,
    NavierStokes2d,
    SpaceTimeEmbedding,
    causal_loss,
    causal_weights,
    jet,
    relative_l2,
    solve_allen_cahn,
    solve_kuramoto_sivashinsky,
)


def assert_equal(actual: Tensor, expected: Tensor, tolerance: float = 1e-8) -> None:
    """Within ``tolerance`` of the largest entry."""
    assert actual.shape == expected.shape
    torch.testing.assert_close(
        actual.to(expected.dtype), expected, rtol=0, atol=tolerance * float(expected.abs().max())
    )


@pytest.fixture
def data(golden) -> dict[str, Tensor]:
    return golden("parity")


@pytest.fixture
def regular(data, official):
    return official(data, "ks_", (16, 16, 16), SpaceTimeEmbedding(periods=[2.0], modes=[3]), 1)


@pytest.fixture
def flow(data, official):
    embedding = SpaceTimeEmbedding(periods=[2 * math.pi] * 2, modes=[2, 2], time_powers=(0, 1, 2))
    return official(data, "ns_", (16, 16), embedding, 2)


def grid_of(net, t: Tensor, x: Tensor) -> Tensor:
    return net(torch.stack(torch.broadcast_tensors(t[:, None], x[None]), dim=-1))[..., 0]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 2e-4)])
def test_regular_kuramoto_sivashinsky(data, regular, dtype, tolerance) -> None:
    net, problem = regular.to(dtype), KuramotoSivashinsky.regular()
    t, x, x_ic, state = (data[f"ks_{name}"].to(dtype) for name in ("t", "x", "x_ic", "state0"))
    assert_equal(grid_of(net, t, x), data["ks_u"], tolerance)
    points = torch.stack([t[0].expand(5), x[:5]], dim=-1)
    derivatives = torch.cat(jet(net, points, torch.tensor([0.0, 1.0], dtype=dtype), 4), dim=-1)
    for order in range(5):
        assert_equal(derivatives[:, order], data["ks_jet_x"][:, order], tolerance)
    assert_equal(problem.residual(net, t, x)[0], data["ks_residual"], tolerance)
    losses = problem.temporal_losses(net, t, x)
    assert_equal(losses, data["ks_Lt"], tolerance)
    initial = problem.initial_weight * problem.initial_loss(net, x_ic, state)
    assert_equal(initial, data["ks_L0"], tolerance)
    loss, weights = causal_loss(losses, float(data["ks_eps"]), initial_loss=initial)
    assert_equal(weights, data["ks_W"], tolerance)
    assert_equal(loss, data["ks_loss"], tolerance)
    last, gate = torch.autograd.grad(loss, [net.layers[-1].weight, net.gate_u.weight])
    assert_equal(last.T, data["ks_grad_last_W"], tolerance)
    assert_equal(gate.T, data["ks_grad_gate_u_W"], tolerance)


def test_chaotic_kuramoto_sivashinsky_has_fractional_time_powers(data, official) -> None:
    embedding = SpaceTimeEmbedding(periods=[2 * math.pi], modes=[2], time_powers=(-2, -1, 0, 1))
    net = official(data, "ck_", (16, 16), embedding, 1)
    t, x = data["ck_t"], data["ck_x"]
    assert_equal(grid_of(net, t, x), data["ck_u"])
    assert_equal(KuramotoSivashinsky.chaotic().residual(net, t, x)[0], data["ck_residual"])
    # The official code's integer powers turn 10^-k into 0, which is another function.
    assert (data["ck_u"] - data["ck_u_intpow"]).abs().max() > 1e-3


def test_navier_stokes(data, flow) -> None:
    problem = NavierStokes2d()
    t, x, grid = data["ns_t"], data["ns_x"], data["ns_grid"]
    vorticity, continuity = problem.residual(flow, t, x)
    assert_equal(vorticity, data["ns_res_w"])
    assert_equal(continuity, data["ns_res_c"])
    losses = problem.temporal_losses(flow, t, x)
    assert_equal(losses, data["ns_Lt"])
    state = data["ns_state0"].transpose(1, 2)  # stored [:, ix, iy]
    assert_equal(problem.initial_errors(flow, grid, state), data["ns_loss_ics"])
    initial = problem.initial_weight * problem.initial_loss(flow, grid, state)
    assert_equal(initial, data["ns_L0"])
    assert_equal(causal_weights(losses, float(data["ns_eps"]), initial_loss=initial), data["ns_W"])


def test_lorenz(data, official) -> None:
    net = ExactInitialCondition(official(data, "lz_", (16, 16), None, 3), data["lz_state0"])
    problem = Lorenz()
    assert_equal(torch.stack(problem.residual(net, data["lz_t"])), data["lz_res"])
    losses = problem.temporal_losses(net, data["lz_t"])
    loss, weights = CausalLoss(eps=float(data["lz_eps"]))(losses)
    assert_equal(weights, data["lz_W"])
    assert_equal(loss, data["lz_loss"])


@pytest.mark.parametrize("eps", ["0.01", "1", "100"])
def test_weights(data, eps) -> None:
    assert_equal(causal_weights(data["w_losses"], float(eps)), data[f"w_eps{eps}"])
    assert_equal(causal_weights(data["w_losses"], float(eps), initial_loss=0.3), data[f"w_eps{eps}_l0"])


@pytest.mark.parametrize("name", ["ac", "ks_simple", "ks_chaotic"])
def test_reference_solutions(golden, name) -> None:
    stored = golden("reference_solutions")
    t, x, u = (stored[f"{name}_{part}"].numpy() for part in "txu")
    if name == "ac":
        solution = solve_allen_cahn(t)
    else:
        solution = solve_kuramoto_sivashinsky(t, regime="regular" if name == "ks_simple" else "chaotic")
    assert relative_l2(solution.at(x), u) < 1e-4
