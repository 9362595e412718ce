"""Updates beside an autograd loop, and the way to a separator beside scikit-learn's fastest: one thread, float32.

The cost of an update: 100 updates from 0 (``--updates 500`` for more), for one step size and for twelve, on samples
whose labels are noise, which nothing separates while there are far more samples than features. The way to a separator:
Gaussian features that a hyperplane separates, from nothing to the first vector with every sample on its right side.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, Perceptron
from torch import Tensor, nn

from offprints.lr_perceptron import LogisticGDClassifier, PerceptronClassifier, sweep
from offprints.shared.benchmark import Case, compare

RESULTS = Path(__file__).parent / "results"
STEP_SIZES = np.logspace(-2, 3, 12).tolist()
AUTOGRAD = "autograd and SGD, a step size at a time"


def noise(n: int, d: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(n, d, generator=generator) / d**0.5
    return X, (torch.rand(n, generator=generator) > 0.5).float() * 2 - 1


def by_autograd(X: Tensor, y: Tensor, step_sizes: Sequence[float], updates: int) -> Tensor:
    """The loop that everybody writes, for every step size."""
    found = []
    for step_size in step_sizes:
        model = nn.Linear(X.shape[1], 1, bias=False)
        nn.init.zeros_(model.weight)
        optimizer = torch.optim.SGD(model.parameters(), lr=step_size)
        for _ in range(updates):
            margins = y * model(X).squeeze(1)
            if bool((margins > 0).all()):
                break
            optimizer.zero_grad()
            nn.functional.softplus(-margins).mean().backward()
            optimizer.step()
        found.append(model.weight.detach()[0])
    return torch.stack(found)


def agree(ours: Any, theirs: Tensor) -> None:
    torch.testing.assert_close(ours.theta, theirs, rtol=0.02, atol=0.02 * float(theirs.abs().max()))


def updates_case(n: int, d: int, step_sizes: Sequence[float], updates: int) -> Case:
    X, y = noise(n, d)
    many = f"{len(step_sizes)} step sizes" if len(step_sizes) > 1 else "1 step size"
    return Case(
        f"{updates} updates, {n} x {d}, {many}",
        ours=lambda: sweep(X, y, step_sizes, max_iter=updates),
        peers={AUTOGRAD: lambda: by_autograd(X, y, step_sizes, updates)},
        agree=agree if max(step_sizes) <= 1 else None,
    )


def separator_case(n: int, d: int) -> Case:
    generator = np.random.default_rng(0)
    X = generator.normal(size=(n, d)).astype(np.float32)
    y = (X @ generator.normal(size=d) > 0).astype(int)

    def separated(make: Callable[[], Any]) -> Callable[[], float]:
        def run() -> float:
            score = float(make().fit(X, y).score(X, y))
            assert score == 1, score
            return score

        return run

    return Case(
        f"to a separator, {n} x {d}",
        ours=separated(lambda: LogisticGDClassifier(step_size=1e4, normalized=True)),
        peers={
            "ours, PerceptronClassifier": separated(lambda: PerceptronClassifier(max_iter=10**6)),
            "scikit-learn LogisticRegression, C=1e6": separated(lambda: LogisticRegression(C=1e6, max_iter=10**4)),
            "scikit-learn Perceptron": separated(lambda: Perceptron(tol=None, max_iter=2000)),
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=100, help="updates of a call")
    parser.add_argument("--only", choices=("updates", "separators"), help="one of the two tables")
    options = parser.parse_args()
    timing: dict[str, Any] = {"threads": 1, "clock": time.process_time, "seconds": 1e-3, "rounds": 3}
    if options.only != "separators":
        sizes = [(1000, 64), (1000, 784), (5000, 784)]
        cases = [updates_case(n, d, steps, options.updates) for n, d in sizes for steps in ([1.0], STEP_SIZES)]
        compare(cases, RESULTS / "updates.json", **timing)
    if options.only != "updates":
        compare([separator_case(2000, 200), separator_case(2000, 784)], RESULTS / "separators.json", **timing)


if __name__ == "__main__":
    main()
