"""The classifier: scikit-learn's conventions, unlabeled samples, images, backbones and views of one's own."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from offprints.shared.estimators import NotFittedError
from offprints.shared.testing import check_errors, check_estimator
from offprints.shrinkmatch import ShrinkMatchClassifier, ShrinkMatchModel, ShrinkMatchOutput, split_labels

GENERATOR = np.random.default_rng(0)
TRUTH = np.arange(36) % 3
X = (GENERATOR.normal(size=(36, 4)) + 2 * np.eye(4)[TRUTH]).astype(np.float32)
Y = np.where(np.arange(36) < 9, TRUTH, -1)
IMAGES = (GENERATOR.normal(size=(36, 2, 6, 5)) + TRUTH[:, None, None, None]).astype(np.float32)


def tiny(**changes) -> ShrinkMatchClassifier:
    return ShrinkMatchClassifier(**{"max_steps": 2, "batch_size": 4, "mu": 2, "random_state": 0, **changes})


def test_conformance() -> None:
    check_estimator(tiny(), (X, Y), skip={"arguments: parameters: max_steps: huge": "it takes its time"})


def test_conformance_on_images() -> None:
    """With the least of backbones: it is images that are looked at here."""
    check_estimator(tiny(backbone=nn.Flatten()), (IMAGES, Y), skip={"arguments": "those of features"})


def test_scikit_learns_own_checks() -> None:
    """Those whose two classes are called -1 and 1 meet one class and unlabeled samples here."""
    from sklearn.utils import estimator_checks

    from offprints.shared.testing.estimators import DEPARTURES

    unlabeled = "-1 marks unlabeled samples"
    expected = {
        **DEPARTURES,
        "check_classifiers_classes": unlabeled,
        "check_classifiers_train": "needs more than two steps",
    }
    results = estimator_checks.check_estimator(tiny(), expected_failed_checks=expected, on_fail=None, on_skip=None)
    failed = {r["check_name"]: repr(r["exception"]) for r in results if r["status"] == "failed"}
    assert failed == {}


def test_learns_from_few_labels() -> None:
    """Digits with three labels a class, a hundred steps."""
    digits = load_digits()
    x, truth = digits.data / 16, digits.target
    labeled, _ = split_labels(truth, 3, seed=0)
    y = np.full(len(truth), -1)
    y[labeled] = truth[labeled]
    classifier = ShrinkMatchClassifier(max_steps=100, random_state=0, device="cpu").fit(x, y)
    assert classifier.score(x, truth) > 0.7
    assert classifier.history_[-1]["supervised"] < classifier.history_[0]["supervised"] / 4
    assert [record["step"] for record in classifier.history_] == list(range(1, 101))
    assert set(classifier.history_[0]) == {"step", *ShrinkMatchOutput._fields}
    assert all(type(value) in (int, float) for value in classifier.history_[0].values())


def test_unlabeled_samples_count() -> None:
    """The same labels with and without the unlabeled samples give different classifiers."""
    one = tiny(max_steps=5).fit(X, Y)
    other = tiny(max_steps=5).fit(X[:9], Y[:9])
    assert not np.allclose(one.predict_proba(X), other.predict_proba(X))


def test_attributes() -> None:
    classifier = tiny().fit(X, np.where(Y >= 0, 10 * Y + 5, -1))
    assert classifier.classes_.tolist() == [5, 15, 25]
    assert classifier.n_features_in_ == 4
    assert isinstance(classifier.model_, ShrinkMatchModel)
    assert not classifier.model_.training
    probabilities = classifier.model_(torch.from_numpy(X)).softmax(1)
    np.testing.assert_allclose(classifier.predict_proba(X), probabilities.detach().numpy(), rtol=1e-5)
    assert set(classifier.predict(X)) <= {5, 15, 25}


def test_the_average_is_what_predicts() -> None:
    """With ema_decay 0 it is the network itself, with nearly 1 the beginning."""
    ends = [tiny(max_steps=4, ema_decay=decay).fit(X, Y).predict_proba(X) for decay in (0.0, 0.5, 0.999999)]
    starts = tiny(max_steps=1, ema_decay=0.999999, lr=1e-12).fit(X, Y)
    assert not np.allclose(ends[0], ends[1])
    weights = tiny(max_steps=4, ema_decay=0.999999).fit(X, Y).model_.head.weight
    torch.testing.assert_close(weights, starts.model_.head.weight, rtol=0, atol=1e-4)


def test_optimizer_and_schedule() -> None:
    """SGD with Nesterov momentum and weight decay; the rate falls along the cosine from that of the backbone's kind."""
    seen: list[list[float]] = []

    def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
        group = optimizer.param_groups[0]
        seen.append([group[name] for name in ("lr", "momentum", "nesterov", "weight_decay")])

    hook = register_optimizer_step_pre_hook(note)
    try:
        for changes, highest in (({}, 0.1), ({"backbone": nn.Linear(4, 3)}, 0.03), ({"lr": 0.5}, 0.5)):
            seen.clear()
            tiny(max_steps=3, **changes).fit(X, Y)
            rates = [highest * np.cos(7 * np.pi / 16 * step / 3) for step in range(3)]
            assert [row[0] for row in seen] == pytest.approx(rates)
            assert all(row[1:] == [0.9, True, 5e-4] for row in seen)
    finally:
        hook.remove()


