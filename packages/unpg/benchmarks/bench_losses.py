"""The loss beside the official formula and other margin losses: forward and backward, float32.

``--case WORD`` runs the cases whose name has the word; ``--tiny`` at a size that only shows that they run.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_metric_learning.losses import ArcFaceLoss
from torch import Tensor, nn
from torch.nn import functional as F

from offprints.shared.benchmark import Case, compare
from offprints.unpg import ArcFaceHead, CosFaceHead, MarginLoss, UNPGLoss

RESULTS = Path(__file__).parent / "results"
OFFICIAL = "official formula"
COMBINED = "in-place margin, cross-entropy"


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
    """ArcFace as the leanest trainers have it: the margin is written into the logits; then torch's cross-entropy."""

    def __init__(self, head: ArcFaceHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        logits = F.linear(F.normalize(x), F.normalize(self.head.weight)).clamp(-1, 1)
        rows = torch.arange(len(y))
        with torch.no_grad():
            logits[rows, y] = torch.cos(logits[rows, y].clamp(-1 + 1e-7, 1 - 1e-7).acos() + self.head.margin)
        return F.cross_entropy(logits * self.head.scale, y)


class MetricLearning(nn.Module):
    """pytorch-metric-learning's ArcFaceLoss, whose weights are `(d, C)`."""

    def __init__(self, head: ArcFaceHead) -> None:
        super().__init__()
        degrees = math.degrees(head.margin)
        self.loss = ArcFaceLoss(head.num_classes, head.in_features, margin=degrees, scale=head.scale)
        self.loss.W.data = head.weight.detach().T.contiguous()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(x, y)


def step(loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """One forward and backward; the gradient of the embeddings."""
    x.grad = None
    if isinstance(loss, nn.Module):
        loss.zero_grad()
    loss(x, y).backward()
    assert x.grad is not None
    return x.grad


def same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def batch(rows: int, dim: int, classes: int) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, dim, requires_grad=True), torch.randint(classes, (rows,))


def cases(tiny: bool) -> list[Case]:
    torch.manual_seed(0)
    dim = 8 if tiny else 512
    made = []
    for rows, classes in ((16, 30),) if tiny else ((128, 2000), (256, 10_000)):
        x, y = batch(rows, dim, classes)
        head = ArcFaceHead(dim, classes)
        calls: dict[str, Any] = {OFFICIAL: partial(step, OfficialFormula(head, 1.5), x, y)}
        ours = partial(step, UNPGLoss(head), x, y)
        made.append(Case(f"UNPGLoss, {rows} rows, {classes} classes", ours=ours, peers=calls, agree=same))
    rows, classes = (16, 30) if tiny else (512, 10_000)
    x, y = batch(rows, dim, classes)
    head = ArcFaceHead(dim, classes)
    peers: dict[str, Any] = {
        "pytorch-metric-learning": partial(step, MetricLearning(head), x, y),
        COMBINED: partial(step, InPlaceMargin(head), x, y),
    }
    made += [
        Case(f"{kind.__name__}, {rows} rows, {classes} classes", partial(step, kind(head), x, y), peers)
        for kind in (UNPGLoss, MarginLoss)
    ]
    cos = CosFaceHead(dim, classes)
    chunked = partial(step, UNPGLoss(cos, class_chunk=max(8, classes // 5)), x, y)
    whole = {"without class_chunk": partial(step, UNPGLoss(cos), x, y)}
    made.append(Case(f"class_chunk, {rows} rows, {classes} classes", chunked, whole, agree=same))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", default="")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    chosen = [case for case in cases(options.tiny) if options.case in case.name]
    whole = not options.case and not options.tiny
    compare(chosen, RESULTS / "losses.json" if whole else None, threads=1, rounds=5, seconds=0.5)


if __name__ == "__main__":
    main()
