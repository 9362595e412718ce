"""The eigenframework (section 4): errors of random-feature and kernel ridge regression, from a spectrum."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from offprints.more_is_better._root import implicit_gamma, inverses, needs_guard, row_chunks, shares
from offprints.shared.device import eagerly
from offprints.shared.validation import check_number, check_same_length, check_tensor, should_check

Number: TypeAlias = float | int | Tensor
HUGE = 1e100  # a ridge per sample that is so much larger than the largest eigenvalue is infinite for the errors


@dataclass(frozen=True, eq=False)
class RiskEstimate:
    """What the eigenframework predicts; float64 tensors of the shape to which n, k and ridge broadcast.

    Attributes:
        test_mse: Test error, summed over the outputs, noise included; infinite at n = k <= modes without a ridge.
        train_mse: Train error, ``(ridge / (n kappa))^2 test_mse``.
        kappa: The first implicit constant, the effective ridge.
        gamma: The second one, below which eigenmodes are not learned.
        overfitting_coeff: By how much the noise is amplified, ``1 / (1 - x)`` of section 4.

    Example:
        >>> risk = rf_risk(*powerlaw_spectrum(1000, 1.5, 1.5), n=100, k=200, ridge=0.1)
        >>> bool(risk.train_mse < risk.test_mse)
        True
    """

    test_mse: Float[Tensor, "..."]
    train_mse: Float[Tensor, "..."]
    kappa: Float[Tensor, "..."]
    gamma: Float[Tensor, "..."]
    overfitting_coeff: Float[Tensor, "..."]


@eagerly()  # a loop until all points have converged
def implicit_constants(
    eigvals: Float[Tensor, " modes"], n: Number, k: Number = math.inf, ridge: Number = 0.0
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Solve the two implicit equations of section 4 for kappa and gamma, all points in one batch, in float64.

    ``n = sum_i lambda_i / (lambda_i + gamma) + ridge / kappa`` and
    ``k = sum_i lambda_i / (lambda_i + gamma) + k kappa / gamma``. Derivatives of every order, in all arguments, come
    from implicit differentiation; where both constants stay 0 they have none in a zero eigenvalue, and 0 is given.

    Args:
        eigvals: Eigenvalues of the kernel, >= 0, in any order.
        n: Numbers of samples, > 0.
        k: Numbers of features, > 0; ``math.inf`` is kernel regression.
        ridge: Ridges on the kernel matrix that is not divided by n; 0 is exact, ``math.inf`` is allowed.

    Returns:
        kappa and gamma, of the shape to which n, k and ridge broadcast. Both are 0 without a ridge where min(n, k) is
        at least the number of positive eigenvalues; kappa is 0 without a ridge for n >= k.

    Raises:
        TypeError: an argument is not a number or a tensor, or `eigvals` is not floating.
        ValueError: empty, negative or not finite eigenvalues, n or k <= 0, a negative ridge, NaN, shapes that do not
            broadcast.

    Example:
        >>> kappa, gamma = implicit_constants(torch.tensor([1.0, 0.5, 0.25]), n=2, k=torch.tensor([4.0, float("inf")]))
        >>> gamma
        tensor([0.2371, 0.2371], dtype=torch.float64)
    """
    spectrum = check_spectrum(eigvals)
    points, shape = check_points(spectrum, n, k, ridge)
    spectrum, n, k, ridge, constants = _in_units(spectrum, *points)
    gamma = implicit_gamma(spectrum, n, k, ridge)
    z = _sums(spectrum, spectrum.new_zeros(len(spectrum)), gamma)[0]
    _, v, _, _ = shares(z, gamma, n, k, ridge)
    return constants(_kappa(gamma, k, v)).reshape(shape), constants(gamma).reshape(shape)


