"""scikit-learn's conventions, and every way to see the same data."""

from __future__ import annotations

import numpy as np
import torch

from offprints.aef_ocl import AEFOCLClassifier
from offprints.shared.testing import check_estimator, check_streaming

GENERATOR = np.random.default_rng(0)
Y = np.arange(60) % 3 * 5 - 4
Y[40:] = -4  # unbalanced
X = (GENERATOR.normal(size=(60, 4)) + 0.3 * Y[:, None]).astype(np.float32)


def test_conventions() -> None:
    check_estimator(
        AEFOCLClassifier(buffer_size=20, gamma=0.1, device="cpu"),
        (X, Y),
        expected_failed_checks={
            "check_classifiers_train": "the scores of two classes have two columns",
            "check_decision_proba_consistency": "the same",
            "check_parameters_default_constructible": "the default of dtype is torch's",
        },
    )


def test_streaming() -> None:
    """Pseudo-features are compared for given normals: their seed is the number of samples, which is the same."""
    features, labels = torch.from_numpy(X).double() + 10, torch.from_numpy(Y)
    batches = [(features[:7], labels[:7]), (features[7:8], labels[7:8]), (features[8:], labels[8:])]

    def learned(model: AEFOCLClassifier) -> tuple[torch.Tensor, ...]:
        moments = model.generator_
        return (model.decision_function(features), model.ridge_.weight, moments.count_, moments.mean_, moments.std_)

    for solver in ("cholesky", "recursive"):
        check_streaming(
            lambda solver=solver: AEFOCLClassifier(buffer_size=20, gamma=0.1, solver=solver, device="cpu"),
            batches,
            result=learned,
            rtol=1e-7,
            atol=1e-8,
            skip={"two processes": "once is enough: test_machines"} if solver == "recursive" else None,
        )
