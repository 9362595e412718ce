"""Min-max scaling of features, fitted on the training subset alone (section 5)."""

from __future__ import annotations

from typing import Any, Self

import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from torch import Tensor

from offprints.shared.device import working_dtype
from offprints.shared.estimators import LearnedAttributes, all_or_nothing, check_fitted, like_input
from offprints.shared.tables import as_table


def minimum_and_range(X: Float[Tensor, "*batch n d"]) -> tuple[Tensor, Tensor]:
    """Minimum and range ``[*batch, d]``, in float32 for half types; a constant column has range 1.

    The range is infinite where the type cannot hold it.
    """
    low, high = torch.aminmax(X, dim=-2)
    low, high = low.to(working_dtype(X)), high.to(working_dtype(X))
    return low, torch.where(high > low, high - low, 1)


def scaled(X: Float[Tensor, "*batch n d"], low: Tensor, width: Tensor, high: Tensor) -> Tensor:
    """``(X - low) / width``; where the width overflows, of half the values, which is the same."""
    X = X.to(low.dtype)
    if bool(width.isfinite().all()):
        return (X - low) / width
    factor = torch.where(width.isfinite(), 1.0, 0.5).to(low.dtype)
    width = torch.where(width.isfinite(), width, high * factor - low * factor)
    return (X * factor - low * factor) / width


class MinMaxScaler(LearnedAttributes, OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Maps each feature of the data given to ``fit`` onto [0, 1].

    What lies outside later is not clipped. A constant column becomes 0, and x - minimum for other x, as with
    scikit-learn's. Arrays, data frames or tensors of any type of number and device; floating types are kept, and
    half types are computed in float32.

    Attributes:
        data_min_: Minimum ``[d]``.
        data_range_: Range ``[d]``, 0 for a constant column; at least float32.
        n_features_in_: d.
        feature_names_in_: Names of the columns ``[d]``, where X was a data frame.

    Example:
        >>> scaler = MinMaxScaler().fit(torch.tensor([[1.0, 10.0], [3.0, 30.0]]))
        >>> scaler.transform(torch.tensor([[2.0, 20.0]]))
        tensor([[0.5000, 0.5000]])
    """

    _learned = ("data_min_", "data_range_", "n_features_in_")

    @all_or_nothing
    def fit(self, X: Float[Any, "n d"], y: Any = None) -> Self:
        """Learn minimum and range; ``y`` is not used.

        Raises:
            TypeError: X does not hold numbers, or is sparse.
            ValueError: X not 2-D, empty, NaN or infinite.
        """
        features = as_table(X, estimator=self, reset=True)
        self._low, self._range = minimum_and_range(features)
        self._high = features.amax(0).to(self._low.dtype)
        self.data_min_ = like_input(self._low.to(features.dtype), X)
        self.data_range_ = like_input(self._high - self._low, X)
        return self

    def transform(self, X: Float[Any, "n d"]) -> Float[Any, "n d"]:
        """``(X - data_min_) / data_range_``.

        Raises:
            NotFittedError: before fit.
            TypeError, ValueError: as :meth:`fit`; another number of features, or columns in another order.
        """
        check_fitted(self, "data_min_")
        features = as_table(X, estimator=self)
        low, width, high = (value.to(features.device) for value in (self._low, self._range, self._high))
        return like_input(scaled(features, low, width, high).to(features.dtype), X)

    def fit_transform(self, X: Float[Any, "n d"], y: Any = None) -> Float[Any, "n d"]:
        """``fit(X).transform(X)``."""
        return self.fit(X).transform(X)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32", "float16"]
        return tags
