"""Batches, solutions and whole streams beside the published recursion, RanPAC's head and libraries; one thread.

The published recursion is a plain rendering of the official class: an inverse of a B x B matrix and full products from
left to right, R and W copied before every evaluation, pseudo-features in one chunk. RanPAC's head keeps the whole Gram
matrix and solves by a general solver. Streaming LDA is that of Avalanche: an outer product a row, a pseudo-inverse an
evaluation. ``--tiny`` runs everything at a size that proves that it runs.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import Ridge, SGDClassifier
from sklearn.naive_bayes import GaussianNB
from torch import Tensor

from offprints.aef_ocl import (
    AEFOCLClassifier,
    PseudoFeatureGenerator,
    RandomBuffer,
    RecursiveRidge,
    long_tailed_stream,
    mean_class_accuracy,
)
from offprints.aef_ocl.reproduce.baselines import Means
from offprints.aef_ocl.reproduce.data import scans
from offprints.shared.benchmark import Case, compare
from offprints.shared.device import make_generator

RESULTS = Path(__file__).parent / "results"
K, GAMMA = 10, 1e-3
PUBLISHED, RANPAC = "published recursion", "RanPAC's head"


def rows(n: int, D: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = make_generator(seed)
    return torch.randn(n, D, generator=generator, dtype=torch.float64).relu(), torch.randint(
        K, (n,), generator=generator
    )


def one_hot(y: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(y, K).double()


class Published:
    """The recursion as it is published."""

    def __init__(self, D: int) -> None:
        self.R, self.W = torch.eye(D, dtype=torch.float64) / GAMMA, torch.zeros(D, K, dtype=torch.float64)

    def batch(self, X: Tensor, y: Tensor) -> Published:
        inverse = torch.inverse(torch.eye(len(X), dtype=torch.float64) + X @ self.R @ X.T)
        self.R = self.R - self.R @ X.T @ inverse @ X @ self.R
        self.W = self.W + self.R @ X.T @ (one_hot(y) - X @ self.W)
        return self

    @property
    def weight(self) -> Tensor:
        return self.W


class RanPAC:
    """Sums and solution of RanPAC's head, for a given penalty."""

    def __init__(self, D: int) -> None:
        self.G, self.C = torch.zeros(D, D, dtype=torch.float64), torch.zeros(D, K, dtype=torch.float64)

    def batch(self, X: Tensor, y: Tensor) -> RanPAC:
        self.G += X.T @ X
        self.C += X.T @ one_hot(y)
        return self

    @property
    def weight(self) -> Tensor:
        return torch.linalg.solve(self.G + GAMMA * torch.eye(len(self.G), dtype=torch.float64), self.C)


def near(tolerance: float) -> Callable[[Any, Any], None]:
    def agree(ours: Any, theirs: Any) -> None:
        weights = [torch.as_tensor(one.weight if hasattr(one, "weight") else one) for one in (ours, theirs)]
        torch.testing.assert_close(*weights, rtol=0, atol=tolerance * float(weights[0].abs().max()))

    return agree


def one_batch(D: int, B: int, solver: Any) -> Case:
    """A batch enters sums that have seen others."""
    (X, y), ridge = rows(B, D), RecursiveRidge(D, gamma=GAMMA, solver=solver)
    others = {PUBLISHED: Published(D), RANPAC: RanPAC(D)}
    if solver == "recursive":
        del others[RANPAC]
    ridge.partial_fit(*rows(B, D, 1))
    for other in others.values():
        other.batch(*rows(B, D, 1))
    name = "Gram form" if solver == "cholesky" else "recursion"
    return Case(
        f"one batch of {B}, D = {D}, {name}",
        lambda: ridge.partial_fit(X, y),
        {name: lambda other=other: other.batch(X, y) for name, other in others.items()},
        agree=near(1e-4),  # the published recursion drifts: one call of each has been made here
    )


def solution(D: int) -> Case:
    """The weights after the sums have changed."""
    X, y = rows(2 * D, D)
    ridge, other = RecursiveRidge(D, gamma=GAMMA).partial_fit(X, y), RanPAC(D).batch(X, y)

    def solved() -> Tensor:
        ridge._solution = None
        return ridge.weight

    return Case(f"weights, D = {D}", solved, {RANPAC: lambda: other.weight}, agree=near(1e-8))


