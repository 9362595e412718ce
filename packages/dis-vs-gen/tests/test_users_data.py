"""Data as users have it: frames, text labels, weights, sparse and integer features, any scale, stored states."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import skops.io
import torch
from scipy import sparse
from sklearn.linear_model import LogisticRegression as Peer
from sklearn.naive_bayes import GaussianNB
from torch import nn

from offprints.dis_vs_gen import (
    GaussianNaiveBayes,
    LogisticRegression,
    LogisticRegressionCV,
    MinMaxScaler,
    extract_features,
    learning_curve,
)

GENERATOR = np.random.default_rng(3)
Y = np.arange(90) % 3
X = GENERATOR.normal(size=(90, 6)).astype(np.float32)
X[:, 0] += Y
FRAME = pd.DataFrame(X, columns=list("abcdef"))
WEIGHTS = GENERATOR.integers(0, 4, 90).astype(float)
CLASSIFIERS = [GaussianNaiveBayes, LogisticRegression]


@pytest.mark.parametrize("make", CLASSIFIERS)
@pytest.mark.parametrize(
    "labels",
    [
        np.array(["a", "b", "c"])[Y],
        np.array(["x", "yy", "z"], object)[Y],
        Y == 1,
        Y.astype(np.uint64) + 2**63,
        Y.astype(np.int8),
        Y.astype(float),
        pd.Series(Y, dtype="Int64"),
        pd.Series(np.array(["a", "b", "c"])[Y], dtype="category"),
    ],
    ids=lambda labels: str(labels.dtype),
)
def test_labels_keep_their_kind(make: Any, labels: Any) -> None:
    model = make().fit(X, labels)
    plain = make().fit(X, np.unique(np.asarray(labels), return_inverse=True)[1])
    expected = np.unique(np.asarray(labels))[plain.predict(X)]
    predicted = model.predict(X)
    assert predicted.tolist() == expected.tolist()
    assert predicted.dtype == model.classes_.dtype
    assert model.score(X, labels) == plain.score(X, np.unique(np.asarray(labels), return_inverse=True)[1])


def test_tensor_labels_keep_their_type() -> None:
    for labels in (torch.from_numpy(Y).int(), torch.from_numpy(Y) > 0):
        model = GaussianNaiveBayes().fit(torch.from_numpy(X), labels)
        assert model.classes_.dtype == model.predict(torch.from_numpy(X)).dtype == labels.dtype


@pytest.mark.parametrize("make", CLASSIFIERS)
def test_columns_in_another_order_are_refused(make: Any) -> None:
    model = make().fit(FRAME, pd.Series(Y))
    assert model.feature_names_in_.tolist() == list("abcdef")
    assert np.array_equal(model.predict(FRAME), make().fit(X, Y).predict(X))
    with pytest.raises(ValueError, match="same order"):
        model.predict(FRAME[list("bacdef")])


def test_scaler_speaks_of_columns() -> None:
    scaler = MinMaxScaler().set_output(transform="pandas").fit(FRAME)
    scaled = scaler.transform(FRAME)
    assert list(scaled.columns) == scaler.get_feature_names_out().tolist() == list("abcdef")
    with pytest.raises(ValueError, match="same order"):
        scaler.transform(FRAME[list("bacdef")])


@pytest.mark.parametrize("make", CLASSIFIERS)
def test_weights_count_as_repetitions(make: Any) -> None:
    options = {"tol": 1e-10} if make is LogisticRegression else {}
    rows = np.repeat(np.arange(90), WEIGHTS.astype(int))
    weighted = make(**options).fit(X.astype(float), Y, sample_weight=WEIGHTS)
    repeated = make(**options).fit(X[rows].astype(float), Y[rows])
    np.testing.assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), atol=1e-8)
    assert weighted.score(X, Y, WEIGHTS) == pytest.approx(repeated.score(X[rows], Y[rows]), abs=1e-12)
    for wrong in (-WEIGHTS, WEIGHTS[:5], WEIGHTS * np.nan, np.zeros(90), WEIGHTS[:, None]):
        with pytest.raises(ValueError, match="sample_weight"):
            make().fit(X, Y, sample_weight=wrong)


def test_weights_in_a_stream() -> None:
    stream = GaussianNaiveBayes()
    for part in (slice(0, 7), slice(7, 50), slice(50, 90)):
        stream.partial_fit(X[part], Y[part], classes=[0, 1, 2], sample_weight=WEIGHTS[part])
    whole = GaussianNaiveBayes().fit(X, Y, WEIGHTS)
    np.testing.assert_allclose(stream.var_, whole.var_, rtol=1e-12)
    np.testing.assert_allclose(stream.class_count_, [WEIGHTS[k == Y].sum() for k in range(3)])


@pytest.mark.parametrize("class_weight", [None, "balanced", {0: 1.0, 1: 2.0, 2: 0.5}])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_logistic_regression_weighs_as_scikit_learn(class_weight: Any, weights: Any) -> None:
    ours = LogisticRegression(tol=1e-9, class_weight=class_weight).fit(X.astype(float), Y, weights)
    peer = Peer(tol=1e-10, max_iter=10_000, class_weight=class_weight).fit(X.astype(float), Y, weights)
    np.testing.assert_allclose(ours.predict_proba(X), peer.predict_proba(X), atol=2e-6)
    with pytest.raises(ValueError, match="class_weight"):
        LogisticRegression(class_weight="equal").fit(X, Y)


def test_no_penalty() -> None:
    noise = GENERATOR.integers(0, 3, 90)
    free = LogisticRegression(C=math.inf, tol=1e-8).fit(X.astype(float), noise)
    nearly = LogisticRegression(C=1e8, tol=1e-8).fit(X.astype(float), noise)
    np.testing.assert_allclose(free.predict_proba(X), nearly.predict_proba(X), atol=1e-5)
    with pytest.raises(ValueError, match="C"):
        LogisticRegression(C=math.nan).fit(X, Y)


def test_a_sweep_over_c_equals_single_fits() -> None:
    values = [0.01, 0.3, 10.0]
    sweep = LogisticRegressionCV(Cs=values, cv=3, tol=1e-8).fit(X.astype(float), Y)
    from sklearn.model_selection import StratifiedKFold

    for fold, (train, test) in enumerate(StratifiedKFold(3).split(X, Y)):
        for place, C in enumerate(values):
            single = LogisticRegression(C=C, tol=1e-8).fit(X[train].astype(float), Y[train])
            assert sweep.scores_[fold, place] == pytest.approx(single.score(X[test], Y[test]), abs=1e-12)
    assert values[sweep.scores_.mean(0).argmax()] == sweep.C_
    alone = LogisticRegression(C=sweep.C_, tol=1e-8).fit(X.astype(float), Y)
    np.testing.assert_allclose(sweep.coef_, alone.coef_, atol=1e-6)
    rare = LogisticRegressionCV(Cs=values, cv=3, tol=1e-8).fit(sparse.csr_array(X.astype(float)), Y)
    np.testing.assert_array_equal(rare.scores_, sweep.scores_)
    for wrong in ([], [0.0], 0):
        with pytest.raises(ValueError, match="Cs"):
            LogisticRegressionCV(Cs=wrong).fit(X, Y)


@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "lil", "dok", "dia", "bsr"])
@pytest.mark.parametrize("make", CLASSIFIERS)
def test_sparse_rows(make: Any, kind: str) -> None:
    dense = np.where(X > 0.3, X, 0).astype(float)
    table = sparse.coo_array(dense).asformat(kind)
    ours, expected = make().fit(table, Y), make().fit(dense, Y)
    np.testing.assert_allclose(ours.predict_proba(table), expected.predict_proba(dense), rtol=1e-9)
    assert ours.predict(table).tolist() == expected.predict(dense).tolist()


@pytest.mark.parametrize("make", CLASSIFIERS)
def test_rows_in_blocks(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of any size are worked on in blocks of rows; here of ten, with and without weights."""
    dense = np.where(X > 0.3, X, 0)
    table = sparse.csr_array(dense)
    for weights in (None, WEIGHTS):
        expected = make().fit(dense, Y, weights)
        expected_proba, expected_labels = expected.predict_proba(dense), expected.predict(dense)
        with monkeypatch.context() as patch:
            patch.setattr("offprints.shared.tables.BLOCK", 10 * X.shape[1])
            found = make().fit(table, Y, weights)
            for rows in (table, dense):
                np.testing.assert_allclose(found.predict_proba(rows), expected_proba, rtol=1e-5, atol=1e-6)
                assert found.predict(rows).tolist() == expected_labels.tolist()


