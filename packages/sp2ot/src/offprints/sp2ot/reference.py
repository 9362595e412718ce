"""The algorithm of SP²OT as the paper writes it: scaling with a virtual cluster, majorize-minimize, self-labeling.

Slow and plain, to be read first; one problem at a time, in the type of its input. `partial_ot`, `semantic_partial_ot`
and `SP2OTLoss` are what to use: they are tested against this, and timed beside it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def partial_transport(
    cost: Tensor, rho: float, epsilon: float = 0.1, gamma: float = 1.0, iterations: int = 1000, tol: float = 0.0
) -> Tensor:
    """Plan `(N, K)` of `min <Q, C> + gamma KL(Q^T 1, rho/K)`, `Q 1 <= 1/N`, `1^T Q 1 = rho`, smoothed by epsilon."""
    n, k = cost.shape
    # 1. A virtual cluster of cost 0 takes the mass 1 - rho that is not transported: rows become equalities.
    extended = torch.cat([cost, cost.new_zeros(n, 1)], dim=1)
    log_beta = torch.tensor([rho / k] * k + [1 - rho], dtype=cost.dtype).log()
    # 2. The sizes of the K clusters are asked for softly, that of the virtual cluster exactly.
    exponent = torch.tensor([1.0 if math.isinf(gamma) else gamma / (gamma + epsilon)] * k + [1.0], dtype=cost.dtype)
    # 3. Scale rows and columns in turn. The paper keeps a, b and absorbs what grows; logarithms do the same.
    kernel = -extended / epsilon
    log_b = cost.new_full((k + 1,), -math.log(k + 1))
    for _ in range(iterations):
        log_a = -math.log(n) - (kernel + log_b).logsumexp(dim=1)  # a <- (1/N) / (M b)
        before, log_b = log_b, exponent * (log_beta - (kernel + log_a[:, None]).logsumexp(dim=0))  # (beta / M^T a)^f
        if log_b.exp().sub(before.exp()).norm() < tol:
            break
    # 4. The plan is diag(a) M diag(b) without the virtual cluster; N times it are the pseudo-labels.
    return (kernel + log_a[:, None] + log_b).exp()[:, :k]


def semantic_transport(
    cost: Tensor, similarity: Tensor, rho: float, weight: float, outer_iterations: int, **transport: float
) -> Tensor:
    """The plan with the reward `(1 - rho) weight <S, Q Q^T>`: neighbors in the same cluster."""
    plan = torch.full_like(cost, rho / cost.numel())
    for _ in range(outer_iterations):
        # 5. The reward is replaced by its tangent at the last plan, 6. and the transport problem solved again.
        discount = (1 - rho) * weight * (similarity + similarity.T) @ plan
        plan = partial_transport(cost - discount, rho, **transport)  # type: ignore[arg-type]
    return plan


def share(step: int, total_steps: int, base: float = 0.1, upper: float = 1.0) -> float:
    """7. The progressive share rho: little at first, everything in the end."""
    return base + (upper - base) * math.exp(-5 * (1 - step / total_steps) ** 2)


def self_labeling_loss(first: Tensor, second: Tensor, rho: float, **transport: float) -> Tensor:
    """8. Each view is trained on the other's pseudo-labels, whose rows sum to the samples' weights."""
    loss = first.new_zeros(())
    for logits, other in ((first, second), (second, first)):
        labels = len(other) * partial_transport(-other.detach().log_softmax(1), rho, **transport)  # type: ignore[arg-type]
        loss = loss - (labels * logits.log_softmax(1)).sum(1).mean()
    return loss
