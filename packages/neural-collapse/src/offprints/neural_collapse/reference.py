"""The closed form and the metrics as the paper writes them, slow and plain: read this first.

The problem: features H (samples in rows) and linear layers W_1 (nearest the features) to W_M are all free, and
    L = 1/(2N) ||H W_1^T ... W_M^T - Y||^2 + sum_j lambda_j/2 ||W_j||^2 + lambda_H/2 ||H||^2
is minimized. Everything separates into one scalar problem per class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def objective(weights: Sequence[Tensor], features: Tensor, labels: Tensor, decays: Sequence[float], h: float) -> Tensor:
    """Step 1. The objective L; ``h`` is lambda_H."""
    logits = features
    for W in weights:  # W_1 first
        logits = logits @ W.T
    Y = torch.eye(logits.shape[1], dtype=logits.dtype)[labels]
    fit = ((logits - Y) ** 2).sum() / (2 * len(Y))
    decay = sum(lam / 2 * (W**2).sum() for lam, W in zip(decays, weights, strict=True))
    return fit + decay + h / 2 * (features**2).sum()


def class_minimum(M: int, beta: float) -> float:
    """Step 2. The x >= 0 that minimizes g(x) = 1 / (x^M + 1) + beta x."""
    if M == 1:
        return max(math.sqrt(1 / beta) - 1, 0.0)
    if beta >= (M - 1) ** ((M - 1) / M) / M:  # then g(0) = 1 is the minimum: the class collapses
        return 0.0
    # Otherwise it is the larger of the two points where g' = 0; g' changes its sign from there on.
    low, high = ((M - 1) / (M + 1)) ** (1 / M), (M / beta) ** (1 / (M + 1))
    for _ in range(200):
        middle = (low + high) / 2
        if M * middle ** (M - 1) / (middle**M + 1) ** 2 > beta:
            low = middle
        else:
            high = middle
    return high


def general_orthogonal_frame(counts: Sequence[int], decays: Sequence[float], h: float) -> dict[str, list[float]]:
    """Step 3. Per class: x, s (of W_1), |row of P|^2, |mean feature|^2, their product; the loss. P = W_M ... W_1."""
    M, N = len(decays), sum(counts)
    b = M * N * (N * h * math.prod(decays)) ** (1 / M)
    c = decays[0] ** M / math.prod(decays)
    x = [class_minimum(M, b / n) for n in counts]
    ww = [N * h * value**M for value in x]
    terms = [n / (2 * N) * (1 / (v**M + 1) + b / n * v) for n, v in zip(counts, x, strict=True)]
    return {
        "x": x,
        "s": [(value / c) ** (1 / (2 * M)) for value in ww],
        "ww": ww,
        "hh": [value / (value + N * h) ** 2 for value in ww],
        "wh": [value / (value + N * h) for value in ww],
        "loss": [sum(terms)],
    }


def unit(A: Tensor) -> Tensor:
    """[A] = A / ||A||."""
    return A / A.norm()


def metrics(H: Tensor, y: Tensor, W: Tensor, geometry: str = "etf") -> dict[str, float]:
    """Step 4. NC1 (within-class variability), NC2 (geometry of weights and features), NC3 (their alignment)."""
    K, (N, d) = len(W), H.shape
    means = torch.stack([H[y == k].mean(0) for k in range(K)])
    within, between = H.new_zeros(d, d), H.new_zeros(d, d)
    for k in range(K):
        for sample in H[y == k]:
            within += torch.outer(sample - means[k], sample - means[k]) / N
        between += torch.outer(means[k] - H.mean(0), means[k] - H.mean(0)) / K
    identity = torch.eye(K, dtype=H.dtype)
    if geometry == "etf":
        target, A = (identity - 1 / K) / math.sqrt(K - 1), means - H.mean(0)
    else:
        target, A = identity / math.sqrt(K), means
    return {
        "nc1": (torch.trace(within @ torch.linalg.pinv(between)) / K).item(),
        "nc2_w": (unit(W @ W.T) - target).norm().item(),
        "nc2_h": (unit(A @ A.T) - target).norm().item(),
        "nc3_wh": (unit(W @ A.T) - target).norm().item(),
        "nc3_w_h": (unit(W) - unit(A)).norm().item(),
    }
