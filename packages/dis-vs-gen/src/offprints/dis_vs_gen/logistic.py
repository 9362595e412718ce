"""L2-regularized logistic regression on tensors, scikit-learn's objective and conventions (section 5)."""

from __future__ import annotations

import warnings
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from offprints.dis_vs_gen._inputs import LearnedAttributes, as_labels, as_table, check_width, training_data
from offprints.dis_vs_gen._solver import solve
from offprints.shared.estimators import check_fitted, like_input
from offprints.shared.validation import check_number


def compute_type(dtype: torch.dtype) -> torch.dtype:
    """Half types are multiplied in float32."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


class LogisticRegression(LearnedAttributes, ClassifierMixin, BaseEstimator):
    """Multinomial logistic regression (one sigmoid row for two classes).

    Minimizes ``mean log-loss + ||W||^2 / (2 C m)`` with a free intercept, the objective of scikit-learn's
    ``LogisticRegression(C=C)``, until the largest entry of its gradient is at most ``tol``. NumPy arrays or tensors;
    products run in the type of X (at least float32), sums and the result are float64.

    Args:
        C: Inverse of the regularization strength.
        fit_intercept: Whether there is an intercept.
        max_iter: Largest number of L-BFGS steps; if they do not suffice, a ConvergenceWarning.
        tol: Tolerance of the gradient.

    Attributes:
        classes_: Sorted labels ``[K]``.
        coef_: ``[K, d]``, or ``[1, d]`` for two classes.
        intercept_: ``[K]``, or ``[1]``.
        n_iter_: Steps made.
        n_features_in_: d.

    Parameters are checked in ``fit``, as in scikit-learn.

    Raises:
        TypeError: a parameter of the wrong kind.
        ValueError: ``C`` <= 0, ``max_iter`` < 1, ``tol`` <= 0.
    """

    _learned = ("classes_", "coef_", "intercept_", "n_iter_", "n_features_in_")

    def __init__(self, *, C: float = 1.0, fit_intercept: bool = True, max_iter: int = 1000, tol: float = 1e-6) -> None:
        self.C = C
        self.fit_intercept = fit_intercept
        self.max_iter = max_iter
        self.tol = tol

    def _check_parameters(self) -> None:
        check_number(self.C, "C", low=0, open_low=True)
        check_number(self.max_iter, "max_iter", low=1, integer=True)
        check_number(self.tol, "tol", low=0, open_low=True)
        if not isinstance(self.fit_intercept, bool):
            raise TypeError(f"fit_intercept must be a bool, got {self.fit_intercept!r}")

    def fit(self, X: Float[Any, "n d"], y: Int[Any, " n"]) -> Self:
        """Fit from zero.

        Raises:
            TypeError: X not floating, y not of an integer type.
            ValueError: X not 2-D, empty, NaN or infinite; y of another length; fewer than two classes.
        """
        self._check_parameters()
        features, classes, index = training_data(X, y)
        if features.device.type == "mps":  # which has no float64
            features, classes, index = features.cpu(), classes.cpu(), index.cpu()
        found = solve(
            features.to(compute_type(features.dtype)).unsqueeze(0),
            index.unsqueeze(0),
            torch.tensor([self.C], dtype=torch.float64),
            n_classes=len(classes),
            fit_intercept=self.fit_intercept,
            max_iter=self.max_iter,
            tol=self.tol,
        )
        if not bool(found.converged):
            steps, gradient = int(found.n_iter), float(found.gradient)
            reason = f"max_iter={self.max_iter}" if steps >= self.max_iter else "the precision of float64"
            warnings.warn(
                f"no convergence after {steps} steps ({reason}): gradient {gradient:.2g}, tol={self.tol:g}",
                ConvergenceWarning,
                stacklevel=2,
            )
        self._classes, self._weight, self._intercept = classes, found.weight[0], found.intercept[0]
        learned = (self._classes, self._weight, self._intercept)
        self.classes_, self.coef_, self.intercept_ = (like_input(value.clone(), X) for value in learned)
        self.n_iter_ = int(found.n_iter)
        self.n_features_in_ = features.shape[1]
        return self

    def _logits(self, X: Any) -> Tensor:
        check_fitted(self, "coef_")
        features = as_table(X, device=self._weight.device)
        check_width(features, self)
        dtype = compute_type(features.dtype)
        return nn.functional.linear(features.to(dtype), self._weight.to(dtype), self._intercept.to(dtype)).double()

    def _scores(self, X: Any) -> Tensor:
        """One column per class."""
        logits = self._logits(X)
        return torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits

    def decision_function(self, X: Float[Any, "n d"]) -> Float[Any, "n K"]:
        """``X coef_^T + intercept_``: ``[n, K]``, or ``[n]`` for two classes."""
        logits = self._logits(X)
        return like_input(logits.squeeze(1) if logits.shape[1] == 1 else logits, X)

    def predict(self, X: Float[Any, "n d"]) -> Int[Any, " n"]:
        """The label of the highest score."""
        index = self._scores(X).argmax(1)
        return like_input(self._classes[index], X)

    def predict_log_proba(self, X: Float[Any, "n d"]) -> Float[Any, "n K"]:
        """log p(k | x), float64."""
        return like_input(self._scores(X).log_softmax(1), X)

    def predict_proba(self, X: Float[Any, "n d"]) -> Float[Any, "n K"]:
        """p(k | x), float64."""
        return like_input(self._scores(X).softmax(1), X)

    def score(self, X: Float[Any, "n d"], y: Int[Any, " n"]) -> float:
        """Share of right predictions."""
        scores = self._scores(X)
        labels = as_labels(y, "y", len(scores), scores.device)
        return float((self._classes[scores.argmax(1)] == labels).double().mean())

    def to_linear(self, dtype: torch.dtype = torch.float32) -> nn.Linear:
        """The rule as a layer with K outputs: ``classes_[layer(X).argmax(1)]`` is ``predict(X)``.

        For two classes the first output is 0.
        """
        check_fitted(self, "coef_")
        layer = nn.Linear(self.n_features_in_, len(self._classes), device=self._weight.device, dtype=dtype)
        with torch.no_grad():
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
            layer.weight[-len(self._weight) :].copy_(self._weight)
            layer.bias[-len(self._weight) :].copy_(self._intercept)
        return layer