def test_smallest_of_equally_good_values_in_any_order() -> None:
    parted = X.astype(float)
    parted[:, 0] += 100 * Y
    found = LogisticRegressionCV(Cs=[10.0, 1.0, 100.0], cv=3).fit(parted, Y)
    assert found.Cs_.tolist() == [1.0, 10.0, 100.0]
    assert (found.scores_ == 1).all()
    assert found.C_ == 1.0


def test_folds_of_equal_sums_are_equally_good() -> None:
    """In floating point 0.6 + 0.7 + 0.8 and 0.7 + 0.8 + 0.6 are two numbers."""

    accuracies = iter([[0.6, 0.7, 0.1], [0.7, 0.8, 0.1], [0.8, 0.6, 0.1]])

    class Told(LogisticRegressionCV):
        @staticmethod
        def _accuracies(*_: Any) -> list[float]:
            return next(accuracies)

    found = Told(Cs=[0.1, 1.0, 10.0], cv=3).fit(X, Y)
    assert len(set(found.scores_.mean(0)[:2])) == 2
    assert found.C_ == 0.1


def test_folds_without_a_class_are_refused() -> None:
    folds = [(np.flatnonzero(Y > 0), np.flatnonzero(Y == 0))]
    with pytest.raises(ValueError, match="cv must leave every class"):
        LogisticRegressionCV(Cs=[1.0], cv=folds).fit(X, Y)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_a_constant_feature_without_penalty_stays_at_zero(kind: str) -> None:
    noise = np.random.default_rng(4).integers(0, 3, 90)
    constant = np.concatenate([X.astype(float), np.zeros((90, 1))], 1)
    table = sparse.csr_array(constant) if kind == "sparse" else constant
    free = LogisticRegression(C=math.inf, tol=1e-8).fit(table, noise)
    assert (free.coef_[:, -1] == 0).all()
    without = LogisticRegression(C=math.inf, tol=1e-8).fit(X.astype(float), noise)
    np.testing.assert_allclose(free.coef_[:, :-1], without.coef_, atol=1e-4)


