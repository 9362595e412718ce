"""The detector: scikit-learn's conventions and its own checks, streams, seeds, stored states, modes of training."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler
from sklearn.utils import estimator_checks

from offprints.hyp_oc import HypOCDetector, NotFittedError, spoof_metrics
from offprints.shared.testing import check_errors, check_estimator
from offprints.shared.testing.processes import fresh_process

X = (np.random.default_rng(0).normal(size=(40, 4)) + 2).astype(np.float32)


def small(**changes) -> HypOCDetector:
    return HypOCDetector(**{"hidden": (32, 16), "epochs": 2, "batch_size": 16, "random_state": 0, **changes})


def test_conformance() -> None:
    check_estimator(small(epochs=1, batch_size=40), (X,))


def test_all_of_scikit_learns_checks() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # checks that do not apply
        results = estimator_checks.check_estimator(
            small(epochs=1, batch_size=40), expected_failed_checks={}, on_fail=None, on_skip=None
        )
    assert {r["check_name"]: str(r["exception"]) for r in results if r["status"] == "failed"} == {}


def test_finds_outliers() -> None:
    """Live samples lie away from 0; what lies around 0 is not live."""
    generator = np.random.default_rng(1)
    live, test = generator.normal(size=(2, 200, 8)) + 3
    attacks = generator.normal(size=(200, 8))
    detector = HypOCDetector(epochs=30, lr=3e-3, random_state=0).fit(live)
    scores = np.concatenate([detector.spoof_score(test), detector.spoof_score(attacks)])
    assert spoof_metrics(scores, np.repeat([0, 1], 200)).auc > 0.99
    assert (detector.predict(attacks) == -1).mean() > 0.95
    assert (detector.predict(live) == -1).sum() == 10  # contamination: 5 percent
    assert [record["step"] for record in detector.history_] == list(range(1, 31))
    assert detector.history_[-1]["loss"] < detector.history_[0]["loss"]
    for record in detector.history_:
        assert record["loss"] == pytest.approx(record["hyp_ce"] + record["hyp_pc"], rel=1e-5)


def test_scores_agree() -> None:
    detector = small().fit(X)
    score = detector.score_samples(X)
    logits = detector.head_(torch.from_numpy(X)).logits
    np.testing.assert_allclose(score, (logits[:, 0] - logits[:, 1]).detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(detector.spoof_score(X), logits.softmax(1)[:, 1].detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(detector.decision_function(X), score - detector.offset_, rtol=1e-5, atol=1e-6)
    assert ((detector.decision_function(X) >= 0) == (detector.predict(X) == 1)).all()
    assert detector.offset_ == pytest.approx(np.quantile(score.astype(float), 0.05))
    assert (small(contamination=0.0).fit(X).predict(X) == 1).all()
    assert (small(contamination=0.25).fit(X).predict(X) == -1).sum() == 10


@pytest.mark.parametrize("running", ["previous_batch", "ema"])
def test_partial_fit_is_an_epoch(running: str) -> None:
    whole = small(epochs=3, running=running).fit(X)
    by_epoch = small(epochs=7, running=running)
    for _ in range(3):
        assert by_epoch.partial_fit(X) is by_epoch
    for a, b in zip(whole.head_.parameters(), by_epoch.head_.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(whole.sampler_.mean, by_epoch.sampler_.mean)
    assert whole.offset_ == by_epoch.offset_
    stored = pickle.loads(pickle.dumps(whole))
    for detector in (whole, stored, copied := copy.deepcopy(by_epoch)):
        detector.partial_fit(X[:20] + 1)
    assert np.array_equal(whole.score_samples(X), stored.score_samples(X))
    assert np.array_equal(whole.score_samples(X), copied.score_samples(X))
    assert whole.offset_ == pytest.approx(np.quantile(whole.score_samples(X[:20] + 1).astype(float), 0.05))


def test_previous_batch_begins_anew_every_epoch() -> None:
    """In the first batch of an epoch the mean is a fifth of the features', whatever came before; with ema only once."""
    first: dict[str, list[float]] = {"previous_batch": [], "ema": []}
    for running, means in first.items():
        detector = small(running=running, batch_size=40)
        for _ in range(3):
            detector.partial_fit(X)
            means.append(float(detector.sampler_.mean.mean() / X.mean()))
    assert first["previous_batch"] == pytest.approx([0.2, 0.2, 0.2], rel=1e-5)
    assert first["ema"] == pytest.approx([0.2, 0.36, 0.488], rel=1e-5)


def test_odd_batches_are_trimmed() -> None:
    for n, batch_size in ((5, 2), (7, 16), (33, 15), (2, 2), (3, 3)):
        detector = small(batch_size=batch_size).fit(X[:n])
        assert np.isfinite(detector.score_samples(X)).all()


