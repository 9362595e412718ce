"""Reference solutions of the five problems: Fourier in space, ETDRK4 in time, float64; DOP853 for Lorenz.

ETDRK4 is the fourth-order exponential Runge-Kutta scheme of Cox and Matthews; its coefficients are contour averages as
Kassam and Trefethen compute them (SIAM J. Sci. Comput. 26, 2005).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor

from offprints.shared.validation import check_choice, check_number

Array = np.ndarray[Any, np.dtype[Any]]


class Reference(NamedTuple):
    """A solution in one space dimension: ``u`` is ``(n_t, n_x)``, ``x`` uniform over a ``period``, without its end.

    Example:
        >>> wave = Reference(np.zeros(1), np.arange(4) / 4, np.sin(2 * np.pi * np.arange(4) / 4)[None], 1.0)
        >>> wave.at([0.125]).round(3)
        array([[0.707]])
    """

    t: Array
    x: Array
    u: Array
    period: float

    def at(self, x: ArrayLike) -> Array:
        """Return the solution ``(n_t, len(x))`` at any points, by trigonometric interpolation.

        Raises:
            ValueError: ``x`` is not one-dimensional.
        """
        points = _array(x, "x")
        if points.ndim != 1:
            raise ValueError(f"x must be one-dimensional, got shape {points.shape}")
        n = len(self.x)
        amplitudes = np.fft.rfft(self.u, axis=-1) / n
        amplitudes[:, 1 : (n + 1) // 2] *= 2  # the conjugate half; an even grid's last mode has none
        k = np.arange(amplitudes.shape[1])
        waves = np.exp(2j * np.pi / self.period * np.outer(k, points - self.x[0]))
        interpolated: Array = (amplitudes @ waves).real
        return interpolated


class Reference2d(NamedTuple):
    """A flow on the periodic square: velocity ``u, v``, vorticity ``w``, each ``(n_t, n, n)`` indexed [t, iy, ix].

    Example:
        >>> solve_navier_stokes_2d([0.0], n=16).u.shape
        (1, 16, 16)
    """

    t: Array
    x: Array
    y: Array
    u: Array
    v: Array
    w: Array


def relative_l2(prediction: Tensor | ArrayLike, reference: Tensor | ArrayLike) -> float:
    """Return ``||prediction - reference|| / ||reference||`` over all entries.

    Raises:
        TypeError: an argument is not an array of real numbers.
        ValueError: the shapes differ, an entry is not finite, or the reference vanishes.

    Example:
        >>> relative_l2([1.0, 2.0], [1.0, 1.0])
        0.7071...
    """
    p, r = _array(prediction, "prediction"), _array(reference, "reference")
    if p.shape != r.shape:
        raise ValueError(f"prediction and reference must have the same shape, got {p.shape} and {r.shape}")
    largest = float(np.abs(r).max(initial=0.0))
    if largest == 0:
        raise ValueError("reference must not vanish")
    # In units of the largest entry: squares neither overflow nor vanish.
    return float(np.linalg.norm(p / largest - r / largest) / np.linalg.norm(r / largest))


def _array(value: Any, name: str) -> Array:
    """Return finite real numbers as a float64 array."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = value.float() if value.dtype == torch.bfloat16 else value  # which NumPy lacks
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array of numbers, got {type(value).__name__}") from error
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name} must be an array of real numbers, got {type(value).__name__} of {array.dtype}")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {array[~np.isfinite(array)][0]}")
    return array


def _times(t: ArrayLike) -> Array:
    times = _array(t, "t")
    if times.ndim != 1 or times.size == 0:
        raise ValueError(f"t must be one-dimensional and not empty, got shape {times.shape}")
    if times[0] < 0 or (np.diff(times) < 0).any():
        raise ValueError("t must be not negative and sorted")
    return times


MOST_STEPS = 10_000_000  # more would take hours; for adaptive steps, which are dearer, a fiftieth