@pytest.mark.parametrize("make", CLASSIFIERS)
def test_labels_of_another_kind_are_wrong_answers(make: Any) -> None:
    assert make().fit(X, Y).score(X, np.array(["a", "b", "c"])[Y]) == 0
    assert make().fit(X, np.array(["a", "b", "c"])[Y]).score(X, Y) == 0
    half = np.where(np.arange(90) < 45, Y, 7)  # a label that was not seen
    plain = make().fit(X, Y)
    assert plain.score(X, half) == pytest.approx((plain.predict(X) == half).mean())


@pytest.mark.parametrize("make", [*CLASSIFIERS, MinMaxScaler])
def test_a_new_fit_forgets_the_names_of_columns(make: Any) -> None:
    model = make().fit(FRAME, Y)
    assert model.feature_names_in_.tolist() == list("abcdef")
    for other in (X[:, :4], torch.from_numpy(X[:, :4])):
        model = make().fit(FRAME, Y).fit(other, Y)
        assert not hasattr(model, "feature_names_in_")
        assert model.n_features_in_ == 4


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.bool_])
@pytest.mark.parametrize("make", [*CLASSIFIERS, MinMaxScaler])
def test_integers_are_the_numbers_that_they_are(make: Any, dtype: Any) -> None:
    table = np.abs(np.rint(X * 3)).astype(dtype)
    method = "transform" if make is MinMaxScaler else "predict_proba"
    found = getattr(make().fit(table, Y), method)(table)
    wide = table.astype(np.float64 if table.itemsize > 2 else np.float32)
    np.testing.assert_allclose(found, getattr(make().fit(wide, Y), method)(wide), rtol=1e-12)
    tensors = torch.from_numpy(table), torch.from_numpy(Y)
    np.testing.assert_allclose(getattr(make().fit(*tensors), method)(tensors[0]).numpy(), found, rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-12, 1e12, 1e20])
