"""Batches, solutions and whole streams beside the published recursion, streaming LDA and scikit-learn; one thread.

The published recursion is a plain rendering of the official class: an inverse of a B x B matrix and full products,
R and W copied before every evaluation. Streaming LDA is that of Avalanche: an outer product a row, a pseudo-inverse an
evaluation. ``--tiny`` runs everything at a size that proves that it runs.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from offprints.aef_ocl import AEFOCLClassifier, PseudoFeatureGenerator, RecursiveRidge
from offprints.aef_ocl.reproduce.baselines import Means
from offprints.shared.benchmark import Case, compare
from offprints.shared.device import make_generator

RESULTS = Path(__file__).parent / "results" / "streams.json"
K, GAMMA = 10, 1e-3
PUBLISHED = "published recursion"


def rows(n: int, D: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = make_generator(seed)
    return torch.randn(n, D, generator=generator, dtype=torch.float64).relu(), torch.randint(
        K, (n,), generator=generator
    )


class Published:
    """The recursion as it is published."""

    def __init__(self, D: int) -> None:
        self.R, self.W = torch.eye(D, dtype=torch.float64) / GAMMA, torch.zeros(D, K, dtype=torch.float64)

    def batch(self, X: Tensor, y: Tensor) -> Published:
        Y = torch.nn.functional.one_hot(y, K).double()
        inverse = torch.inverse(torch.eye(len(X), dtype=torch.float64) + X @ self.R @ X.T)
        self.R = self.R - self.R @ X.T @ inverse @ X @ self.R
        self.W = self.W + self.R @ X.T @ (Y - X @ self.W)
        return self


def near(tolerance: float) -> Callable[[Any, Any], None]:
    def agree(ours: Any, theirs: Any) -> None:
        weights = [getattr(one, "W", None) if hasattr(one, "W") else one for one in (ours, theirs)]
        weights = [one.weight if isinstance(one, RecursiveRidge) else torch.as_tensor(one) for one in weights]
        torch.testing.assert_close(*weights, rtol=0, atol=tolerance * float(weights[0].abs().max()))

    return agree


def one_batch(D: int, B: int, solver: Any) -> Case:
    """A batch enters sums that have seen others."""
    (X, y), ridge, published = rows(B, D), RecursiveRidge(D, gamma=GAMMA, solver=solver), Published(D)
    for seed in (1, 2):
        ridge.partial_fit(*rows(B, D, seed))
        published.batch(*rows(B, D, seed))
    name = "Gram form" if solver == "cholesky" else "recursive"
    return Case(
        f"one batch of {B}, D = {D}, {name}",
        lambda: ridge.partial_fit(X, y),
        {PUBLISHED: lambda: published.batch(X, y)},
    )


def solution(D: int) -> Case:
    """The weights after a Gram form has changed, beside what the recursion has at once."""
    X, y = rows(2 * D, D)
    ridge = RecursiveRidge(D, gamma=GAMMA).partial_fit(X, y)
    Y = torch.nn.functional.one_hot(y, K).double()

    def solved() -> Tensor:
        ridge._solution = None
        return ridge.weight

    def joint() -> Tensor:
        return torch.linalg.solve(X.T @ X + GAMMA * torch.eye(D, dtype=torch.float64), X.T @ Y)

    return Case(f"weights, D = {D}", solved, {"torch, all rows again": joint}, agree=near(1e-8))


def all_rows(n: int, D: int) -> Case:
    """The ridge classifier of a data set."""
    X, y = rows(n, D)
    arrays = X.numpy(), torch.nn.functional.one_hot(y, K).double().numpy()
    return Case(
        f"ridge regression of {n} rows, D = {D}",
        lambda: RecursiveRidge(D, gamma=GAMMA).partial_fit(X, y).weight,
        {"scikit-learn": lambda: Ridge(GAMMA, fit_intercept=False, solver="cholesky").fit(*arrays).coef_.T},
        agree=near(1e-7),
    )


def beside_lda(B: int, D: int) -> Case:
    """A batch and an evaluation, on the same features."""
    (X, y), ridge, means = rows(B, D), RecursiveRidge(D, gamma=GAMMA), Means(D, K)

    def ours() -> Tensor:
        return ridge.partial_fit(X, y)(X)

    def lda() -> Tensor:
        means.batch(X, y)
        return means.lda(X)

    return Case(f"a batch of {B} and an evaluation, D = {D}", ours, {"streaming LDA (Avalanche's algorithm)": lda})


def whole_stream(D: int, batches: int, every: int) -> Case:
    """Batches of 64, the balanced solution after every few of them."""
    d, B = 64, 64
    X, _ = rows(batches * B, d)
    y = torch.randint(K * K, (len(X),), generator=make_generator(1)).float().sqrt().long()  # 1 : 19
    first = AEFOCLClassifier(buffer_size=D, gamma=GAMMA, device="cpu").partial_fit(X[:B], y[:B])
    expand = first.buffer_
    parts = list(zip(X.split(B), y.split(B), strict=True))

    def ours() -> Tensor:
        model = AEFOCLClassifier(buffer_size=D, gamma=GAMMA, device="cpu")
        for number, (x, labels) in enumerate(parts, start=1):
            model.partial_fit(x, labels, classes=range(K))
            if number % every == 0:
                weights = model.coef_
        return weights

    def theirs() -> Tensor:
        model, moments = Published(D), PseudoFeatureGenerator(d)
        for number, (x, labels) in enumerate(parts, start=1):
            model.batch(expand(x), labels)
            moments.partial_fit(x, labels)
            if number % every == 0:
                balanced = copy.deepcopy(model)
                features, of = moments.sample(generator=make_generator(0))
                for part, classes in zip(features.split(B), of.split(B), strict=True):
                    balanced.batch(expand(part), classes)
        return balanced.W

    return Case(f"stream of {batches} batches of {B}, D = {D}, balanced every {every}", ours, {PUBLISHED: theirs})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small sizes, nothing is written")
    tiny = parser.parse_args().tiny
    sizes = (32,) if tiny else (1024, 4096)
    cases = [one_batch(D, B, solver) for D in sizes for B in (16, 256) for solver in ("cholesky", "recursive")]
    cases += [one_batch(D, 64, solver) for D in sizes[:1] for solver in ("cholesky", "recursive")]
    cases += [solution(D) for D in sizes[:1]]
    cases += [all_rows(80, 32) if tiny else all_rows(5000, 1024)]
    cases += [beside_lda(8, 32) if tiny else beside_lda(64, 512)]
    cases += [whole_stream(32, 4, 2) if tiny else whole_stream(1024, 40, 20)]
    options: dict[str, Any] = {"rounds": 1, "seconds": 0.01} if tiny else {"rounds": 5, "seconds": 0.2}
    compare(cases, None if tiny else RESULTS, threads=1, **options)


if __name__ == "__main__":
    main()
