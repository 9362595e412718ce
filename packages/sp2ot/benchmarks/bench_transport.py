"""The solvers beside the paper's algorithm and POT, at the size of the paper's buffer, to the same accuracy.

The paper's algorithm is a plain rendering of its equations written for this benchmark: stabilized matrix scaling in
float64, and for the semantic term a dense similarity. It runs for the number of iterations, found beforehand, after
which its residual is at most 1e-8, or for its own limit of 1000 where that is the case's name. POT has neither the
virtual column's weight nor the semantic term: it stands beside the two cases that are its problems.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offprints.shared.benchmark import Case, compare
from offprints.sp2ot import knn_similarity, partial_ot, semantic_partial_ot

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # POT's docstrings have invalid escapes
    import ot

RESULTS = Path(__file__).parent / "results"
EPSILON, GAMMA, TOL = 0.1, 1.0, 1e-8
OTHER_SIZES = ((128, 10), (512, 20), (256, 2000))  # a batch; more clusters than samples
ABSORB = 1e8
PAPER = "paper's algorithm"


def paper_scaling(cost: Tensor, rho: float, iterations: int, warm: dict[str, Tensor] | None = None) -> Tensor:
    """Stabilized scaling of the extended problem; returns the plan without its last column."""
    n, k = cost.shape
    extended = torch.cat([cost, cost.new_zeros(n, 1)], 1)
    target = torch.cat([cost.new_full((k,), rho / k), cost.new_full((1,), 1 - rho)])[:, None]
    exponent = cost.new_full((k + 1, 1), GAMMA / (GAMMA + EPSILON))
    exponent[-1] = 1
    state = {} if warm is None else warm
    u = state.get("u", cost.new_zeros(n, 1))
    v = state.get("v", cost.new_zeros(k + 1, 1))
    b = state.get("b", cost.new_full((k + 1, 1), 1 / (k + 1)))
    kernel = ((u - extended + v.T) / EPSILON).exp()
    factor = (v * (exponent - 1) / EPSILON).exp()
    for _ in range(iterations):
        a = (1 / n) / (kernel @ b)
        new = (target / (kernel.T @ a)) ** exponent * factor
        change = (new - b).norm()
        b = new
        if max(float(a.max()), float(b.max())) > ABSORB:
            u, v = u + EPSILON * a.log(), v + EPSILON * b.log()
            kernel = ((u - extended + v.T) / EPSILON).exp()
            factor = (v * (exponent - 1) / EPSILON).exp()
            b = torch.ones_like(b)
            a = torch.ones_like(a)
        elif float(change) <= 1e-10:
            break
    state.update(u=u, v=v, b=b)
    return (a * kernel * b.T)[:, :k]


def paper_semantic(cost: Tensor, similarity: Tensor, rho: float, weight: float, outer: int, iterations: int) -> Tensor:
    """Majorize-minimize with a dense similarity and warm-started scaling."""
    plan = torch.full_like(cost, rho / cost.numel())
    both, warm = similarity + similarity.T, {}
    for _ in range(outer):
        plan = paper_scaling(cost - (1 - rho) * weight * (both @ plan), rho, iterations, warm)
    return plan


def needed_iterations(cost: Tensor, rho: float) -> int:
    """Scaling iterations to the residual at which all stop."""
    result = partial_ot(cost, rho=rho, method="sinkhorn", tol=TOL, max_iterations=100_000)
    return result.iterations


def random_cost(n: int, k: int) -> Tensor:
    """Costs of random logits."""
    generator = torch.Generator().manual_seed(0)
    return -(2 * torch.randn(n, k, generator=generator, dtype=torch.float64)).log_softmax(1)


def soft_columns(cost: Tensor, rho: float) -> Case:
    """The paper's problem, beside its own algorithm run to the same residual."""
    n, k = cost.shape
    iterations = needed_iterations(cost, rho)
    return Case(
        soft_name(n, k, rho),
        partial(partial_ot, cost, rho=rho, tol=TOL),
        {f"{PAPER}, {iterations} iterations": partial(paper_scaling, cost, rho, iterations)},
        agree,
    )


def soft_name(n: int, k: int, rho: float) -> str:
    return f"P²OT {n} x {k}, rho {rho}"


def hard_columns(cost: Tensor, rho: float) -> Case:
    """Equal sizes that are enforced: balanced transport of the extended cost, which POT has."""
    n, k = cost.shape
    rows, extended = np.full(n, 1 / n), torch.nn.functional.pad(cost, (0, 1)).numpy()
    columns = np.append(np.full(k, rho / k), 1 - rho)
    return Case(
        f"hard columns {n} x {k}, rho {rho}",
        partial(partial_ot, cost, rho=rho, gamma=math.inf, tol=TOL),
        {"POT": lambda: ot.sinkhorn(rows, columns, extended, EPSILON, numItermax=100_000, stopThr=TOL)[:, :k]},
        agree,
    )


def agree(ours: Any, theirs: Any, *, atol: float = 1e-5) -> None:
    """The same pseudo-labels; all stop at masses that are right to 1e-8, which n multiplies."""
    n = len(ours.plan)
    torch.testing.assert_close(n * ours.plan, n * torch.as_tensor(theirs), atol=atol, rtol=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=5120)
    parser.add_argument("--clusters", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: where other work is running")
    options = parser.parse_args()
    torch.set_num_threads(1)
    n, k = options.samples, options.clusters
    generator = torch.Generator().manual_seed(0)
    cost = random_cost(n, k)
    size = f"{n} x {k}"

    shares = (0.1, 0.2, 0.5, 0.9)
    cases = [soft_columns(cost, rho) for rho in shares if options.only in soft_name(n, k, rho)]
    cases.append(hard_columns(cost, 0.5))
    for shape in OTHER_SIZES:
        if options.only in soft_name(*shape, 0.5):
            other = random_cost(*shape)
            cases += [soft_columns(other, 0.5), hard_columns(other, 0.5)]
    rows = np.full(n, 1 / n)
    sizes = np.full(k, 1 / k)

    def semi_unbalanced() -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ot.unbalanced.sinkhorn_unbalanced(
                rows,
                sizes,
                cost.numpy(),
                EPSILON,
                (math.inf, GAMMA),
                reg_type="entropy",
                numItermax=100_000,
                stopThr=TOL,
            )

    cases.append(Case(f"rho 1 {size}", partial(partial_ot, cost, rho=1.0, tol=TOL), {"POT": semi_unbalanced}, agree))

    features = torch.randn(n, 32, generator=generator)
    graph = knn_similarity(features, k=20).double()
    dense = graph.to_dense()
    rho, outer, weight = 0.3, 2, 0.195 * n
    semantic = partial(
        semantic_partial_ot,
        cost,
        graph,
        rho=rho,
        semantic_weight=weight,
        outer_iterations=outer,
        outer_tol=0,
        tol=TOL,
    )
    cases.append(
        Case(
            f"SP²OT {size}, rho {rho}, {outer} outer steps",
            semantic,
            {f"{PAPER}, 1000 iterations a step": partial(paper_semantic, cost, dense, rho, weight, outer, 1000)},
            partial(agree, atol=2e-2),
        )
    )
    suffix = "" if (n, k) == (5120, 100) else f"-{n}x{k}"
    cases = [case for case in cases if options.only in case.name]
    clock = time.process_time if options.clock == "cpu" else None
    output = RESULTS / f"transport{suffix}.json"
    compare(cases, output, rounds=options.rounds, seconds=0.05, threads=1, clock=clock)


if __name__ == "__main__":
    main()
