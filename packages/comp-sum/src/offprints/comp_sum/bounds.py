"""From a small surrogate loss to a small error rate: T_tau, its inverse Gamma_tau and the H-consistency bound."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from offprints.shared.validation import check_number, check_tensor, should_check

ROUNDING = 1e-9
NEWTON_STEPS = 80


def _double(value: Tensor | float, name: str, *, high: float | None = None) -> Tensor:
    """A number or a floating tensor of numbers of at least 0, in float64 and without a graph."""
    if isinstance(value, Tensor):
        check_tensor(value, name)
        found = value.detach().to(torch.float64)
    else:
        found = torch.tensor(check_number(value, name, low=0, high=high), dtype=torch.float64)
    if should_check(found) and not bool(((found >= 0) & (found <= (math.inf if high is None else high))).all()):
        bad = found.min() if bool(found.min() < 0) else found.max()
        raise ValueError(f"{name} must be in [0, {'inf)' if high is None else f'{high:g}]'}, got {float(bad):g}")
    return found


def _settings(tau: float, num_classes: int) -> tuple[float, int]:
    return check_number(tau, "tau", low=0), check_number(num_classes, "num_classes", low=2, integer=True)


def _scale(tau: float, num_classes: int) -> float:
    """The factor of |1 - m| in T_tau, or of beta from tau = 2 on; an underflow is 0."""
    if tau < 1:
        return 2.0 ** (1 - tau) / (1 - tau)
    return math.exp(-math.log(tau - 1) - (tau - 1) * math.log(num_classes))


def _log_mean(beta: Tensor, tau: float) -> Tensor:
    """log m of m = (((1+beta)^(1/(2-tau)) + (1-beta)^(1/(2-tau))) / 2)^(2-tau), without cancellation near beta = 0.

    With x = atanh(beta), k = log(1 - beta^2) / 2 and e = (tau-1) / (2-tau), the mean is e^(e k) times
    1 + 2 sinh^2(e x / 2) + beta sinh(e x).
    """
    e = (tau - 1) / (2 - tau)
    one = beta == 1
    inner = torch.where(one, 0.5, beta)
    # Near 1 the square of beta has lost the digits of 1 - beta; near 0 the two logarithms cancel.
    x, ends = torch.atanh(inner), torch.log1p(inner) + torch.log1p(-inner)
    k = torch.where(inner > 0.5, ends, torch.log1p(-inner * inner)) / 2
    # Far from 1 the mean is added up as it stands: there the two terms cancel, or overflow.
    far = (e * x).abs() > 1
    near = torch.where(far, 0, e * x)
    bracket = torch.log1p(2 * torch.sinh(near / 2) ** 2 + inner * torch.sinh(near)) + e * k
    powers = torch.logaddexp((1 + e) * torch.log1p(inner), (1 + e) * torch.log1p(-inner)) - math.log(2)
    bracket = torch.where(far, powers, bracket)
    return torch.where(one, (tau - 1) * math.log(2), (2 - tau) * bracket)


def _transform(beta: Tensor, tau: float, num_classes: int) -> Tensor:
    if tau == 0:
        return beta * beta / (1 + torch.sqrt((1 - beta) * (1 + beta)))
    if tau == 1:
        plus, minus = 1 + beta, 1 - beta
        inner = torch.where(beta == 1, 0, beta)
        small = inner * torch.atanh(inner) + torch.log1p(-inner * inner) / 2
        return torch.where(beta > 0.5, (torch.xlogy(plus, plus) + torch.xlogy(minus, minus)) / 2, small)
    if tau >= 2:
        return _scale(tau, num_classes) * beta
    return _scale(tau, num_classes) * torch.expm1(_log_mean(beta, tau)).abs()


def _slope(beta: Tensor, tau: float, num_classes: int) -> Tensor:
    """The derivative of T_tau on (0, 1), for 0 < tau < 2."""
    if tau == 1:
        return torch.atanh(beta)
    e = (tau - 1) / (2 - tau)
    # A^(1-tau) ((1+beta)^e - (1-beta)^e) / 2 with A = m^(1/(2-tau)); the larger power is taken out, as a logarithm.
    outer = e * torch.log1p(beta if e > 0 else -beta) - e * _log_mean(beta, tau)
    return _scale(tau, num_classes) * outer.exp() * -torch.expm1(-2 * abs(e) * torch.atanh(beta)) / 2


def transform(beta: Tensor | float, tau: float, num_classes: int) -> Tensor:
    """Compute T_tau(beta), the least conditional regret of l_tau where the zero-one regret is beta.

    T is increasing and convex with T(0) = 0, and good to about 1e-12 relative. It is tight for tau <= 1 and for two
    classes; for tau > 1 and more classes it is a valid lower bound, sometimes a conservative one. `num_classes` matters
    for tau > 1 alone.

    Args:
        beta: Zero-one regrets in [0, 1], a number or a floating tensor of any shape.
        tau: The member of the family, at least 0.
        num_classes: Number of classes, at least 2.

    Returns:
        T in float64, of the shape of `beta` (without axes for a number). It carries no gradient.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: `beta` is outside [0, 1], `tau` is negative, NaN or infinite, `num_classes` below 2.

    Example:
        >>> transform(0.6, 0.0, 10)  # 1 - sqrt(1 - 0.36)
        tensor(0.2000, dtype=torch.float64)
        >>> transform(torch.tensor([0.1, 1.0]), 2.0, 10)
        tensor([0.0100, 0.1000], dtype=torch.float64)
    """
    tau, num_classes = _settings(tau, num_classes)
    return _transform(_double(beta, "beta", high=1), tau, num_classes)


def inverse_transform(t: Tensor | float, tau: float, num_classes: int) -> Tensor:
    """Compute Gamma_tau(t), the inverse of `transform`: the largest zero-one regret that a regret t of l_tau allows.

    It is 1 from T(1) on. In closed form for tau = 0 and tau >= 2, else by a bracketed Newton iteration in float64.

    Args:
        t: Regrets of the surrogate, at least 0, a number or a floating tensor of any shape.
        tau: The member of the family, at least 0.
        num_classes: Number of classes, at least 2.

    Returns:
        Gamma in [0, 1] in float64, of the shape of `t`. It carries no gradient.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: `t` is negative, NaN or infinite, or as `transform`.

    Example:
        >>> inverse_transform(0.02, 1.0, 10)  # near sqrt(2 t)
        tensor(0.1993, dtype=torch.float64)
    """
    tau, num_classes = _settings(tau, num_classes)
    return _inverse(_double(t, "t"), tau, num_classes)


def _inverse(t: Tensor, tau: float, num_classes: int) -> Tensor:
    most = _transform(t.new_ones(()), tau, num_classes)
    above = t >= most
    inner = torch.where(above | (t == 0), most / 2, t)  # a point inside, for what is decided already
    if tau == 0:
        found = torch.sqrt(inner * (2 - inner))
    elif tau >= 2:
        found = inner / _scale(tau, num_classes)
    else:
        found = _newton(inner, tau, num_classes)
    return torch.where(t == 0, 0, torch.where(above, 1, found.clamp(0, 1)))


def _newton(t: Tensor, tau: float, num_classes: int) -> Tensor:
    """The root of T(beta) = t on (0, 1). T is convex, so that from the right Newton's steps do not overshoot."""
    start = 2.0**tau * (2 - tau) if tau < 1 else 2 * float(num_classes) ** (tau - 1)
    low, high = torch.zeros_like(t), torch.full_like(t, 1 - 2.0**-53)
    beta = torch.sqrt(start * t).clamp(max=1 - 2.0**-53)  # the known upper bound of Gamma
    for _ in range(NEWTON_STEPS):
        excess = _transform(beta, tau, num_classes) - t
        low, high = torch.where(excess < 0, beta, low), torch.where(excess > 0, beta, high)
        moved = beta - excess / _slope(beta, tau, num_classes)
        moved = torch.where((moved >= low) & (moved <= high), moved, (low + high) / 2)
        done = (moved - beta).abs() <= 2e-16 * beta
        beta = moved
        if bool(done.all()):
            break
    return beta