def _check_dt(dt: float, times: Array) -> float:
    dt = check_number(dt, "dt", low=0, open_low=True)
    if times[-1] / dt > MOST_STEPS:
        raise ValueError(f"t / dt must be at most {MOST_STEPS:g} steps, got t up to {times[-1]:g} and dt={dt:g}")
    return dt


def _check_solution(states: Sequence[Array], dt: float, parameters: str) -> None:
    if not all(np.isfinite(state).all() for state in states):
        raise ValueError(f"the solution overflows with dt={dt:g} and {parameters}: make dt or the parameters smaller")


def _phi_coefficients(linear: Array, h: float, points: int = 32) -> tuple[Array, ...]:
    """Return the ETDRK4 coefficients: contour averages around ``h linear``, free of cancellation."""
    roots = np.exp(1j * np.pi * (np.arange(1, points + 1) - 0.5) / points)  # upper half: linear is real

    def average(f: Callable[[Array], Array]) -> Array:
        values = np.stack([f(h * linear + root) for root in roots])
        mean: Array = h * values.real.mean(0)
        return mean

    q = average(lambda z: (np.exp(z / 2) - 1) / z)
    f1 = average(lambda z: (-4 - z + np.exp(z) * (4 - 3 * z + z**2)) / z**3)
    f2 = average(lambda z: (2 + z + np.exp(z) * (-2 + z)) / z**3)
    f3 = average(lambda z: (-4 - 3 * z - z**2 + np.exp(z) * (4 - z)) / z**3)
    return np.exp(h * linear), np.exp(h * linear / 2), q, f1, f2, f3


def _etdrk4(start: Array, linear: Array, nonlinear: Callable[[Array], Array], times: Array, dt: float) -> list[Array]:
    """Integrate ``v' = linear v + nonlinear(v)`` from time 0; return v at ``times``, whole steps of at most ``dt``."""
    coefficients: dict[float, tuple[Array, ...]] = {}
    v, now, states = start, 0.0, []
    for end in times:
        span = float(end) - now
        steps = math.ceil(span / dt - 1e-9)
        if steps:
            # Equal spans up to rounding share their coefficients.
            h = float(f"{span / steps:.13e}")
            if h not in coefficients:
                coefficients[h] = _phi_coefficients(linear, h)
            full, half, q, f1, f2, f3 = coefficients[h]
            for _ in range(steps):
                n_v = nonlinear(v)
                a = half * v + q * n_v
                n_a = nonlinear(a)
                b = half * v + q * n_a
                n_b = nonlinear(b)
                c = half * a + q * (2 * n_b - n_v)
                v = full * v + n_v * f1 + 2 * (n_a + n_b) * f2 + nonlinear(c) * f3
            now = float(end)
        states.append(v)
    return states


