"""The paper's algorithm as the paper and its code write it: slow and plain, to be read first.

The tests show that the package's fast code equals it, and that it equals the official code on the golden data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def margin_control(logits: Tensor, target: Tensor, penalty: float) -> Tensor:
    """The loss of a client: cross-entropy plus a penalty on how sure the batch is."""
    P = torch.softmax(logits, dim=1)  # 1. the batch's probabilities, [B, K]
    norm = torch.linalg.matrix_norm(P)  # 2. their Frobenius norm, over the whole batch
    return F.cross_entropy(logits, target) + penalty * torch.log(1 + norm**2)  # 3. the margin control term


def principal_rule(updates: Tensor, k_proportion: float) -> Tensor:
    """The server's step for one tensor of the model from the updates U of m clients, [m, d]."""
    m = len(updates)
    H = updates @ updates.T / m  # 1. the clients' correlations
    s, e = torch.linalg.eigh(H)
    order = s.argsort(descending=True)  # 2. eigenpairs, the largest first
    s, e = s[order], e[:, order]
    revised = torch.zeros_like(updates)
    for j in range(int(k_proportion * m)):  # 3. the k principal directions
        v = updates.T @ e[:, j]
        if (updates @ v >= 0).sum() < (updates @ v < 0).sum():
            v = -v  # 4. turned to where most clients point (a projection on -v is that on v: no effect)
        for i in range(m):
            sign = torch.sign(updates[i] @ v)
            # 5. a client's projection, as long as the client's update times the share of the eigenvalue
            revised[i] += s[j] / s.sum() * updates[i].norm() * sign * v / v.norm()
    return revised.mean(0)  # 6. the mean of the revised updates


def server_rounds(updates: Sequence[Tensor], sizes: Sequence[int], k_proportion: float) -> list[tuple[Tensor, Tensor]]:
    """Steps and histories of several rounds, each round's updates [m, sum(sizes)], tensor by tensor."""
    rounds = []
    history = [torch.zeros(size, dtype=updates[0].dtype) for size in sizes]
    for number, all_of_round in enumerate(updates):
        steps = []
        for layer, U in enumerate(all_of_round.split(list(sizes), dim=1)):
            plain = number == 0 or U.shape[1] == 1 or not history[layer].any()
            step = U.mean(0) if plain else principal_rule(U, k_proportion)  # 1. the first round is a plain mean
            history[layer] = step if number == 0 else 0.99 * history[layer] + 0.01 * step  # 2. asked for zero alone
            steps.append(step)
        rounds.append((torch.cat(steps), torch.cat(history)))
    return rounds


def gradient_harmonization(updates: Tensor, history: Tensor) -> Tensor:
    """The step of FedGH for one tensor: pairs of clients that disagree are made orthogonal, again and again."""
    m = len(updates)
    left = list(updates)
    while len(left) > 1:
        left.sort(key=lambda u: float(u @ history))  # 1. by their projection on the history
        sums = []
        for i in range(len(left) // 2):  # 2. first with last, second with second last, ...
            a, b = left[i], left[-1 - i]
            if a @ b < 0:  # 3. each loses its part along the other, as that was
                a, b = a - (a @ b) / (b @ b) * b, b - (a @ b) / (a @ a) * a
            sums.append(a + b)
        if len(left) % 2:
            sums.append(left[len(left) // 2])  # 4. the odd one stays alone
        left = sums
    return left[0] / m


def decomposition(F_i: Sequence[float], F_cross: Sequence[float], F_global: float, p: Sequence[float]) -> list[float]:
    """F(w) = local + shift + aggregation, from F_i(w_i), F(w_i), F(w) and the clients' shares p."""
    local = math.fsum(share * own for share, own in zip(p, F_i, strict=True))
    cross = math.fsum(share * other for share, other in zip(p, F_cross, strict=True))
    return [local, cross - local, F_global - cross]
