"""What the three estimators share: training, streams, one-vs-rest, predictions."""

from __future__ import annotations

import warnings
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import validate_data
from torch import Tensor
from torch.nn import functional as F

from offprints.lr_perceptron._descent import Problems, descend
from offprints.lr_perceptron._inputs import as_steps, finite_or_refused
from offprints.lr_perceptron._labels import as_labels, distinct, numbers_of, shown
from offprints.shared.device import float32_region, working_dtype
from offprints.shared.estimators import as_features, check_fitted, like_input
from offprints.shared.validation import check_bool, check_number


class SeparatingClassifier(ClassifierMixin, BaseEstimator):
    """Linear classifiers ``sign(coef_ x + intercept_)``, one against the rest where there are more than two classes."""

    max_iter: int
    fit_intercept: bool

    def _rule(self) -> tuple[str, float]:
        """The method and its step size, checked."""
        raise NotImplementedError

    def fit(self, X: Float[Any, "n d"], y: Any) -> Self:
        """Start from 0 and stop when every sample is on its right side.

        All one-vs-rest problems are updated in the same matrix products, each until it is separated.

        Args:
            X: Features ``[n, d]``, floating.
            y: Labels ``[n]``: integers, booleans or strings.

        Raises:
            TypeError: X is not floating, y holds other labels, a parameter of the wrong kind.
            ValueError: X not 2-D, empty or not finite; y of another length or of one class; an impossible parameter.

        Warns:
            ConvergenceWarning: ``max_iter`` updates did not separate the samples; perhaps nothing does.
        """
        method, step_size = self._checked()
        table = as_features(X, "X").detach()
        labels = as_labels(y, "y", len(table))
        classes = distinct(labels, "y")
        samples, signs = self._samples(table), self._signs(numbers_of(labels, classes, "y"), len(classes), table)
        theta = samples.new_zeros(len(signs), samples.shape[1])
        steps = as_steps([step_size] * len(signs), "step_size", samples)
        with torch.no_grad(), float32_region(samples.device):
            found = descend(Problems(samples, signs, method, steps, theta), int(self.max_iter))
        finite_or_refused(found.theta, *self._named())
        validate_data(self, X, reset=True, skip_check_array=True)  # names and number of the features
        self._learn(X, classes, found.theta, int(found.n_iter.max()), table, signs)
        if not self.separated_:
            warnings.warn(
                f"{self.n_iter_} updates did not separate the samples (max_iter={self.max_iter}): more may, or nothing"
                " does (is_separable)",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def partial_fit(self, X: Float[Any, "n d"], y: Any, classes: Any = None) -> Self:
        """Make exactly one update, on this batch.

        It is update number ``n_iter_``, counted from 0: the first step of the batch perceptron, which differs from the
        others, is that of the first call. A batch without a misclassified sample leaves the perceptrons as they are,
        and counts. ``separated_`` is about this batch.

        Args:
            X: Features ``[n, d]``.
            y: Labels ``[n]``; a batch may lack classes.
            classes: All labels; needed in the first call where its batch lacks some. Later it may be left out.

        Raises:
            TypeError: as `fit`.
            ValueError: as `fit`; another number of features, labels that are not among the classes, other ``classes``
                than before; ``fit_intercept`` turned off while there is an intercept, which would be lost.
        """
        method, step_size = self._checked()
        table = as_features(X, "X").detach()
        labels = as_labels(y, "y", len(table))
        known = getattr(self, "classes_", None)
        if known is not None:
            validate_data(self, X, reset=False, skip_check_array=True)
            known = as_labels(known, "classes_")
            if not self.fit_intercept and bool(self._learned()[1].any()):
                raise ValueError("fit_intercept must stay True: without it the intercept learned so far would be lost")
        if classes is None:
            wanted = distinct(labels, "y") if known is None else known
        else:
            wanted = distinct(as_labels(classes, "classes"), "classes")
            if known is not None and not np.array_equal(wanted, known):
                raise ValueError(f"classes must be those of the first call, {known.tolist()}, got {wanted.tolist()}")
        samples, signs = self._samples(table), self._signs(numbers_of(labels, wanted, "y"), len(wanted), table)
        if known is None:
            theta, t = samples.new_zeros(len(signs), samples.shape[1]), 0
        else:
            theta, t = self._theta().to(samples, copy=True), self.n_iter_
        steps = as_steps([step_size] * len(signs), "step_size", samples)
        with torch.no_grad(), float32_region(samples.device):
            problems = Problems(samples, signs, method, steps, theta)
            problems.update(t)
        finite_or_refused(problems.theta, *self._named())
        if known is None:
            validate_data(self, X, reset=True, skip_check_array=True)
        self._learn(X, wanted, problems.theta, t + 1, table, signs)
        return self

    def _checked(self) -> tuple[str, float]:
        check_number(self.max_iter, "max_iter", low=0, integer=True)
        check_bool(self.fit_intercept, "fit_intercept")
        return self._rule()

    def _named(self) -> tuple[str, ...]:
        return ("X", "step_size") if hasattr(self, "step_size") else ("X",)

    def _samples(self, table: Tensor) -> Tensor:
        """Samples in the type to compute in; the intercept is the weight of a column of ones."""
        samples = table.to(working_dtype(table))
        return torch.cat([samples, samples.new_ones(len(samples), 1)], 1) if self.fit_intercept else samples

    @staticmethod
    def _signs(numbers: np.ndarray, n_classes: int, table: Tensor) -> Tensor:
        """Labels -1 and +1 ``[problems, n]``: the larger of two classes, or each of several, is +1."""
        index = torch.from_numpy(numbers).to(table.device)
        positive = torch.arange(1 if n_classes == 2 else 0, n_classes, device=table.device).unsqueeze(1)
        return torch.where(index == positive, 1.0, -1.0).to(working_dtype(table))

    def _learn(self, X: Any, classes: np.ndarray, theta: Tensor, n_iter: int, table: Tensor, signs: Tensor) -> None:
        width = table.shape[1]
        intercept = theta[:, width] if self.fit_intercept else theta.new_zeros(len(theta))
        self.classes_ = shown(classes, X)
        self.coef_ = like_input(theta[:, :width].clone(), X)
        self.intercept_ = like_input(intercept.clone(), X)
        self.n_iter_ = n_iter
        # Judged by what decision_function will say, which sums in another order than the descent.
        self.separated_ = bool((self._scores(table).T * signs > 0).all())

    def _learned(self) -> tuple[Tensor, Tensor]:
        return torch.as_tensor(self.coef_), torch.as_tensor(self.intercept_)

    def _theta(self) -> Tensor:
        """The iterates ``[problems, d]``, or ``d + 1`` with the intercept."""
        coef, intercept = self._learned()
        return torch.cat([coef, intercept.unsqueeze(1)], 1) if self.fit_intercept else coef

    def _scores(self, table: Tensor) -> Tensor:
        """``[n, problems]``."""
        coef, intercept = self._learned()
        dtype = working_dtype(table, coef)
        with float32_region(table.device):
            coef, intercept = coef.to(table.device, dtype), intercept.to(table.device, dtype)
            return F.linear(table.to(dtype), coef, intercept)

    def _asked(self, X: Any) -> Tensor:
        """Scores ``[n, problems]`` of a user's features."""
        check_fitted(self, "coef_")
        table = as_features(X, "X").detach()
        validate_data(self, X, reset=False, skip_check_array=True)
        return self._scores(table)

    def decision_function(self, X: Float[Any, "n d"]) -> Float[Any, "n *K"]:
        """``X coef_^T + intercept_``: ``[n, K]``, or ``[n]`` for two classes."""
        scores = self._asked(X)
        return like_input(scores.squeeze(1) if scores.shape[1] == 1 else scores, X)

    def _predicted(self, X: Any) -> np.ndarray:
        scores = self._asked(X)
        index = (scores[:, 0] > 0).long() if scores.shape[1] == 1 else scores.argmax(1)
        return as_labels(self.classes_, "classes_")[index.cpu().numpy()]

    def predict(self, X: Float[Any, "n d"]) -> Any:
        """Labels ``[n]``: of the highest score, or of two classes the larger where the score is above 0."""
        return shown(self._predicted(X), X)

    def score(self, X: Float[Any, "n d"], y: Any, sample_weight: Any = None) -> float:
        """Share of right predictions, by weight; a label that fit has not seen is always wrong."""
        predicted = self._predicted(X)
        labels = as_labels(y, "y", len(predicted))
        right = np.array([a == b for a, b in zip(predicted.tolist(), labels.tolist(), strict=True)], float)
        if sample_weight is None:
            return float(right.mean())
        given = sample_weight.cpu() if isinstance(sample_weight, Tensor) else sample_weight
        weight = np.asarray(given, dtype=float)
        if weight.shape != right.shape or not np.isfinite(weight).all() or (weight < 0).any() or weight.sum() == 0:
            raise ValueError(f"sample_weight must be {len(right)} non-negative numbers, not all 0, got {weight}")
        return float(np.average(right, weights=weight))
