"""Gyroplanes, Hyp-PC, all pairs and pseudo-negatives beside geoopt, hypll and the official formulas; one thread."""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offprints.hyp_oc import PseudoNegativeSampler, gyroplane_logits, hyp_pc_loss, pairwise_distance, project
from offprints.shared.benchmark import Case, compare

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of torch.jit.script
    from geoopt.manifolds.stereographic import math as geoopt_math

C = 0.1
K = torch.tensor(-C)
BROADCAST, LOOP = "official formula, (B, K, d)", "official loop over pairs"
RESULTS = Path(__file__).parent / "results" / "ball.json"


def points(*shape: int, seed: int = 0) -> Tensor:
    return project(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), c=C, eps=0.1)


def backward(loss: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x.grad = None
    loss(x).sum().backward()
    assert x.grad is not None
    return x.grad


def mobius(x: Tensor, y: Tensor) -> Tensor:
    xy, xx, yy = (x * y).sum(-1, keepdim=True), x.square().sum(-1, keepdim=True), y.square().sum(-1, keepdim=True)
    return ((1 + 2 * C * xy + C * yy) * x + (1 - C * xx) * y) / (1 + 2 * C * xy + C * C * xx * yy + 1e-5)


def broadcast_logits(x: Tensor, p: Tensor, a: Tensor) -> Tensor:
    """The formula as it stands, with every difference of a point and a plane."""
    difference = mobius(-p[:, None].expand(-1, len(x), -1), x[None].expand(len(p), -1, -1))
    size, root = a.norm(dim=-1, keepdim=True), math.sqrt(C)
    gap = 1 - C * difference.square().sum(-1)
    sine = 2 * root * (difference * a[:, None]).sum(-1) / (size * gap)
    scale = 2 / (1 - C * p.square().sum(-1, keepdim=True)) * size / root
    return (scale * torch.log((sine + torch.sqrt(1 + sine * sine)).clamp(min=1e-5))).T


def geoopt_logits(x: Tensor, p: Tensor, a: Tensor) -> Tensor:
    plane = geoopt_math.dist2plane(x[:, None], p, a, k=K, signed=True, scaled=True)
    return plane * geoopt_math.lambda_x(p, k=K)


def loop(x: Tensor) -> Tensor:
    """A distance at a time, as the official loss takes them, with the geodesic distance."""
    total, half = x.new_zeros(()), len(x) // 2
    for i in range(half):
        length = mobius(-x[i], x[i + half]).norm()
        total = total + 2 / math.sqrt(C) * torch.atanh((math.sqrt(C) * length).clamp(max=1 - 1e-5))
    return total / len(x)


def geoopt_pairs(x: Tensor) -> Tensor:
    first, second = x.chunk(2)
    return geoopt_math.dist(first, second, k=K).sum() / len(x)


def near(rtol: float) -> Callable[[Any, Any], None]:
    def agree(ours: Tensor, theirs: Tensor) -> None:
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=rtol * float(ours.abs().max()))

    return agree


def gyroplanes(batch: int, width: int, classes: int) -> Case:
    x, p = points(batch, width).requires_grad_(), points(classes, width, seed=1)
    a = torch.randn(classes, width, generator=torch.Generator().manual_seed(2))
    calls = {
        BROADCAST: lambda: backward(lambda x: broadcast_logits(x, p, a), x),
        "geoopt": lambda: backward(lambda x: geoopt_logits(x, p, a), x),
    }
    return Case(
        f"gyroplanes, {batch} points, {width} wide, {classes} classes, forward and backward",
        ours=lambda: backward(lambda x: gyroplane_logits(x, p, a, c=C), x),
        peers=calls,
        agree=near(2e-2),
    )


def pairs(batch: int, width: int) -> Case:
    x = points(batch, width).requires_grad_()
    calls = {LOOP: lambda: backward(loop, x), "geoopt": lambda: backward(geoopt_pairs, x)}
    return Case(
        f"Hyp-PC, {batch} points, {width} wide, forward and backward",
        ours=lambda: backward(lambda x: hyp_pc_loss(x, c=C), x),
        peers=calls,
        agree=near(2e-2),
    )


def all_pairs(count: int, width: int) -> Case:
    x, y = points(count, width), points(count, width, seed=1)

    def hypll_distances() -> Tensor:
        from hypll.manifolds.poincare_ball import Curvature, PoincareBall
        from hypll.tensors import ManifoldTensor

        curvature = Curvature(C, constraining_strategy=lambda c: c)
        ball = PoincareBall(curvature)
        found: Tensor = ball.cdist(ManifoldTensor(x[None], manifold=ball), ManifoldTensor(y[None], manifold=ball))[0]
        return found

    def geoopt_distances() -> Tensor:
        blocks = [geoopt_math.dist(part[:, None], y, k=K) for part in x.split(100)]
        return torch.cat(blocks)

    return Case(
        f"all distances, {count} x {count} points, {width} wide",
        ours=lambda: pairwise_distance(x, y, c=C),
        peers={"hypll": hypll_distances, "geoopt": geoopt_distances},
        agree=near(1e-2),
    )


def sampling(width: int) -> Case:
    sampler, features = PseudoNegativeSampler(width), torch.randn(8, width)

    def official() -> Tensor:
        mean = features.mean(0)
        return torch.distributions.MultivariateNormal(mean, torch.eye(width)).sample((8,))

    return Case(
        f"8 pseudo-negatives, {width} wide",
        ours=lambda: sampler(features),
        peers={"MultivariateNormal, as in the official code": official},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="tiny sizes, nothing is written")
    options = parser.parse_args()
    if options.small:
        cases = [gyroplanes(8, 4, 3), pairs(8, 4), all_pairs(20, 4), sampling(16)]
        compare(cases, rounds=1, seconds=0.01, threads=1)
        return
    cases = [
        gyroplanes(256, 128, 2),
        gyroplanes(512, 128, 100),
        pairs(512, 128),
        all_pairs(2000, 128),
        sampling(2048),
    ]
    compare(cases, RESULTS, rounds=3, threads=1)


if __name__ == "__main__":
    main()
