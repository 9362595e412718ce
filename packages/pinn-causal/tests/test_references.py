"""Reference solvers: invariants, convergence, exact solutions."""

import numpy as np
import pytest
import torch

from offprints.pinn_causal import (
    Reference,
    relative_l2,
    solve_allen_cahn,
    solve_kuramoto_sivashinsky,
    solve_lorenz,
    solve_navier_stokes_2d,
)
from offprints.shared.testing import check_errors


def test_allen_cahn_obeys_the_maximum_principle() -> None:
    solution = solve_allen_cahn(np.linspace(0, 1, 5), n=128)
    assert solution.u.shape == (5, 128)
    assert np.abs(solution.u).max() <= 1 + 1e-9
    np.testing.assert_allclose(solution.u[0], solution.x**2 * np.cos(np.pi * solution.x), atol=1e-14)


@pytest.mark.parametrize("regime", ["regular", "chaotic"])
def test_kuramoto_sivashinsky_conserves_the_mean(regime) -> None:
    solution = solve_kuramoto_sivashinsky([0.0, 0.1, 0.2], regime=regime, n=128)
    means = solution.u.mean(axis=1)
    np.testing.assert_allclose(means, means[0], atol=1e-12)
    assert np.abs(solution.u[2] - solution.u[0]).max() > 0.1


def test_time_integration_is_of_fourth_order() -> None:
    finest = solve_allen_cahn([0.8], n=64, dt=1e-3).u
    errors = [relative_l2(solve_allen_cahn([0.8], n=64, dt=dt).u, finest) for dt in (0.08, 0.04, 0.02)]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.all((orders > 3.5) & (orders < 4.8)), orders


def test_any_times_give_the_same_solution() -> None:
    alone = solve_kuramoto_sivashinsky([0.1], n=64).u[-1]
    among = solve_kuramoto_sivashinsky([0.0, 0.0123, 0.05, 0.05, 0.1], n=64).u
    np.testing.assert_allclose(among[-1], alone, rtol=1e-7, atol=1e-8)
    np.testing.assert_array_equal(among[2], among[3])


@pytest.mark.parametrize("n", [16, 15])
def test_interpolation(n) -> None:
    x = 1 + 3 * np.arange(n) / n
    wave = 2 * np.pi / 3
    u = np.stack([np.cos(2 * wave * x) + 0.5, np.sin(5 * wave * x)])
    reference = Reference(np.arange(2.0), x, u, 3.0)
    points = np.array([-2.0, 0.3, 1.7, 9.0])
    expected = np.stack([np.cos(2 * wave * points) + 0.5, np.sin(5 * wave * points)])
    np.testing.assert_allclose(reference.at(points), expected, atol=1e-12)
    np.testing.assert_allclose(reference.at(x), u, atol=1e-12)


def test_lorenz() -> None:
    path = solve_lorenz([0.0, 0.5, 0.5, 1.0])
    assert path.shape == (4, 3)
    np.testing.assert_array_equal(path[0], 1)
    np.testing.assert_array_equal(path[1], path[2])
    h = 1e-4
    near = solve_lorenz([0.5 - h, 0.5, 0.5 + h])
    x, y, z = near[1]
    velocity = [10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z]
    np.testing.assert_allclose((near[2] - near[0]) / (2 * h), velocity, rtol=1e-4)
    fixed = np.sqrt(8 / 3 * 27)
    stationary = solve_lorenz([0.0, 0.3], state0=(fixed, fixed, 27.0))
    np.testing.assert_allclose(stationary[1], stationary[0], atol=1e-8)
    np.testing.assert_array_equal(solve_lorenz([0.0]), np.ones((1, 3)))


def test_flow_invariants() -> None:
    flow = solve_navier_stokes_2d(np.linspace(0, 0.5, 4), n=48, seed=3)
    assert flow.u.shape == flow.v.shape == flow.w.shape == (4, 48, 48)
    np.testing.assert_allclose(flow.w.mean((1, 2)), 0, atol=1e-12)
    energy = (flow.u**2 + flow.v**2).mean((1, 2))
    assert np.all(np.diff(energy) < 0)
    wave = np.fft.fftfreq(48, 1 / 48)

    def along(f: np.ndarray, axis: int) -> np.ndarray:
        shape = [1, 1, 1]
        shape[axis] = 48
        return np.fft.ifft(1j * wave.reshape(shape) * np.fft.fft(f, axis=axis), axis=axis).real

    assert np.abs(along(flow.u, 2) + along(flow.v, 1)).max() < 1e-10
    np.testing.assert_allclose(along(flow.v, 2) - along(flow.u, 1), flow.w, atol=1e-9)


