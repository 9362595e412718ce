"""The paper's two losses and the score behind them as the paper writes them, slow and plain: read it first.

Lists and loops over plain numbers of float64 tensors. The tests show that the rest of the package equals it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def distance(x: Tensor, z: Tensor) -> Tensor:
    """The distance of both losses; the 1e-6 inside the root bounds its gradient where x and z coincide."""
    return torch.sqrt(((x - z) ** 2).sum() + 1e-6)


def proto_triplet(
    queries: Tensor, labels: Tensor, prototypes: Tensor, prototype_labels: Tensor, margin: float = 0.5
) -> Tensor:
    """The mean over all queries of max(0, d(q, own) - min d(q, other) + margin)."""
    losses = []
    for q, label in zip(queries, labels.tolist(), strict=True):
        d = dict(zip(prototype_labels.tolist(), [distance(q, p) for p in prototypes], strict=True))
        # 1. The positive is the own prototype, the negative is the nearest other one.
        positive, negative = d.pop(label), min(d.values())
        # 2. A hinge; the queries whose hinge is 0 count in the mean.
        losses.append(torch.clamp(positive - negative + margin, min=0))
    return torch.stack(losses).mean()


def icnn(
    x: Tensor, y: Tensor, z: Tensor, yz: Tensor, *, drop: bool, k: int = 4, window: int | None = None
) -> dict[str, Tensor]:
    """The parts of the ICNN score of the rows of x among the references z."""
    # 1. Rows use k neighbors among the references left after the nearest is dropped; k is truncated to what there is.
    available = len(z) - int(drop)
    k = available - 1 if k + 1 >= available else k
    truncated = k + 1 >= available
    window = k + 1 if window is None else window
    same_terms, different, raw, neighbors = [], [], [], []
    for i in range(len(x)):
        # 2. The references by distance, the first `window` of them.
        d = torch.stack([distance(x[i], reference) for reference in z])
        order = d.argsort()[int(drop) : int(drop) + window].tolist()
        s = [bool(yz[j] == y[i]) for j in order]
        # 3. Distances in units of that of the nearest other class in the window, at most 1 in each row.
        others = [d[j] for j, alike in zip(order, s, strict=True) if not alike]
        r = min(others) if others else torch.tensor(math.inf)
        a = torch.stack([d[j] / (r + 1e-7) for j in order[:k]])
        a = a / torch.clamp(a.max(), min=1)
        same_terms.append(a * torch.tensor(s[:k]))
        different.append(~torch.tensor(s[:k]))
        raw.append(torch.stack([d[j] for j in order[:k]]))
        neighbors.append(sum(s[:k]))
    # 4. How near the neighbors of the own class are: 1 - the mean over the rows that have any.
    count = torch.tensor(neighbors, dtype=x.dtype)
    A = torch.stack([row.sum() for row in same_terms]) / (count + 1e-7)
    lambda_same = 1 - A.sum() / ((count > 0).to(x.dtype).sum() + 1e-7)
    # 5. How far the neighbors of other classes are, in units of the farthest of them.
    mask, D = torch.stack(different).to(x.dtype), torch.stack(raw)
    b = mask * D / ((mask * D).max() + 1e-7)
    B = b.sum(1) / (mask.sum(1) + 1e-7)
    rows = (mask.sum(1) > 0).to(x.dtype).sum()
    lambda_diff = B.sum() / (rows + 1e-7) if rows > 0 else torch.ones((), dtype=x.dtype)
    # 6. The share of neighbors of the own class, 1 where k was truncated.
    gamma = torch.ones((), dtype=x.dtype) if truncated else (count / k).mean()
    # 7. The spread of both kinds of distances, which the paper's code leaves out of the score.
    omega = 1 - (torch.stack(same_terms).var() + b.var())
    # 8. The score, and the loss -log(score).
    lambda_ = (lambda_same + lambda_diff) / 2
    score = (lambda_ + gamma) / 2
    return {
        "score": score,
        "lambda_": lambda_,
        "lambda_same": lambda_same,
        "lambda_diff": lambda_diff,
        "omega": omega,
        "gamma": gamma,
        "loss": -torch.log(torch.clamp(score, min=1e-12)),
    }
