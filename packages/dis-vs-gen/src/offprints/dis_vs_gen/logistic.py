"""L2-regularized logistic regression on tensors, scikit-learn's objective and conventions (section 5)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from offprints.dis_vs_gen._rule import empty_layer
from offprints.dis_vs_gen._solver import Solution, SparseRows, solve
from offprints.dis_vs_gen.naive_bayes import accuracy
from offprints.shared.device import float32_region
from offprints.shared.estimators import LearnedAttributes, all_or_nothing, check_fitted, like_input
from offprints.shared.labels import Classes, as_labels, training_classes
from offprints.shared.tables import as_table, as_weights, is_sparse
from offprints.shared.validation import check_bool, check_number

USUAL = 20  # binary digits: features between 2^-20 and 2^20 are taken as they are


def compute_type(dtype: torch.dtype) -> torch.dtype:
    """Half types are multiplied in float32."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


def exponent_of(X: Any) -> int:
    """0, or the power of two that brings features of unusual size near 1: their squares would leave float32."""
    largest = float(abs(X).max()) if is_sparse(X) else float(X.abs().max())
    exponent = 0 if largest == 0 else math.frexp(largest)[1]
    return min(max(exponent, -100), 1000) if abs(exponent) > USUAL else 0


class LogisticRegression(LearnedAttributes, ClassifierMixin, BaseEstimator):
    """Multinomial logistic regression (one sigmoid row for two classes).

    Minimizes ``mean log-loss + ||W||^2 / (2 C m)`` with a free intercept, the objective of scikit-learn's
    ``LogisticRegression(C=C)``, until the largest entry of its gradient is at most ``tol`` and the next step would
    lower the loss by less than a hundredth of ``tol``, relatively. Arrays, data frames, sparse matrices or tensors;
    labels are integers, strings or booleans and keep their type. Products run in the type of X (at least float32),
    sums and the result are float64. Features that all lie below 2^-20 or reach beyond 2^20 are measured in units of the
    largest, in the gradient too.

    Args:
        C: Inverse of the regularization strength; ``math.inf`` for none.
        fit_intercept: Whether there is an intercept.
        max_iter: Largest number of L-BFGS steps; if they do not suffice, a ConvergenceWarning.
        tol: Tolerance of the gradient.
        class_weight: Weight of each class by label, ``"balanced"`` for ``m / (K n_k)``, or None for 1.

    Attributes:
        classes_: Sorted labels ``[K]``, in their own type.
        coef_: ``[K, d]``, or ``[1, d]`` for two classes.
        intercept_: ``[K]``, or ``[1]``.
        n_iter_: Steps made.
        n_features_in_: d.
        feature_names_in_: Names of the columns ``[d]``, where X was a data frame.

    Parameters are checked in ``fit``, as in scikit-learn.

    Raises:
        TypeError: a parameter of the wrong kind.
        ValueError: ``C`` <= 0, ``max_iter`` < 1, ``tol`` <= 0.

    Example:
        >>> X, y = torch.tensor([[0.0], [1.0], [4.0], [5.0]]), torch.tensor([0, 0, 1, 1])
        >>> lr = LogisticRegression(C=10.0).fit(X, y)
        >>> lr.predict(torch.tensor([[0.4], [4.4]]))
        tensor([0, 1])
    """

    _learned: ClassVar[tuple[str, ...]] = ("classes_", "coef_", "intercept_", "n_iter_", "n_features_in_")

    def __init__(
        self,
        *,
        C: float = 1.0,
        fit_intercept: bool = True,
        max_iter: int = 1000,
        tol: float = 1e-6,
        class_weight: Mapping[Any, float] | str | None = None,
    ) -> None:
        self.C = C
        self.fit_intercept = fit_intercept
        self.max_iter = max_iter
        self.tol = tol
        self.class_weight = class_weight

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _check_parameters(self) -> None:
        self._check_strength()
        check_number(self.max_iter, "max_iter", low=1, integer=True)
        check_number(self.tol, "tol", low=0, open_low=True)
        check_bool(self.fit_intercept, "fit_intercept")

    def _check_strength(self) -> None:
        check_number(self.C, "C", low=0, open_low=True, high=math.inf)

    @all_or_nothing
    def fit(self, X: Float[Any, "n d"], y: Any, sample_weight: Any = None) -> Self:
        """Fit from zero.

        Args:
            X: Features.
            y: Labels ``[n]``.
            sample_weight: ``[n]``; a sample with the weight 2 counts as two.

        Raises:
            TypeError: X not numbers, y not labels.
            ValueError: X not 2-D, empty, NaN or infinite; y of another length; fewer than two classes; a negative
                weight.
        """
        self._check_parameters()
        features, classes, index, weights = self._training_data(X, y, sample_weight)
        found = self._solve(features, index, weights, [float(self.C)], len(classes))
        self._learn(X, classes, found, 0)
        return self

    def _training_data(self, X: Any, y: Any, sample_weight: Any) -> tuple[Any, Classes, Tensor, Tensor | None]:
        features = as_table(X, estimator=self, reset=True, sparse=True)
        if isinstance(features, Tensor) and features.device.type == "mps":  # which has no float64
            features = features.cpu()
        classes, index = training_classes(y, features.shape[0])
        device = features.device if isinstance(features, Tensor) else torch.device("cpu")
        weights = as_weights(sample_weight, len(index), device)
        if self.class_weight is not None:
            from sklearn.utils.class_weight import compute_class_weight

            chosen: Any = dict(self.class_weight) if isinstance(self.class_weight, Mapping) else self.class_weight
            if not isinstance(chosen, dict) and chosen != "balanced":
                raise ValueError(f"class_weight must be a mapping, 'balanced' or None, got {chosen!r}")
            for label, weight in chosen.items() if isinstance(chosen, dict) else ():
                check_number(weight, f"class_weight[{label!r}]", low=0)
            of_class = torch.from_numpy(
                np.asarray(
                    compute_class_weight(
                        chosen, classes=classes.values, y=classes.values[index.numpy()],
                        sample_weight=None if weights is None else weights.cpu().numpy(),
                    ),
                    dtype=np.float64,
                )
            )  # fmt: skip
            of_sample = of_class[index].to(device)
            weights = of_sample if weights is None else weights * of_sample
            if not bool(weights.any()):
                raise ValueError("class_weight must be positive for a class with samples of positive weight")
        return features, classes, index, weights

    def _solve(self, features: Any, index: Tensor, weights: Tensor | None, Cs: list[float], n_classes: int) -> Solution:
        """The regressions for every C on the same data."""
        dtype = compute_type(features.dtype) if isinstance(features, Tensor) else None
        exponent = exponent_of(features)
        unit = 2.0**exponent
        if isinstance(features, Tensor):
            if exponent:
                features = features.double() * 2.0**-exponent
            rows: Tensor | SparseRows = features.to(dtype).unsqueeze(0).expand(len(Cs), -1, -1)
        else:
            rows = SparseRows(features / unit if exponent else features)
            if len(Cs) > 1:
                found = [self._solve(features, index, weights, [C], n_classes) for C in Cs]
                names = ("weight", "intercept", "n_iter", "converged", "gradient")
                return Solution(*(torch.cat([getattr(one, name) for one in found]) for name in names))
        strengths = torch.tensor(Cs, dtype=torch.float64) * unit * unit  # W x = (W 2^e) (x 2^-e)
        if exponent < 0 and bool(strengths.isfinite().any()):
            warnings.warn(
                f"X is so small (largest magnitude below {unit:.1g}) that a penalty with C={min(Cs):g} leaves next to "
                "nothing of the weights: scale the features (MinMaxScaler)",
                stacklevel=4,
            )
        found_all = solve(
            rows,
            index.to(rows.device).unsqueeze(0).expand(len(Cs), -1),
            strengths,
            n_classes=n_classes,
            fit_intercept=bool(self.fit_intercept),
            max_iter=int(self.max_iter),
            tol=float(self.tol),
            weights=None if weights is None else weights.unsqueeze(0).expand(len(Cs), -1),
        )
        if exponent:
            found_all.weight = found_all.weight / unit
        return found_all

    def _learn(self, X: Any, classes: Classes, found: Solution, place: int) -> None:
        if not bool(found.converged[place]):
            steps, gradient = int(found.n_iter[place]), float(found.gradient[place])
            reason = f"max_iter={self.max_iter}" if steps >= self.max_iter else "the precision of float64"
            warnings.warn(
                f"no convergence after {steps} steps ({reason}): gradient {gradient:.2g}, tol={self.tol:g}",
                ConvergenceWarning,
                stacklevel=4,
            )
        self._labels, self._weight, self._intercept = classes, found.weight[place], found.intercept[place]
        numbers = torch.arange(len(classes), device=self._weight.device)
        self.classes_ = classes.shown(numbers, X)
        self.coef_, self.intercept_ = (like_input(value.clone(), X) for value in (self._weight, self._intercept))
        self.n_iter_ = int(found.n_iter[place])

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return state | {"_labels": self._labels.values} if "_labels" in state else state

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        state = dict(state)
        if "_labels" in state:
            state["_labels"] = Classes(state["_labels"])
        super().__setstate__(state)

    def _logits(self, X: Any) -> Tensor:
        check_fitted(self, "coef_")
        features = as_table(X, estimator=self, device=self._weight.device, sparse=True)
        if not isinstance(features, Tensor):
            return torch.from_numpy(features @ self._weight.T.cpu().numpy()).double() + self._intercept.cpu()
        dtype = compute_type(features.dtype)
        if exponent_of(self._weight):  # weights for features of unusual size may leave float32
            dtype = torch.float64
        with float32_region(features.device):
            product = nn.functional.linear(features.to(dtype), self._weight.to(dtype), self._intercept.to(dtype))
        return product.double()

    def _scores(self, X: Any) -> Tensor:
        """One column per class."""
        logits = self._logits(X)
        return torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits

    def decision_function(self, X: Float[Any, "n d"]) -> Float[Any, "n K"]:
        """``X coef_^T + intercept_``: ``[n, K]``, or ``[n]`` for two classes."""
        logits = self._logits(X)
        return like_input(logits.squeeze(1) if logits.shape[1] == 1 else logits, X)

    def predict(self, X: Float[Any, "n d"]) -> Any:
        """The label of the highest score, in the labels' own type ``[n]``."""
        index = self._scores(X).argmax(1)
        return self._labels.shown(index, X)

    def predict_log_proba(self, X: Float[Any, "n d"]) -> Float[Any, "n K"]:
        """log p(k | x), float64."""
        return like_input(self._scores(X).log_softmax(1), X)

    def predict_proba(self, X: Float[Any, "n d"]) -> Float[Any, "n K"]:
        """p(k | x), float64."""
        return like_input(self._scores(X).softmax(1), X)

    def score(self, X: Float[Any, "n d"], y: Any, sample_weight: Any = None) -> float:
        """Share of right predictions, by weight; a label that fit has not seen is always wrong."""
        scores = self._scores(X)
        labels = as_labels(y, "y", len(scores))
        return accuracy(self._labels, scores.argmax(1), labels, sample_weight)

    def to_linear(self, dtype: torch.dtype = torch.float32) -> nn.Linear:
        """The rule as a layer with K outputs: ``classes_[layer(X).argmax(1)]`` is ``predict(X)``.

        For two classes the first output is 0.

        Raises:
            TypeError: ``dtype`` is not a floating type.
        """
        check_fitted(self, "coef_")
        layer = empty_layer(self.n_features_in_, len(self._labels), self._weight.device, dtype)
        with torch.no_grad():
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
            layer.weight[-len(self._weight) :].copy_(self._weight)
            layer.bias[-len(self._weight) :].copy_(self._intercept)
        return layer