@eagerly()
def rf_risk(
    eigvals: Float[Tensor, " modes"],
    coeffs: Float[Tensor, " modes *outputs"],
    n: Number,
    k: Number = math.inf,
    ridge: Number = 0.0,
    *,
    noise_var: float = 0.0,
) -> RiskEstimate:
    """Predict the errors of ridge regression with k random features on n samples (section 4), in float64.

    Thousands of points (n, k, ridge) are one call, finite and infinite k mixed. Differentiable in all tensors, to any
    order. The errors are means over samples, summed over the outputs; the test error includes the noise.

    Args:
        eigvals: Eigenvalues of the kernel, >= 0, in any order.
        coeffs: Coefficients v_i of the target in the eigenbasis, not squared; a column for each output.
        n: Numbers of samples, > 0.
        k: Numbers of features, > 0; ``math.inf`` is kernel regression.
        ridge: Ridges on the kernel matrix that is not divided by n; 0 is exact, ``math.inf`` predicts 0.
        noise_var: Variance of the noise of the labels, summed over the outputs.

    Raises:
        TypeError: an argument is not a number or a tensor, or a spectrum is not floating.
        ValueError: eigenvalues or coefficients that are empty, of unequal length or not finite, a negative eigenvalue,
            n or k <= 0, a negative ridge or noise, NaN, shapes that do not broadcast.

    Example:
        >>> eigvals, coeffs = powerlaw_spectrum(1000, alpha=1.5, beta=1.5)
        >>> rf_risk(eigvals, coeffs, n=100, k=torch.tensor([50, 100, 1000]), ridge=0.1, noise_var=0.1).test_mse
        tensor([0.8351, 0.6876, 0.4497], dtype=torch.float64)
    """
    spectrum = check_spectrum(eigvals)
    powers = check_coeffs(coeffs, spectrum)
    noise = check_number(noise_var, "noise_var", low=0)
    points, shape = check_points(spectrum, n, k, ridge)
    spectrum, n, k, ridge, constants = _in_units(spectrum, *points)
    unlearnable = constants.unlearnable
    gamma = implicit_gamma(spectrum, n, k, ridge)
    z, spread, missed, mixed = _sums(spectrum, powers, gamma)
    u, v, share, inverse = shares(z, gamma, n, k, ridge)

    # 1 / (1 - x) = n (share + spread / (u + v)) / (share u + spread): a sum of what is positive, for any k.
    below = share * u + spread
    regular, tie = below > 0, inverse.isinf()
    below, inverse = torch.where(regular, below, 1.0), torch.where(tie, 0.0, inverse)
    diverges = tie | (~regular & (u <= 0))
    plain = n / torch.where(u > 0, u, 1.0)  # min(n, k) is not below the number of modes, and there is no ridge
    coeff = torch.where(regular, n * (share + spread * inverse) / below, plain)
    test = coeff * (missed + noise) + n * spread * inverse * mixed / below
    train = (u / n).square() * test

    nothing = diverges & (missed + torch.where(tie, mixed, 0.0) + noise == 0)
    everything = powers.sum() + noise
    test = torch.where(diverges, torch.where(nothing, 0.0, math.inf), test)
    train = torch.where(diverges, 0.0, train)
    results = {
        "test_mse": torch.where(unlearnable, everything, test),
        "train_mse": torch.where(unlearnable, everything, train),
        "kappa": constants(_kappa(gamma, k, v)),
        "gamma": constants(gamma),
        "overfitting_coeff": torch.where(unlearnable, 1.0, torch.where(diverges, math.inf, coeff)),
    }
    return RiskEstimate(**{name: value.reshape(shape) for name, value in results.items()})


def krr_risk(
    eigvals: Float[Tensor, " modes"],
    coeffs: Float[Tensor, " modes *outputs"],
    n: Number,
    ridge: Number = 0.0,
    *,
    noise_var: float = 0.0,
) -> RiskEstimate:
    """Predict the errors of kernel ridge regression: `rf_risk` with infinitely many features, in closed form.

    Args:
        eigvals, coeffs, n, ridge, noise_var: As in `rf_risk`.

    Raises:
        TypeError, ValueError: As in `rf_risk`.

    Example:
        >>> eigvals, coeffs = powerlaw_spectrum(1000, alpha=1.5, beta=1.5)
        >>> krr_risk(eigvals, coeffs, n=torch.tensor([50, 100]), ridge=0.1, noise_var=0.1).test_mse
        tensor([0.5778, 0.4271], dtype=torch.float64)
    """
    return rf_risk(eigvals, coeffs, n, math.inf, ridge, noise_var=noise_var)


def finite_pool_correction(
    test_mse: Float[Tensor, "..."], train_mse: Float[Tensor, "..."], n: Number, pool_size: int
) -> Float[Tensor, "..."]:
    """Correct a predicted test error where the spectrum is that of a finite pool of which n points are trained on.

    The theory's test points may be training points; what is measured on the others is
    ``(pool_size test_mse - n train_mse) / (pool_size - n)``.

    Args:
        test_mse: Predicted test errors.
        train_mse: Predicted train errors; broadcasts against them.
        n: Numbers of training points, > 0 and less than `pool_size`.
        pool_size: Points whose kernel matrix gave the spectrum.

    Raises:
        TypeError: errors that are not floating tensors; an `n` or a `pool_size` of another kind.
        ValueError: NaN, shapes that do not broadcast, `n` not in (0, `pool_size`).

    Example:
        >>> finite_pool_correction(torch.tensor([0.5]), torch.tensor([0.1]), n=200, pool_size=1000)
        tensor([0.6000], dtype=torch.float64)
    """
    pool = check_number(pool_size, "pool_size", low=1, integer=True)
    errors = []
    for value, name in ((test_mse, "test_mse"), (train_mse, "train_mse")):
        check_tensor(value, name, finite=False)
        if should_check(value) and bool(value.detach().isnan().any()):
            raise ValueError(f"{name} must not be NaN")
        errors.append(value.to(torch.float64))
    samples = _number(n, "n", errors[0], low=0, open_low=True, high=pool, open_high=True)
    try:
        test, train, samples = torch.broadcast_tensors(*errors, samples)
    except RuntimeError:
        shapes = ", ".join(str(tuple(x.shape)) for x in (*errors, samples))
        raise ValueError(f"test_mse, train_mse and n must broadcast, got the shapes {shapes}") from None
    return (pool * test - samples * train) / (pool - samples)


