"""S-PNDM and F-PNDM (the paper's Algorithm 2, as the comments of diffusers number it), as the paper writes them.

Slow and plain, to be read first. `alpha` gives alpha-bar at a time, `eps` is the network: noise predicted for x at t.
The fast code, `pndm_sample`, does the same with all coefficients of a run computed before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor

Alpha = Callable[[float], float]
Network = Callable[[Tensor, float], Tensor]


def phi(x: Tensor, e: Tensor, t: float, s: float, alpha: Alpha) -> Tensor:
    """The transfer part (formula (9) in diffusers' comments): from time t to s along a constant noise prediction."""
    a, b = alpha(t), alpha(s)
    of_x = 1 / (a**0.5 * (b**0.5 + a**0.5))
    of_e = 1 / (a**0.5 * (((1 - b) * a) ** 0.5 + ((1 - a) * b) ** 0.5))
    return x + (b - a) * (of_x * x - of_e * e)


def pseudo_improved_euler(x: Tensor, t: float, s: float, eps: Network, alpha: Alpha) -> tuple[Tensor, Tensor]:
    """The gradient part of the first step of S-PNDM: the mean of the slopes at both ends, and the first slope."""
    e1 = eps(x, t)
    e2 = eps(phi(x, e1, t, s, alpha), s)
    return (e1 + e2) / 2, e1


def pseudo_runge_kutta(x: Tensor, t: float, s: float, eps: Network, alpha: Alpha) -> tuple[Tensor, Tensor]:
    """The gradient part of the first three steps of F-PNDM: RK4 with phi in place of the straight line."""
    m = (t + s) / 2
    k1 = eps(x, t)
    k2 = eps(phi(x, k1, t, m, alpha), m)
    k3 = eps(phi(x, k2, t, m, alpha), m)
    k4 = eps(phi(x, k3, t, s, alpha), s)
    return (k1 + 2 * k2 + 2 * k3 + k4) / 6, k1


def linear_multistep(past: Sequence[Tensor]) -> Tensor:
    """The gradient part of the other steps: Adams-Bashforth of order 2 (S-PNDM) or 4 (F-PNDM); newest last."""
    if len(past) == 2:
        return (3 * past[-1] - past[-2]) / 2
    return (55 * past[-1] - 59 * past[-2] + 37 * past[-3] - 9 * past[-4]) / 24


def s_pndm(x: Tensor, times: Sequence[float], eps: Network, alpha: Alpha) -> Tensor:
    """Second order: one pseudo improved Euler step, then two-step multistep steps."""
    past: list[Tensor] = []
    for t, s in pairwise(times):
        # 1. the gradient part
        if len(past) < 1:
            e, newest = pseudo_improved_euler(x, t, s, eps, alpha)
        else:
            newest = eps(x, t)
            e = linear_multistep([*past[-1:], newest])
        past.append(newest)
        # 2. the transfer part
        x = phi(x, e, t, s, alpha)
    return x


def f_pndm(x: Tensor, times: Sequence[float], eps: Network, alpha: Alpha) -> Tensor:
    """Fourth order: three pseudo Runge-Kutta steps, then four-step multistep steps."""
    past: list[Tensor] = []
    for t, s in pairwise(times):
        # 1. the gradient part
        if len(past) < 3:
            e, newest = pseudo_runge_kutta(x, t, s, eps, alpha)
        else:
            newest = eps(x, t)
            e = linear_multistep([*past[-3:], newest])
        past.append(newest)
        # 2. the transfer part
        x = phi(x, e, t, s, alpha)
    return x