# ---- labels ----------------------------------------------------------------------------------------------------------


def test_text_with_unlabeled_samples() -> None:
    """As scikit-learn's semi-supervised estimators take it: objects that are text, or the number -1."""
    names = np.array(["a", "b", "c"], dtype=object)
    text = np.where(Y >= 0, names[Y], -1)
    numbers = tiny().fit(X, Y)
    for y in (text, text.tolist(), pd.Series(text)):
        classifier = tiny().fit(X, y)
        assert classifier.classes_.tolist() == ["a", "b", "c"]
        assert classifier.predict(X).tolist() == names[numbers.predict(X)].tolist()
    with pytest.raises(ValueError, match="text '-1'"):
        tiny().fit(X, text.astype(str))


def test_all_labeled() -> None:
    """Then the labeled samples serve as unlabeled ones too."""
    classifier = tiny().fit(X, TRUTH)
    assert classifier.classes_.tolist() == [0, 1, 2]


def test_other_kinds_of_labels() -> None:
    expected = tiny().fit(X, Y).predict_proba(X)
    for y in (torch.from_numpy(Y), pd.Series(Y).astype("Int64"), Y.astype(np.int8), Y.astype(float), Y.tolist()):
        np.testing.assert_array_equal(tiny().fit(X, y).predict_proba(X), expected)
    with pytest.raises((TypeError, ValueError), match="y must"):
        tiny().fit(X, pd.Series(Y).astype("Int64").mask(Y == 1))


