"""The coupling of a batch beside POT as the official code uses it: squared distances, emd, a draw of pairs.

The peer draws pairs from the plan without replacement, which for uniform weights is the optimal permutation in a random
order. float32, one thread.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import ot
import torch
from torch import Tensor

from offprints.lct import ot_permutation
from offprints.shared.benchmark import Case, compare

SIZES = ((32, 4096), (128, 4096), (256, 4096), (512, 1024))


def inputs(batch: int, dim: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return 0.5 * torch.randn(batch, dim, generator=generator), torch.randn(batch, dim, generator=generator)


def pot(x: Tensor, noise: Tensor) -> Tensor:
    distances = torch.cdist(x, noise).square()
    plan = ot.emd(ot.unif(len(x)), ot.unif(len(x)), (distances / distances.max()).numpy()).ravel()
    generator = np.random.default_rng(0)
    drawn = generator.choice(len(plan), p=plan / plan.sum(), size=len(x), replace=False)
    return torch.from_numpy(np.stack(np.divmod(drawn, len(x))))


def agree(x: Tensor, noise: Tensor, permutation: Tensor, pairs: Tensor) -> None:
    """Both couplings have the same cost."""
    costs = [float((x[i] - noise[j]).square().sum()) for i, j in ((slice(None), permutation), tuple(pairs))]
    np.testing.assert_allclose(*costs, rtol=1e-5)


def main() -> None:
    cases = []
    for batch, dim in SIZES:
        pair = inputs(batch, dim)
        cases.append(
            Case(
                f"coupling, B = {batch}, d = {dim}",
                partial(ot_permutation, *pair),
                {"POT": partial(pot, *pair)},
                partial(agree, *pair),
            )
        )
    compare(cases, Path(__file__).parent / "results" / "coupling.json", rounds=9, seconds=0.03, threads=1)


if __name__ == "__main__":
    main()
