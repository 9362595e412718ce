"""Every property of check_estimator catches an estimator that lacks it, and good ones pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, ClassifierMixin

from offprints.shared.estimators import as_features, check_fitted, like_input
from offprints.shared.testing import check_estimator
from offprints.shared.validation import check_labels, check_number


class Good(ClassifierMixin, BaseEstimator):
    """Nearest class mean, with a little noise in the means."""

    def __init__(self, *, noise: float = 1e-3, random_state: int | None = None) -> None:
        self.noise = noise
        self.random_state = random_state

    def check(self, X, y):
        X = as_features(X, "X")
        if not isinstance(y, np.ndarray | torch.Tensor | list):
            raise TypeError(f"y must be an array, a tensor or a list, got {type(y).__name__}")
        labels = check_labels(torch.as_tensor(y), "y", length=len(X))
        if labels.ndim != 1:
            raise ValueError(f"y must have one dimension, got shape {tuple(labels.shape)}")
        check_number(self.noise, "noise", low=0.0, high=1e3)
        if self.random_state is not None:
            check_number(self.random_state, "random_state", low=0, high=2**62, integer=True)
        return X, labels

    def learn(self, X, labels):
        generator = torch.Generator()
        generator.manual_seed(int(self.random_state)) if self.random_state is not None else generator.seed()
        self.classes_ = labels.unique().numpy()
        means = torch.stack([X[labels == c].mean(0) for c in self.classes_.tolist()])
        self.means_ = means + self.noise * torch.randn(means.shape, generator=generator).to(means)
        self.n_features_in_ = X.shape[1]
        return self

    def fit(self, X, y):
        return self.learn(*self.check(X, y))

    def scores(self, X):
        check_fitted(self, "means_")
        X = as_features(X, "X", dtype=self.means_.dtype)
        if X.shape[1] != self.n_features_in_:
            raise ValueError(f"X must have {self.n_features_in_} features, got {X.shape[1]}")
        return self.compute(X)

    def compute(self, X):
        # In double precision the squares of 1e30 are numbers.
        distances = torch.cdist(X.double(), self.means_.double(), compute_mode="donot_use_mm_for_euclid_dist")
        return -distances.to(X.dtype)

    def predict_proba(self, X):
        return like_input(self.scores(X).softmax(1), X)

    def predict(self, X):
        best = self.scores(X).argmax(1)
        return like_input(torch.from_numpy(self.classes_)[best], X)


class Converts(Good):
    def __init__(self, *, noise=1e-3, random_state=None):
        super().__init__(noise=float(noise) + 0.0, random_state=random_state)


class LearnsEarly(Good):
    def __init__(self, *, noise=1e-3, random_state=None):
        super().__init__(noise=noise, random_state=random_state)
        self.means_ = torch.zeros(2, 2)


class Unfitted(Good):
    def predict(self, X):
        check_fitted(self, "means_")
        return super().predict(X)

    def predict_proba(self, X):
        return self.means_


class NoSelf(Good):
    def fit(self, X, y):
        super().fit(X, y)


class ChangesData(Good):
    def fit(self, X, y):
        super().fit(X, y)
        X += 1
        return self


class ChangesParameter(Good):
    def fit(self, X, y):
        super().fit(X, y)
        self.noise = self.noise / 2
        return self


class Global(Good):
    def learn(self, X, labels):
        super().learn(X, labels)
        self.means_ = self.means_ + torch.rand(())
        return self


class SeedsGlobally(Good):
    def learn(self, X, labels):
        torch.manual_seed(0)
        return super().learn(X, labels)


class WarmStart(Good):
    def learn(self, X, labels):
        before = getattr(self, "means_", 0.0)
        super().learn(X, labels)
        self.means_ = self.means_ + 0.5 * before
        return self


class WrapsIntegers(Good):
    """Takes integers, but keeps four bits of them."""

    def fit(self, X, y):
        integers = isinstance(X, np.ndarray) and X.dtype.kind in "iu"
        return super().fit((X % 16).astype(np.float64) if integers else X, y)

    def scores(self, X):
        if isinstance(X, np.ndarray) and X.dtype.kind in "iu":
            X = X.astype(np.float64)
        return super().scores(X)


class AlwaysArrays(Good):
    def predict(self, X):
        return np.asarray(super().predict(X))


class OtherForTensors(Good):
    def predict_proba(self, X):
        scores = self.scores(X) * (2 if isinstance(X, torch.Tensor) else 1)
        return like_input(scores.softmax(1), X)


class NotNormalized(Good):
    def predict_proba(self, X):
        return like_input(self.scores(X).exp(), X)


class PredictsLeast(Good):
    def predict(self, X):
        worst = self.scores(X).argmin(1)
        return like_input(torch.from_numpy(self.classes_)[worst], X)


class BatchNormalized(Good):
    def compute(self, X):
        return super().compute(X) * (1 + X.std(unbiased=False))


class ByMemory(Good):
    def compute(self, X):
        return super().compute(X.as_strided(X.shape, (X.shape[1], 1)))


class Unpicklable(Good):
    def learn(self, X, labels):
        super().learn(X, labels)
        self.kernel_ = lambda x: x
        return self


class TakesNaN(Good):
    def check(self, X, y):
        return super().check(torch.as_tensor(X).nan_to_num(posinf=torch.inf), y)


class TakesIntegers(Good):
    def check(self, X, y):
        return super().check(torch.as_tensor(X) * 1.0, y)


class CutsLabels(Good):
    def check(self, X, y):
        return super().check(X[: len(y)], y)


class RoundsLabels(Good):
    def check(self, X, y):
        return super().check(X, torch.as_tensor(y).long())


class FlattensLabels(Good):
    def check(self, X, y):
        return super().check(X, y[:, 0] if y.ndim == 2 else y)


class TakesTargets(Good):
    """Regression that lets NaN through."""

    def fit(self, X, y):
        super().fit(X, torch.as_tensor(y).nan_to_num().round().long())
        return self


class CutsFeatures(Good):
    def scores(self, X):
        check_fitted(self, "means_")
        return super().scores(X[:, : self.n_features_in_] if X.ndim == 2 else X)


class ForgetsFirst(Good):
    def fit(self, X, y):
        if hasattr(self, "means_"):
            self.means_ = self.means_ * 0
        return super().fit(X, y)


class Verbose(Good):
    def learn(self, X, labels):
        self.history = [len(X)]
        return super().learn(X, labels)


BROKEN = [
    ("parameters", Converts),
    ("parameters", LearnsEarly),
    ("not fitted", Unfitted),
    ("fit", NoSelf),
    ("fit", ChangesData),
    ("fit", ChangesParameter),
    ("determinism", Global),
    ("determinism", SeedsGlobally),
    ("refit", WarmStart),
    ("NumPy and tensors", AlwaysArrays),
    ("NumPy and tensors", OtherForTensors),
    ("probabilities", NotNormalized),
    ("probabilities", PredictsLeast),
    ("rows", BatchNormalized),
    ("strided and double", ByMemory),
    ("pickle", Unpicklable),
    ("bad data", TakesNaN),
    ("bad data", WrapsIntegers),
    ("bad data", CutsLabels),
    ("bad data", RoundsLabels),
    ("bad data", FlattensLabels),
    ("bad data", CutsFeatures),
    ("rejected fit", ForgetsFirst),
]


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(12) % 3 + 5
    return torch.randn(12, 2, generator=generator) + y[:, None], y


@pytest.mark.parametrize(("property_name", "estimator"), BROKEN, ids=[estimator.__name__ for _, estimator in BROKEN])
def test_broken_estimator_is_caught(property_name, estimator, data) -> None:
    with pytest.raises(AssertionError, match=rf"^check_estimator of {estimator.__name__}: {property_name}: "):
        check_estimator(estimator(), data)


def test_integers_may_be_taken(data) -> None:
    check_estimator(TakesIntegers(), data, skip={"arguments": "those of Good are tried below"})


def test_good_estimator_passes(data) -> None:
    check_estimator(Good(), data)
    check_estimator(Good(random_state=3), (data[0].numpy(), data[1].numpy()), methods=["predict"])


def test_targets_are_checked(data) -> None:
    with pytest.raises(AssertionError, match="bad data: fit with y with NaN: ValueError expected"):
        check_estimator(TakesTargets(), (data[0], data[1].float()))


def test_scikit_learns_checks_run(data) -> None:
    check_estimator(Good(), data, expected_failed_checks={})
    with pytest.raises(AssertionError, match="checks fail: check_dont_overwrite_parameters"):
        check_estimator(Verbose(), data, expected_failed_checks={})
    with pytest.raises(AssertionError, match="expected to fail, but not failing: check_dict_unchanged"):
        check_estimator(Good(), data, expected_failed_checks={"check_dict_unchanged": "thought so"})


def test_estimator_without_methods_is_refused() -> None:
    with pytest.raises(ValueError, match="pass methods="):
        check_estimator(BaseEstimator(), (np.zeros((2, 2)),))
