"""Every bad input gets an error that names the argument, and changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from offprints.aef_ocl import (
    AEFOCLClassifier,
    PseudoFeatureGenerator,
    RandomBuffer,
    RecursiveRidge,
    average_mean_class_accuracy,
    long_tailed_stream,
    mean_class_accuracy,
    ridge_solution,
)
from offprints.shared.testing import check_errors

NAN = float("nan")
X, Y = torch.randn(6, 3).double(), torch.tensor([0, 1, 2, 0, 1, 0])


def make(**options) -> AEFOCLClassifier:
    return AEFOCLClassifier(**{"buffer_size": 8, "device": "cpu"} | options)


def test_buffer_ridge_and_generator() -> None:
    ridge, generator = RecursiveRidge(3).partial_fit(X, Y), PseudoFeatureGenerator(3).partial_fit(X, Y)
    check_errors(
        [
            (lambda: RandomBuffer(0), ValueError, "in_features"),
            (lambda: RandomBuffer(3, 0), ValueError, "out_features"),
            (lambda: RandomBuffer(3, 4, activation="step"), ValueError, "activation"),
            (lambda: RandomBuffer(3, 4, activation=3), TypeError, "activation"),  # type: ignore[arg-type]
            (lambda: RandomBuffer(3, 4, activation=torch.sum)(X), ValueError, "activation"),
            (lambda: RandomBuffer(3, 4, seed=-1), ValueError, "seed"),
            (lambda: RandomBuffer(3, 4, dtype=torch.float16), ValueError, "dtype"),
            (lambda: RandomBuffer(3, 4, dtype="float64"), TypeError, "dtype"),  # type: ignore[arg-type]
            (lambda: RandomBuffer(3, 4)(X[:, :2]), ValueError, "x must have shape"),
            (lambda: RandomBuffer(3, 4)(X.long()), TypeError, "x"),
            (lambda: RecursiveRidge(0), ValueError, "in_features"),
            (lambda: RecursiveRidge(3, gamma=0.0), ValueError, "gamma"),
            (lambda: RecursiveRidge(3, gamma=-1.0), ValueError, "gamma"),
            (lambda: RecursiveRidge(3, gamma=NAN), ValueError, "gamma"),
            (lambda: RecursiveRidge(3, solver="auto"), ValueError, "solver"),  # type: ignore[arg-type]
            (lambda: ridge.partial_fit(X.numpy(), Y), TypeError, "X"),
            (lambda: ridge.partial_fit(X, Y.numpy()), TypeError, "Y"),
            (lambda: ridge.partial_fit(X, Y.double()), TypeError, "Y"),
            (lambda: ridge.partial_fit(X, Y > 0), TypeError, "Y"),
            (lambda: ridge.partial_fit(X, Y[:5]), ValueError, "Y"),
            (lambda: ridge.partial_fit(X, Y[:, None]), ValueError, "Y"),
            (lambda: ridge.partial_fit(X, Y - 1), ValueError, "Y"),
            (lambda: ridge.partial_fit(X, X[:5]), ValueError, "Y"),
            (lambda: ridge.partial_fit(X, X * NAN), ValueError, "Y"),
            (lambda: ridge.partial_fit(X[:0], Y[:0]), ValueError, "X"),
            (lambda: ridge.partial_fit(X * NAN, Y), ValueError, "X"),
            (lambda: ridge.partial_fit(X / 0, Y), ValueError, "X"),
            (lambda: ridge.partial_fit(X[:, :2], Y), ValueError, "X"),
            (lambda: ridge.partial_fit(X * 1e200, Y), ValueError, "X"),
            (lambda: ridge.merge_(generator), TypeError, "other"),  # type: ignore[arg-type]
            (lambda: ridge.merge_(RecursiveRidge(4)), ValueError, "in_features"),
            (lambda: ridge.merge_(RecursiveRidge(3, gamma=1.0)), ValueError, "gamma"),
            (lambda: ridge.merge_(RecursiveRidge(3, dtype=torch.float32).partial_fit(X, Y)), ValueError, "dtype"),
            (lambda: PseudoFeatureGenerator(0), ValueError, "in_features"),
            (lambda: PseudoFeatureGenerator(3, noise=-0.1), ValueError, "noise"),
            (lambda: PseudoFeatureGenerator(3, noise=NAN), ValueError, "noise"),
            (lambda: generator.partial_fit(X, Y.double()), TypeError, "y"),
            (lambda: generator.partial_fit(X, Y > 0), TypeError, "y"),
            (lambda: generator.partial_fit(X, Y[:5]), ValueError, "y"),
            (lambda: generator.partial_fit(X, Y[:, None]), ValueError, "y"),
            (lambda: generator.partial_fit(X, Y - 1), ValueError, "y"),
            (lambda: generator.partial_fit(X * NAN, Y), ValueError, "X"),
            (lambda: generator.partial_fit(X[:, :2], Y), ValueError, "X"),
            (lambda: generator.partial_fit(X[:0], Y[:0]), ValueError, "X"),
            (lambda: generator.sample(torch.tensor([1, 2])), ValueError, "counts"),
            (lambda: generator.sample(torch.tensor([1, 2, -1])), ValueError, "counts"),
            (lambda: generator.sample(torch.tensor([1.0, 2, 1])), TypeError, "counts"),
            (lambda: generator.sample(normals=X[:2]), ValueError, "normals"),
            (lambda: generator.sample(generator=3), TypeError, "generator"),  # type: ignore[arg-type]
            (
                lambda: PseudoFeatureGenerator(3).partial_fit(X[:1], Y[:1] + 1).sample(torch.tensor([1, 1])),
                ValueError,
                "counts",
            ),
            (lambda: generator.merge_(ridge), TypeError, "other"),  # type: ignore[arg-type]
            (lambda: generator.merge_(PseudoFeatureGenerator(4)), ValueError, "in_features"),
            (lambda: generator.merge_(PseudoFeatureGenerator(3, dtype=torch.float32)), ValueError, "dtype"),
            (lambda: ridge_solution(X, Y, 0.0), ValueError, "gamma"),
            (lambda: ridge_solution(X * 0 + 1e6, Y, 1e-12), np.linalg.LinAlgError, "gamma=1e-12"),
            (lambda: ridge_solution(X, Y[:5], 1.0), ValueError, "Y"),
            (lambda: ridge_solution(X.long(), Y, 1.0), TypeError, "X"),
        ]
    )
    assert ridge.n_samples_seen_ == 6
    assert generator.count_.sum() == 6


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"gamma": 0.0}, ValueError),
        ({"gamma": NAN}, ValueError),
        ({"noise": -1.0}, ValueError),
        ({"buffer_size": 0}, ValueError),
        ({"buffer_size": 3.5}, TypeError),
        ({"solver": "svd"}, ValueError),
        ({"balance": 1}, TypeError),
        ({"random_state": -1}, ValueError),
        ({"dtype": torch.bfloat16}, ValueError),
        ({"device": "tpu9"}, ValueError),
        ({"backbone": "resnet18"}, TypeError),
        ({"buffer": torch.relu}, TypeError),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value.__name__,
)
def test_parameters(options, error) -> None:
    (name,) = options
    model = make(**options)
    with pytest.raises(error, match=name):
        model.fit(X, Y)
    assert not hasattr(model, "ridge_")


def test_data_of_the_classifier() -> None:
    model = make().partial_fit(X, Y)
    before = model.state_dict()
    scores = model.decision_function(X)
    check_errors(
        [
            (lambda: model.partial_fit("rows", Y), TypeError, "X"),
            (lambda: model.partial_fit(None, Y), TypeError, "X"),
            (lambda: model.partial_fit(X.to_sparse(), Y), TypeError, "X"),
            (lambda: model.partial_fit(X, Y.double()), TypeError, "y"),
            (lambda: model.partial_fit(X, Y.numpy() > 0), TypeError, "y"),
            (lambda: model.partial_fit(X, [0, 1, 2, 0, "a", 1]), TypeError, "y"),
            (lambda: model.partial_fit(X, "labels"), TypeError, "y"),
            (lambda: model.partial_fit(X, None), ValueError, "y"),
            (lambda: model.partial_fit(X[:0], Y[:0]), ValueError, "X"),
            (lambda: model.partial_fit(X * NAN, Y), ValueError, "X"),
            (lambda: model.partial_fit(X.numpy() / 0, Y), ValueError, "X"),
            (lambda: model.partial_fit(X[:, :2], Y), ValueError, "X has 2 features"),
            (lambda: model.partial_fit(X, Y[:5]), ValueError, "y"),
            (lambda: model.partial_fit(X, Y[:, None]), ValueError, "y"),
            (lambda: model.partial_fit(X, Y, classes=[0, 1]), ValueError, "classes"),
            (lambda: model.partial_fit(X, Y, classes=[0.0, 1.0, 2.0]), TypeError, "classes"),
            (lambda: model.partial_fit(X, Y, classes=[]), ValueError, "classes"),
            (lambda: model.partial_fit(X * 1e200, Y), ValueError, "X"),
            (lambda: model.fit(X * NAN, Y), ValueError, "X"),
            (lambda: model.predict(X[:, :2]), ValueError, "X"),
            (lambda: model.score(X, Y[:5]), ValueError, "y"),
            (lambda: model.rebalance(normals=X[:1, :2]), ValueError, "normals"),
            (lambda: model.rebalance(generator=3), TypeError, "generator"),  # type: ignore[arg-type]
            (lambda: model.merge_(RecursiveRidge(3)), TypeError, "other"),  # type: ignore[arg-type]
            (lambda: model.merge_(make().fit(X[:, :2], Y)), ValueError, "number of features"),
            (lambda: model.merge_(make(buffer_size=9).fit(X, Y)), ValueError, "size of the buffer"),
            (lambda: model.merge_(make(gamma=1.0).fit(X, Y)), ValueError, "gamma"),
            (lambda: model.merge_(make(random_state=1).fit(X, Y)), ValueError, "buffer"),
            (lambda: model.merge_(make().fit(X, Y.numpy().astype(str))), TypeError, "labels"),
            (lambda: make(gamma=1.0).merge_(model), ValueError, "gamma"),
            (lambda: model.load_state_dict([1]), TypeError, "state"),  # type: ignore[arg-type]
            (lambda: model.load_state_dict({}), ValueError, "state lacks"),
        ]
    )
    after = model.state_dict()
    assert {name: after[name] for name in ("params", "labels", "n_features_in")} == {
        name: before[name] for name in ("params", "labels", "n_features_in")
    }
    for part in ("ridge", "generator"):
        for name, value in before[part].items():
            assert np.array_equal(after[part][name], value), name
    assert torch.equal(model.decision_function(X), scores)


def test_metrics_and_streams() -> None:
    check_errors(
        [
            (lambda: mean_class_accuracy(Y.double(), Y), TypeError, "y_true"),
            (lambda: mean_class_accuracy(Y, Y > 0), TypeError, "y_pred"),
            (lambda: mean_class_accuracy(Y, Y[:5]), ValueError, "y_pred"),
            (lambda: mean_class_accuracy(Y[:0], Y[:0]), ValueError, "y_true"),
            (lambda: mean_class_accuracy(["a"], [1]), TypeError, "y_pred"),
            (lambda: average_mean_class_accuracy([]), ValueError, "values"),
            (lambda: average_mean_class_accuracy([0.5, NAN]), ValueError, "values"),
            (lambda: average_mean_class_accuracy(0.5), TypeError, "values"),  # type: ignore[arg-type]
            (lambda: long_tailed_stream([[1.0]], Y[:1]), TypeError, "X"),
            (lambda: long_tailed_stream(X, Y.double()), TypeError, "y"),
            (lambda: long_tailed_stream(X, Y[:5]), ValueError, "y"),
            (lambda: long_tailed_stream(X[:0], Y[:0]), ValueError, "X"),
            (lambda: long_tailed_stream(X, Y, ratio=0.0), ValueError, "ratio"),
            (lambda: long_tailed_stream(X, Y, ratio=1.5), ValueError, "ratio"),
            (lambda: long_tailed_stream(X, Y, max_count=0), ValueError, "max_count"),
            (lambda: long_tailed_stream(X, Y, min_count=-1), ValueError, "min_count"),
            (lambda: long_tailed_stream(X, Y, drift=-1.0), ValueError, "drift"),
            (lambda: long_tailed_stream(X, Y, seed=1.5), TypeError, "seed"),  # type: ignore[arg-type]
        ]
    )