def check_spectrum(eigvals: Tensor) -> Tensor:
    """The eigenvalues in float64, checked."""
    check_tensor(eigvals, "eigvals", ndim=1)
    if should_check(eigvals) and bool((eigvals.detach() < 0).any()):
        raise ValueError(f"eigvals must not be negative, got {float(eigvals.detach().min()):g}")
    return eigvals.to(torch.float64)


def check_coeffs(coeffs: Tensor, eigvals: Tensor) -> Tensor:
    """Squared coefficients summed over the outputs, float64, checked."""
    check_tensor(coeffs, "coeffs", ndim=(1, 2))
    check_same_length(coeffs, eigvals, ("coeffs", "eigvals"))
    squares = coeffs.to(device=eigvals.device, dtype=torch.float64).square()
    return squares.sum(1) if squares.ndim == 2 else squares


def check_points(like: Tensor, n: Number, k: Number, ridge: Number) -> tuple[tuple[Tensor, ...], torch.Size]:
    """Points ``[P]`` in float64 and the shape to which they broadcast."""
    points = [
        _number(n, "n", like, low=0, open_low=True),
        _number(k, "k", like, low=0, open_low=True, high=math.inf),
        _number(ridge, "ridge", like, low=0, high=math.inf),
    ]
    try:
        points = list(torch.broadcast_tensors(*points))
    except RuntimeError:
        shapes = ", ".join(str(tuple(x.shape)) for x in points)
        raise ValueError(f"n, k and ridge must broadcast against each other, got the shapes {shapes}") from None
    return tuple(x.reshape(-1) for x in points), points[0].shape


def _number(
    value: Number,
    name: str,
    like: Tensor,
    *,
    low: float,
    open_low: bool = False,
    high: float | None = None,
    open_high: bool = False,
) -> Tensor:
    """One or many numbers as a float64 tensor within bounds; infinity only where `high` is infinite."""
    if not isinstance(value, Tensor):
        number = check_number(value, name, low=low, high=high, open_low=open_low, open_high=open_high)
        return torch.tensor(float(number), dtype=torch.float64, device=like.device)
    if value.dtype == torch.bool or value.is_complex():
        raise TypeError(f"{name} must be a number or a tensor of real numbers, got {value.dtype}")
    check_tensor(value, name, floating=False, finite=False)
    numbers = value.to(device=like.device, dtype=torch.float64)
    if should_check(numbers):
        seen = numbers.detach()
        right = (seen > low if open_low else seen >= low) & ~seen.isnan()
        right &= seen < math.inf if high is None else seen < high if open_high else seen <= high
        if not bool(right.all()):
            end = "inf)" if high is None else f"{high}{')' if open_high else ']'}"
            allowed = f"{'(' if open_low else '['}{low}, {end}"
            raise ValueError(f"{name} must hold numbers in {allowed}, got {float(seen[~right][0])}")
    return numbers


@dataclass(frozen=True)
class _Constants:
    """The implicit constants in the unit of the user's kernel."""

    unit: Tensor
    unlearnable: Tensor  # points whose ridge is so large that nothing is learned: both constants are ridge / n
    limit: Tensor

    def __call__(self, constant: Tensor) -> Tensor:
        return torch.where(self.unlearnable, self.limit, constant * self.unit)


def _in_units(
    eigvals: Tensor, n: Tensor, k: Tensor, ridge: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, _Constants]:
    """Spectrum and ridges in units of about the largest eigenvalue, a power of two: nothing over- or underflows.

    Where nothing is learned the ridge is 1, which is of no consequence.
    """
    largest = eigvals.detach().max()
    unit = torch.where(largest > 0, largest, 1.0).log2().floor().exp2()
    infinite, ridges = ridge.isinf(), ridge / unit
    unlearnable = ridges / n > HUGE
    limit = torch.where(infinite, math.inf, torch.where(infinite, 1.0, ridge) / n)
    return eigvals / unit, n, k, torch.where(unlearnable, 1.0, ridges), _Constants(unit, unlearnable, limit)


def _sums(eigvals: Tensor, powers: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums over the modes ``[P]``, L = lambda / (lambda + gamma): of L, L (1 - L), (1 - L)^2 v^2, L (1 - L) v^2."""
    guarded = needs_guard(eigvals, gamma)
    weights = torch.stack([eigvals, powers, eigvals * powers], 1)
    parts = []
    for rows in row_chunks(len(gamma), len(eigvals)):
        inverse, dead = inverses(eigvals, gamma[rows], guarded=guarded)
        z, (spread, missed, mixed) = inverse @ eigvals, (inverse.square() @ weights).unbind(1)
        missed = gamma[rows].square() * missed
        if dead is not None:
            missed = missed + dead.to(powers.dtype) @ powers
        parts.append(torch.stack([z, gamma[rows] * spread, missed, gamma[rows] * mixed]))
    z, spread, missed, mixed = torch.cat(parts, 1)
    return z, spread, missed, mixed


def _kappa(gamma: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """kappa = gamma (1 - z / k), where k - z is known without cancellation."""
    infinite = k.isinf()
    return torch.where(infinite, gamma, gamma * v / torch.where(infinite, 1.0, k))