def test_random_flow_depends_on_the_seed_and_not_on_the_grid() -> None:
    coarse, fine = (solve_navier_stokes_2d([0.0], n=n, seed=5) for n in (64, 128))
    np.testing.assert_allclose(coarse.w, fine.w[:, ::2, ::2], atol=1e-9)
    assert np.hypot(fine.u, fine.v).max() == pytest.approx(3)
    other = solve_navier_stokes_2d([0.0], n=64, seed=6)
    assert relative_l2(other.w, coarse.w) > 0.5


def test_taylor_green_vortex() -> None:
    n, nu = 32, 0.1
    x = 2 * np.pi * np.arange(n) / n
    start = 2 * np.cos(x)[None, :] * np.cos(x)[:, None]
    flow = solve_navier_stokes_2d([0.0, 0.5, 1.0], n=n, viscosity=nu, initial=start)
    expected = start * np.exp(-2 * nu * flow.t)[:, None, None]
    np.testing.assert_allclose(flow.w, expected, atol=1e-12)
    # The orientation [iy, ix]: psi = cos x cos y, u = psi_y
    np.testing.assert_allclose(flow.u[0], -np.cos(x)[None, :] * np.sin(x)[:, None], atol=1e-12)


@pytest.mark.parametrize("n", [32, 33])
def test_the_highest_third_of_the_modes_is_left_out(n) -> None:
    flow = solve_navier_stokes_2d([0.0, 0.1], n=n, seed=1)
    size = np.abs(np.fft.fft2(flow.w)).max((1, 2), keepdims=True)
    modes = np.abs(np.fft.fft2(flow.w)) / size
    k = np.abs(np.fft.fftfreq(n, 1 / n))
    beyond = (k[:, None] > n / 3) | (k[None] > n / 3)
    assert modes[:, beyond].max() < 1e-13
    edge = (k[:, None] == n // 3) & (k[None] < n / 3)
    assert modes[1, edge].max() > 1e-9


def test_relative_l2() -> None:
    assert relative_l2(np.array([1.0, 1.0]), np.array([2.0, 2.0])) == pytest.approx(0.5)
    prediction = torch.tensor([1.0, 1.0], requires_grad=True)
    assert relative_l2(prediction, [2.0, 2.0]) == pytest.approx(0.5)


def test_errors() -> None:
    solution = solve_allen_cahn([0.0], n=8)
    check_errors(
        [
            (lambda: solve_allen_cahn([0.2, 0.1]), ValueError, "t must"),
            (lambda: solve_allen_cahn([-0.1, 0.1]), ValueError, "t must"),
            (lambda: solve_allen_cahn([]), ValueError, "t must"),
            (lambda: solve_allen_cahn([np.nan]), ValueError, "t must"),
            (lambda: solve_allen_cahn([0.0], n=3), ValueError, "n must"),
            (lambda: solve_allen_cahn([0.0], dt=0.0), ValueError, "dt must"),
            (lambda: solve_kuramoto_sivashinsky([0.0], regime="wild"), ValueError, "'regular', 'chaotic'"),
            (lambda: solve_lorenz([0.0], state0=(1.0,)), ValueError, "state0"),
            (lambda: solve_lorenz([0.0, 1.0], sigma=np.nan), ValueError, "sigma must"),
            (lambda: solve_lorenz([0.0, 1.0], rho=np.inf), ValueError, "rho must"),
            (lambda: solve_lorenz([0.0, 1.0], rho=1e30), ValueError, "cannot be followed"),
            (lambda: solve_allen_cahn([0.0, 0.1], n=16, reaction=1e6), ValueError, "overflows"),
            (lambda: solve_allen_cahn([0.0, 1e5], n=16, dt=1e-3), ValueError, "at most"),
            (lambda: solve_navier_stokes_2d([0.0], n=7), ValueError, "n must"),
            (lambda: solve_navier_stokes_2d([0.0], n=16, initial=np.zeros((8, 8))), ValueError, "initial"),
            (lambda: solve_navier_stokes_2d([0.0], n=16, initial=np.ones((16, 16))), ValueError, "mean 0"),
            (lambda: solve_navier_stokes_2d([0.0], n=16, initial=np.full((16, 16), np.nan)), ValueError, "finite"),
            (lambda: solve_navier_stokes_2d([0.0], viscosity=-1.0), ValueError, "viscosity"),
            (lambda: solution.at(np.zeros((2, 2))), ValueError, "x must"),
            (lambda: relative_l2([1.0], [1.0, 2.0]), ValueError, "shape"),
            (lambda: relative_l2([1.0], [0.0]), ValueError, "vanish"),
        ]
    )
