"""What depends on the training step: the grid of noise levels, its doubling, its index law, the robustness constant."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from offprints.shared.device import resolve_device
from offprints.shared.validation import check_monotone, check_number, check_tensor


def initial_c(dim: int) -> float:
    """c of the first stage, 0.00054 sqrt(dim): the constant of iCT, here beside the *mean* square (official code).

    Raises:
        TypeError, ValueError: ``dim`` is not an integer of at least 1.

    Example:
        >>> initial_c(4096)
        0.03456
    """
    dim = check_number(dim, "dim", low=1, integer=True)
    return 0.00054 * math.sqrt(dim)


def adaptive_c(
    num_scales: int, *, dim: int, initial_scales: int = 10, slope: float = -1.15, intercept: float = -0.85
) -> float:
    """Adaptive scaling-c: exp(slope ln(N - 1) + intercept) for N levels, :func:`initial_c` in the first stage.

    The later stages do not depend on ``dim``: the constants are those found at dim = 4096 (latents 4 x 32 x 32), where
    c falls throughout, 0.0346, 0.0136, 0.0061, ... Below dim = 636 the first value is the smaller one.

    Args:
        num_scales: Number of levels N.
        dim: Entries of a sample.
        initial_scales: Intervals of the first stage, N - 1.
        slope: In ln(N - 1).
        intercept: The constant term.

    Raises:
        TypeError, ValueError: ``num_scales`` < 2, ``dim`` or ``initial_scales`` < 1, not finite.

    Example:
        >>> [round(adaptive_c(n, dim=4096), 5) for n in (11, 21, 641)]
        [0.03456, 0.01364, 0.00025]
    """
    num_scales = check_number(num_scales, "num_scales", low=2, integer=True)
    initial_scales = check_number(initial_scales, "initial_scales", low=1, integer=True)
    slope = check_number(slope, "slope")
    intercept = check_number(intercept, "intercept")
    first = initial_c(dim)
    if num_scales <= initial_scales + 1:
        return first
    exponent = slope * math.log(num_scales - 1) + intercept
    if not -700 < exponent < 700:
        raise ValueError(f"slope and intercept must give a positive finite c, got exp({exponent:g})")
    return math.exp(exponent)


def check_levels(sigma_min: float, sigma_max: float, rho: float) -> tuple[float, float, float]:
    """The three as plain numbers; a grid that is not positive and increasing is refused."""
    sigma_min = float(check_number(sigma_min, "sigma_min", low=0, open_low=True))
    sigma_max = float(check_number(sigma_max, "sigma_max", low=sigma_min, open_low=True))
    rho = float(check_number(rho, "rho", low=0, open_low=True))
    # Outside of these the powers of the grid leave float64, or all its levels are one.
    lowest, highest = (math.log10(level) for level in (sigma_min, sigma_max))
    if not max(abs(lowest), abs(highest)) / rho < 300 or not sigma_min ** (1 / rho) < sigma_max ** (1 / rho):
        raise ValueError(f"rho must leave levels between sigma_min and sigma_max, got {rho}")
    return sigma_min, sigma_max, rho


def karras_sigmas(
    num_scales: int,
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, " num_scales"]:
    """Noise levels (sigma_min^(1/rho) + i / (N - 1) (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho, increasing.

    The ends are exact up to the type; everything is computed in float64.

    Args:
        num_scales: Number of levels N.
        sigma_min, sigma_max: The ends.
        rho: 7 in the papers; larger values put more levels at small noise.
        device: Where the levels are.
        dtype: A floating type. A half type has too few digits for a fine grid, which is then refused.

    Raises:
        TypeError: ``num_scales`` is not an integer, ``dtype`` not floating.
        ValueError: ``num_scales`` < 2, levels that are not 0 < sigma_min < sigma_max, ``rho`` <= 0, levels that are
            equal or infinite in ``dtype``.

    Example:
        >>> [round(s, 3) for s in karras_sigmas(5).tolist()]
        [0.002, 0.17, 2.515, 17.528, 80.0]
    """
    num_scales = check_number(num_scales, "num_scales", low=2, integer=True)
    sigma_min, sigma_max, rho = check_levels(sigma_min, sigma_max, rho)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating type, got {dtype!r}")
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    ramp = torch.arange(num_scales, dtype=torch.float64) / (num_scales - 1)
    sigmas = (low + ramp * (high - low)) ** rho
    sigmas[0], sigmas[-1] = sigma_min, sigma_max
    rounded = sigmas.to(dtype)
    if not (rounded.isfinite().all() and (rounded[:-1] < rounded[1:]).all() and rounded[0] > 0):
        raise ValueError(f"dtype must tell all {num_scales} levels apart, got {dtype}; compute in float32 or float64")
    return rounded.to(resolve_device("cpu" if device is None else device))


def lognormal_index_probabilities(
    sigmas: Float[Tensor, " num_scales"], *, p_mean: float = -1.1, p_std: float = 2.0
) -> Float[Tensor, " num_scales-1"]:
    """Probability of each interval i = 0..N-2 of an increasing grid: ln sigma is Normal(p_mean, p_std^2), binned.

    Differences of the normal distribution function in float64, each from the tail in which it keeps its digits.

    Returns:
        ``[N - 1]`` with sum 1, in the type and on the device of ``sigmas``.

    Raises:
        TypeError, ValueError: ``sigmas`` not a floating, positive, strictly increasing vector of at least two levels,
            ``p_std`` <= 0, or a law that gives the whole grid no mass.

    Example:
        >>> [round(p, 2) for p in lognormal_index_probabilities(karras_sigmas(5)).tolist()]
        [0.37, 0.48, 0.13, 0.02]
    """
    p_mean = check_number(p_mean, "p_mean")
    p_std = check_number(p_std, "p_std", low=0, open_low=True)
    check_tensor(sigmas, "sigmas", ndim=1, validate=True)
    check_monotone(sigmas, "sigmas", validate=True)
    if len(sigmas) < 2:
        raise ValueError(f"sigmas must hold at least two levels, got {len(sigmas)}")
    levels = sigmas.detach().cpu().double()
    if float(levels[0]) <= 0:
        raise ValueError(f"sigmas must be positive, got {float(levels[0])}")
    edges = (levels.log() - p_mean) / (p_std * math.sqrt(2))
    lower, upper = edges[:-1], edges[1:]
    above = lower + upper > 0
    masses = torch.where(above, torch.erfc(lower) - torch.erfc(upper), torch.erfc(-upper) - torch.erfc(-lower))
    total = masses.sum()
    if not float(total) > 0:
        raise ValueError(f"p_mean = {p_mean} and p_std = {p_std} give no mass to any interval of sigmas")
    return (masses / total).to(sigmas.dtype).to(sigmas.device)


def discretization_curriculum(step: int, total_steps: int, *, initial: int = 10, final: int = 640) -> int:
    """Number of levels N(k) = min(s0 2^floor(k / K'), s1) + 1, K' = floor(K / (log2(floor(s1 / s0)) + 1)).

    Args:
        step: k, from 0 to ``total_steps``.
        total_steps: K.
        initial: s0, the intervals at the start.
        final: s1, the most intervals.

    Raises:
        TypeError: not integers.
        ValueError: ``step`` out of range, ``initial`` < 1, ``final`` < ``initial``, ``total_steps`` too small for a
            step per stage.

    Example:
        >>> [discretization_curriculum(step, 700) for step in (0, 99, 100, 699)]
        [11, 11, 21, 641]
    """
    total_steps = check_number(total_steps, "total_steps", low=1, integer=True)
    step = check_number(step, "step", low=0, high=total_steps, integer=True)
    initial = check_number(initial, "initial", low=1, integer=True)
    final = check_number(final, "final", low=initial, integer=True)
    length = math.floor(total_steps / (math.log2(final // initial) + 1))
    if length < 1:
        stages = math.ceil(math.log2(final // initial) + 1)
        raise ValueError(f"total_steps must be at least {stages}, one per stage, got {total_steps}")
    doublings = min(step // length, final.bit_length())
    return min(initial * 2**doublings, final) + 1
