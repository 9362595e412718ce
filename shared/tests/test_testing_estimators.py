"""Every property of check_estimator catches an estimator that lacks it, and good ones pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import validate_data

from offprints.shared.estimators import as_features, check_fitted, like_input
from offprints.shared.testing import check_estimator
from offprints.shared.validation import check_labels, check_number


class Good(ClassifierMixin, BaseEstimator):
    """Nearest class mean, with a little noise in the means."""

    def __init__(self, *, noise: float = 1e-3, random_state: int | None = None) -> None:
        self.noise = noise
        self.random_state = random_state

    def check(self, X, y):
        features = as_features(X, "X").detach()
        if y is None:
            raise ValueError("Good requires y to be passed, but the target y is None")
        if not isinstance(y, torch.Tensor):
            if not (isinstance(y, list) or hasattr(y, "__array__")):
                raise TypeError(f"y must be an array, a tensor or a list, got {type(y).__name__}")
            y = np.asarray(y)
            if y.dtype.kind not in "iu":
                raise TypeError(f"y must have an integer type, got {y.dtype}")
            y = torch.from_numpy(y.astype(np.int64))
        labels = check_labels(y, "y", length=len(features))
        if labels.ndim != 1:
            raise ValueError(f"y must have one dimension, got shape {tuple(labels.shape)}")
        check_number(self.noise, "noise", low=0.0, high=1e3)
        if self.random_state is not None:
            check_number(self.random_state, "random_state", low=0, high=2**62, integer=True)
        self.compare_columns(X, reset=True)
        return features, labels

    def compare_columns(self, X, *, reset):
        validate_data(self, X, reset=reset, skip_check_array=True)

    def learn(self, X, labels):
        generator = torch.Generator()
        generator.manual_seed(int(self.random_state)) if self.random_state is not None else generator.seed()
        self.classes_ = labels.unique().numpy()
        means = torch.stack([X[labels == c].mean(0) for c in self.classes_.tolist()])
        self.means_ = means + self.noise * torch.randn(means.shape, generator=generator).to(means)
        return self

    def fit(self, X, y):
        return self.learn(*self.check(X, y))

    def scores(self, X):
        check_fitted(self, "means_")
        features = as_features(X, "X", dtype=self.means_.dtype)
        self.compare_columns(X, reset=False)
        return self.compute(features)

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
        return super().check(self.as_numbers(X), y)

    def scores(self, X):
        return super().scores(self.as_numbers(X))

    def as_numbers(self, X):
        if isinstance(X, np.ndarray) and X.dtype.kind in "biu":
            return X.astype(np.float64)
        return X.double() if isinstance(X, torch.Tensor) and not X.dtype.is_floating_point else X


class CutsLabels(Good):
    def check(self, X, y):
        return super().check(X[: len(y)], y)


class RoundsLabels(Good):
    def check(self, X, y):
        return super().check(X, torch.as_tensor(y).long())


class FlattensLabels(Good):
    def check(self, X, y):
        return super().check(X, y[:, 0] if y.ndim == 2 else y)


class Writes(Good):
    """Puts its data where they are."""

    def fit(self, X, y):
        X[:1] = X[:1]
        return super().fit(X, y)


class UnderMask(Good):
    def check(self, X, y):
        return super().check(np.asarray(X) if isinstance(X, np.ndarray) else X, y)


class DoublesSparse(Good):
    """Takes sparse matrices, and learns from the double of them."""

    def fit(self, X, y):
        return super().fit(2 * X.toarray() if sparse.issparse(X) else X, y)

    def scores(self, X):
        return super().scores(X.toarray() if sparse.issparse(X) else X)


class TextBackwards(Good):
    """Takes text as labels, and numbers it from the end."""

    words = None

    def fit(self, X, y):
        self.words = None
        if isinstance(y, np.ndarray) and y.dtype.kind in "UO":
            self.words = np.unique(y)[::-1]
            y = (y[:, None] == self.words).argmax(1)
        return super().fit(X, y)

    def predict(self, X):
        return super().predict(X) if self.words is None else self.words[super().predict(X)]


class AnyColumns(Good):
    """Takes the columns of a data frame as they come."""

    def compare_columns(self, X, *, reset):
        super().compare_columns(X if isinstance(X, torch.Tensor) else np.asarray(X), reset=reset)


class Mixed(Good):
    """Scales what it learns in fit, and X when it is asked."""

    def __init__(self, *, noise=1e-3, scale=2.0, random_state=None):
        super().__init__(noise=noise, random_state=random_state)
        self.scale = scale

    def learn(self, X, labels):
        return super().learn(X * self.scale, labels)

    def compute(self, X):
        return super().compute(X * self.scale)


class KeepsGraph(Good):
    def check(self, X, y):
        _, labels = super().check(X, y)
        return as_features(X, "X"), labels


class ShortLabels(Good):
    """Predicts a type of labels that fit refuses."""

    def check(self, X, y):
        if y is not None and getattr(y, "dtype", None) in (np.int16, torch.int16):
            raise TypeError(f"y must have 64 bits, got {y.dtype}")
        return super().check(X, y)

    def predict(self, X):
        return like_input(torch.as_tensor(super().predict(X)).short(), X)


class Start(Good):
    """Takes means to start from: arrays alone, where it learns tensors."""

    def __init__(self, *, noise=1e-3, random_state=None, means_init=None):
        super().__init__(noise=noise, random_state=random_state)
        self.means_init = means_init

    def check(self, X, y):
        if not isinstance(self.means_init, np.ndarray | None):
            raise TypeError(f"means_init must be an array, got {type(self.means_init).__name__}")
        return super().check(X, y)


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
    ("bad data", CutsLabels),
    ("bad data", RoundsLabels),
    ("bad data", FlattensLabels),
    ("bad data", CutsFeatures),
    ("rejected fit", ForgetsFirst),
    ("arrays: read-only", Writes),
    ("arrays: masked", UnderMask),
    ("integer features: int64", WrapsIntegers),
    ("sparse features: csr_array", DoublesSparse),
    ("labels: text", TextBackwards),
    ("data frames: other order", AnyColumns),
    ("set_params after fit: scale", Mixed),
    ("no graph: a graph is kept by means_$", KeepsGraph),
    ("own output: labels, arrays", ShortLabels),
    ("own output: means_init: means_ \\(Tensor\\) is refused", Start),
]


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(12) % 3 + 5
    return torch.randn(12, 2, generator=generator) + y[:, None], y


@pytest.mark.parametrize(("property_name", "estimator"), BROKEN, ids=[estimator.__name__ for _, estimator in BROKEN])
def test_broken_estimator_is_caught(property_name, estimator, data) -> None:
    with pytest.raises(AssertionError, match=rf"^check_estimator of {estimator.__name__}: {property_name}"):
        check_estimator(estimator(), data)


def test_integers_may_be_taken(data) -> None:
    check_estimator(TakesIntegers(), data, skip={"arguments": "those of Good are tried below"})


def test_good_estimator_passes(data) -> None:
    check_estimator(Good(), data)
    check_estimator(Good(random_state=3), (data[0].numpy(), data[1].numpy()), methods=["predict"])


def test_a_part_can_be_skipped(data) -> None:
    later = dict.fromkeys(("arguments", "own output"), "not of interest")
    reason = "not of interest"
    check_estimator(Mixed(), data, skip={**later, "set_params after fit: scale": reason})
    with pytest.raises(
        AssertionError,
        match="skip names \\['size'\\]; the parts of set_params after fit are noise, random_state, scale",
    ):
        check_estimator(Mixed(), data, skip={**later, "set_params after fit: size": reason})


def test_own_output_of_another_name(data) -> None:
    with pytest.raises(AssertionError, match=r"own output: noise: means_ .* is refused: TypeError: noise must be"):
        check_estimator(Good(), data, own_output={"noise": "means_"}, skip={"arguments": "not of interest"})


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