def all_rows(n: int, D: int) -> Case:
    """The ridge classifier of a data set."""
    X, y = rows(n, D)
    arrays = X.numpy(), one_hot(y).numpy()
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
    """Batches of 64, the balanced solution after every few of them; the same pseudo-features on both sides."""
    d, B = 64, 64
    X, _ = rows(batches * B, d)
    y = torch.randint(K * K, (len(X),), generator=make_generator(1)).float().sqrt().long()  # 1 : 19
    parts = list(zip(X.split(B), y.split(B), strict=True))

    def ours() -> Tensor:
        model = AEFOCLClassifier(buffer_size=D, gamma=GAMMA, device="cpu")
        for number, (x, labels) in enumerate(parts, start=1):
            model.partial_fit(x, labels, classes=range(K))
            if number % every == 0:
                weights = model.rebalance(generator=make_generator(0)).coef_
        return weights

    def theirs() -> Tensor:
        expand, model, moments = RandomBuffer(d, D), Published(D), PseudoFeatureGenerator(d)
        for number, (x, labels) in enumerate(parts, start=1):
            model.batch(expand(x), labels)
            moments.partial_fit(x, labels)
            if number % every == 0:
                balanced = copy.deepcopy(model)
                features, of = moments.sample(generator=make_generator(0))
                balanced.batch(expand(features), of)
        return balanced.W

    return Case(
        f"stream of {batches} batches of {B}, D = {D}, balanced every {every}",
        ours,
        {PUBLISHED: theirs},
        agree=near(1e-3),
    )


def libraries(size: int) -> Case:
    """Digits of a long-tailed, drifting stream in batches of 16, then 600 predictions; with the accuracy of each."""
    import pandas as pd
    from river.naive_bayes import GaussianNB as RiverGaussianNB

    data = scans(600, 0)
    stream = list(zip(*long_tailed_stream(*data.train, ratio=0.6**9), strict=True))
    X, y = torch.stack(stream[0]).double().numpy(), torch.stack(stream[1]).numpy()
    X_test, y_test = data.test[0].double().numpy(), data.test[1].numpy()
    parts = [(X[i : i + 16], y[i : i + 16]) for i in range(0, len(X), 16)]
    frames = [(pd.DataFrame(x), pd.Series(labels)) for x, labels in parts]
    frame_test = pd.DataFrame(X_test)

    def ours() -> np.ndarray:
        model = AEFOCLClassifier(buffer_size=size, device="cpu")
        for x, labels in parts:
            model.partial_fit(x, labels)
        return model.predict(X_test)

    def scikit(make: Callable[[], Any]) -> Callable[[], np.ndarray]:
        def run() -> np.ndarray:
            model = make()
            for x, labels in parts:
                model.partial_fit(x, labels, classes=range(K))
            return model.predict(X_test)

        return run

    def river() -> np.ndarray:
        model = RiverGaussianNB()
        for x, labels in frames:
            model.learn_many(x, labels)
        return model.predict_many(frame_test).to_numpy(dtype=np.int64)

    def told(run: Callable[[], np.ndarray]) -> str:
        return f"{100 * mean_class_accuracy(y_test, run()):.0f} %"

    peers = {
        "scikit-learn GaussianNB": scikit(lambda: GaussianNB(var_smoothing=1e-2)),
        "scikit-learn SGDClassifier": scikit(lambda: SGDClassifier(random_state=0)),
        "river GaussianNB": river,
    }
    return Case(
        f"digits, {len(parts)} batches of 16 and 600 predictions, D = {size} (mean class accuracy {told(ours)})",
        ours,
        {f"{name} ({told(run)})": run for name, run in peers.items()},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small sizes, nothing is written")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: where other work is running")
    given = parser.parse_args()
    tiny, clock = given.tiny, time.process_time if given.clock == "cpu" else None
    warnings.filterwarnings("ignore", category=RuntimeWarning)  # river's logarithms of 0
    D, large = (32, 48) if tiny else (1024, 4096)
    batches = [one_batch(D, B, solver) for B in (16, 64, 256) for solver in ("cholesky", "recursive")]
    rest = [
        solution(D),
        all_rows(80, 32) if tiny else all_rows(5000, D),
        beside_lda(8, 32) if tiny else beside_lda(64, 512),
    ]
    rest += [libraries(32 if tiny else 512)]
    options: dict[str, Any] = {"rounds": 1, "seconds": 0.01} if tiny else {"rounds": 5, "seconds": 0.1}
    compare([*batches, *rest], None if tiny else RESULTS / "streams.json", threads=1, clock=clock, **options)
    # The published recursion takes seconds for each call.
    long = [one_batch(large, 256, "cholesky"), one_batch(large, 16, "recursive")]
    long += [whole_stream(32, 4, 2) if tiny else whole_stream(D, 40, 20)]
    options["rounds"] = 1
    compare(long, None if tiny else RESULTS / "large.json", threads=1, clock=clock, **options)


if __name__ == "__main__":
    main()