def test_bad_labels_and_samples() -> None:
    check_errors(
        [
            (lambda: tiny().fit(X, np.full(36, -1)), ValueError, "y must hold at least 2 classes"),
            (lambda: tiny().fit(X, np.where(Y == 0, 0, -1)), ValueError, "y must hold at least 2 classes"),
            (lambda: tiny().fit(X, None), ValueError, "y"),
            (lambda: tiny().fit(X, Y[:-1]), ValueError, "y must have length 36"),
            (lambda: tiny().fit(X, np.ma.masked_equal(Y, 2)), ValueError, "y"),
            (lambda: tiny().fit(X, [1, "a", 2.5] * 12), TypeError, "y"),
            (lambda: tiny().fit(X, np.array([np.str_("a"), "b", 1] * 12, object)), TypeError, "y"),
            (lambda: tiny().fit(X, ["a", "b", None] * 12), TypeError, "y"),
            (lambda: tiny().fit(X, ["a", "b"]), ValueError, "y must have length 36"),
            (lambda: tiny(backbone=nn.Linear(5, 3)).fit(X, Y), ValueError, "backbone must take samples of shape (4,)"),
            (lambda: tiny().fit(np.ma.masked_greater(X, 1), Y), ValueError, "X"),
            (lambda: tiny().fit(X[:, :, None], Y), ValueError, "X must have 2 dimensions (features) or 4"),
            (lambda: tiny().fit(1e35 * X.astype(float), Y), ValueError, "X must lie within"),
            (lambda: tiny().fit(IMAGES, Y).predict(X), ValueError, "X has"),
            (lambda: tiny().fit(X, Y).predict(IMAGES), ValueError, "X has"),
            (lambda: tiny().fit(IMAGES, Y).predict(IMAGES[:, :, :4]), ValueError, "X has"),
            (lambda: tiny().predict(X), NotFittedError, "not fitted"),
            (lambda: tiny(batch_size=1, mu=1).fit(X, Y), ValueError, "batch_size"),
            (lambda: tiny(threshold=0.0).fit(X, Y), ValueError, "threshold"),
            (lambda: tiny(align="both").fit(X, Y), ValueError, "align"),
            (lambda: tiny(backbone=nn.Flatten(0)).fit(X, Y), ValueError, "backbone"),
            (lambda: tiny(backbone="wrn").fit(X, Y), TypeError, "backbone"),
            (lambda: tiny(weak=lambda x: x[:1]).fit(X, Y), ValueError, "weak"),
            (lambda: tiny(strong=lambda x: None).fit(X, Y), TypeError, "strong"),
            (lambda: tiny(strong=lambda x: x * np.nan).fit(X, Y), ValueError, "strong"),
            (lambda: tiny(lr=1e30, max_steps=9).fit(X, Y), ValueError, "lr"),
        ]
    )
    assert issubclass(NotFittedError, RuntimeError)


# ---- images, backbones, views ----------------------------------------------------------------------------------------


def test_integer_images() -> None:
    """Pixels of 0 to 255 in uint8, as files have them, and in float: one result; the scale does not matter."""
    pixels = (40 * (IMAGES - IMAGES.min())).astype(np.uint8)
    expected = tiny().fit(pixels.astype(np.float32), Y).predict_proba(pixels.astype(np.float32))
    np.testing.assert_array_equal(tiny().fit(pixels, Y).predict_proba(pixels), expected)
    as_tensor = torch.from_numpy(pixels)
    np.testing.assert_array_equal(tiny().fit(as_tensor, Y).predict_proba(as_tensor).numpy(), expected)


@pytest.mark.parametrize("data", [X, IMAGES], ids=["features", "images"])
def test_units_and_offsets_of_the_samples_do_not_matter(data: np.ndarray) -> None:
    one = tiny(max_steps=5).fit(data, Y).predict_proba(data)
    other = tiny(max_steps=5).fit(1000 * data + 3000, Y).predict_proba(1000 * data + 3000)
    np.testing.assert_allclose(one, other, atol=2e-3)


def test_constant_features() -> None:
    data = np.concatenate([X, np.full((36, 1), 7.0, np.float32)], 1)
    assert np.isfinite(tiny().fit(data, Y).predict_proba(data)).all()