def h_consistency_bound(
    excess: Tensor | float,
    *,
    tau: float,
    num_classes: int,
    surrogate_gap: float = 0.0,
    zero_one_gap: float = 0.0,
) -> Tensor:
    """Bound the excess error rate of a classifier by its excess surrogate loss, non-asymptotically.

    R_01(h) - R*_01(H) <= Gamma_tau(R_tau(h) - R*_tau(H) + M_tau(H)) - M_01(H), for every symmetric and complete
    hypothesis class H; M are the minimizability gaps (see `minimizability_gap`). The result is clipped below at 0.

    Args:
        excess: R_tau(h) - R*_tau(H), at least 0, a number or a floating tensor of any shape.
        tau: The member of the family, at least 0.
        num_classes: Number of classes, at least 2.
        surrogate_gap: M_tau(H). An estimate may be negative; together with `excess` it is at least 0, up to 1e-9.
        zero_one_gap: M_01(H), at least 0.

    Returns:
        The bound in float64, of the shape of `excess`. It carries no gradient.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: `excess` or `zero_one_gap` is negative, `excess` + `surrogate_gap` is negative, or as `transform`.

    Example:
        >>> h_consistency_bound(0.005, tau=1.0, num_classes=10)
        tensor(0.0999, dtype=torch.float64)
    """
    tau, num_classes = _settings(tau, num_classes)
    surrogate_gap = check_number(surrogate_gap, "surrogate_gap")
    zero_one_gap = check_number(zero_one_gap, "zero_one_gap", low=0)
    total = _double(excess, "excess") + surrogate_gap
    if should_check(total) and bool((total < -ROUNDING).any()):
        raise ValueError(f"excess + surrogate_gap must not be negative, got {float(total.min()):g}")
    return (_inverse(total.clamp(min=0), tau, num_classes) - zero_one_gap).clamp(min=0)