def test_seeds_and_streams() -> None:
    a, b, other = small().fit(X), small().fit(X), small(random_state=1).fit(X)
    assert np.array_equal(a.score_samples(X), b.score_samples(X))
    assert not np.array_equal(a.score_samples(X), other.score_samples(X))
    torch.manual_seed(4)
    first = small(random_state=None).fit(X).score_samples(X)
    second = small(random_state=None).fit(X).score_samples(X)
    torch.manual_seed(4)
    assert np.array_equal(small(random_state=None).fit(X).score_samples(X), first)
    assert not np.array_equal(first, second)


def test_options_reach_the_training() -> None:
    base = small(epochs=3).fit(X).score_samples(X)
    changes = (
        {"c": 1.0}, {"clip_radius": None}, {"clip_radius": 0.1}, {"alpha": 0.0}, {"variance": 0.1}, {"running": "ema"},
        {"pc_weight": 0.0}, {"form": "arctan"}, {"lr": 0.1}, {"weight_decay": 1.0}, {"max_grad_norm": 1e-3},
    )  # fmt: skip
    for change in changes:
        scale = 5.0 if "clip_radius" in change else 1.0  # long enough to be clipped
        expected = base if scale == 1 else small(epochs=3).fit(scale * X).score_samples(X)
        found = small(epochs=3, **change).fit(scale * X).score_samples(X)
        assert not np.array_equal(found, expected), change
    assert np.array_equal(small(epochs=3, max_grad_norm=math.inf).fit(X).score_samples(X).shape, base.shape)


def test_parameters_changed_between_epochs() -> None:
    """`set_params` counts from the next `partial_fit` on, the optimizer's numbers too; what the head is made of not."""
    for change in ({"lr": 0.1}, {"weight_decay": 1.0}, {"max_grad_norm": 1e-3}, {"pc_weight": 0.0}, {"batch_size": 8}):
        plain, changed = small().partial_fit(X), small().partial_fit(X).set_params(**change)
        assert np.array_equal(plain.score_samples(X), changed.score_samples(X))
        plain.partial_fit(X), changed.partial_fit(X)
        assert not np.array_equal(plain.score_samples(X), changed.score_samples(X)), change
    kept = small().partial_fit(X).set_params(hidden=(3,), c=1.0).partial_fit(X)
    assert [layer.out_features for layer in kept.head_.layers] == [32, 16]
    assert [layer.out_features for layer in kept.fit(X).head_.layers] == [3]


def test_pipeline_and_fit_predict() -> None:
    pipeline = make_pipeline(MaxAbsScaler(), small()).fit(X)
    assert set(pipeline.predict(X)) <= {-1, 1}
    assert np.array_equal(small().fit_predict(X), small().fit(X).predict(X))


def test_stored_in_one_process_and_used_in_another() -> None:
    detector = small().fit(X)
    stored = pickle.dumps(detector)

    def over_there() -> np.ndarray:
        return pickle.loads(stored).partial_fit(X).score_samples(X)

    expected = detector.partial_fit(X).score_samples(X)
    np.testing.assert_allclose(fresh_process(over_there), expected, rtol=1e-5, atol=1e-6)


def test_rejected_partial_fit_changes_nothing() -> None:
    detector = small().fit(X)
    before = detector.score_samples(X)
    for bad in (X[:1], X[:, :3], X * np.nan, X * np.float32(1e36)):
        with pytest.raises(ValueError, match="X"):
            detector.partial_fit(bad)
    assert np.array_equal(detector.score_samples(X), before)
    fresh = small()
    with pytest.raises(ValueError, match="X"):
        fresh.partial_fit(X[:1])
    assert not hasattr(fresh, "n_features_in_")


def test_diverged_partial_fit_changes_nothing() -> None:
    """What a step has done to weights, optimizer and means before the training broke down is taken back."""
    detector, untouched = small().fit(X), small().fit(X)
    with pytest.raises(ValueError, match="lr"):
        detector.set_params(lr=1e30, max_grad_norm=math.inf).partial_fit(X)
    for one in (detector.set_params(lr=1e-3, max_grad_norm=3.0), untouched):
        assert len(one.history_) == 2
        one.partial_fit(X)
    assert np.array_equal(detector.score_samples(X), untouched.score_samples(X))
    assert detector.offset_ == untouched.offset_


@contextmanager
def float64_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "region",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        lambda: torch.device("meta"),  # as the default device
        float64_by_default,
    ],
    ids=["no_grad", "inference_mode", "autocast", "default device", "default dtype"],
)
def test_same_under_every_mode(region) -> None:
    """Layers are trained in float32 with gradients, whatever mode the caller is in; and can be trained on outside."""
    plain = small().fit(X).partial_fit(X)
    with region():
        detector = small().fit(X).partial_fit(X)
        assert np.array_equal(detector.score_samples(X), plain.score_samples(X))
        assert detector.offset_ == plain.offset_
    assert {p.dtype for p in detector.head_.parameters()} == {torch.float32}
    assert np.array_equal(detector.partial_fit(X).score_samples(X), plain.partial_fit(X).score_samples(X))