def test_own_backbone_and_views() -> None:
    """The backbone is copied; views get batches as X has them, and may work in place."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(60, 7), nn.ReLU())
    before = copy.deepcopy(backbone.state_dict())
    seen: list[Tensor] = []

    def strong(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return x.mul_(0.5)

    samples = torch.from_numpy(IMAGES)
    kept = samples.clone()
    classifier = tiny(backbone=backbone, weak=lambda x: x, strong=strong).fit(samples, Y)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert classifier.model_.feature_dim == 7
    assert torch.equal(samples, kept)
    rows = {tuple(row.flatten().tolist()) for row in samples}
    assert all(tuple(row.flatten().tolist()) in rows for x in seen for row in x)
    assert seen[0].shape == (8, 2, 6, 5)


# ---- ways of calling -------------------------------------------------------------------------------------------------


def test_modes_of_torch_change_nothing() -> None:
    expected = tiny().fit(X, Y).predict_proba(X)
    with torch.inference_mode():
        inference = tiny().fit(torch.from_numpy(X).clone(), Y).predict_proba(X)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        autocast = tiny().fit(X, Y).predict_proba(X)
    torch.set_default_dtype(torch.float64)
    try:
        double = tiny().fit(X, Y).predict_proba(X)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        elsewhere = tiny(device="cpu").fit(X, Y).predict_proba(X)
    for found in (inference, autocast, double, elsewhere):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == np.float64


def test_a_seed_is_drawn_where_none_is_given() -> None:
    torch.manual_seed(0)
    one, two = (tiny(random_state=None).fit(X, Y).predict_proba(X) for _ in range(2))
    torch.manual_seed(0)
    again = tiny(random_state=None).fit(X, Y).predict_proba(X)
    assert np.array_equal(one, again)
    assert not np.array_equal(one, two)


def test_in_a_pipeline_with_data_frames() -> None:
    frame = pd.DataFrame(X, columns=list("abcd"))
    pipeline = make_pipeline(StandardScaler(), tiny()).fit(frame, Y)
    assert pipeline.predict(frame).shape == (36,)
    assert tiny().fit(frame, Y).feature_names_in_.tolist() == list("abcd")


def test_score() -> None:
    """Of arrays and tensors of every type; samples whose label is not known do not count."""
    classifier = tiny(max_steps=9).fit(X, Y)
    right = classifier.predict(X) == TRUTH
    assert 0.3 < right.mean() < 1
    assert classifier.score(X, TRUTH) == pytest.approx(right.mean())
    assert classifier.score(X, Y) == pytest.approx(right[:9].mean())
    assert classifier.score(torch.from_numpy(X), torch.from_numpy(TRUTH)) == pytest.approx(right.mean())
    half = torch.from_numpy(X).bfloat16()
    assert classifier.score(half, TRUTH) == pytest.approx((classifier.predict(half).numpy() == TRUTH).mean())
    weights = np.arange(36)
    assert classifier.score(X, TRUTH, weights) == pytest.approx(np.average(right, weights=weights))
    assert classifier.score(X, Y, weights) == pytest.approx(np.average(right[:9], weights=weights[:9]))
    assert classifier.score(X, 7 + TRUTH) == 0
    check_errors(
        [
            (lambda: classifier.score(X, np.full(36, -1)), ValueError, "y must hold a label"),
            (lambda: classifier.score(X, Y, (Y == -1).astype(float)), ValueError, "of positive weight"),
            (lambda: classifier.score(X, TRUTH[:-1]), ValueError, "y must have length 36"),
        ]
    )


def test_a_backbone_that_works_in_place() -> None:
    """The user's samples are not its memory, in training and in prediction."""

    class Halved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.mul_(0.5))

    samples = torch.from_numpy(X.copy())
    classifier = tiny(backbone=Halved()).fit(samples, Y)
    first = classifier.predict_proba(samples)
    assert torch.equal(classifier.predict_proba(samples), first)
    assert torch.equal(samples, torch.from_numpy(X))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_backbone_of_another_type_is_trained_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    backbone = nn.Linear(4, 3).to(dtype)
    classifier = tiny(backbone=backbone).fit(X, Y)
    assert classifier.model_.backbone.weight.dtype == torch.float32
    assert backbone.weight.dtype == dtype
    wide = tiny(backbone=copy.deepcopy(backbone).float()).fit(X, Y)
    np.testing.assert_array_equal(classifier.predict_proba(X), wide.predict_proba(X))


def test_what_fails_changes_nothing() -> None:
    classifier = tiny().fit(X, Y)
    expected = classifier.predict_proba(X)
    with pytest.raises(ValueError, match="y must"):
        classifier.fit(IMAGES, np.full(36, -1))
    assert np.array_equal(classifier.predict_proba(X), expected)
    with pytest.raises(NotFittedError, match="classes_"):
        _ = tiny().classes_


@pytest.mark.gpu
def test_trains_where_the_tensor_is() -> None:
    samples = torch.from_numpy(X).cuda()
    classifier = tiny().fit(samples, torch.from_numpy(Y).cuda())
    assert classifier.predict(samples).is_cuda
    assert classifier.model_.head.weight.is_cuda
