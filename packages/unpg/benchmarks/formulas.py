"""Plain losses that the package is measured beside."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offprints.unpg import ArcFaceHead


class OfficialFormula(nn.Module):
    """The loss as the official code computes it: sorted negatives, repeated in each row, appended to the logits."""

    def __init__(self, head: ArcFaceHead, whisker: float) -> None:
        super().__init__()
        self.head, self.whisker = head, whisker

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        unit = F.normalize(x)
        cosine = F.linear(unit, F.normalize(self.head.weight)).clamp(-1 + 1e-7, 1 - 1e-7)
        one_hot = F.one_hot(y, cosine.shape[1]).to(x)
        with_margin = torch.cos(torch.acos(cosine) + self.head.margin * one_hot)
        similarity = unit @ unit.T
        upper = torch.ones_like(similarity, dtype=torch.bool).triu(1)
        negative = similarity[upper & (y[:, None] != y)]
        ordered = negative.sort()[0]
        q1, q3 = ordered[int(0.25 * len(ordered))].item(), ordered[int(0.75 * len(ordered))].item()
        low, high = q1 - self.whisker * (q3 - q1), q3 + self.whisker * (q3 - q1)
        kept = ordered[(ordered >= low) & (ordered <= high)]
        logits = torch.cat([with_margin, kept.expand(len(x), -1)], 1) * self.head.scale
        return F.cross_entropy(logits, y)


class InPlaceMargin(nn.Module):
    """ArcFace as the leanest trainers have it: the margin is written into the logits; then torch's cross-entropy.

    The gradient passes the margin by: these trainers take it for that of the cosine without one.
    """

    def __init__(self, head: ArcFaceHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        logits = F.linear(F.normalize(x), F.normalize(self.head.weight)).clamp(-1, 1)
        rows = torch.arange(len(y))
        with torch.no_grad():
            logits[rows, y] = torch.cos(logits[rows, y].clamp(-1 + 1e-7, 1 - 1e-7).acos() + self.head.margin)
        return F.cross_entropy(logits * self.head.scale, y)
