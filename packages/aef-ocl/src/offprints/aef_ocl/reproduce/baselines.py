"""What AEF-OCL is compared with: heads on the same features that see the same stream once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from offprints.shared.distributed import GroupMoments


class SGDHead:
    """A linear head trained by SGD on the expanded features, with a cross-entropy loss; one step a batch."""

    def __init__(self, size: int, K: int, rate: float) -> None:
        self.weight = torch.zeros(size, K, dtype=torch.float64)
        self.bias = torch.zeros(K, dtype=torch.float64)
        self.rate = rate

    def batch(self, phi: Tensor, y: Tensor) -> None:
        """One step."""
        wrong = (self.scores(phi).softmax(1) - nn.functional.one_hot(y, len(self.bias))) / len(y)
        self.weight -= self.rate * phi.T @ wrong
        self.bias -= self.rate * wrong.sum(0)

    def scores(self, phi: Tensor) -> Tensor:
        """Logits."""
        return phi @ self.weight + self.bias


class Means:
    """Running means and a shared covariance: the nearest class mean, and streaming linear discriminant analysis."""

    def __init__(self, d: int, K: int, shrinkage: float = 1e-4) -> None:
        self.moments = GroupMoments(K, (d,))
        self.scatter = torch.zeros(d, d, dtype=torch.float64)
        self.shrinkage = shrinkage

    def batch(self, x: Tensor, y: Tensor) -> None:
        """The batch's rows about the means before and after: within-class scatter, row by row as Deep SLDA does."""
        for row, label in zip(x.double(), y, strict=True):
            before = row - self.moments.mean[label]
            known = float(self.moments.count[label] > 0)
            self.moments.update(row[None], label[None])
            self.scatter += known * torch.outer(before, row - self.moments.mean[label])

    def nearest_mean(self, x: Tensor) -> Tensor:
        """Negative distances; a class not seen is infinitely far."""
        distance = torch.cdist(x.double(), self.moments.mean)
        return -distance.masked_fill(self.moments.count == 0, torch.inf)

    def lda(self, x: Tensor) -> Tensor:
        """The discriminants with the shrunk covariance."""
        d = len(self.scatter)
        covariance = self.scatter / self.moments.count.sum().clamp(min=1)
        shrunk = (1 - self.shrinkage) * covariance + self.shrinkage * torch.eye(d, dtype=torch.float64)
        weight = torch.linalg.pinv(shrunk, hermitian=True) @ self.moments.mean.T
        scores = x.double() @ weight - (self.moments.mean.T * weight).sum(0) / 2
        return scores.masked_fill(self.moments.count == 0, -torch.inf)


def best(curves: Sequence[tuple[float, Tensor]]) -> tuple[float, Tensor]:
    """The learning rate whose mean accuracy at the end of the streams is highest, and its curves ``[S, points]``."""
    return max(curves, key=lambda pair: float(pair[1][:, -1].mean()))
