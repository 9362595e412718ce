"""Random-feature and kernel ridge regression on scikit-learn's conventions (section 2)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from sklearn.base import BaseEstimator, RegressorMixin
from torch import Tensor

from offprints.more_is_better._estimation import (
    as_targets,
    fit_features,
    learn_columns,
    new_features,
    r_squared,
    solve_semidefinite,
)
from offprints.more_is_better.regression import check_kernel
from offprints.shared.device import make_generator, working_dtype
from offprints.shared.estimators import check_fitted, like_input
from offprints.shared.validation import check_number, check_tensor

Kernel = Callable[[Tensor, Tensor | None], Tensor]


class _Regressor(RegressorMixin, BaseEstimator):
    """What both have in common."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """R^2 of the predictions, the mean over the outputs.

        Args:
            X: Points ``[n, d]``.
            y: Targets ``[n]`` or ``[n, C]``.
            sample_weight: Weights ``[n]``.

        Raises:
            NotFittedError: before `fit`.
            TypeError, ValueError: as in `fit`.
        """
        predicted = self.predict(X)
        return r_squared(predicted, y, len(predicted), sample_weight, type(self).__name__)


class RandomFeatureRegressor(_Regressor):
    """Ridge regression on random ReLU features, whose infinite width is kernel regression with `relu_nngp`.

    Features ``relu(W x) / sqrt(n_features)``, rows of W drawn from N(0, 2 / d), no bias; the ridge is the same number
    in the primal and in the dual problem, of which the smaller one is solved, in float64.

    Args:
        n_features: Number of random features k, >= 1.
        ridge: Ridge on the kernel matrix that is not divided by n, >= 0; 0 is the solution of minimum norm.
        random_state: Seed of the features; None draws from torch's global generator.

    Attributes:
        weight_: W, ``[k, d]``, float64.
        coef_: Coefficients of the features, ``[k, C]``, float64.
        n_features_in_: d.

    Raises:
        TypeError, ValueError: a parameter out of range.

    Example:
        >>> X = np.random.default_rng(0).normal(size=(80, 3))
        >>> model = RandomFeatureRegressor(500, ridge=1e-3, random_state=0).fit(X, np.abs(X[:, 0]))
        >>> model.score(X, np.abs(X[:, 0])) > 0.9
        True
    """

    weight_: Tensor
    coef_: Tensor

    def __init__(self, n_features: int, *, ridge: float = 1e-3, random_state: int | None = None) -> None:
        self.n_features = n_features
        self.ridge = ridge
        self.random_state = random_state
        self._check()

    def _check(self) -> tuple[int, float]:
        count = check_number(self.n_features, "n_features", low=1, integer=True)
        if self.random_state is not None:
            check_number(self.random_state, "random_state", low=0, high=2**63 - 1, integer=True)
        return count, check_number(self.ridge, "ridge", low=0)

    def fit(self, X: Any, y: Any) -> RandomFeatureRegressor:
        """Draw the features and solve for their coefficients.

        Args:
            X: Points ``[n, d]``, floating.
            y: Targets ``[n]`` or ``[n, C]``.

        Raises:
            TypeError: X is not a dense floating array or tensor, y does not hold numbers.
            ValueError: wrong shapes, unequal lengths, NaN or infinity, a parameter out of range.
        """
        count, ridge = self._check()
        features = fit_features(X)
        targets = as_targets(y, len(features), features.device, type(self).__name__)
        columns = targets[:, None] if targets.ndim == 1 else targets
        seed = torch.randint(2**62, ()).item() if self.random_state is None else self.random_state
        width = features.shape[1]
        shape = (count, width)
        try:
            drawn = torch.randn(shape, generator=make_generator(int(seed)), dtype=torch.float64)
        except RuntimeError as error:
            raise ValueError(f"n_features is too large for the memory, got {count}") from error
        weight = (drawn * math.sqrt(2 / width)).to(features.device)
        made = _relu_features(features, weight)
        if ridge == 0:
            eps = max(made.shape) * torch.finfo(made.dtype).eps
            left, values, right = torch.linalg.svd(made, full_matrices=False)
            kept = values > eps * values[0]
            coef = right[kept].T @ ((left[:, kept].T @ columns) / values[kept, None])
        elif count <= len(features):
            coef = solve_semidefinite(_finite(made.T @ made), made.T @ columns, ridge)
        else:
            coef = made.T @ solve_semidefinite(_finite(made @ made.T), columns, ridge)
        coef = _finite(coef)
        learn_columns(self, X)
        self.weight_, self.coef_, self._flat = weight, coef, targets.ndim == 1
        return self

    def predict(self, X: Any) -> Any:
        """Predict ``[n]`` or ``[n, C]``, as y was; an array for an array, a tensor for a tensor.

        Args:
            X: Points ``[n, d]``.

        Raises:
            NotFittedError: before `fit`.
            TypeError, ValueError: as in `fit`; another number of features.
        """
        check_fitted(self, "coef_")
        features = new_features(self, X)
        made = _relu_features(features.to(self.coef_.device), self.weight_)
        predicted = (made @ self.coef_).to(working_dtype(features))
        return like_input(predicted[:, 0] if self._flat else predicted, X)


def _relu_features(X: Tensor, weight: Tensor) -> Tensor:
    return _finite(torch.relu(X.to(torch.float64) @ weight.T) / math.sqrt(len(weight)))


def _finite(values: Tensor) -> Tensor:
    if not bool(values.isfinite().all()):
        raise ValueError("X must not be so large that its features or their products overflow")
    return values


class KernelRidgeRegressor(_Regressor):
    """Kernel ridge regression with any kernel, such as `relu_ntk` or `myrtle_kernel`.

    Args:
        kernel: ``kernel(X1, X2)`` gives the matrix ``[n1, n2]`` of two sets of points, ``kernel(X1, None)`` that of
            one, symmetric and positive semidefinite.
        ridge: Ridge on the kernel matrix that is not divided by n, >= 0; 0 is the solution of minimum norm.

    Attributes:
        dual_coef_: ``[n, C]``, float64.
        X_fit_: The training points.
        kernel_: The kernel of the fit.

    Raises:
        TypeError, ValueError: a parameter of the wrong kind or out of range.

    Example:
        >>> X = torch.randn(80, 3, dtype=torch.float64)
        >>> model = KernelRidgeRegressor(relu_ntk, ridge=1e-3).fit(X, X[:, 0].abs())
        >>> model.score(X, X[:, 0].abs()) > 0.9
        True
    """

    dual_coef_: Tensor
    X_fit_: Tensor

    def __init__(self, kernel: Kernel, *, ridge: float = 1e-3) -> None:
        self.kernel = kernel
        self.ridge = ridge
        self._check()

    def _check(self) -> float:
        if not callable(self.kernel):
            raise TypeError(f"kernel must be a function of two sets of points, got {type(self.kernel).__name__}")
        return check_number(self.ridge, "ridge", low=0)

    def fit(self, X: Any, y: Any) -> KernelRidgeRegressor:
        """Solve for the dual coefficients, in float64.

        Args:
            X: Points ``[n, ...]``, floating; images too.
            y: Targets ``[n]`` or ``[n, C]``.

        Raises:
            TypeError: X is not a dense floating array or tensor, y does not hold numbers, the kernel gives no tensor.
            ValueError: wrong shapes, unequal lengths, NaN or infinity, a kernel matrix that is not symmetric, a
                parameter out of range.
        """
        ridge = self._check()
        points = fit_features(X, table=False)
        targets = as_targets(y, len(points), points.device, type(self).__name__)
        columns = targets[:, None] if targets.ndim == 1 else targets
        own = points.clone()  # the user's X may change later
        K = self.kernel(points.clone(), None)  # and a kernel may change what it is given
        check_tensor(K, "kernel(X)", shape=(len(points), len(points)))
        dual = solve_semidefinite(check_kernel(K.detach(), "kernel(X)"), columns, ridge)
        if points.ndim == 2:
            learn_columns(self, X)
        self.dual_coef_, self.kernel_, self._flat = dual, self.kernel, targets.ndim == 1
        self.X_fit_ = own
        return self

    def predict(self, X: Any) -> Any:
        """Predict ``[n]`` or ``[n, C]``, as y was; an array for an array, a tensor for a tensor.

        Args:
            X: Points, of the shape of those of the fit.

        Raises:
            NotFittedError: before `fit`.
            TypeError, ValueError: as in `fit`; points of another shape.
        """
        check_fitted(self, "dual_coef_")
        points = new_features(self, X, table=False) if self.X_fit_.ndim == 2 else fit_features(X, table=False)
        if points.shape[1:] != self.X_fit_.shape[1:]:
            raise ValueError(
                f"X must hold points of shape {tuple(self.X_fit_.shape[1:])}, got {tuple(points.shape[1:])}"
            )
        K = self.kernel_(points.to(self.X_fit_.device, copy=True), self.X_fit_.clone())
        check_tensor(K, "kernel(X)", shape=(len(points), len(self.X_fit_)))
        predicted = (K.detach().to(torch.float64) @ self.dual_coef_).to(working_dtype(points))
        return like_input(predicted[:, 0] if self._flat else predicted, X)
