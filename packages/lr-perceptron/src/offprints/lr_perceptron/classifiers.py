"""The algorithms as scikit-learn's estimators, on arrays and on tensors."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch.nn import functional as F

from offprints.lr_perceptron._base import SeparatingClassifier
from offprints.shared.estimators import like_input
from offprints.shared.validation import check_bool, check_number


class LogisticGDClassifier(SeparatingClassifier):
    """Logistic regression by full-batch gradient descent that stops at separation: LR+GD and Normalized LR+GD.

    There is no penalty: on separable features, which those of deep networks mostly are, the loss has no minimum, and
    what is looked for is a vector with every sample on its right side. Large step sizes find it sooner.

    Args:
        step_size: Step size.
        normalized: Whether the gradient is divided by the mean of ``sigmoid(-margin)``.
        max_iter: Most updates.
        fit_intercept: Whether a constant feature 1 is appended; its weight is the intercept.

    Attributes:
        classes_: Sorted labels ``[K]``.
        coef_: ``[K, d]``, or ``[1, d]`` for two classes.
        intercept_: ``[K]``, or ``[1]``.
        n_iter_: Updates, the most of all problems.
        separated_: Whether every sample is on its right side in every problem.
        n_features_in_: d.
        feature_names_in_: Names of the features, where X was a data frame.

    Parameters are checked in ``fit``, as in scikit-learn.

    Raises:
        TypeError: a parameter of the wrong kind.
        ValueError: ``step_size`` not in (0, inf), ``max_iter`` < 0.

    Example:
        >>> X, y = np.array([[0.0], [1.0], [4.0], [5.0]]), np.array([0, 0, 1, 1])
        >>> model = LogisticGDClassifier(step_size=10.0, normalized=True).fit(X, y)
        >>> model.separated_, model.predict(np.array([[0.5], [4.5]]))
        (True, array([0, 1]))
    """

    def __init__(
        self,
        *,
        step_size: float = 1.0,
        normalized: bool = False,
        max_iter: int = 10_000,
        fit_intercept: bool = True,
    ) -> None:
        self.step_size = step_size
        self.normalized = normalized
        self.max_iter = max_iter
        self.fit_intercept = fit_intercept

    def _rule(self) -> tuple[str, float]:
        step_size = check_number(self.step_size, "step_size", low=0, open_low=True)
        return "normalized_lr_gd" if check_bool(self.normalized, "normalized") else "lr_gd", step_size

    def predict_proba(self, X: Float[Any, "n d"]) -> Float[Any, "n K"]:
        """Probabilities ``[n, K]``: the sigmoid of the score, of several classes divided by their sum.

        After separation they depend on how far the descent went, and large steps make them nearly 0 and 1. Beyond a
        score of 37 (17 in float32) a sigmoid is 1: several such classes are equally probable, and only the scores tell
        which is predicted.
        """
        scores = self._asked(X)
        if scores.shape[1] == 1:
            return like_input(torch.cat([torch.sigmoid(-scores), torch.sigmoid(scores)], 1), X)
        return like_input(F.logsigmoid(scores).softmax(1), X)


class BatchPerceptronClassifier(SeparatingClassifier):
    """The perceptron that sums over all misclassified samples: Batch Perceptron and Normalized Batch Perceptron.

    Args:
        normalized: Whether an update is the mean of the misclassified samples, not their sum divided by n.
        max_iter: Most updates.
        fit_intercept: Whether a constant feature 1 is appended; its weight is the intercept.

    Attributes:
        classes_: Sorted labels ``[K]``.
        coef_: ``[K, d]``, or ``[1, d]`` for two classes.
        intercept_: ``[K]``, or ``[1]``.
        n_iter_: Updates, the most of all problems.
        separated_: Whether every sample is on its right side in every problem.
        n_features_in_: d.
        feature_names_in_: Names of the features, where X was a data frame.

    Raises:
        TypeError: a parameter of the wrong kind.
        ValueError: ``max_iter`` < 0.

    Example:
        >>> X, y = np.array([[0.0], [1.0], [4.0], [5.0]]), np.array([0, 0, 1, 1])
        >>> BatchPerceptronClassifier(normalized=True).fit(X, y).score(X, y)
        1.0
    """

    def __init__(self, *, normalized: bool = False, max_iter: int = 10_000, fit_intercept: bool = True) -> None:
        self.normalized = normalized
        self.max_iter = max_iter
        self.fit_intercept = fit_intercept

    def _rule(self) -> tuple[str, float]:
        normalized = check_bool(self.normalized, "normalized")
        return "normalized_batch_perceptron" if normalized else "batch_perceptron", 1.0


class PerceptronClassifier(SeparatingClassifier):
    """The perceptron: an update adds the first misclassified sample.

    Args:
        max_iter: Most updates; each is one sample, not one pass over the data.
        fit_intercept: Whether a constant feature 1 is appended; its weight is the intercept.

    Attributes:
        classes_: Sorted labels ``[K]``.
        coef_: ``[K, d]``, or ``[1, d]`` for two classes.
        intercept_: ``[K]``, or ``[1]``.
        n_iter_: Updates, the most of all problems.
        separated_: Whether every sample is on its right side in every problem.
        n_features_in_: d.
        feature_names_in_: Names of the features, where X was a data frame.

    Raises:
        TypeError: a parameter of the wrong kind.
        ValueError: ``max_iter`` < 0.

    Example:
        >>> X, y = np.array([[0.0], [1.0], [4.0], [5.0]]), np.array([0, 0, 1, 1])
        >>> PerceptronClassifier().fit(X, y).separated_
        True
    """

    def __init__(self, *, max_iter: int = 10_000, fit_intercept: bool = True) -> None:
        self.max_iter = max_iter
        self.fit_intercept = fit_intercept

    def _rule(self) -> tuple[str, float]:
        return "perceptron", 1.0
