"""The comp-sum losses, their bounds and adversarial training as the paper writes them. Read this first.

It is slow and plain, in double precision; the tests show that the rest of the package equals it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def phi(u: float, tau: float) -> float:
    """Phi_tau(u), the one-parameter family (section 2)."""
    return math.log(1 + u) if tau == 1 else ((1 + u) ** (1 - tau) - 1) / (1 - tau)


def comp_sum_loss(h: Sequence[float], y: int, tau: float) -> float:
    """l_tau(h, x, y) for the scores h of one sample."""
    # 1. How much every other class weighs beside the label, added up.
    u = sum(math.exp(h[k] - h[y]) for k in range(len(h)) if k != y)
    # 2. The family.
    return phi(u, tau)


def transform(beta: float, tau: float, n: int) -> float:
    """T_tau(beta): the least surrogate regret where the zero-one regret is beta (section 3)."""
    if tau >= 2:
        return beta / ((tau - 1) * n ** (tau - 1))
    if tau == 1:
        return sum((1 + s * beta) * math.log(1 + s * beta) for s in (1, -1) if 1 + s * beta > 0) / 2
    m = (((1 + beta) ** (1 / (2 - tau)) + (1 - beta) ** (1 / (2 - tau))) / 2) ** (2 - tau)
    return 2 ** (1 - tau) / (1 - tau) * (1 - m) if tau < 1 else (m - 1) / ((tau - 1) * n ** (tau - 1))


def inverse_transform(t: float, tau: float, n: int) -> float:
    """Gamma_tau(t), by halving an interval."""
    low, high = 0.0, 1.0
    if t >= transform(1, tau, n):
        return 1.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if transform(middle, tau, n) < t else (low, middle)
    return low


def conditional_risk(p: Sequence[float], h: Sequence[float], tau: float) -> float:
    """The expected loss of scores h where the label is distributed as p; minimized over h it is C*_tau(p)."""
    return sum(p[y] * comp_sum_loss(h, y, tau) for y in range(len(p)))


def rho_margin_loss(h: Sequence[float], y: int, tau: float, rho: float) -> float:
    """Phi_tau of the rho-margins Phi_rho(v) = min(max(0, 1 - v / rho), 1), added up (section 5)."""
    margins = [h[y] - h[k] for k in range(len(h)) if k != y]
    return phi(sum(min(max(0.0, 1 - v / rho), 1.0) for v in margins), tau)


def smooth_adversarial_loss(
    h: Sequence[float], h_adv: Sequence[float], y: int, tau: float, rho: float, nu: float
) -> float:
    """The smooth adversarial comp-sum loss of clean scores h and adversarial scores h_adv (section 5)."""
    # 1. The comp-sum loss of the clean scores in units of rho.
    clean = comp_sum_loss([score / rho for score in h], y, tau)
    # 2. How far the margins move, not squared.
    moved = [(h_adv[y] - h_adv[k]) - (h[y] - h[k]) for k in range(len(h))]
    return clean + nu * math.sqrt(sum(step**2 for step in moved))


def attack(
    objective: Callable[[Tensor], Tensor], x: Tensor, start: Tensor, eps: float, step_size: float, steps: int
) -> Tensor:
    """Projected gradient ascent in the maximum norm: the supremum over x' replaced by a point."""
    x_adv = start
    for _ in range(steps):
        # 1. Climb along the sign of the gradient.
        leaf = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(leaf), leaf)
        x_adv = x_adv + step_size * gradient.sign()
        # 2. Go back into the ball, then into the box.
        x_adv = torch.min(torch.max(x_adv, x - eps), x + eps).clamp(0, 1)
    return x_adv
