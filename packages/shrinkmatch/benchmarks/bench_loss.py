"""The shrunk loss beside the official loops and beside what FixMatch costs without it; one thread."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from offprints.shared.benchmark import Case, compare
from offprints.shrinkmatch import ShrinkMatchLoss, ShrinkMatchModel, shrink_loss, wide_resnet

RESULTS = Path(__file__).parent / "results" / "loss.json"
LOOPS = "official loops over samples and classes, rewritten"
FIXMATCH = "FixMatch with alignment: no auxiliary head, no shrunk loss"


def logits(rows: int, classes: int, seed: int) -> Tensor:
    return 3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


def loops(z: Tensor, probs: Tensor, threshold: float = 0.95) -> Tensor:
    """One sample and one class at a time, on tensors, as the official code goes."""
    ordered, order = probs.sort(dim=1, descending=True, stable=True)
    sorted_logits = z.gather(1, order)
    total = z.sum() * 0
    for b in range(len(z)):
        if ordered[b, 0] >= threshold:
            continue
        for c in range(2, z.shape[1]):
            confidence = ordered[b, 0] / (ordered[b, 0] + ordered[b, c:].sum())
            if confidence >= threshold or c == z.shape[1] - 1:
                kept = torch.cat([sorted_logits[b, :1], sorted_logits[b, c:]])[None]
                loss = F.cross_entropy(kept, torch.zeros(1, dtype=torch.int64))
                total = total + loss * ordered[b, 0] * (confidence >= threshold)
                break
    return total / len(z)


def backward(loss: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    z.grad = None
    loss(z).backward()
    assert z.grad is not None
    return z.grad


def near(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def of_loss(rows: int, classes: int) -> Case:
    z, probs = logits(rows, classes, 0).requires_grad_(), logits(rows, classes, 1).softmax(1)
    return Case(
        f"shrunk loss, {rows} samples, {classes} classes, forward and backward",
        ours=lambda: backward(lambda z: shrink_loss(z, probs), z),
        peers={LOOPS: lambda: backward(lambda z: loops(z, probs), z)},
        agree=near,
    )


def of_step(labeled: int, unlabeled: int, depth: int, widen: int, side: int) -> Case:
    """A whole training step of a network, and the same without what ShrinkMatch adds."""
    torch.manual_seed(0)
    backbone = wide_resnet(depth, widen)
    model = ShrinkMatchModel(backbone, backbone.out_dim, 10)
    criterion = ShrinkMatchLoss(num_classes=10)
    x, weak, strong = (torch.randn(rows, 3, side, side) for rows in (labeled, unlabeled, unlabeled))
    y = torch.arange(labeled) % 10

    def ours() -> None:
        model.zero_grad()
        logits_x, *others = model(x, weak, strong)
        criterion(logits_x, y, *others).loss.backward()

    def fixmatch() -> None:
        model.zero_grad()
        z = model(torch.cat([x, weak, strong]))
        logits_x, logits_w, logits_s = z.split([labeled, unlabeled, unlabeled])
        p = criterion.alignment(logits_w.detach().softmax(1))
        certain = (F.cross_entropy(logits_s, p, reduction="none") * (p.max(1).values >= 0.95)).mean()
        (F.cross_entropy(logits_x, y) + certain).backward()

    name = f"a step of WRN-{depth}-{widen}, {labeled} and {unlabeled} images of {side} x {side}"
    return Case(name, ours=ours, peers={FIXMATCH: fixmatch})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true", help="small sizes, nothing is written")
    tiny = parser.parse_args().tiny
    sizes = [(16, 5)] if tiny else [(448, 10), (448, 100), (64, 1000)]
    step = of_step(2, 4, 10, 1, 8) if tiny else of_step(4, 28, 28, 2, 32)
    cases = [of_loss(*size) for size in sizes] + [step]
    compare(cases, None if tiny else RESULTS, threads=1, rounds=1 if tiny else 3)


if __name__ == "__main__":
    main()
