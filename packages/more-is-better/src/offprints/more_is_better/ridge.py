"""The optimal ridge: the test error's minimum over all ridges (Theorem 1 is about it)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from offprints.more_is_better.eigenframework import check_coeffs, check_spectrum, rf_risk
from offprints.shared.validation import check_number

GRID = 192  # ridges of the first look
STEPS = 60


def optimal_ridge(
    eigvals: Float[Tensor, " modes"],
    coeffs: Float[Tensor, " modes *outputs"],
    n: float,
    k: float = math.inf,
    *,
    noise_var: float = 0.0,
) -> tuple[float, float]:
    """Find the ridge with the least test error, and that error (Theorem 1: it falls strictly in n and in k).

    A grid in log ridge over all that can matter, then Newton's method on the exact derivatives; no ridge at all is a
    candidate. Where nothing can be learned (no coefficient belongs to a positive eigenvalue, and there is noise or a
    target), every prediction but 0 costs: the ridge is infinite.

    Args:
        eigvals: Eigenvalues of the kernel, >= 0, in any order.
        coeffs: Coefficients of the target, not squared; a column for each output.
        n: Number of samples, > 0.
        k: Number of features, > 0, or ``math.inf``.
        noise_var: Variance of the noise, summed over the outputs.

    Returns:
        The ridge (on the kernel matrix that is not divided by n) and the test error there.

    Raises:
        TypeError: an argument is not of the kind above.
        ValueError: As in `rf_risk`.

    Example:
        >>> eigvals, coeffs = powerlaw_spectrum(1000, alpha=1.5, beta=1.5)
        >>> ridge, error = optimal_ridge(eigvals, coeffs, n=100, k=200, noise_var=0.5)
        >>> bool(error <= rf_risk(eigvals, coeffs, 100, 200, 2 * ridge, noise_var=0.5).test_mse)
        True
    """
    spectrum = check_spectrum(eigvals).detach()
    powers = check_coeffs(coeffs, spectrum).detach()
    n = check_number(n, "n", low=0, open_low=True)
    k = check_number(k, "k", low=0, open_low=True, high=math.inf)
    noise = check_number(noise_var, "noise_var", low=0)
    unit = math.ldexp(1.0, math.frexp(float(spectrum.max()))[1] - 1)  # a power of two: sums neither over- nor underflow
    spectrum = spectrum / unit
    signal = float((spectrum * powers).sum())
    everything = float(powers.sum()) + noise
    if everything == 0:
        return 0.0, 0.0
    if signal == 0:
        return math.inf, everything
    amplitudes = powers.sqrt()

    def error(log_ridge: Tensor) -> Tensor:
        return rf_risk(spectrum, amplitudes, n, k, log_ridge.exp(), noise_var=noise).test_mse

    # With so much noise that all is shrunk, E is nearly quadratic in 1 / ridge, with this minimum.
    largest = max(float(spectrum.sum()) * max(n, 1), everything * float(spectrum.square().sum()) / signal)
    grid = torch.linspace(
        math.log(float(spectrum.max())) - 70, math.log(largest) + 5, GRID, dtype=torch.float64, device=spectrum.device
    )
    errors = error(grid)
    place = int(errors.argmin())
    without = float(rf_risk(spectrum, amplitudes, n, k, 0.0, noise_var=noise).test_mse)
    ridge, least = _refined(error, grid[max(place - 1, 0)], grid[min(place + 1, GRID - 1)], grid[place])
    # What no ridge has within rounding it has: there the minimum is flat, or at 0.
    return (0.0, without) if without <= least * (1 + 1e-13) else (ridge * unit, least)


def _refined(error: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, t: Tensor) -> tuple[float, float]:
    """Newton's method for the zero of the derivative in log ridge, kept in a bracket."""
    for _ in range(STEPS):
        x = t.clone().requires_grad_()
        (slope,) = torch.autograd.grad(error(x), x, create_graph=True)
        (curvature,) = torch.autograd.grad(slope, x)
        slope = slope.detach()
        low, high = (t, high) if slope < 0 else (low, t)
        new = t - slope / curvature
        if not (curvature > 0 and low < new < high):
            new = (low + high) / 2
        step, t = float((new - t).abs()), new
        if step < 1e-10:
            break
    return float(t.exp()), float(error(t).detach())
