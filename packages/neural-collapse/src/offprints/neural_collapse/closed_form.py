"""Global minimizers of the mean squared error in closed form: the general orthogonal frame of any class sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from offprints.neural_collapse._inputs import check_class_counts, check_decay, check_decays
from offprints.shared.validation import check_number

_STEPS = 100  # of Newton's method; about seven are needed


def collapse_threshold(depth: int) -> float:
    """The threshold T_M of b0 / n_k from which on a class of n_k samples collapses to zero.

    T_M = (M - 1)^((M - 1) / M) / M for M linear layers; T_1 = 1. With one layer the class fades out continuously, with
    more layers its norm jumps to zero.

    Args:
        depth: Number M of linear layers, at least 1.

    Raises:
        TypeError: ``depth`` is not an integer.
        ValueError: ``depth`` < 1.

    Example:
        >>> collapse_threshold(1), collapse_threshold(2), round(collapse_threshold(3), 4)
        (1.0, 0.5, 0.5291)
    """
    m = float(check_number(depth, "depth", low=1, integer=True))
    return float((m - 1) ** ((m - 1) / m) / m)


@dataclass(frozen=True, eq=False)
class GOFSolution:
    """The general orthogonal frame: scales of the global minimizers, class by class, as float64 tensors ``[K]``.

    With P = W_M ... W_1, class means h_k and N samples: P P^T = diag(ww), h_k . h_l = 0, |h_k|^2 = hh_k, P h_k = wh_k
    e_k, and row k of P is (ww_k + N lambda_H) h_k. Every feature equals the mean of its class.

    Attributes:
        x: Minimizer of the scalar problem of each class.
        singular_values: s_k of W_1; those of W_j are s_k sqrt(lambda_W1 / lambda_Wj).
        ww: Squared norms of the rows of P.
        hh: Squared norms of the class means.
        wh: Value of its own logit for each class, below 1.
        collapsed: Whether the class is zero in the features and in the classifier.
        loss: The minimum of the objective.
        b: b0, of which b0 / n_k is compared with `collapse_threshold`.

    Example:
        >>> solution = gof_solution([20, 10, 5], weight_decay=[5e-3, 5e-3], feature_decay=5e-3)
        >>> solution.ww
        tensor([7.1338, 4.4067, 2.6882], dtype=torch.float64)
    """

    x: Float[Tensor, " classes"]
    singular_values: Float[Tensor, " classes"]
    ww: Float[Tensor, " classes"]
    hh: Float[Tensor, " classes"]
    wh: Float[Tensor, " classes"]
    collapsed: Bool[Tensor, " classes"]
    loss: float
    b: float


def gof_solution(
    class_counts: Sequence[int],
    *,
    weight_decay: float | Sequence[float],
    feature_decay: float,
    rank: int | None = None,
) -> GOFSolution:
    """The global minimizers of the bias-free mean squared error for any class sizes, depth and decays.

    Per class, x_k >= 0 minimizes g(x) = 1 / (x^M + 1) + (b0 / n_k) x with b0 = M N (N lambda_H prod_j lambda_Wj)^(1/M).
    For M >= 2 it is 0 where b0 / n_k reaches `collapse_threshold`, else the largest root of g'. All classes are solved
    at once by Newton's method, in float64.

    Args:
        class_counts: Samples n_k of each class.
        weight_decay: lambda_W1 (nearest the features) to lambda_WM; a number means one layer.
        feature_decay: lambda_H.
        rank: Width of the narrowest layer. Below the number of classes only the largest classes survive (of equal ones
            those that come first; the solution is then one of many).

    Raises:
        TypeError: counts or ``rank`` not integers, decays not numbers.
        ValueError: fewer than 2 classes, a count < 1, a decay that is not positive and finite, ``rank`` < 1.

    Example:
        >>> gof_solution([500, 500, 30], weight_decay=[5e-3, 5e-3], feature_decay=5e-3).collapsed
        tensor([False, False,  True])
        >>> gof_solution([500, 500, 30], weight_decay=5e-3, feature_decay=5e-3).collapsed
        tensor([False, False, False])
    """
    counts, decays = check_class_counts(class_counts), check_decays(weight_decay)
    feature_decay = check_decay(feature_decay, "feature_decay")
    if rank is not None:
        rank = check_number(rank, "rank", low=1, integer=True)
    n = torch.from_numpy(np.array(counts, dtype=np.float64))
    return _solve(n, decays, feature_decay, rank)


def minimum_class_count(num_samples: int, *, weight_decay: float | Sequence[float], feature_decay: float) -> float:
    """The class size n_k at or below which class k collapses to zero: b0 / T_M.

    It depends on the number N of all samples, on the decays and on the depth, not on the sizes of the other classes.

    Args:
        num_samples: N.
        weight_decay: lambda_W1 to lambda_WM; a number means one layer.
        feature_decay: lambda_H.

    Raises:
        TypeError: ``num_samples`` not an integer, decays not numbers.
        ValueError: ``num_samples`` < 1, a decay that is not positive and finite.

    Example:
        >>> minimum_class_count(1030, weight_decay=[5e-3, 5e-3], feature_decay=5e-3)
        46.74...
        >>> minimum_class_count(1030, weight_decay=5e-3, feature_decay=5e-3)
        26.52...
    """
    num_samples = check_number(num_samples, "num_samples", low=1, integer=True)
    decays, feature_decay = check_decays(weight_decay), check_decay(feature_decay, "feature_decay")
    return math.exp(_log_b(float(num_samples), decays, feature_decay)) / collapse_threshold(len(decays))


def _log_b(total: float, decays: Sequence[float], feature_decay: float) -> float:
    """log b0; the product of many decays would underflow."""
    M = len(decays)
    logs = math.log(total) + math.log(feature_decay) + math.fsum(map(math.log, decays))
    return math.log(M) + math.log(total) + logs / M


def _solve(n: Tensor, decays: Sequence[float], feature_decay: float, rank: int | None) -> GOFSolution:
    """The solution for counts ``n`` in float64."""
    M, total = len(decays), float(n.sum())
    log_b = _log_b(total, decays, feature_decay)
    log_beta = log_b - n.log()
    log_x = _log_x(log_beta, M)
    if rank is not None and rank < len(n):
        log_x[n.argsort(descending=True, stable=True)[rank:]] = -math.inf
    log_c = M * math.log(decays[0]) - math.fsum(map(math.log, decays))
    log_shift = math.log(total) + math.log(feature_decay)  # N lambda_H
    x, power = log_x.exp(), (M * log_x).exp()  # x^M
    wh = power / (1 + power)
    penalty = torch.where(x > 0, (log_beta + log_x).exp(), 0)
    return GOFSolution(
        x=x,
        singular_values=((log_shift + M * log_x - log_c) / (2 * M)).exp(),
        ww=(log_shift + M * log_x).exp(),
        hh=wh / (1 + power) * math.exp(-log_shift),
        wh=wh,
        collapsed=x == 0,
        loss=float((n / (2 * total) * (1 / (1 + power) + penalty)).sum()),
        b=math.exp(log_b),
    )


def _log_x(log_beta: Tensor, M: int) -> Tensor:
    """log of the minimizer of 1 / (x^M + 1) + beta x over x >= 0; -inf where it is 0."""
    survives = log_beta < math.log(collapse_threshold(M))
    if M == 1:
        return torch.where(survives, torch.expm1((-log_beta / 2).clamp(min=0)).log(), -math.inf)
    # The stationary points in u = log x: log M + (M - 1) u - 2 log(1 + e^(Mu)) = log beta. The left side is concave
    # and below the right from u = log(M / beta) / (M + 1) on, so that Newton's method descends from there to
    # the largest root.
    target = torch.where(survives, log_beta, math.log(collapse_threshold(M)))
    u = (math.log(M) - target) / (M + 1)
    for _ in range(_STEPS):
        value = math.log(M) + (M - 1) * u - 2 * torch.logaddexp(torch.zeros_like(u), M * u) - target
        slope = (M - 1) - 2 * M * torch.sigmoid(M * u)
        step = value / slope
        u = u - step
        if bool((step.abs() <= 1e-15 * (1 + u.abs())).all()):
            break
    return torch.where(survives, u, -math.inf)
