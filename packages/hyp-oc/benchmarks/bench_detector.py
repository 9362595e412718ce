"""Fitting and scoring beside the one-class detectors of PyOD and scikit-learn, on the same features; one thread."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.ensemble import IsolationForest
from sklearn.svm import OneClassSVM

from offprints.hyp_oc import HypOCDetector
from offprints.shared.benchmark import Case, compare

RESULTS = Path(__file__).parent / "results" / "detector.json"


def deep_svdd(X: np.ndarray, epochs: int) -> Any:
    """PyOD's network of the same widths, batch and number of epochs."""
    from pyod.models.deep_svdd import DeepSVDD

    model = DeepSVDD(
        n_features=X.shape[1], hidden_neurons=[64, 32], batch_size=32, epochs=epochs, verbose=0, random_state=0
    )
    return model.fit(X)


def cases(n: int, d: int, epochs: int) -> list[Case]:
    X = (np.random.default_rng(0).normal(size=(n, d)) + 2).astype(np.float32)
    ours = HypOCDetector(epochs=epochs, random_state=0).fit(X)
    svm, forest = OneClassSVM().fit(X), IsolationForest(random_state=0).fit(X)
    fits: dict[str, Callable[[], Any]] = {"pyod": lambda: deep_svdd(X, epochs)}
    scores: dict[str, Callable[[], Any]] = {
        "scikit-learn, one-class SVM": lambda: svm.score_samples(X),
        "scikit-learn, isolation forest": lambda: forest.score_samples(X),
    }
    return [
        Case(
            f"fit, {n} x {d}, {epochs} epochs of batches of 32",
            ours=lambda: HypOCDetector(epochs=epochs, random_state=0).fit(X),
            peers=fits,
        ),
        Case(f"score, {n} x {d}", ours=lambda: ours.score_samples(X), peers=scores),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="tiny sizes, nothing is written")
    options = parser.parse_args()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if options.small:
            compare(cases(40, 4, 1), rounds=1, seconds=0.01, threads=1)
        else:
            compare(cases(2000, 512, 5), RESULTS, rounds=3, threads=1)


if __name__ == "__main__":
    main()
