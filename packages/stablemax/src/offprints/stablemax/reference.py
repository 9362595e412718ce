"""StableMax, its cross-entropy and perpGrad (sections 4 and 5) as the paper and the official code write them.

Read this first. It is slow and plain, in double precision; the tests show that the fast code equals it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def s(x: Tensor) -> Tensor:
    """The term that takes the place of exp: it grows linearly, and vanishes like 1/|x| instead of exponentially."""
    return torch.where(x < 0, 1 / (1 - x.clamp(max=0)), x + 1)


def stablemax(x: Tensor) -> Tensor:
    """StableMax(x)_i = s(x_i) / sum_j s(x_j)."""
    return s(x) / s(x).sum(-1, keepdim=True)


def cross_entropy(probabilities: Tensor, target: Tensor) -> Tensor:
    """Mean of -log p_y."""
    return -probabilities.gather(1, target.unsqueeze(1)).log().mean()


def cross_entropy_gradient(x: Tensor, target: Tensor) -> Tensor:
    """dL/dx_i = (p_i - 1[i = y]) / (1 + |x_i|) of the mean StableMax cross-entropy."""
    one_hot = torch.nn.functional.one_hot(target, x.shape[1])
    return (stablemax(x) - one_hot) / (1 + x.abs()) / len(x)


def softmax_collapse(z: Tensor) -> Tensor:
    """Whether sum_j exp(z_j - max z) is exactly 1 in the precision of z: the other classes have been absorbed."""
    return (z - z.max(1, keepdim=True).values).exp().sum(1) == 1


def perp_gradient(w: Tensor, g: Tensor, *, rescale: bool = True, eps: float = 1e-30) -> Tensor:
    """Gradient g of one vector of weights w without its part along w."""
    # 1. How much of the gradient only scales the weights.
    r = (w * g).sum() / ((w * w).sum() + eps)
    # 2. Take it out.
    perpendicular = g - r * w
    # 3. Give the rest the length of the whole (the code; the equation of the text leaves this out).
    return perpendicular * g.norm() / (perpendicular.norm() + eps) if rescale else perpendicular


def perp_grad_descent(weights: list[Tensor], gradients: list[Tensor], lr: float) -> list[Tensor]:
    """One step of perpGrad around gradient descent: every tensor is projected on its own, then the base steps."""
    return [w - lr * perp_gradient(w, g) for w, g in zip(weights, gradients, strict=True)]


def nlm_alignment(weights: list[Tensor], gradients: list[Tensor]) -> Tensor:
    """Cosine of the negative gradient and the weights, all as one vector: naive loss minimization is 1."""
    w, g = (torch.cat([part.reshape(-1) for part in parts]) for parts in (weights, gradients))
    return -(w @ g) / (w.norm() * g.norm())