def test_kinds_of_tables() -> None:
    """The same numbers in another kind of table give the same scores, to the last bit."""
    expected = small(epochs=1).fit(X).score_samples(X)
    read_only = X.copy()
    read_only.flags.writeable = False
    for table in (
        X.astype(np.float64), X.astype(">f4"), X.astype(">f8"), np.asfortranarray(X), X.astype(object), X.tolist(),
        read_only, np.ma.array(X), pd.DataFrame(X), pd.DataFrame(X).astype("Float32"),
        torch.from_numpy(X).double(), torch.from_numpy(X).requires_grad_(),
    ):  # fmt: skip
        assert np.array_equal(small(epochs=1).fit(table).score_samples(X), expected)
        scores = small(epochs=1).fit(X).score_samples(table)
        assert np.array_equal(scores, expected)
        assert isinstance(scores, torch.Tensor) == isinstance(table, torch.Tensor)
    for dtype in (np.int64, np.uint8, np.float16, bool):
        table = np.abs(10 * X).astype(dtype)
        assert np.array_equal(
            small(epochs=1).fit(table).score_samples(table),
            small(epochs=1).fit(table.astype(float)).score_samples(table.astype(float)),
        )


def test_columns_of_data_frames() -> None:
    frame = pd.DataFrame(X, columns=list("abcd"))
    detector = small().fit(frame)
    assert list(detector.feature_names_in_) == list("abcd")
    for other in (frame[list("dcba")], frame.rename(columns={"a": "z"}), frame[["a", "b"]]):
        with pytest.raises(ValueError, match="feature names"):
            detector.predict(other)
        with pytest.raises(ValueError, match="feature names"):
            detector.partial_fit(other)
    assert not hasattr(detector.fit(X), "feature_names_in_")


def test_tensor_of_inference_mode() -> None:
    with torch.inference_mode():
        inside = torch.from_numpy(X) * 1.0
    assert np.array_equal(small().fit(inside).score_samples(X), small().fit(X).score_samples(X))


def test_one_score_for_all_is_warned_of() -> None:
    """All units of a narrow last layer off: no score tells anything, which is said."""
    detector = small(hidden=(4, 1), random_state=None)
    with pytest.warns(ConvergenceWarning, match="same score"):
        for seed in range(20):
            torch.manual_seed(seed)
            detector.fit(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small().fit(X)
        small(hidden=(4, 1)).fit(np.ones((6, 4)))  # samples that are the same have the same score


def test_bad_inputs() -> None:
    parameters = (
        ({"hidden": ()}, ValueError), ({"hidden": 3}, TypeError), ({"c": 0.0}, ValueError),
        ({"c": math.inf}, ValueError),
        ({"clip_radius": 0.0}, ValueError), ({"alpha": 1.5}, ValueError), ({"variance": 0.0}, ValueError),
        ({"running": "mean"}, ValueError), ({"pc_weight": -1.0}, ValueError), ({"form": "tan"}, ValueError),
        ({"lr": 0.0}, ValueError), ({"weight_decay": -1.0}, ValueError), ({"epochs": 0}, ValueError),
        ({"batch_size": 1}, ValueError), ({"max_grad_norm": 0.0}, ValueError), ({"contamination": 0.5}, ValueError),
        ({"contamination": -0.1}, ValueError), ({"random_state": -1}, ValueError), ({"random_state": 1.5}, TypeError),
        ({"device": "abacus"}, ValueError),
    )  # fmt: skip
    cases = [(lambda change=change: small(**change).fit(X), error, next(iter(change))) for change, error in parameters]
    cases += [
        (lambda: small().fit(X[:1]), ValueError, "2 samples"),
        (lambda: small().fit(X[0]), ValueError, "X"),
        (lambda: small().fit(X[:0]), ValueError, "X"),
        (lambda: small().fit("live"), TypeError, "X"),
        (lambda: small().fit(np.zeros((4, 2), "M8[s]")), TypeError, "X"),
        (lambda: small().fit(np.full((3, 2), np.nan)), ValueError, "X"),
        (lambda: small().fit(X).predict(X[:, :2]), ValueError, "features"),
        (lambda: small().predict(X), NotFittedError, "fit"),
        (lambda: small().spoof_score(X), NotFittedError, "fit"),
    ]
    check_errors(cases)
    with pytest.raises(RuntimeError, match="fit"):
        small().predict(X)