def _solve_1d(
    t: ArrayLike,
    low: float,
    period: float,
    n: int,
    dt: float,
    initial: Callable[[Array], Array],
    linear: Callable[[Array], Array],
    nonlinear: Callable[[Array, Array], Array],
    parameters: str,
) -> Reference:
    """Solve on n points of [low, low + period); ``nonlinear(u, ik)`` returns the Fourier transform of its term."""
    times = _times(t)
    n = check_number(n, "n", low=4, integer=True)
    dt = _check_dt(dt, times)
    x = low + period * np.arange(n) / n
    k = 2 * np.pi / period * np.arange(n // 2 + 1)
    ik = 1j * k
    if n % 2 == 0:
        ik[-1] = 0  # the odd derivative of the highest mode vanishes on the grid
    with np.errstate(all="ignore"):  # what is not finite is refused below
        states = _etdrk4(np.fft.rfft(initial(x)), linear(k), lambda v: nonlinear(np.fft.irfft(v, n), ik), times, dt)
    _check_solution(states, dt, parameters)
    return Reference(times, x, np.stack([np.fft.irfft(v, n) for v in states]), period)


def solve_allen_cahn(
    t: ArrayLike, *, n: int = 512, nu: float = 1e-4, reaction: float = 5.0, dt: float = 1e-3
) -> Reference:
    """Solve ``u_t = nu u_xx - reaction (u^3 - u)`` on [-1, 1), period 2, from ``x^2 cos(pi x)``.

    The initial condition has a kink at the periodic boundary, so that the solution depends on n, by 6e-4 at the kink.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: ``t`` is not sorted and non-negative, n below 4, dt not positive, more than ten million steps; the
            solution overflows.

    Example:
        >>> solution = solve_allen_cahn([0.0, 0.1], n=64)
        >>> solution.u.shape, float(solution.at([0.5])[0, 0].round(3))
        ((2, 64), 0.0)
    """
    nu = check_number(nu, "nu", low=0)
    reaction = check_number(reaction, "reaction")
    return _solve_1d(
        t,
        -1.0,
        2.0,
        n,
        dt,
        lambda x: x**2 * np.cos(np.pi * x),
        lambda k: reaction - nu * k**2,
        lambda u, ik: -reaction * np.fft.rfft(u**3),
        f"nu={nu:g}, reaction={reaction:g}",
    )


# alpha, beta, gamma of u_t + alpha u u_x + beta u_xx + gamma u_xxxx = 0; domain; initial state; time step
KS_REGIMES: dict[str, tuple[tuple[float, float, float], tuple[float, float], float]] = {
    "regular": ((5.0, 0.5, 0.005), (-1.0, 1.0), 5e-4),
    "chaotic": ((100 / 16, 100 / 16**2, 100 / 16**4), (0.0, 2 * math.pi), 1e-4),
}


def solve_kuramoto_sivashinsky(
    t: ArrayLike, *, regime: Literal["regular", "chaotic"] = "regular", n: int = 512, dt: float | None = None
) -> Reference:
    """Solve ``u_t + alpha u u_x + beta u_xx + gamma u_xxxx = 0``, periodic.

    "regular": alpha 5, beta 0.5, gamma 0.005 on [-1, 1) from ``-sin(pi x)``; "chaotic": 100/16, 100/16^2, 100/16^4 on
    [0, 2 pi) from ``cos x (1 + sin x)``. ``dt`` defaults to 5e-4 and 1e-4.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: unknown regime; ``t`` is not sorted and non-negative, n below 4, dt not positive, more than ten
            million steps; the solution overflows.

    Example:
        >>> solution = solve_kuramoto_sivashinsky([0.0, 0.05], n=64)
        >>> solution.u.shape, abs(float(solution.u[1].mean())) < 1e-12
        ((2, 64), True)
    """
    check_choice(regime, "regime", tuple(KS_REGIMES))
    (alpha, beta, gamma), (low, high), step = KS_REGIMES[regime]
    regular = regime == "regular"
    return _solve_1d(
        t,
        low,
        high - low,
        n,
        step if dt is None else dt,
        (lambda x: -np.sin(np.pi * x)) if regular else (lambda x: np.cos(x) * (1 + np.sin(x))),
        lambda k: beta * k**2 - gamma * k**4,
        lambda u, ik: -0.5 * alpha * ik * np.fft.rfft(u**2),
        f"regime={regime!r}",
    )


def solve_lorenz(
    t: ArrayLike,
    *,
    state0: Sequence[float] = (1.0, 1.0, 1.0),
    sigma: float = 10.0,
    rho: float = 28.0,
    beta: float = 8 / 3,
) -> Float[Array, "n_t 3"]:
    """Solve the Lorenz system from ``state0`` at time 0 by DOP853, relative and absolute tolerance 1e-12.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: ``t`` is not sorted and non-negative; ``state0`` does not have three entries; a parameter is not
            finite, or so large that the solution cannot be followed.

    Example:
        >>> solve_lorenz([0.0, 0.5])[1].round(2)
        array([ 1.2 , -8.87, 32.45])
    """
    from scipy.integrate import DOP853  # takes long to import, and only this needs it

    times = _times(t)
    sigma, rho, beta = (check_number(v, name) for name, v in (("sigma", sigma), ("rho", rho), ("beta", beta)))
    start = _array(state0, "state0")
    if start.shape != (3,):
        raise ValueError(f"state0 must have 3 entries, got shape {start.shape}")

    def velocity(_: float, s: Array) -> list[float]:
        x, y, z = s
        return [sigma * (y - x), x * (rho - z) - y, x * y - beta * z]

    path = np.empty((len(times), 3))
    path[times == 0] = start
    reached, taken = int((times == 0).sum()), 0
    with np.errstate(all="ignore"):  # what is not finite is refused below
        solver = DOP853(velocity, 0.0, start, times[-1], rtol=1e-12, atol=1e-12) if times[-1] else None
        while reached < len(times) and solver is not None:
            problem = solver.step()
            taken += 1
            # Where steps have become so short that the end is out of reach, no patience helps.
            hopeless = taken % 1000 == 0 and times[-1] > solver.t + MOST_STEPS / 50 * (solver.t / taken)
            if solver.status == "failed" or hopeless or not np.isfinite(solver.y).all():
                why = problem or f"{taken} steps lead to t={solver.t:.3g}"
                raise ValueError(
                    f"the solution cannot be followed to t={times[-1]:g} with sigma={sigma:g}, rho={rho:g}, "
                    f"beta={beta:g}, state0={start.tolist()}: {why}"
                )
            within = np.searchsorted(times, solver.t, side="right")
            if within > reached:
                path[reached:within] = solver.dense_output()(times[reached:within]).T
                reached = int(within)
    return path


# --- two-dimensional turbulence -------------------------------------------------------------------------------------

_BAND = 16  # highest wave number of the random field: its energy there is 1e-9 of the peak's


def random_stream_function(seed: int) -> tuple[Array, Array, Array]:
    """Return wave vectors and complex amplitudes of a random stream function, the same for every grid.

    Energy ``~ k^4 exp(-2 (k/4)^2)``, peaked at |k| = 4; scaled to maximal speed 3 on 128 x 128 points.
    psi(x, y) = Re sum a exp(i (kx x + ky y)).
    """
    rng = np.random.default_rng(seed)
    k = np.arange(-_BAND, _BAND + 1)
    ky, kx = (a.ravel() for a in np.meshgrid(k, k, indexing="ij"))
    length = np.hypot(kx, ky)
    keep = (length > 0) & (length <= _BAND) & ((ky > 0) | ((ky == 0) & (kx > 0)))
    kx, ky, length = kx[keep], ky[keep], length[keep]
    # Energy of a ring of circumference 2 pi k: |k a|^2 k ~ k^4 exp(...), hence a.
    size = np.sqrt(length) * np.exp(-((length / 4) ** 2))
    amplitude = size * (rng.standard_normal(len(kx)) + 1j * rng.standard_normal(len(kx)))
    x = 2 * np.pi * np.arange(128) / 128
    u, v, _ = stream_fields(kx, ky, amplitude, x)
    return kx, ky, amplitude * (3.0 / float(np.hypot(u, v).max()))


def stream_fields(kx: Array, ky: Array, amplitude: Array, x: Array) -> tuple[Array, Array, Array]:
    """Return u, v, w ``(n, n)`` [iy, ix] of a stream function on the product of the 1-D grid ``x`` with itself."""
    top = int(max(np.abs(kx).max(), np.abs(ky).max()))
    waves = np.exp(1j * np.outer(np.arange(-top, top + 1), x))
    table = np.zeros((2 * top + 1, 2 * top + 1), dtype=np.complex128)

    def field(values: Array) -> Array:
        table[:] = 0
        table[ky + top, kx + top] = values
        real: Array = (waves.T @ table @ waves).real
        return real

    # u = psi_y, v = -psi_x, w = v_x - u_y = -(psi_xx + psi_yy)
    return field(1j * ky * amplitude), field(-1j * kx * amplitude), field((kx**2 + ky**2) * amplitude)


def solve_navier_stokes_2d(
    t: ArrayLike,
    *,
    n: int = 128,
    viscosity: float = 0.01,
    seed: int = 0,
    initial: Float[Array, "n n"] | None = None,
    dt: float | None = None,
) -> Reference2d:
    """Solve the vorticity equation on the periodic square [0, 2 pi)^2, pseudo-spectral with 2/3 dealiasing.

    Args:
        t: sorted times, from 0.
        n: points per axis.
        viscosity: nu.
        seed: of the random decaying turbulence it starts from: energy ``k^4 exp(-2 (k/4)^2)``, maximal speed 3.
        initial: vorticity ``(n, n)`` [iy, ix] to start from instead; its mean must vanish.
        dt: largest step; by default a quarter of the time in which the fastest particle crosses a cell.

    Raises:
        ValueError: ``t`` is not sorted and non-negative; n below 8; ``initial`` has another shape, is not finite or
            has a mean; ``dt`` not positive; the solution overflows.

    Example:
        >>> flow = solve_navier_stokes_2d([0.0, 0.05], n=32)
        >>> flow.w.shape, abs(float(flow.w.mean())) < 1e-12
        ((2, 32, 32), True)
    """
    times = _times(t)
    n = check_number(n, "n", low=8, integer=True)
    viscosity = check_number(viscosity, "viscosity", low=0)
    seed = check_number(seed, "seed", low=0, integer=True)
    x = 2 * np.pi * np.arange(n) / n
    kx, ky = np.arange(n // 2 + 1)[None], np.fft.fftfreq(n, 1 / n)[:, None]
    square = kx**2 + ky**2
    inverse = np.divide(1.0, square, out=np.zeros_like(square), where=square > 0)
    if initial is None:
        _, _, vorticity = stream_fields(*random_stream_function(seed), x)
    else:
        vorticity = _array(initial, "initial")
        if vorticity.shape != (n, n):
            raise ValueError(f"initial must have shape {(n, n)}, got {vorticity.shape}")
        if abs(vorticity.mean()) > 1e-8 * max(1.0, float(np.abs(vorticity).max())):
            raise ValueError(f"initial must have mean 0 on the periodic square, got {vorticity.mean():g}")
    keep = (np.abs(kx) <= n / 3) & (np.abs(ky) <= n / 3)

    def grid(f: Array) -> Array:
        return np.fft.irfft2(f, s=(n, n))

    def velocity(f: Array) -> tuple[Array, Array]:
        return grid(1j * ky * inverse * f), grid(-1j * kx * inverse * f)

    def advection(f: Array) -> Array:
        u, v = velocity(f)
        transported: Array = -1.0 * keep * (1j * kx * np.fft.rfft2(u * grid(f)) + 1j * ky * np.fft.rfft2(v * grid(f)))
        return transported

    start = keep * np.fft.rfft2(vorticity)
    start[0, 0] = 0
    if dt is None:
        speed = float(np.hypot(*velocity(start)).max())
        dt = 0.25 * (2 * np.pi / n) / max(speed, 1e-3)
    dt = _check_dt(dt, times)
    with np.errstate(all="ignore"):  # what is not finite is refused below
        states = _etdrk4(start, -viscosity * square, advection, times, dt)
    _check_solution(states, dt, f"viscosity={viscosity:g}")
    flows = [(*velocity(f), grid(f)) for f in states]
    u, v, w = (np.stack([flow[i] for flow in flows]) for i in range(3))
    return Reference2d(times, x, x.copy(), u, v, w)
