"""The common suite of the estimators."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from offprints.lr_perceptron import BatchPerceptronClassifier, LogisticGDClassifier, PerceptronClassifier
from offprints.shared.testing import check_estimator

GENERATOR = np.random.default_rng(0)
CLASSES = np.arange(60) % 3
LABELS = CLASSES * 5 - 4
# Each class apart from the others: hundreds of fits, of a few updates each.
FEATURES = (GENERATOR.normal(size=(60, 4)) + 6 * np.eye(3, 4)[CLASSES]).astype(np.float32)

OF_SCIKIT_LEARN = LogisticGDClassifier(max_iter=50)  # all of its checks; the others share the code


@pytest.mark.parametrize(
    "estimator",
    [
        OF_SCIKIT_LEARN,
        LogisticGDClassifier(normalized=True, step_size=0.1, max_iter=50),
        BatchPerceptronClassifier(max_iter=50, fit_intercept=False),
        BatchPerceptronClassifier(normalized=True, max_iter=50),
        PerceptronClassifier(max_iter=100),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_estimators(estimator: Any) -> None:
    check_estimator(estimator, (FEATURES, LABELS), expected_failed_checks={} if estimator is OF_SCIKIT_LEARN else None)
