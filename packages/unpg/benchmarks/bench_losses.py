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
from formulas import InPlaceMargin, OfficialFormula
from pytorch_metric_learning.losses import ArcFaceLoss
from torch import Tensor, nn

from offprints.shared.benchmark import Case, compare
from offprints.unpg import ArcFaceHead, CosFaceHead, MarginLoss, UNPGLoss

RESULTS = Path(__file__).parent / "results"
OFFICIAL = "official formula"
COMBINED = "in-place margin, cross-entropy"


class MetricLearning(nn.Module):
    """pytorch-metric-learning's ArcFaceLoss, whose weights are `(d, C)`."""

    def __init__(self, head: ArcFaceHead) -> None:
        super().__init__()
        degrees = math.degrees(head.margin)
        self.loss = ArcFaceLoss(head.num_classes, head.in_features, margin=degrees, scale=head.scale)
        self.loss.W.data = head.weight.detach().T.contiguous()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(x, y)


Found = tuple[Tensor, Tensor]


def step(loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Found:
    """One forward and backward; the loss and the gradient of the embeddings."""
    x.grad = None
    if isinstance(loss, nn.Module):
        loss.zero_grad()
    value = loss(x, y)
    value.backward()
    assert x.grad is not None
    return value.detach(), x.grad


def same(ours: Found, theirs: Found) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def same_loss(ours: Found, theirs: Found) -> None:
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-4, atol=0)


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
    rows, classes = (20, 40) if tiny else (512, 10_000)
    x, y = batch(rows, dim, classes)
    head = ArcFaceHead(dim, classes)
    peers: dict[str, Any] = {
        "pytorch-metric-learning": partial(step, MetricLearning(head), x, y),
        COMBINED: partial(step, InPlaceMargin(head), x, y),
    }
    size = f"{rows} rows, {classes} classes"
    made.append(Case(f"UNPGLoss, {size}", partial(step, UNPGLoss(head), x, y), peers))  # theirs have no pairs
    made.append(Case(f"MarginLoss, {size}", partial(step, MarginLoss(head), x, y), peers, agree=same_loss))
    cos = CosFaceHead(dim, classes)
    chunked = partial(step, UNPGLoss(cos, class_chunk=max(8, classes // 5)), x, y)
    whole = {"without class_chunk": partial(step, UNPGLoss(cos), x, y)}
    made.append(Case(f"class_chunk, {size}", chunked, whole, agree=same))
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
