"""The loss beside its peers, forward and backward; results go to benchmarks/results/losses.json. REPLACE."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from offprints.protogcd import pseudo_huber_loss
from offprints.shared.benchmark import Case, compare


def naive(preds: Tensor, targets: Tensor) -> Tensor:
    return (torch.sqrt(1 + (preds - targets) ** 2) - 1).mean()


def backward(loss: Callable[[Tensor, Tensor], Tensor], preds: Tensor, targets: Tensor) -> Tensor:
    preds.grad = None
    loss(preds, targets).backward()
    assert preds.grad is not None
    return preds.grad


def main() -> None:
    torch.manual_seed(0)
    cases = []
    for size in (10_000, 1_000_000):
        preds, targets = torch.randn(size, requires_grad=True), torch.randn(size)
        losses = {"ours": pseudo_huber_loss, "plain formula": naive, "F.smooth_l1_loss": F.smooth_l1_loss}
        calls = {name: partial(backward, loss, preds, targets) for name, loss in losses.items()}
        cases.append(Case(f"pseudo_huber_loss, {size} values", ours=calls.pop("ours"), peers=calls))
    compare(cases, Path(__file__).parent / "results" / "losses.json", threads=1)


if __name__ == "__main__":
    main()
