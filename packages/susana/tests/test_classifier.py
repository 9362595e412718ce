"""The classifier: means that do not depend on the batches, classes that appear later, and what it fits into."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from offprints.shared import tables
from offprints.shared.testing import check_streaming
from offprints.susana import PrototypicalClassifier

GENERATOR = np.random.default_rng(0)
Y = np.arange(60) % 4
X = GENERATOR.normal(size=(60, 5)) + Y[:, None]


def test_equals_the_nearest_centroid() -> None:
    ours, theirs = PrototypicalClassifier().fit(X, Y), NearestCentroid().fit(X, Y)
    np.testing.assert_allclose(ours.prototypes_, theirs.centroids_, rtol=1e-12)
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
    np.testing.assert_array_equal(ours.counts_, [15] * 4)
    logits = -((X[:, None] - theirs.centroids_) ** 2).sum(-1)
    np.testing.assert_allclose(ours.decision_function(X), logits, rtol=1e-9)
    exp = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(ours.predict_proba(X), exp / exp.sum(1, keepdims=True), rtol=1e-7, atol=1e-12)
    assert ours.score(X, Y) == pytest.approx(theirs.score(X, Y))


def test_streaming() -> None:
    """Any batches, in any order, far from the origin in single precision."""
    features, labels = torch.from_numpy(X).float() + 3000, torch.from_numpy(Y)
    batches = [(features[:7], labels[:7]), (features[7:8], labels[7:8]), (features[8:], labels[8:])]

    def learned(estimator: PrototypicalClassifier):
        return estimator.classes_, estimator.counts_, estimator.prototypes_, estimator.predict(features)

    check_streaming(
        PrototypicalClassifier,
        batches,
        update=lambda estimator, x, y: estimator.partial_fit(x, y),
        result=learned,
        rtol=1e-7,
        skip={"two processes": "nothing is shared between processes", "merge": "there is no merge"},
    )


def test_one_by_one_in_double_precision() -> None:
    """Running means lose nothing of double precision, however the samples come."""
    whole = PrototypicalClassifier().fit(X, Y)
    model = PrototypicalClassifier()
    for i in GENERATOR.permutation(len(X)):
        model.partial_fit(X[i : i + 1], Y[i : i + 1])
    np.testing.assert_allclose(model.prototypes_, whole.prototypes_, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("kind", ["csr_array", "csc_matrix", "dok_array"])
def test_sparse_features(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They give what dense ones give, in blocks of rows, and are never dense as a whole."""
    thin = np.where(X < 1, 0, X)
    expected = PrototypicalClassifier().fit(thin, Y)
    monkeypatch.setattr(tables, "BLOCK", 5 * 7)
    table = getattr(sparse, kind)(thin)
    model = PrototypicalClassifier().fit(table, Y)
    np.testing.assert_allclose(model.prototypes_, expected.prototypes_, rtol=1e-12)
    np.testing.assert_array_equal(model.classes_, expected.classes_)
    np.testing.assert_allclose(model.decision_function(table), expected.decision_function(thin), rtol=1e-9)
    np.testing.assert_array_equal(model.partial_fit(table, Y).counts_, [30] * 4)
    whole = PrototypicalClassifier().fit(getattr(sparse, kind)(np.rint(thin).astype(np.int16)), Y)
    np.testing.assert_allclose(whole.prototypes_, PrototypicalClassifier().fit(np.rint(thin), Y).prototypes_, rtol=1e-6)
    with pytest.raises(ValueError, match="X"):
        model.predict(table.tocsr()[:, :3])
    for refused, error in ((table * np.nan, ValueError), (table.astype(complex), ValueError)):
        with pytest.raises(error, match="X"):
            model.partial_fit(refused, Y)


def test_bytes_and_text_are_different_labels() -> None:
    model = PrototypicalClassifier().fit(X[:2], np.array([b"a", b"b"]))
    with pytest.raises(TypeError, match="y must hold labels of the same kind"):
        model.partial_fit(X[:2], np.array(["a", "b"]))


def test_classes_that_appear_later() -> None:
    model = PrototypicalClassifier().partial_fit(X[Y == 2], Y[Y == 2])
    assert model.predict(X[:3]).tolist() == [2, 2, 2]
    for label in (0, 3, 1):
        model.partial_fit(X[label == Y], Y[label == Y])
    whole = PrototypicalClassifier().fit(X, Y)
    assert model.classes_.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(model.prototypes_, whole.prototypes_, rtol=1e-12)
    np.testing.assert_array_equal(model.predict(X), whole.predict(X))


def test_kinds_of_labels() -> None:
    for labels in (np.array(["d", "b", "c", "a"])[Y], (Y > 1), Y.astype(np.uint64), Y.astype(">i4") - 9):
        model = PrototypicalClassifier().fit(X, labels)
        predicted = model.predict(X)
        assert set(predicted.tolist()) <= set(labels.tolist())
        assert predicted.dtype.kind == labels.dtype.kind
        assert model.score(X, labels) > 0.5
    model = PrototypicalClassifier().fit(torch.from_numpy(X), torch.from_numpy(Y))
    assert all(isinstance(value, torch.Tensor) for value in (model.classes_, model.prototypes_, model.counts_))
    assert isinstance(model.predict(torch.from_numpy(X)), torch.Tensor)
    assert isinstance(model.predict(X), np.ndarray)
    with pytest.raises(TypeError, match="same kind"):
        model.partial_fit(X, np.array(["a"] * 60))


def test_a_refused_batch_changes_nothing() -> None:
    model = PrototypicalClassifier().fit(X, Y)
    before, predicted = dict(vars(model)), model.predict(X)
    for x, y in ((X[:, :3], Y), (X, Y[:5]), (X + np.nan, Y), (X, Y + 0.5)):
        with pytest.raises(ValueError, match=r"X|y"):
            model.partial_fit(x, y)
    assert vars(model).keys() == before.keys()
    assert all(vars(model)[name] is value for name, value in before.items())
    np.testing.assert_array_equal(model.predict(X), predicted)


def test_in_scikit_learn() -> None:
    search = GridSearchCV(
        make_pipeline(StandardScaler(), PrototypicalClassifier()),
        {"prototypicalclassifier__metric": ["sqeuclidean", "cosine"]},
        cv=3,
    ).fit(X, Y)
    assert search.best_score_ > 0.5


def test_half_precision() -> None:
    x = torch.from_numpy(X).bfloat16()
    model = PrototypicalClassifier().fit(x, torch.from_numpy(Y))
    assert model.prototypes_.dtype == torch.float32
    expected = torch.stack([x.double()[torch.from_numpy(Y) == label].mean(0) for label in range(4)])
    torch.testing.assert_close(model.prototypes_.double(), expected, rtol=1e-6, atol=1e-6)
