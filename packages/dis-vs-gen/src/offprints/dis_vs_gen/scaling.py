"""Min-max scaling of features, fitted on the training subset alone (section 5)."""

from __future__ import annotations

from typing import Any, Self

import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator, TransformerMixin
from torch import Tensor

from offprints.dis_vs_gen._inputs import LearnedAttributes, as_table, check_width
from offprints.shared.estimators import check_fitted, like_input


def minimum_and_range(X: Float[Tensor, "*batch n d"]) -> tuple[Tensor, Tensor]:
    """Minimum and range ``[*batch, d]``; a constant column has range 1."""
    low, high = torch.aminmax(X, dim=-2)
    return low, torch.where(high > low, high - low, 1)


class MinMaxScaler(LearnedAttributes, TransformerMixin, BaseEstimator):
    """Maps each feature of the data given to ``fit`` onto [0, 1].

    What lies outside later is not clipped. A constant column becomes 0, and x - minimum for other x, as with
    scikit-learn's. NumPy arrays or tensors of any floating type and device, which they keep.

    Attributes:
        data_min_: Minimum ``[d]``.
        data_range_: Range ``[d]``, 0 for a constant column.
        n_features_in_: d.
    """

    _learned = ("data_min_", "data_range_", "n_features_in_")

    def fit(self, X: Float[Any, "n d"], y: Any = None) -> Self:
        """Learn minimum and range; ``y`` is not used.

        Raises:
            TypeError: X not floating.
            ValueError: X not 2-D, empty, NaN or infinite.
        """
        features = as_table(X)
        self._low, self._range = minimum_and_range(features)
        self.data_min_ = like_input(self._low.clone(), X)
        self.data_range_ = like_input(features.amax(0) - self._low, X)
        self.n_features_in_ = features.shape[1]
        return self

    def transform(self, X: Float[Any, "n d"]) -> Float[Any, "n d"]:
        """``(X - data_min_) / data_range_``.

        Raises:
            NotFittedError: before fit.
            TypeError, ValueError: as :meth:`fit`; another number of features.
        """
        check_fitted(self, "data_min_")
        features = as_table(X)
        check_width(features, self)
        scaled = (features - self._low.to(features.device)) / self._range.to(features.device)
        return like_input(scaled.to(features.dtype), X)

    def fit_transform(self, X: Float[Any, "n d"], y: Any = None) -> Float[Any, "n d"]:
        """``fit(X).transform(X)``."""
        return self.fit(X).transform(X)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32", "float16"]
        return tags
