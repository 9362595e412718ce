"""Power-law tasks: eigenvalues i^-alpha, squared coefficients i^-beta, and their closed forms (section 5)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from offprints.shared.validation import check_number, check_tensor, should_check


def powerlaw_spectrum(
    n_modes: int,
    alpha: float,
    beta: float,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> tuple[Float[Tensor, " modes"], Float[Tensor, " modes"]]:
    """Make the spectrum of a power-law task: eigenvalues ``i^-alpha`` and coefficients ``i^(-beta/2)``, i = 1, 2, ...

    Args:
        n_modes: Number of modes.
        alpha: Exponent of the eigenvalues, > 1.
        beta: Exponent of the squared coefficients, in (1, 2 alpha + 1).
        dtype: Type of both.
        device: Device of both.

    Raises:
        TypeError: `n_modes` is not an integer, `dtype` not a floating type.
        ValueError: `n_modes` < 1, `alpha` or `beta` out of range.

    Example:
        >>> eigvals, coeffs = powerlaw_spectrum(3, alpha=2.0, beta=2.0)
        >>> eigvals, coeffs**2
        (tensor([1.0000, 0.2500, 0.1111], dtype=torch.float64), tensor([1.0000, 0.2500, 0.1111], dtype=torch.float64))
    """
    count = check_number(n_modes, "n_modes", low=1, integer=True)
    alpha, beta = _exponents(alpha, beta)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating torch.dtype, got {dtype!r}")
    try:
        place = torch.arange(1, count + 1, dtype=torch.float64, device=device)
    except (RuntimeError, TypeError) as error:
        if isinstance(error, RuntimeError) and device is None:
            raise ValueError(f"n_modes is too large for the memory, got {count}") from error
        raise ValueError(f"device must be one that torch has, got {device!r}") from error
    return place.pow(-alpha).to(dtype), place.pow(-beta / 2).to(dtype)


def powerlaw_test_mse(
    fitting_ratio: Float[Tensor, "..."] | float, alpha: float, beta: float, *, noise_rel: float = 0.0, n: float = 1.0
) -> Float[Tensor, "..."]:
    """Test error of kernel regression on a power-law task as a function of the fitting ratio (section 5), n large.

    Args:
        fitting_ratio: R = train error / test error, in [0, 1).
        alpha: Exponent of the eigenvalues, > 1.
        beta: Exponent of the squared coefficients, in (1, 2 alpha + 1).
        noise_rel: Variance of the noise in units of the ridgeless test error without noise.
        n: Number of samples; it only scales the result, by ``n^(1 - beta)``.

    Returns:
        Test errors, float64, of the shape of `fitting_ratio`.

    Raises:
        TypeError: `fitting_ratio` is neither a number nor a floating tensor.
        ValueError: an argument out of its range.

    Example:
        >>> powerlaw_test_mse(torch.tensor([0.0, 0.25]), 1.5, 1.5, noise_rel=1.0, n=100)
        tensor([0.9402, 0.8768], dtype=torch.float64)
    """
    alpha, beta = _exponents(alpha, beta)
    noise = check_number(noise_rel, "noise_rel", low=0)
    samples = check_number(n, "n", low=0, open_low=True)
    if isinstance(fitting_ratio, Tensor):
        check_tensor(fitting_ratio, "fitting_ratio")
        ratio = fitting_ratio.to(torch.float64)
        if should_check(ratio) and bool(((ratio.detach() < 0) | (ratio.detach() >= 1)).any()):
            raise ValueError("fitting_ratio must lie in [0, 1)")
    else:
        number = check_number(fitting_ratio, "fitting_ratio", low=0, high=1, open_high=True)
        ratio = torch.tensor(float(number), dtype=torch.float64)
    root = ratio.sqrt()
    sine = math.sin(math.pi / alpha)
    # (alpha - beta + 1) / sin(pi (beta - 1) / alpha), which is 0 / 0 at beta = alpha + 1, by the sinc.
    scale = math.pi**beta * (alpha / math.pi) / _sinc(alpha, beta) * sine * ratio.new_tensor(samples).pow(1 - beta)
    left = (1 - ratio) / (1 + root)  # 1 - root, and positive where the root is 1 in rounding
    return scale * (alpha * sine * left).pow(-beta) * (left + alpha * noise * left.pow(beta)) / (1 + (alpha - 1) * root)


def optimal_fitting_ratio(alpha: float, beta: float, *, noise_rel: float = 0.0) -> float:
    """Fitting ratio R* = train error / test error with the least test error on a power-law task (section 5).

    0 says: interpolate. R* is r*^2, where r* in (0, 1) solves
    ``alpha - beta - (alpha - 1) beta r + alpha (alpha - 1) (1 - r)^beta noise_rel = 0``.

    Args:
        alpha: Exponent of the eigenvalues, > 1.
        beta: Exponent of the squared coefficients, in (1, 2 alpha + 1).
        noise_rel: Variance of the noise in units of the ridgeless test error without noise.

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument is out of its range.

    Example:
        >>> round(optimal_fitting_ratio(1.17, 1.14), 3), optimal_fitting_ratio(1.12, 1.36)
        (0.024, 0.0)
    """
    alpha, beta = _exponents(alpha, beta)
    noise = check_number(noise_rel, "noise_rel", low=0)

    def falling(left: float) -> float:  # divided by 1 + noise, in 1 - r: r may be near 1
        fixed = (alpha - beta - (alpha - 1) * beta * (1 - left)) / (1 + noise)
        return fixed + alpha * (alpha - 1) * left**beta * (noise / (1 + noise))

    if falling(1.0) <= 0:
        return 0.0
    low, high = 0.0, 1.0  # the sign is negative at 1 - r = 0 and positive at 1 - r = 1
    for _ in range(1100):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (low, middle) if falling(middle) > 0 else (middle, high)
    return min((1 - middle) ** 2, math.nextafter(1.0, 0.0))  # what `powerlaw_test_mse` takes


def critical_noise(alpha: float, beta: float) -> float:
    """Relative noise up to which interpolation is optimal: ``(beta - alpha) / (alpha (alpha - 1))``, at least 0.

    For beta < alpha it is 0, and not even without noise is interpolation optimal; see `optimal_fitting_ratio`.

    Args:
        alpha: Exponent of the eigenvalues, > 1.
        beta: Exponent of the squared coefficients, in (1, 2 alpha + 1).

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument is out of its range.

    Example:
        >>> round(critical_noise(1.12, 1.36), 2), critical_noise(1.17, 1.14)
        (1.79, 0.0)
    """
    alpha, beta = _exponents(alpha, beta)
    return max(0.0, (beta - alpha) / (alpha * (alpha - 1)))


def _sinc(alpha: float, beta: float) -> float:
    """sin(pi u) / (pi u) at u = (beta - 1) / alpha - 1 in (-1, 1), exact near both ends and at 0."""
    u = (beta - 1) / alpha - 1
    if u == 0:
        return 1.0
    near = math.pi * ((beta - 1) / alpha if u < -0.5 else (2 * alpha + 1 - beta) / alpha)
    return (math.sin(near) if abs(u) > 0.5 else math.sin(math.pi * abs(u))) / (math.pi * abs(u))


def _exponents(alpha: float, beta: float) -> tuple[float, float]:
    a = float(check_number(alpha, "alpha", low=1, open_low=True))
    b = check_number(beta, "beta", low=1, high=2 * a + 1, open_low=True, open_high=True)
    return a, float(b)
