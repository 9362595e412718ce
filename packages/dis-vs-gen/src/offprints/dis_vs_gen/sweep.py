"""Logistic regression with C chosen by cross-validation, all values of C of a fold in one batch (section 5)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from offprints.dis_vs_gen.logistic import LogisticRegression
from offprints.shared.estimators import all_or_nothing
from offprints.shared.tables import as_weights
from offprints.shared.validation import check_number


class LogisticRegressionCV(LogisticRegression):
    """Logistic regression whose C has the best mean accuracy over the folds; then fitted to all data.

    Sample weights count in the accuracies too, as in scikit-learn.

    The regressions for every C of a fold are solved at once on the same memory. Among equal accuracies the smallest C,
    the strongest regularization, is taken.

    Args:
        Cs: The values of C, or how many between 1e-4 and 1e4 in equal ratios.
        cv: Number of stratified folds, or a scikit-learn splitter.
        fit_intercept, max_iter, tol, class_weight: As in `LogisticRegression`.

    Attributes:
        Cs_: The values of C ``[n_Cs]``, ascending.
        C_: The chosen one.
        scores_: Accuracies on the held-out folds ``[folds, n_Cs]``.

    The others are those of `LogisticRegression`.

    Example:
        >>> X, y = torch.randn(60, 4), torch.arange(60) % 3
        >>> lr = LogisticRegressionCV(Cs=[0.1, 1.0, 10.0], cv=3).fit(X + y[:, None], y)
        >>> lr.scores_.shape
        (3, 3)
    """

    _learned = (*LogisticRegression._learned, "C_", "Cs_", "scores_")

    def __init__(
        self,
        *,
        Cs: int | Sequence[float] = 10,
        cv: Any = 5,
        fit_intercept: bool = True,
        max_iter: int = 1000,
        tol: float = 1e-6,
        class_weight: Mapping[Any, float] | str | None = None,
    ) -> None:
        self.Cs = Cs
        self.cv = cv
        self.fit_intercept = fit_intercept
        self.max_iter = max_iter
        self.tol = tol
        self.class_weight = class_weight

    def _values(self) -> list[float]:
        if isinstance(self.Cs, (int, np.integer)):
            return np.logspace(-4, 4, check_number(self.Cs, "Cs", low=1, integer=True)).tolist()
        if not isinstance(self.Cs, Iterable):
            raise TypeError(f"Cs must be an integer or a sequence of numbers, got {type(self.Cs).__name__}")
        values = sorted(check_number(C, "Cs", low=0, open_low=True, high=math.inf) for C in self.Cs)
        if not values:
            raise ValueError("Cs must hold at least one value, got none")
        return [float(C) for C in values]

    def _check_strength(self) -> None:
        self._values()

    @all_or_nothing
    def fit(self, X: Float[Any, "n d"], y: Any, sample_weight: Any = None) -> Self:
        """Choose C and fit.

        Raises:
            TypeError, ValueError: as `LogisticRegression.fit`; fewer samples of a class than folds.
        """
        from sklearn.model_selection import check_cv

        self._check_parameters()
        values = self._values()
        features, classes, index, weights = self._training_data(X, y, sample_weight)
        labels = classes.values[index.numpy()]
        counted = as_weights(sample_weight, len(labels), torch.device("cpu"))
        counted = torch.ones(len(labels), dtype=torch.float64, device="cpu") if counted is None else counted
        scores = []
        for train, test in check_cv(self.cv, labels, classifier=True).split(np.zeros(len(labels)), labels):
            inside = np.unique(labels[train])
            if len(inside) < len(classes):
                raise ValueError(f"cv must leave every class in the training folds, got {inside.tolist()} in one")
            rows = torch.from_numpy(train)
            part = features[rows.to(features.device)] if isinstance(features, Tensor) else features[train]
            own = None if weights is None else weights[rows.to(weights.device)]
            found = self._solve(part, index[rows], own, values, len(classes))
            scores.append(self._accuracies(found, features, torch.from_numpy(test), index, counted))
        self.scores_ = np.array(scores)
        self.Cs_ = np.array(values)
        means = self.scores_.mean(0)
        self.C_ = values[int(np.flatnonzero(means >= means.max() - 1e-12)[0])]  # means of equal sums, but for rounding
        self._learn(X, classes, self._solve(features, index, weights, [self.C_], len(classes)), 0)
        return self

    @staticmethod
    def _accuracies(found: Any, features: Any, test: Tensor, index: Tensor, counted: Tensor) -> list[float]:
        """Accuracy of each regression on the held-out rows, by their sample weights."""
        if isinstance(features, Tensor):
            held_out = features[test.to(features.device)].double()
            logits = torch.einsum("md,crd->cmr", held_out, found.weight) + found.intercept.unsqueeze(1)
        else:
            held_out = features[test.numpy()]
            products = [torch.from_numpy(held_out @ weight.T.numpy()) for weight in found.weight]
            logits = torch.stack(products).double() + found.intercept.unsqueeze(1)
        best = (logits[..., 0] > 0).long() if logits.shape[-1] == 1 else logits.argmax(-1)
        share = counted[test]
        if not bool(share.any()):
            raise ValueError(
                "sample_weight must be positive for a sample of every held-out fold, got zeros alone in one"
            )
        # Divided last: without weights these are counts, so that equal accuracies are equal numbers.
        return ((best.cpu() == index[test]).double() @ share / share.sum()).tolist()
