"""Time of the loss with its gradient beside topolosses (its C++ is the official Betti-Matching-3D), on the wall.

Install topolosses 0.2 to include it. Sizes of the batch's images are arguments, by default 64 128 256.
"""

import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from offprints.betti_matching import betti_matching_loss
from offprints.shared.benchmark import Case, compare

try:
    import topolosses.losses as peer
except ImportError:
    peer: ModuleType | None = None  # type: ignore[no-redef]

BATCH = 8


def batch(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    noise = torch.rand(2, BATCH, 1, n, n, generator=generator)
    pred, target = torch.nn.functional.avg_pool2d(noise.flatten(0, 1), 7, 1, 3).unflatten(0, (2, BATCH))
    return ((pred - 0.5) * 4).sigmoid(), (target > 0.5).float()


def with_gradient(loss: torch.nn.Module, pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    pred = pred.clone().requires_grad_()
    value = loss(pred, target)
    value.backward()
    assert pred.grad is not None
    return value.detach(), pred.grad


def same(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    """Equal up to one factor: the peer may weigh the terms otherwise. Gradients in the same direction."""
    for a, b in zip(ours, theirs, strict=True):
        cosine = (a * b).sum() / (a.norm() * b.norm())
        if cosine < 0.9:
            raise AssertionError(f"the losses differ: cosine of the gradients {cosine:.3f}")


class Ours(torch.nn.Module):
    """The loss without its essential bar, as the peer has it."""

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        return betti_matching_loss(pred, target, reduced=True)


def main() -> None:
    sizes = [int(size) for size in sys.argv[1:]] or [64, 128, 256]
    if peer is None:
        print("topolosses is not importable: nothing to compare with")
        return
    theirs = peer.BettiMatchingLoss(include_background=True, use_base_loss=False, num_processes=torch.get_num_threads())
    cases = []
    for n in sizes:
        pred, target = batch(n)
        cases.append(
            Case(
                f"loss and gradient, {BATCH} x {n}², {torch.get_num_threads()} threads",
                ours=lambda p=pred, t=target: with_gradient(Ours(), p, t),
                peers={"topolosses": lambda p=pred, t=target: with_gradient(theirs, p, t)},
                agree=same,
            )
        )
    compare(cases, Path(__file__).parent / "results" / "loss.json", rounds=5, seconds=0.05)


if __name__ == "__main__":
    main()