def test_logistic_regression_of_any_scale(scale: float) -> None:
    """float32 holds 1e20 but not its square."""
    scaled = (X * np.float32(scale)).astype(np.float32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = LogisticRegression().fit(scaled, Y)
    assert any("scale the features" in str(warning.message) for warning in caught) == (scale < 1)
    assert (model.coef_ != 0).all()
    if scale > 1:
        unpenalized = LogisticRegression(C=math.inf).fit(X, Y)
        np.testing.assert_allclose(model.coef_ * scale, unpenalized.coef_, atol=1e-3)
    assert np.isfinite(model.predict_proba(scaled)).all()


def test_naive_bayes_says_where_a_scale_is_not_for_it() -> None:
    with pytest.warns(UserWarning, match="var_smoothing=1e-09 outweighs"):
        GaussianNaiveBayes().fit(X * np.float32(1e-12), Y)
    with pytest.raises(ValueError, match="X must have magnitudes"):
        GaussianNaiveBayes().fit(X.astype(float) * 1e300, Y)
    large = X.astype(float) * 1e100
    assert GaussianNaiveBayes().fit(large, Y).score(large, Y) == GaussianNaiveBayes().fit(X, Y).score(X, Y)


@pytest.mark.parametrize(("dtype", "edge"), [(np.float16, 4e4), (np.float32, 3e38), (np.float64, 1.5e308)])
def test_ranges_beyond_the_type(dtype: Any, edge: float) -> None:
    column = np.array([[-edge], [0], [edge]], dtype)
    scaler = MinMaxScaler().fit(column)
    assert scaler.transform(column).ravel().tolist() == [0.0, 0.5, 1.0]
    assert scaler.transform(column).dtype == dtype
    errors = learning_curve(GaussianNaiveBayes, column.repeat(4, 0), np.repeat([0, 0, 1], 4), column, [0, 0, 1], [12])
    assert errors.errors.max() == 0


def test_parameters_set_later_wait_for_the_next_fit() -> None:
    model = GaussianNaiveBayes().fit(X, Y)
    expected, variance = model.predict_proba(X), model.var_
    model.set_params(shared_variance=False, var_smoothing=1.0)
    assert np.array_equal(model.predict_proba(X), expected)
    assert np.array_equal(model.var_, variance)
    assert model.coef_.shape == (3, 6)
    assert model.fit(X, Y).var_.shape == (3, 6)


@pytest.mark.parametrize("make", [*CLASSIFIERS, LogisticRegressionCV, MinMaxScaler])
def test_stored_and_loaded(make: Any) -> None:
    model = make().fit(FRAME, Y)
    method = "transform" if make is MinMaxScaler else "predict_proba"
    expected = getattr(model, method)(FRAME)
    blob = skops.io.dumps(model)
    (own,) = skops.io.get_untrusted_types(data=blob)  # nothing but the class itself has to be trusted
    assert own.endswith(make.__name__)
    for twin in (skops.io.loads(blob, trusted=[own]), pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert np.array_equal(getattr(twin, method)(FRAME), expected)


@pytest.mark.parametrize("make", [*CLASSIFIERS, MinMaxScaler])
def test_no_graph_is_kept(make: Any) -> None:
    features = torch.from_numpy(X).requires_grad_()
    model = make().fit(features, torch.from_numpy(Y))
    copy.deepcopy(model)
    for name in ("theta_", "coef_", "data_min_"):
        if hasattr(model, name):
            getattr(model, name).numpy()


@pytest.mark.parametrize("make", [*CLASSIFIERS, MinMaxScaler])
def test_read_only_memory_is_neither_copied_nor_warned_of(make: Any, tmp_path: Any) -> None:
    np.save(tmp_path / "x.npy", X)
    mapped, labels = np.load(tmp_path / "x.npy", mmap_mode="r"), Y.copy()
    labels.flags.writeable = False

    from offprints.shared.tables import as_table

    assert as_table(mapped).data_ptr() == mapped.ctypes.data
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = make().fit(mapped, labels)
    method = "transform" if make is MinMaxScaler else "predict"
    assert np.array_equal(getattr(model, method)(mapped), getattr(make().fit(X, Y), method)(X))


def test_masked_arrays() -> None:
    masked = np.ma.masked_array(X, mask=X > 2)
    with pytest.raises(ValueError, match="X must not have masked"):
        GaussianNaiveBayes().fit(masked, Y)


def test_naive_bayes_against_scikit_learn_with_weights() -> None:
    ours = GaussianNaiveBayes(shared_variance=False, var_smoothing=1e-12).fit(X.astype(float), Y, WEIGHTS)
    peer = GaussianNB(var_smoothing=0).fit(X.astype(float), Y, WEIGHTS)
    np.testing.assert_allclose(ours.predict_proba(X), peer.predict_proba(X), atol=1e-9)


# Features


def test_features_are_those_before_the_model_changes_them() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 2))
    x = torch.from_numpy(X)
    features, _ = extract_features(model, [(x, torch.from_numpy(Y))], layer="1")
    torch.testing.assert_close(features, model[0](x).detach())
    assert features.min() < 0


class Reusing(nn.Module):
    """Writes every output into the same memory, as some exported networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("held", torch.zeros(30, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.held.copy_(x)


def test_features_of_a_model_that_reuses_its_output() -> None:
    x, y = torch.from_numpy(X), torch.from_numpy(Y)
    features, _ = extract_features(Reusing(), list(zip(x.split(30), y.split(30), strict=True)))
    assert torch.equal(features, x)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 2)

    def forward(self, *, pixel_values: torch.Tensor, scale: float = 1.0) -> dict[str, torch.Tensor]:
        return {"logits": self.linear(input=pixel_values) * scale}


def test_mappings_as_batches() -> None:
    model, x, y = Named(), torch.from_numpy(X), torch.from_numpy(Y)
    batch = {"pixel_values": x, "labels": y}
    features, labels = extract_features(model, [batch])
    torch.testing.assert_close(features, model.linear(x).detach())
    assert torch.equal(labels, y)
    assert torch.equal(extract_features(model, [batch], layer="linear")[0], x)
    with pytest.raises(ValueError, match="labels"):
        extract_features(model, [{"pixel_values": x}])
    with pytest.raises(TypeError, match="loader"):
        extract_features(model, [x])
