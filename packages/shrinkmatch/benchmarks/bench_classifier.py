"""Fitting and predicting beside scikit-learn's semi-supervised classifiers, on digits with few labels; one thread."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from sklearn.semi_supervised import LabelSpreading, SelfTrainingClassifier

from offprints.shared.benchmark import Case, compare
from offprints.shrinkmatch import ShrinkMatchClassifier, split_labels

RESULTS = Path(__file__).parent / "results" / "classifier.json"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true", help="few samples and steps, nothing is written")
    tiny = parser.parse_args().tiny
    x, truth = load_digits(return_X_y=True)
    x, truth = x[:: 6 if tiny else 1] / 16, truth[:: 6 if tiny else 1]
    labeled, _ = split_labels(truth, 3, seed=0)
    y = np.full(len(truth), -1)
    y[labeled] = truth[labeled]
    steps = 5 if tiny else 200
    network = MLPClassifier((128, 128), max_iter=steps, random_state=0)
    ours = ShrinkMatchClassifier(max_steps=steps, random_state=0, device="cpu")
    others = {
        "scikit-learn, self-training of an MLP": SelfTrainingClassifier(network, threshold=0.95),
        "scikit-learn, label spreading": LabelSpreading(kernel="knn", n_neighbors=7),
    }
    warnings.simplefilter("ignore", ConvergenceWarning)  # of a network that is stopped after as many steps as ours
    fitted = {name: model.fit(x, y) for name, model in {"ours": ours, **others}.items()}
    unknown = y == -1
    right = {name: float((model.predict(x) == truth)[unknown].mean()) for name, model in fitted.items()}
    for name, value in right.items():
        print(f"{name}: {value:.3f} of the unlabeled samples right")
    told = ", ".join(f"{value:.2f}" for value in right.values())
    cases = [
        Case(
            f"fit, {len(x)} digits, 3 labels a class, {steps} steps (accuracy, in this order: {told})",
            ours=lambda: ours.fit(x, y),
            peers={name: (lambda model=model: model.fit(x, y)) for name, model in others.items()},
        ),
        Case(
            f"predict, {len(x)} digits",
            ours=lambda: ours.predict(x),
            peers={name: (lambda model=model: model.predict(x)) for name, model in others.items()},
        ),
    ]
    compare(cases, None if tiny else RESULTS, threads=1, rounds=1 if tiny else 3)


if __name__ == "__main__":
    main()
