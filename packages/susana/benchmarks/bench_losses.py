"""The losses beside their peers, forward and backward; results go to benchmarks/results/losses.json.

"expanded differences" is the authors' algorithm: the tensor of all differences, sorted distances, and a gradient
through all of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from pytorch_metric_learning import losses, miners
from torch import Tensor

from offprints.shared.benchmark import Case, compare
from offprints.susana import compute_prototypes, icnn_loss, proto_triplet_loss


def expanded(x: Tensor, y: Tensor, k: int = 4) -> Tensor:
    """The ICNN loss of a set among itself with nothing saved."""
    d = ((x[:, None] - x[None]) ** 2).sum(-1).add(1e-6).sqrt()
    order = d.argsort(1)[:, 1 : k + 2]
    D, s = d.gather(1, order), (y[order] == y[:, None]).to(x.dtype)
    r = D.masked_fill(s.bool(), torch.inf).amin(1, keepdim=True)
    a = D[:, :k] / (r + 1e-7)
    a = a / a.amax(1, keepdim=True).clamp_min(1)
    D, s = D[:, :k], s[:, :k]
    same = 1 - ((s * a).sum(1) / (s.sum(1) + 1e-7)).sum() / ((s.sum(1) > 0).sum() + 1e-7)
    b = (1 - s) * D / (((1 - s) * D).max() + 1e-7)
    diff = (b.sum(1) / ((1 - s).sum(1) + 1e-7)).sum() / (((1 - s).sum(1) > 0).sum() + 1e-7)
    return -torch.log(((same + diff) / 2 + s.mean()) / 2)


def backward(loss: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x.grad = None
    loss(x).backward()
    assert x.grad is not None
    return x.grad


def icnn_cases(sizes: list[tuple[int, int]], largest: int) -> list[Case]:
    cases = []
    for n, d in sizes:
        x, y = torch.randn(n, d, requires_grad=True), torch.arange(n) % 20
        peers = {"expanded differences": partial(backward, partial(expanded, y=y), x)} if n * n * d <= largest else {}
        near = partial(torch.testing.assert_close, rtol=1e-3, atol=1e-6)
        cases.append(
            Case(
                f"icnn_loss, n = {n}, D = {d}",
                ours=partial(backward, partial(icnn_loss, labels=y), x),
                peers=peers,
                agree=near,
            )
        )
    return cases


def triplet_case(n: int, d: int) -> Case:
    """Proto-Triplet of n queries and 20 prototypes of as many supports beside a triplet loss of the hardest pairs."""
    x, y = torch.randn(n, d, requires_grad=True), torch.arange(n) % 20
    supports = torch.randn(100, d)

    def ours(x: Tensor) -> Tensor:
        return proto_triplet_loss(x, y, compute_prototypes(supports, torch.arange(100) % 20, n_way=20))

    miner, loss = miners.BatchHardMiner(), losses.TripletMarginLoss(margin=0.5)

    def peer(x: Tensor) -> Tensor:
        value: Tensor = loss(x, y, miner(x, y))
        return value

    calls = {"pytorch-metric-learning": partial(backward, peer, x)}
    return Case(f"proto_triplet_loss, n = {n}, D = {d}", ours=partial(backward, ours, x), peers=calls)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true", help="try the script in a second; nothing is written")
    tiny = parser.parse_args().tiny
    torch.manual_seed(0)
    sizes = [(40, 8)] if tiny else [(100, 1600), (400, 640), (400, 1600), (1500, 1024)]
    cases = [*icnn_cases(sizes, 400 * 400 * 1600), triplet_case(*((40, 8) if tiny else (400, 640)))]
    output = None if tiny else Path(__file__).parent / "results" / "losses.json"
    compare(cases, output, threads=1, **({"rounds": 1, "seconds": 0.01} if tiny else {"rounds": 3}))


if __name__ == "__main__":
    main()
